"""A straight line through measured points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.errors import RequestError


@dataclass(frozen=True)
class Line:
    """Least squares: `start + slope * x`.

    Attributes:
        start: At x = 0.
        slope: For each unit of x.
        r2: Share of the variance that the line explains, at most 1; 0 where there is no variance.
    """

    start: float
    slope: float
    r2: float


def fit_line(points: Sequence[tuple[float, float]]) -> Line:
    """The line through points of x and y.

    Raises:
        RequestError: If they have fewer than two different x.
    """
    if len({x for x, _ in points}) < 2:
        raise RequestError(f"expected points at two places or more, got {list(points)}")
    x, y = np.array(points, dtype=float).T
    slope, start = np.polyfit(x, y, 1)
    variance = float(y.var())
    left = float((y - (start + slope * x)).var())
    return Line(float(start), float(slope), 1 - left / variance if variance > 0 else 0.0)
