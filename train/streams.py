"""Whether a stream for each manifestation segments better than one stream for all (the paper's Tables 6 and 8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from serving.labels import ALL_STREAM, MANIFESTATION_NAMES
from train.batches import Arrays
from train.metrics import BinaryCounts
from train.scoring import clean, grouped_interval, mask_pairs
from train.targets import INFECTION_STREAM

Json = Any
Masks = tuple[Arrays, UInt8[np.ndarray, "n h w"]]
"""Slices with codes, and a stream's class ids for them."""
ALL, SPECIALISED = "all_class", "specialised"
STREAMS_COMPARED: Final = "streams_compared"
"""Of the results: what `compare_streams` gives, beside the figures by model."""
INFECTED: Final = ("ground_glass", "consolidation")
"""What the binary annotation of an infection holds."""


def compare_streams(all_class: Masks, specialised: Mapping[str, Masks]) -> dict[str, Json]:
    """Both kinds of stream on the same slices and the same pixels.

    Args:
        all_class: Of the stream of all manifestations.
        specialised: Of the others, by manifestation. Slices that one side lacks are left out.

    Returns:
        ``classes``: for each manifestation pooled Dice and IoU of both, and the Dice of the specialised stream minus
        that of the all-class one with a 95 % bootstrap that draws groups, the same for both. ``overall``: means over
        the classes, likewise. ``infection``: ground-glass and consolidation as one class, where either was annotated.
    """
    counts, there, groups = _paired_counts(all_class, specialised)
    result: dict[str, Json] = {"classes": {}}
    for c, name in enumerate(MANIFESTATION_NAMES):
        rows = np.flatnonzero(there[:, c])
        result["classes"][name] = _figures(counts[rows][:, [c]], [groups[i] for i in rows])
    result["overall"] = _figures(counts, groups)
    result["infection"] = _infection(all_class, specialised)
    return dict(clean(result))


def _paired_counts(
    all_class: Masks, specialised: Mapping[str, Masks]
) -> tuple[Int[np.ndarray, "n classes kinds 3"], Bool[np.ndarray, "n classes"], list[str]]:
    """True positives, false positives and false negatives of each slice by class and kind of stream, and its group.

    Between them: whether the slice's source annotates the class; where it does not, the counts are 0.
    """
    table: dict[str, Int[np.ndarray, "classes kinds 3"]] = {}
    there: dict[str, Bool[np.ndarray, " classes"]] = {}
    groups: dict[str, str] = {}
    for c, name in enumerate(MANIFESTATION_NAMES):
        class_id = c + 1
        # What the all-class stream knows of the class is the truth for both: the same pixels are counted.
        sides = [
            _by_name(arrays, mask_pairs(arrays, answered, ALL_STREAM.name, class_id))
            for arrays, answered in (
                (all_class[0], all_class[1] == class_id),
                (specialised[name][0], specialised[name][1] == 1),
            )
        ]
        group_of = {e.name: e.group for e in all_class[0].examples}
        for slice_name in sides[0].keys() & sides[1].keys():
            cell = table.setdefault(slice_name, np.zeros((len(MANIFESTATION_NAMES), 2, 3), np.int64))
            there.setdefault(slice_name, np.zeros(len(MANIFESTATION_NAMES), bool))[c] = True
            cell[c] = [_three(BinaryCounts.of(*side[slice_name])) for side in sides]
            groups[slice_name] = group_of[slice_name]
    names = sorted(table)
    return (
        np.stack([table[name] for name in names]),
        np.stack([there[name] for name in names]),
        [groups[name] for name in names],
    )


def _by_name(arrays: Arrays, pairs: Mapping[int, Any]) -> dict[str, Any]:
    return {arrays.examples[i].name: pair for i, pair in pairs.items()}


def _three(counts: BinaryCounts) -> tuple[int, int, int]:
    return counts.tp, counts.fp, counts.fn


def _means(counts: Int[np.ndarray, "n classes kinds 3"]) -> Float[np.ndarray, "2 kinds"]:
    """Dice and IoU of each kind, pooled over the slices, then the mean over the classes; NaN where one has none."""
    tp, fp, fn = np.moveaxis(counts.sum(axis=0), -1, 0).astype(float)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.stack([2 * tp / (2 * tp + fp + fn), tp / (tp + fp + fn)]).mean(axis=1))


def _figures(counts: Int[np.ndarray, "n classes kinds 3"], groups: Sequence[str]) -> dict[str, Json]:
    (dice, iou) = _means(counts)

    def difference(rows: Int[np.ndarray, " m"]) -> float:
        values = _means(counts[rows])[0]
        return float(values[1] - values[0])

    return {
        "n_slices": len(counts),
        "n_groups": len(set(groups)),
        ALL: {"dice": dice[0], "iou": iou[0]},
        SPECIALISED: {"dice": dice[1], "iou": iou[1]},
        "difference": dice[1] - dice[0],
        "difference_95": grouped_interval(groups, difference),
    }


def _infection(all_class: Masks, specialised: Mapping[str, Masks]) -> dict[str, Json]:
    arrays, masks = all_class
    lesions = [i + 1 for i, name in enumerate(MANIFESTATION_NAMES) if name in INFECTED]
    answers: dict[str, list[Bool[np.ndarray, "h w"]]] = {}
    for name in INFECTED:
        for example, mask in zip(specialised[name][0].examples, specialised[name][1], strict=True):
            answers.setdefault(example.name, []).append(mask == 1)
    rows = [i for i, e in enumerate(arrays.examples) if len(answers.get(e.name, [])) == len(INFECTED)]
    chosen = arrays.select(rows)
    answered = (np.isin(masks[rows], lesions), np.array([np.any(answers[e.name], axis=0) for e in chosen.examples]))
    sides = [mask_pairs(chosen, side, INFECTION_STREAM, 1) for side in answered]
    counts = np.array([[[_three(BinaryCounts.of(*side[i])) for side in sides]] for i in sides[0]], dtype=np.int64)
    return _figures(counts.reshape(-1, 1, 2, 3), [chosen.examples[i].group for i in sides[0]])
