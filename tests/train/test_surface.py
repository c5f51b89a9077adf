from __future__ import annotations

import math

import numpy as np
import pytest
import surface_distance as reference
from scipy import ndimage

from train.surface import TOLERANCE_PX, surface_scores


def _square(top: int, left: int, side: int = 20, size: int = 64) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def _blobs(seed: int, share: float) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((90, 70)), 4)
    return np.asarray(field > np.quantile(field, 1 - share))


# The library calls SciPy by names that are on their way out.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("spacing_hw", [(1.0, 1.0), (0.7, 1.9)])
@pytest.mark.parametrize("seed", range(6))
def test_figures_are_those_of_deepminds_library(seed, spacing_hw):
    truth, predicted = _blobs(seed, 0.2), _blobs(seed, 0.2) ^ _blobs(seed + 100, 0.02)
    distances = reference.compute_surface_distances(truth, predicted, spacing_hw)
    scores = surface_scores(truth, predicted, spacing_hw=spacing_hw)
    assert scores.hd95 == pytest.approx(reference.compute_robust_hausdorff(distances, 95), abs=1e-9)
    expected = reference.compute_surface_dice_at_tolerance(distances, TOLERANCE_PX)
    assert scores.nsd == pytest.approx(expected, abs=1e-9)


# Noise at 1 px is all corners and diagonals, the codes that smooth outlines seldom have.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_figures_are_those_of_deepminds_library_on_ragged_masks():
    rng = np.random.default_rng(3)
    truth, predicted = rng.random((2, 40, 30)) < 0.1
    distances = reference.compute_surface_distances(truth, predicted, (1, 1))
    scores = surface_scores(truth, predicted, tolerance=1)
    assert scores.hd95 == pytest.approx(reference.compute_robust_hausdorff(distances, 95))
    assert scores.nsd == pytest.approx(reference.compute_surface_dice_at_tolerance(distances, 1))


def test_equal_masks_are_perfect():
    scores = surface_scores(_square(3, 5), _square(3, 5))
    assert (scores.hd95, scores.nsd) == (0, 1)


@pytest.mark.parametrize("shift", [1, 2, 5, 9])
def test_a_square_moved_sideways_is_off_by_as_much(shift):
    a, b = _square(20, 10), _square(20, 10 + shift)
    # The sides, a quarter of the outline each, are off by the whole shift.
    assert surface_scores(a, b).hd95 == shift
    assert surface_scores(a, b, spacing_hw=(3.0, 0.5), tolerance=0).hd95 == shift * 0.5


def test_a_square_moved_by_the_tolerance_still_counts_and_by_more_loses_its_side():
    a = _square(20, 10)
    assert surface_scores(a, _square(20, 12), tolerance=2).nsd == 1
    moved = surface_scores(a, _square(20, 15), tolerance=2)
    # Of each outline: the outer side with its corners and two pieces of the edges beside it; and the inner side but for
    # two pieces at each end, which lie near the other square's edges.
    outline = 4 * 19 + 4 * math.sqrt(0.5)
    lost = (19 + 2 * math.sqrt(0.5) + 2 * 2) + (19 - 2 * 2)
    assert moved.nsd == pytest.approx(1 - lost / outline)


def test_scores_are_symmetric():
    a, b = _blobs(1, 0.2), _blobs(2, 0.3)
    assert surface_scores(a, b) == surface_scores(b, a)


def test_five_percent_of_an_outline_may_be_far():
    near = _square(20, 10, 40, 128)
    specked = near.copy()
    specked[120, 120] = True
    assert surface_scores(near, specked).hd95 == 0
    specked[100:110, 100:110] = True
    assert surface_scores(near, specked).hd95 > 40


def test_no_outline_on_either_side_has_no_score():
    nothing = np.zeros((30, 40), bool)
    scores = surface_scores(nothing, nothing)
    assert math.isnan(scores.hd95)
    assert math.isnan(scores.nsd)


@pytest.mark.parametrize("swap", [False, True])
def test_an_outline_on_one_side_alone_is_the_worst(swap):
    pair = [np.zeros((30, 40), bool), np.ones((30, 40), bool)]
    scores = surface_scores(*(pair[::-1] if swap else pair), spacing_hw=(2.0, 2.0))
    assert (scores.hd95, scores.nsd) == (100, 0)


def test_a_mask_that_fills_the_image_has_its_edge_as_outline():
    assert surface_scores(np.ones((9, 9), bool), np.ones((9, 9), bool)).hd95 == 0


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match=r"one shape, got \(4, 4\) and \(4, 5\)"):
        surface_scores(np.zeros((4, 4), bool), np.zeros((4, 5), bool))
