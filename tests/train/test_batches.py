from __future__ import annotations

import numpy as np
import pytest

from serving.errors import DatasetError
from train.augmentation import Augmentation
from train.batches import Arrays, PlainBatches, TrainingBatches, in_three_channels, sampling_weights
from train.data import Example
from train.targets import Code


def _example(source: str, i: int = 0) -> Example:
    return Example(path=f"{source}/{i}", modality="ct", group=f"g{i}", source=source, split="train", target=(1.0, 0.0))


def _arrays(*, codes: bool) -> Arrays:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (5, 64, 64), dtype=np.uint8)
    return Arrays(
        [_example("a", i) for i in range(5)], images, np.full_like(images, Code.GROUND_GLASS) if codes else None
    )


def _batches(arrays: Arrays, seed: int = 1) -> TrainingBatches:
    return TrainingBatches(
        arrays, batch_size=3, steps=4, augmentation=Augmentation(), crop_px=48, mixture={}, seed=seed
    )


def test_a_step_follows_from_seed_epoch_and_number():
    a, b = _batches(_arrays(codes=True)), _batches(_arrays(codes=True))
    assert all(np.array_equal(x, y) for x, y in zip(a[2], b[2], strict=True))
    b.epoch = 1
    assert not np.array_equal(a[2][0], b[2][0])
    assert not np.array_equal(a[2][0], a[3][0])
    assert not np.array_equal(a[2][0], _batches(_arrays(codes=True), seed=2)[2][0])


def test_segmentation_batches_carry_codes_of_the_crop():
    images, codes = _batches(_arrays(codes=True))[0]
    assert images.shape == (3, 48, 48, 3)
    assert images.dtype == np.uint8
    assert codes.shape == (3, 48, 48)
    assert set(np.unique(codes)) <= {Code.GROUND_GLASS, Code.OUTSIDE}


def test_classification_batches_carry_targets():
    _, targets = _batches(_arrays(codes=False))[0]
    assert targets.tolist() == [[1.0, 0.0]] * 3


def test_validation_sees_every_scan_once_as_it_is():
    arrays = _arrays(codes=True)
    batches = PlainBatches(arrays, batch_size=2)
    seen = np.concatenate([batches[i][0] for i in range(len(batches))])
    assert np.array_equal(seen, in_three_channels(arrays.images))


def test_a_mixture_gives_each_source_its_share():
    examples = [_example("big", i) for i in range(90)] + [_example("small", i) for i in range(10)]
    weights = sampling_weights(examples, {"big": 0.25, "small": 0.75})
    assert weights.sum() == pytest.approx(1)
    assert weights[90:].sum() == pytest.approx(0.75)


def test_without_a_mixture_small_sources_gain_but_do_not_rule():
    examples = [_example("big", i) for i in range(90)] + [_example("small", i) for i in range(10)]
    share = sampling_weights(examples, {})[90:].sum()
    assert 0.1 < share < 0.5


def test_a_mixture_without_scans_is_refused():
    with pytest.raises(DatasetError, match="nodule"):
        sampling_weights([_example("a")], {"nodule": 1.0})
