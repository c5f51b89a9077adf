"""Whether two forms of a network say the same of the same scans, and how far apart they may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Num, UInt8

from serving.errors import ParityError
from serving.pipeline import MASK, Step
from serving.repository_checks import label_order


@dataclass(frozen=True)
class Bounds:
    """How far two forms of a network may be apart; what int8 may cost.

    Attributes:
        probability_mean: Mean difference of a probability.
        probability_max: Largest difference of a probability.
        mask: Share of pixels of another class.
        dice: Least Dice of any class, pixels pooled over the images.
        rare: Share of pixels under which a class's Dice is recorded but not held: a few pixels at the edge of a few
            more say nothing.
    """

    probability_mean: float = 0.02
    probability_max: float = 0.15
    mask: float = 0.02
    dice: float = 0.9
    rare: float = 1e-4


def check_agreement(
    expected: Num[np.ndarray, "n ..."], got: Num[np.ndarray, "n ..."], step: Step, bounds: Bounds, what: str
) -> dict[str, Any]:
    """Hold the answers of two forms of a network against each other; what was measured.

    Args:
        expected: Of the one: probabilities, or class ids.
        got: Of the other.
        step: Whose network it is.
        bounds: How far they may be apart.
        what: Names both in the error, as in "int8 against fp32".

    Raises:
        ParityError: If they are further apart.
    """
    if step.outputs[0] == MASK:
        return _check_masks(expected, got, step, bounds, what)
    difference = np.abs(expected - got)
    measured = {"mean_abs_difference": float(difference.mean()), "max_abs_difference": float(difference.max())}
    hold(
        measured,
        {"mean_abs_difference": bounds.probability_mean, "max_abs_difference": bounds.probability_max},
        what,
    )
    return measured


def _check_masks(
    expected: UInt8[np.ndarray, "n h w"], got: UInt8[np.ndarray, "n h w"], step: Step, bounds: Bounds, what: str
) -> dict[str, Any]:
    disagreement = {"pixel_disagreement": float((expected != got).mean())}
    hold(disagreement, {"pixel_disagreement": bounds.mask}, what)
    dice: dict[str, float | None] = {}
    for class_id, name in enumerate(label_order(step)):
        dice[name] = class_dice(expected, got, class_id)
        rare = max((expected == class_id).mean(), (got == class_id).mean()) < bounds.rare
        if not rare and (dice[name] or 0.0) < bounds.dice:
            raise ParityError(f"{what}: expected a Dice of {name} from {bounds.dice:g}, got {dice[name]:.4f}")
    return {**disagreement, "dice": dice}


def class_dice(a: UInt8[np.ndarray, "n h w"], b: UInt8[np.ndarray, "n h w"], class_id: int) -> float | None:
    """Dice of a class, pixels pooled over all images; None if neither has any."""
    in_a, in_b = a == class_id, b == class_id
    total = int(in_a.sum()) + int(in_b.sum())
    return 2 * int((in_a & in_b).sum()) / total if total else None


def hold(measured: Mapping[str, float], limits: Mapping[str, float], what: str) -> None:
    """Hold what was measured against its limits.

    Raises:
        ParityError: If one is over its limit, or NaN.
    """
    for name, limit in limits.items():
        # Written so that a NaN fails.
        if not measured[name] <= limit:
            raise ParityError(f"{what}: expected {name} up to {limit:g}, got {measured[name]:.4g}")
