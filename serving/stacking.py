"""Slices of one orientation in order of their position, and what is wrong with how they lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float64

# Positions are written with a few digits: 0.01 mm off is no unevenness, nor is one per cent.
_TOLERANCE_MM: Final = 0.02
_TOLERANCE: Final = 0.01
_MULTIPLE_TOLERANCE: Final = 0.1
_SAME_MM: Final = 1e-3
_SHEAR_DEGREES: Final = 0.5


@dataclass(frozen=True)
class Stack:
    """How slices lie.

    Attributes:
        order: Indices of the slices that are kept, along the normal of their rows and columns.
        step_mm: From a slice to the next, LPS in mm: the mean where they are not equally far apart. None for one slice.
        even: Whether they are equally far apart and in one line.
        extent: How far each of `order` reaches relative to the mean distance: half-way to its neighbours.
        missing: Slices that are missing in between.
        gaps: After which of `order`, from 0, slices are missing.
        duplicates: Slices that lie where another lies; not in `order`.
        problems: What to say of it.
    """

    order: tuple[int, ...]
    step_mm: Float64[np.ndarray, " 3"] | None
    even: bool
    extent: Float64[np.ndarray, " n"]
    missing: int
    gaps: tuple[int, ...]
    duplicates: tuple[int, ...]
    problems: tuple[str, ...]


def stack(
    positions_mm: Sequence[Sequence[float]], normal: Float64[np.ndarray, " 3"], preference: Sequence[int]
) -> Stack:
    """Sort slices by where they lie along their normal.

    Args:
        positions_mm: Of each slice, LPS; at least one.
        normal: Unit vector.
        preference: Of slices in the same place, the one with the lowest is kept.

    Returns:
        The order, and what to say of gaps, duplicates and unevenness.
    """
    positions = np.asarray(positions_mm, np.float64)
    along = positions @ normal
    by_place = sorted(range(len(along)), key=lambda i: (round(float(along[i]), 4), preference[i], i))
    order, duplicates = _without_duplicates(by_place, along)
    problems = []
    if duplicates:
        problems.append(
            f"{_slices(len(duplicates))} in the place of another (several phases or copies?); the first of each is used"
        )
    if len(order) == 1:
        return Stack(tuple(order), None, True, np.ones(1), 0, (), tuple(duplicates), tuple(problems))
    distances = np.diff(along[order])
    missing, gaps, said = _gaps(distances)
    problems.extend(said)
    kept = positions[order]
    step = (kept[-1] - kept[0]) / (len(order) - 1)
    sideways = _sideways_mm(kept, along[order], normal)
    in_line = sideways <= max(10 * _TOLERANCE_MM, _TOLERANCE * float(distances.mean()))
    if not in_line:
        problems.append(f"slices are shifted sideways against each other by up to {sideways:.1f} mm")
    problems.extend(_shear(step, normal))
    even = in_line and _regular(distances)
    return Stack(tuple(order), step, even, _extent(distances), missing, gaps, tuple(duplicates), tuple(problems))


def _without_duplicates(by_place: Sequence[int], along: Float64[np.ndarray, " n"]) -> tuple[list[int], list[int]]:
    order: list[int] = []
    duplicates: list[int] = []
    for i in by_place:
        same = bool(order) and along[i] - along[order[-1]] <= _SAME_MM
        (duplicates if same else order).append(i)
    return order, duplicates


def _regular(distances: Float64[np.ndarray, " n"]) -> bool:
    tolerance = max(_TOLERANCE_MM, _TOLERANCE * float(distances.mean()))
    return bool(np.abs(distances - distances.mean()).max() <= tolerance)


def _gaps(distances: Float64[np.ndarray, " n"]) -> tuple[int, tuple[int, ...], list[str]]:
    """Missing slices where every distance is a multiple of the smallest; else what to say of uneven ones."""
    if _regular(distances):
        return 0, (), []
    shortest = float(distances.min())
    nominal = float(np.median(distances[distances < 1.5 * shortest]))
    multiples = distances / nominal
    whole = np.rint(multiples)
    if np.abs(multiples - whole).max() > _MULTIPLE_TOLERANCE or whole.max() < 2:
        return 0, (), [f"slices are not equally far apart: {distances.min():.2f} to {distances.max():.2f} mm"]
    missing = int((whole - 1).sum())
    gaps = tuple(int(i) for i in np.flatnonzero(whole > 1))
    places = len(gaps)
    return (
        missing,
        gaps,
        [
            f"{_slices(missing)} missing in {places} place{'s' if places > 1 else ''} "
            f"(slices are {nominal:.2f} mm apart, the widest gap is {distances.max():.2f} mm)"
        ],
    )


def _sideways_mm(
    positions: Float64[np.ndarray, "n 3"], along: Float64[np.ndarray, " n"], normal: Float64[np.ndarray, " 3"]
) -> float:
    part = (along - along[0]) / (along[-1] - along[0])
    expected = positions[0] + part[:, None] * (positions[-1] - positions[0])
    off = positions - expected
    return float(np.linalg.norm(off - np.outer(off @ normal, normal), axis=1).max())


def _shear(step: Float64[np.ndarray, " 3"], normal: Float64[np.ndarray, " 3"]) -> list[str]:
    cosine = float(np.clip(step @ normal / np.linalg.norm(step), -1, 1))
    degrees = float(np.degrees(np.arccos(cosine)))
    if degrees <= _SHEAR_DEGREES:
        return []
    return [f"slices are sheared by {degrees:.0f} degrees (a tilted gantry); shown as they are, not resampled"]


def _extent(distances: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n_plus_1"]:
    before, after = np.r_[distances[:1], distances], np.r_[distances, distances[-1:]]
    reach: Float64[np.ndarray, " n_plus_1"] = (before + after) / 2 / distances.mean()
    return np.ones_like(reach) if _regular(distances) else reach


def _slices(count: int) -> str:
    return "1 slice is" if count == 1 else f"{count:,} slices are"
