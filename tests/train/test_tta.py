from __future__ import annotations

import numpy as np
import pytest

from train.augmentation import NONE, Augmentation, random_affine, warp
from train.tta import SEED, geometric, mean_answers

_MOVES = Augmentation(rotation_deg=20, translation=0.1, zoom=0.2, shear_deg=8, gain=0.2, gamma=0.3, flip=True)
_SIDE = 96


def _brightness(images: np.ndarray) -> np.ndarray:
    share = images.mean(axis=(1, 2, 3)) / 255
    return np.stack([share, 1 - share], axis=1)


def _bright(images: np.ndarray) -> np.ndarray:
    return (images[..., 0] > 127).astype(np.uint8)


def _disc(radius: float = 25, centre: tuple[float, float] = (44, 52)) -> np.ndarray:
    y, x = np.mgrid[:_SIDE, :_SIDE]
    return np.where((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2, 255, 0).astype(np.uint8)


def test_probabilities_are_the_mean_over_the_scan_and_its_seeded_copies() -> None:
    scans = np.stack([_disc(), _disc(10)])
    moves = geometric(_MOVES)
    got = mean_answers(_brightness, scans, 5, moves)
    views = [scans[1]]
    for k in range(5):
        matrix = random_affine(np.random.default_rng([SEED, 1, k]), moves, _SIDE, _SIDE)
        views.append(warp(scans[1], matrix, _SIDE))
    expected = np.mean([v.mean() / 255 for v in views])
    assert got[1, 0] == pytest.approx(expected)
    np.testing.assert_array_equal(got, mean_answers(_brightness, scans, 5, moves))
    assert not np.allclose(got, mean_answers(_brightness, scans, 5, moves, seed=1))


def test_a_copy_is_moved_and_not_recoloured() -> None:
    moves = geometric(_MOVES)
    assert (moves.gain, moves.gamma, moves.base_scale) == (0, 0, 1)
    assert (moves.rotation_deg, moves.flip) == (20, True)


def test_without_copies_the_answers_are_the_models_own() -> None:
    scans = np.stack([_disc(), _disc(10)])
    np.testing.assert_allclose(
        mean_answers(_brightness, scans, 0, NONE), _brightness(np.repeat(scans[..., None], 3, -1))
    )
    masks = mean_answers(_bright, scans, 0, NONE, n_classes=2)
    np.testing.assert_array_equal(masks, scans > 127)
    assert masks.dtype == np.uint8


def test_votes_come_back_to_where_the_scan_has_them() -> None:
    scan = _disc()
    mask = mean_answers(_bright, [scan], 40, geometric(_MOVES), n_classes=2)[0]
    truth = scan > 127
    dice = 2 * (truth & (mask == 1)).sum() / (truth.sum() + (mask == 1).sum())
    # A shift by one pixel would cost 0.03 of a disc of this size, a missing warp far more.
    assert dice > 0.99


def test_most_votes_win() -> None:
    calls = 0

    def one_wrong_answer(images: np.ndarray) -> np.ndarray:
        nonlocal calls
        masks = np.ones(images.shape[:3], np.uint8)
        if calls == 0:
            masks[0] = 2
        calls += 1
        return masks

    mask = mean_answers(one_wrong_answer, [_disc()], 4, NONE, n_classes=3)[0]
    assert set(np.unique(mask)) == {1}


def test_what_a_copy_does_not_show_is_left_to_the_others() -> None:
    # Every copy lies half outside the frame. Where none shows the scan, its own answer stands; background got no vote.
    far = Augmentation(rotation_deg=0, translation=0.9, zoom=0, shear_deg=0, gain=0, gamma=0)
    everything = np.full((_SIDE, _SIDE), 255, np.uint8)

    def always(images: np.ndarray) -> np.ndarray:
        return np.ones(images.shape[:3], np.uint8)

    mask = mean_answers(always, [everything], 10, far, n_classes=2)[0]
    assert mask.min() == 1


def test_a_negative_number_of_copies_is_refused() -> None:
    with pytest.raises(ValueError, match="got -1"):
        mean_answers(_brightness, [_disc()], -1, NONE)
