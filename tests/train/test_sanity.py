"""Maps explain what was learned: other weights, other maps (Adebayo et al. 2018)."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from serving.pipeline import RECOGNITION
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, versions
from serving.trial_scans import drawn_scans
from train.activation_maps import without_activation
from train.sanity import LAYERS, cascade, maps_of, rank_correlations, shuffled, weights_from_the_top
from train.ungating import ungated


@pytest.fixture(scope="module")
def published() -> onnx.ModelProto:
    present = versions(DEFAULT_REPOSITORY / RECOGNITION.model)
    if not present:
        pytest.skip("needs the published models")
    gated = onnx.load(DEFAULT_REPOSITORY / RECOGNITION.model / str(present[-1]) / ONNX_NAME)
    return without_activation(ungated(gated))


def values(network: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in network.graph.initializer}


def test_layers_are_shuffled_from_the_dense_one_down(published: onnx.ModelProto) -> None:
    names = weights_from_the_top(published)
    assert len(names) == LAYERS
    before = values(published)
    assert before[names[0]].shape == (2048, 4)
    after = values(shuffled(published, 3, seed=1))
    changed = [name for name in before if not np.array_equal(before[name], after[name])]
    assert sorted(changed) == sorted(names[:3])
    for name in changed:
        np.testing.assert_array_equal(np.sort(before[name], axis=None), np.sort(after[name], axis=None))
    assert shuffled(published, 3, seed=1) == shuffled(published, 3, seed=1)


def test_the_same_network_has_the_same_maps_and_other_weights_have_others(published: onnx.ModelProto) -> None:
    images = drawn_scans(RECOGNITION)[[0, -1]]
    np.testing.assert_array_equal(maps_of(published, images), maps_of(published, images))
    found = dict(cascade(published, images, depths=(0, 1, LAYERS), seeds=(1,)))
    assert (found[0] == 1).all()
    assert np.abs(found[1]).mean() < 0.6
    assert np.abs(found[LAYERS]).mean() < 0.6


def test_ranks_and_not_sizes_are_compared() -> None:
    maps = np.random.default_rng(4).normal(size=(2, 4, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(rank_correlations(maps, np.exp(maps)), 1, atol=1e-6)
    np.testing.assert_allclose(rank_correlations(maps, -maps), -1, atol=1e-6)
    flat = maps.copy()
    flat[1, 2] = 0
    correlations = rank_correlations(maps, flat)
    assert np.isnan(correlations[1, 2])
    assert np.isfinite(np.delete(correlations.ravel(), 6)).all()
