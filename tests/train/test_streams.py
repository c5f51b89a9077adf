from __future__ import annotations

import numpy as np
import pytest

from train.batches import Arrays
from train.data import Example
from train.report_streams import stream_verdict
from train.streams import compare_streams
from train.targets import Code

_ALL_CODES = ((0, Code.ANNOTATED_BACKGROUND), (1, Code.GROUND_GLASS), (2, Code.CONSOLIDATION))
_ALL_CODES = (*_ALL_CODES, (3, Code.PLEURAL_EFFUSION))
_NAMES = ("ground_glass", "consolidation", "pleural_effusion")


def _slices(n: int = 6) -> Arrays:
    """Each slice has all three: rows 0-3 ground-glass, 4-7 consolidation, 8-11 effusion, the rest background."""
    codes = np.full((n, 16, 16), Code.ANNOTATED_BACKGROUND, np.uint8)
    for i, code in enumerate((Code.GROUND_GLASS, Code.CONSOLIDATION, Code.PLEURAL_EFFUSION)):
        codes[:, 4 * i : 4 * i + 4] = code
    examples = [Example(str(i), "ct", f"g{i // 2}", "s", "test", codes=_ALL_CODES) for i in range(n)]
    return Arrays(examples, np.zeros_like(codes), codes)


def _perfect(arrays: Arrays) -> np.ndarray:
    masks = np.zeros(arrays.images.shape, np.uint8)
    for i in range(3):
        masks[:, 4 * i : 4 * i + 4] = i + 1
    return masks


def _specialised(arrays: Arrays, masks: np.ndarray) -> dict[str, tuple[Arrays, np.ndarray]]:
    return {name: (arrays, (masks == i + 1).astype(np.uint8)) for i, name in enumerate(_NAMES)}


def test_streams_that_say_the_same_do_not_differ() -> None:
    arrays = _slices()
    masks = _perfect(arrays)
    masks[:, 2:4] = 0
    figures = compare_streams((arrays, masks), _specialised(arrays, masks))
    entry = figures["classes"]["ground_glass"]
    assert entry["all_class"] == entry["specialised"] == {"dice": pytest.approx(2 / 3, abs=1e-4), "iou": 0.5}
    assert entry["difference"] == 0
    assert entry["difference_95"] == [0, 0]
    assert (entry["n_slices"], entry["n_groups"]) == (6, 3)
    assert figures["overall"]["all_class"]["dice"] == pytest.approx((2 / 3 + 2) / 3, abs=1e-4)
    assert stream_verdict(figures).startswith("Not shown")


def test_a_better_stream_is_seen_and_said() -> None:
    arrays = _slices()
    perfect, worse = _perfect(arrays), _perfect(arrays)
    worse[:, 2:4] = 0
    worse[0, 12:] = 2
    figures = compare_streams((arrays, worse), _specialised(arrays, perfect))
    entry = figures["classes"]["ground_glass"]
    assert entry["difference"] == pytest.approx(1 / 3, abs=1e-4)
    assert entry["difference_95"] == [pytest.approx(1 / 3, abs=1e-4)] * 2
    # One group of three is worse for consolidation, so a draw without it shows no difference.
    assert figures["classes"]["consolidation"]["difference_95"][0] == 0
    text = stream_verdict(figures)
    assert text.startswith("Yes, on average")
    assert "better for ground-glass opacity." in text
    assert "Not told apart: consolidation, pleural effusion." in text
    swapped = compare_streams((arrays, perfect), _specialised(arrays, worse))
    assert swapped["overall"]["difference"] == -figures["overall"]["difference"]
    assert stream_verdict(swapped).startswith("No, on average the all-class stream is better")


def test_only_slices_that_both_have_seen_are_compared() -> None:
    arrays = _slices()
    masks = _perfect(arrays)
    fewer = arrays.select([0, 1, 2])
    specialised = {**_specialised(arrays, masks), "ground_glass": (fewer, (masks[:3] == 1).astype(np.uint8))}
    figures = compare_streams((arrays, masks), specialised)
    assert figures["classes"]["ground_glass"]["n_slices"] == 3
    assert figures["classes"]["consolidation"]["n_slices"] == 6


def test_an_infection_is_ground_glass_or_consolidation_whichever_was_said() -> None:
    arrays = _slices(2)
    codes = np.full((2, 16, 16), Code.INFECTION_BACKGROUND, np.uint8)
    codes[:, :8] = Code.INFECTION
    volume = [
        Example(f"v{i}", "ct", "v", "volume", "test", codes=((0, Code.INFECTION_BACKGROUND), (1, Code.INFECTION)))
        for i in range(2)
    ]
    both = Arrays([*arrays.examples, *volume], np.zeros((4, 16, 16), np.uint8), np.concatenate([arrays.codes, codes]))  # type: ignore[list-item]
    masks = _perfect(both)
    masks[:, 4:8] = 1
    figures = compare_streams((both, masks), _specialised(both, masks))["infection"]
    assert (figures["n_slices"], figures["n_groups"]) == (4, 2)
    assert figures["all_class"]["dice"] == figures["specialised"]["dice"] == 1
