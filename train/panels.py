"""Masks beside their scans (the paper's Figs. 10 and 11), and which slices to show.

A panel shows a scan, so it is drawn at run time, where the scans are, and never committed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from serving.labels import ALL_STREAM, MANIFESTATION_NAMES, MANIFESTATIONS
from train.batches import Arrays, Predictor, in_batches
from train.figures import RESEARCH_ONLY
from train.metrics import BinaryCounts
from train.scoring import mask_pairs
from train.streams import Masks
from train.targets import admissible_table, certain_and_known

RULE: Final = "best, median and worst Dice of the all-class stream among the test slices with the manifestation"
_ALPHA: Final = 0.55
_CELL_IN: Final = 2.3


def picked_rows(dice: Mapping[int, float]) -> list[tuple[str, int]]:
    """The best, the median and the worst of some slices, each once.

    Args:
        dice: By row.

    Returns:
        What it is and its row; of an even number the better of the two in the middle; of equals the first row.
    """
    order = sorted(dice, key=lambda row: (-dice[row], row))
    if not order:
        return []
    places = {"best": 0, "median": (len(order) - 1) // 2, "worst": len(order) - 1}
    chosen: dict[int, str] = {}
    for name, place in places.items():
        chosen.setdefault(order[place], name)
    return [(name, row) for row, name in chosen.items()]


def slice_dice(arrays: Arrays, masks: UInt8[np.ndarray, "n h w"], stream: str, class_id: int) -> dict[int, float]:
    """Dice of one class by row, of the slices in which it is annotated; other pixels and slices are left out."""
    pairs = mask_pairs(arrays, masks == class_id, stream, class_id)
    return {i: BinaryCounts.of(*pair).dice for i, pair in pairs.items() if pair[0].any()}


def annotated(codes: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """What was certainly annotated, as class ids of the all-class stream."""
    certain, _ = certain_and_known(admissible_table(ALL_STREAM.name))
    classes = np.where(certain[:, 1:].any(axis=1), certain.argmax(axis=1), 0)
    return np.asarray(classes[codes], dtype=np.uint8)


def overlay(image: UInt8[np.ndarray, "h w"], mask: UInt8[np.ndarray, "h w"]) -> Float[np.ndarray, "h w 3"]:
    """A grey scan with the classes of a mask in their colours; values in `[0, 1]`."""
    colours = np.array([(0, 0, 0), *(label.colour_rgb for label in MANIFESTATIONS)], dtype=float) / 255
    grey = np.repeat(image[..., None], 3, axis=-1) / 255
    return np.asarray(np.where((mask > 0)[..., None], (1 - _ALPHA) * grey + _ALPHA * colours[mask], grey))


def draw_panel(name: str, all_class: Masks, streams: Mapping[str, Predictor]) -> Figure:
    """The picked slices of one manifestation: scan, annotation, all-class stream, each specialised stream.

    Args:
        name: The manifestation by which slices are picked, by `RULE`.
        all_class: Slices with codes, and the all-class stream's answers.
        streams: The specialised streams by manifestation, which are asked about the picked slices.

    Raises:
        ValueError: If the slices have no codes.
    """
    arrays, masks = all_class
    class_id = MANIFESTATION_NAMES.index(name) + 1
    dice = slice_dice(arrays, masks, ALL_STREAM.name, class_id)
    rows = picked_rows(dice)
    titles = ["scan", "annotation", "all-class stream", *(f"stream: {label.title.lower()}" for label in MANIFESTATIONS)]
    figure = Figure(figsize=(_CELL_IN * len(titles) + 0.4, _CELL_IN * max(len(rows), 1) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{MANIFESTATIONS[class_id - 1].title}: {RULE}", fontsize=11)
    for i, (what, row) in enumerate(rows):
        for j, (title, cell) in enumerate(zip(titles, _cells(row, arrays, masks, streams), strict=True)):
            axes = figure.add_subplot(len(rows), len(titles), i * len(titles) + j + 1)
            axes.imshow(cell, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title(title, fontsize=9)
            if j == 0:
                axes.set_ylabel(f"{what}, Dice {dice[row]:.2f}", fontsize=9)
    patches = [Patch(color=np.array(k.colour_rgb) / 255, label=k.title) for k in MANIFESTATIONS]
    figure.legend(handles=patches, loc="outside lower left", ncols=len(patches), fontsize=9, frameon=False)
    figure.text(0.995, 0.012, RESEARCH_ONLY, ha="right", va="bottom", fontsize=9)
    return figure


def _cells(
    row: int, arrays: Arrays, masks: UInt8[np.ndarray, "n h w"], streams: Mapping[str, Predictor]
) -> list[Float[np.ndarray, "h w ..."]]:
    if arrays.codes is None:
        raise ValueError("expected arrays with codes, got none")
    image = np.asarray(arrays.images[row])
    cells = [image / 255, overlay(image, annotated(arrays.codes[row])), overlay(image, masks[row])]
    for class_id, name in enumerate(MANIFESTATION_NAMES, start=1):
        answer = in_batches(streams[name], [image], 1)[0]
        cells.append(overlay(image, np.where(answer == 1, class_id, 0).astype(np.uint8)))
    return cells
