from __future__ import annotations

import numpy as np
import pytest

from train import paper
from train.augmentation import NONE, Augmentation
from train.batches import Arrays, TrainingBatches, copy_of
from train.copies import TEST, TRAIN, VAL, bag, materialise, rescaled
from train.data import Example
from train.targets import Code

_SIZE = 32


def _arrays(n: int = 4) -> Arrays:
    rng = np.random.default_rng(0)
    images = rng.integers(1, 255, (n, _SIZE, _SIZE), dtype=np.uint8)
    examples = [Example(path=f"{i}", modality="ct", group=f"g{i}", source="s", split="train") for i in range(n)]
    return Arrays(examples, images, np.full_like(images, Code.GROUND_GLASS))


def test_the_bag_puts_the_papers_share_on_each_side():
    sides = bag(100, 34, seed=1)
    assert sides.shape == (100, 35)
    for side in (VAL, TEST):
        assert (sides == side).mean() == pytest.approx(paper.TEST_SHARE, abs=1e-3)
    # Which is what the protocol is about: almost every scan is on several sides at once.
    assert ((sides == TRAIN).any(axis=1) & (sides == TEST).any(axis=1)).mean() > 0.9
    assert np.array_equal(sides, bag(100, 34, seed=1))
    assert not np.array_equal(sides, bag(100, 34, seed=2))


def test_a_copy_is_always_the_same_and_copy_0_is_the_scan():
    arrays = _arrays()
    image, codes = copy_of(arrays, 1, 0, Augmentation(), 5, _SIZE)
    assert np.array_equal(image, arrays.images[1])
    assert np.array_equal(codes, arrays.codes[1])
    first, again = (copy_of(arrays, 1, 3, Augmentation(), 5, _SIZE) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    for row, view, seed in ((1, 2, 5), (2, 3, 5), (1, 3, 6)):
        assert not np.array_equal(first[0], copy_of(arrays, row, view, Augmentation(), seed, _SIZE)[0])


def test_copy_0_has_the_size_of_the_scan():
    with pytest.raises(ValueError, match="expected crops of 32 px"):
        copy_of(_arrays(), 0, 0, NONE, 0, 16)


def test_a_run_draws_only_the_copies_that_it_may():
    arrays = _arrays()
    may = np.zeros((4, 6), dtype=bool)
    may[0, [2, 4]] = may[3, 1] = True
    allowed = {copy_of(arrays, r, k, Augmentation(), 9, _SIZE)[0].tobytes() for r, k in np.argwhere(may)}
    batches = TrainingBatches(
        arrays, batch_size=8, steps=3, augmentation=Augmentation(), crop_px=_SIZE, mixture={}, seed=9, copies=may
    )
    seen = {image[..., 0].tobytes() for step in range(3) for image in batches[step][0]}
    assert seen == allowed


def test_what_is_held_out_is_never_drawn():
    arrays = _arrays()
    sides = bag(4, 10, seed=3)
    held_out = materialise(arrays, sides != TRAIN, Augmentation(), 3)
    assert len(held_out.examples) == (sides != TRAIN).sum() == len(held_out.images)
    batches = TrainingBatches(
        arrays, batch_size=50, steps=4, augmentation=Augmentation(), crop_px=_SIZE, mixture={}, seed=3,
        copies=sides == TRAIN,
    )  # fmt: skip
    drawn = {image[..., 0].tobytes() for step in range(4) for image in batches[step][0]}
    assert len(drawn) > 20
    assert drawn.isdisjoint({image.tobytes() for image in held_out.images})


def test_at_most_so_many_copies_are_made():
    assert len(materialise(_arrays(), np.ones((4, 5), dtype=bool), NONE, 0, limit=7).images) == 7


def test_scans_come_at_the_scale_at_which_they_are_trained():
    image = np.zeros((1, 64, 64), np.uint8)
    image[:, 16:48, 16:48] = 200
    codes = np.where(image > 0, Code.NODULE, Code.NODULE_BACKGROUND).astype(np.uint8)
    small = rescaled(Arrays(_arrays(1).examples, image, codes), 0.25, 16)
    assert small.images.shape == small.codes.shape == (1, 16, 16)
    assert (small.codes == Code.NODULE).mean() == pytest.approx(0.25, abs=0.1)
    assert small.images[0, 8, 8] == 200
    assert small.images[0, 1, 1] == 0
