from __future__ import annotations

import numpy as np
import pytest

from train.augmentation import NONE, Augmentation, jitter, random_affine, warp
from train.targets import Code


def _square(size: int = 64) -> np.ndarray:
    image = np.zeros((size, size), np.uint8)
    image[10:30, 20:50] = 200
    return image


def test_no_augmentation_changes_nothing():
    image = _square()
    matrix = random_affine(np.random.default_rng(0), NONE, 64, 64)
    assert np.array_equal(warp(image, matrix, 64), image)
    assert np.array_equal(jitter(np.random.default_rng(0), NONE, image), image)


@pytest.mark.parametrize("seed", range(5))
def test_image_and_mask_move_together(seed):
    image = _square()
    matrix = random_affine(np.random.default_rng(seed), Augmentation(flip=True), 64, 48)
    moved, mask = warp(image, matrix, 48), warp(np.where(image, 3, 0).astype(np.uint8), matrix, 48, is_mask=True)
    assert set(np.unique(mask)) <= {0, 3}
    # They may differ where interpolation blurs the border: compare the solid parts.
    assert (mask[moved > 190] == 3).all()
    assert (mask[moved < 10] == 0).all()


def test_the_same_generator_gives_the_same_map():
    a, b = (random_affine(np.random.default_rng(3), Augmentation(), 512, 384) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, random_affine(np.random.default_rng(4), Augmentation(), 512, 384))


def test_what_lies_outside_a_mask_is_marked_so():
    shift = np.array([[1.0, 0, 40], [0, 1, 0]])
    mask = warp(np.zeros((64, 64), np.uint8), shift, 64, is_mask=True, border=Code.OUTSIDE)
    assert (mask[:, :40] == Code.OUTSIDE).all()
    assert (mask[:, 40:] == 0).all()


def test_a_base_scale_brings_enlarged_crops_down():
    half = Augmentation(0, 0, 0, 0, 0, 0, base_scale=0.5)
    matrix = random_affine(np.random.default_rng(0), half, 64, 32)
    moved = warp(_square(), matrix, 32)
    assert moved.sum() == pytest.approx(_square().sum() / 4, rel=0.1)


def test_air_stays_black_under_jitter():
    image = _square()
    assert (jitter(np.random.default_rng(1), Augmentation(gain=0.5, gamma=0.5), image)[image == 0] == 0).all()


def test_zoom_and_shift_stay_inside_their_ranges():
    ranges = Augmentation(rotation_deg=0, translation=0.1, zoom=0.2, shear_deg=0)
    for seed in range(50):
        matrix = random_affine(np.random.default_rng(seed), ranges, 100, 100)
        assert 0.8 <= matrix[0, 0] <= 1.2
        centre = matrix @ [49.5, 49.5, 1]
        assert np.abs(centre - 49.5).max() <= 10 + 1e-9
