from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.labels import MANIFESTATIONS
from train.batches import Arrays
from train.data import Example
from train.figures import RESEARCH_ONLY
from train.gallery import write_panels
from train.panels import annotated, draw_panel, overlay, picked_rows, slice_dice
from train.targets import Code

_CODES = ((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS), (2, Code.CONSOLIDATION))
_NAMES = ("ground_glass", "consolidation", "pleural_effusion")


def _slices(n: int = 5) -> tuple[Arrays, np.ndarray]:
    codes = np.full((n, 32, 32), Code.MEDSEG_BACKGROUND, np.uint8)
    codes[:, :8] = Code.GROUND_GLASS
    codes[:, 8:12] = Code.CONSOLIDATION
    masks = np.zeros_like(codes)
    for i in range(n):
        masks[i, : 8 - i] = 1
    examples = [Example(str(i), "ct", f"g{i}", "medseg", "test", codes=_CODES) for i in range(n)]
    return Arrays(examples, np.full_like(codes, 128), codes), masks


def test_the_best_the_median_and_the_worst_are_picked() -> None:
    assert picked_rows({0: 0.1, 1: 0.9, 2: 0.5, 3: 0.7, 4: 0.3}) == [("best", 1), ("median", 2), ("worst", 0)]
    assert picked_rows({7: 0.4, 8: 0.2}) == [("best", 7), ("worst", 8)]
    assert picked_rows({3: 0.4}) == [("best", 3)]
    assert picked_rows({}) == []


def test_slices_are_graded_by_the_class_that_is_annotated_in_them() -> None:
    arrays, masks = _slices()
    dice = slice_dice(arrays, masks, "all", 1)
    assert [dice[i] for i in range(5)] == pytest.approx([2 * (8 - i) / (16 - i) for i in range(5)])


def test_an_annotation_shows_what_is_certain() -> None:
    codes = np.array([[Code.GROUND_GLASS, Code.CONSOLIDATION, Code.PLEURAL_EFFUSION, Code.INFECTION, Code.HEALTHY]])
    assert annotated(codes.astype(np.uint8)).tolist() == [[1, 2, 3, 0, 0]]


def test_an_overlay_colours_the_classes_and_nothing_else() -> None:
    image = np.full((1, 2), 100, np.uint8)
    drawn = overlay(image, np.array([[0, 2]], np.uint8))
    assert drawn[0, 0].tolist() == pytest.approx([100 / 255] * 3)
    red, _, blue = drawn[0, 1]
    assert red > blue
    assert image.tolist() == [[100, 100]]


def _everything(images: np.ndarray) -> np.ndarray:
    return np.ones(images.shape[:3], np.uint8)


def test_a_panel_shows_the_scan_its_annotation_and_each_stream(tmp_path: Path) -> None:
    arrays, masks = _slices()
    streams = dict.fromkeys(_NAMES, _everything)
    figure = draw_panel("ground_glass", (arrays, masks), streams)
    assert len(figure.axes) == 3 * (3 + len(MANIFESTATIONS))
    assert [axes.get_ylabel() for axes in figure.axes[::6]] == [
        "best, Dice 1.00",
        "median, Dice 0.86",
        "worst, Dice 0.67",
    ]
    shown = [np.asarray(axes.get_images()[0].get_array()) for axes in figure.axes[6:12]]
    assert shown[0].shape == (32, 32)
    # The median slice: the all-class stream missed its lower rows; each stream paints everything in its own colour.
    assert not np.array_equal(shown[1], shown[2])
    for label, cell in zip(MANIFESTATIONS, shown[3:], strict=True):
        assert np.array_equal(cell, overlay(arrays.images[2], np.full((32, 32), MANIFESTATIONS.index(label) + 1)))
    assert RESEARCH_ONLY in [text.get_text() for text in figure.texts]
    written = write_panels((arrays, masks), streams, tmp_path)
    assert [path.name for path in written] == [f"panels-{name}.png" for name in _NAMES]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
