"""What the phantoms are drawn with: soft shapes on the square `[-1, 1] x [-1, 1]`, x to the right, y down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

Point = tuple[float, float]
Coverage = Float32[np.ndarray, "h w"]
"""How much of a shape covers each pixel, in `[0, 1]`."""


@dataclass(frozen=True)
class Canvas:
    """A square of pixels with coordinates, and the chance that a drawing takes.

    Attributes:
        size_px: Its side.
        rng: Every irregularity is drawn from here.
        x: x of each pixel's centre.
        y: y of each pixel's centre.
    """

    size_px: int
    rng: np.random.Generator
    x: Coverage = field(init=False)
    y: Coverage = field(init=False)

    def __post_init__(self) -> None:
        axis = ((np.arange(self.size_px, dtype=np.float32) + 0.5) / self.size_px) * 2 - 1
        object.__setattr__(self, "x", np.broadcast_to(axis, (self.size_px, self.size_px)))
        object.__setattr__(self, "y", np.broadcast_to(axis[:, np.newaxis], (self.size_px, self.size_px)))

    def blur(self, values: Coverage, sigma: float) -> Coverage:
        """Gaussian blur; `sigma` in canvas units."""
        blurred: Coverage = cv2.GaussianBlur(values, (0, 0), max(sigma * self.size_px / 2, 0.1))
        return blurred

    def noise(self, scale: float) -> Coverage:
        """Smooth noise of about unit variance whose bumps are about `scale` wide."""
        cells = max(int(np.ceil(2 / scale)), 2)
        coarse = self.rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
        values: Coverage = cv2.resize(coarse, (self.size_px, self.size_px), interpolation=cv2.INTER_CUBIC)
        return values

    def ellipse(
        self, centre: Point, radii: Point, *, tilt: float = 0.0, soft: float = 0.01, wobble: float = 0.0
    ) -> Coverage:
        """A filled ellipse.

        Args:
            centre: x, y.
            radii: Along its own axes.
            tilt: Clockwise, in radians.
            soft: Width of the edge.
            wobble: How irregular the edge is, relative to the radii.
        """
        # Only where it can be: most shapes are small.
        reach = max(radii) * (1 + 2 * wobble + soft / min(radii))
        box = self._slice(centre[1], reach), self._slice(centre[0], reach)
        dx, dy = self.x[box] - np.float32(centre[0]), self.y[box] - np.float32(centre[1])
        cos, sin = np.float32(np.cos(tilt)), np.float32(np.sin(tilt))
        across, along = (dx * cos + dy * sin) / np.float32(radii[0]), (dy * cos - dx * sin) / np.float32(radii[1])
        radius = np.sqrt(across * across + along * along)
        if wobble:
            radius += np.float32(wobble) * np.clip(self.noise(0.35)[box], -2, 2)
        covered: Coverage = np.zeros((self.size_px, self.size_px), np.float32)
        covered[box] = np.clip((1 - radius) * np.float32(min(radii) / soft) + np.float32(0.5), 0, 1)
        return covered

    def _slice(self, centre: float, reach: float) -> slice:
        first, last = ((centre + sign * reach + 1) / 2 * self.size_px for sign in (-1, 1))
        return slice(max(int(first) - 1, 0), max(int(last) + 2, 0))

    def line(self, points: Sequence[Point], widths: Sequence[float]) -> Coverage:
        """A polyline, its width given at each point (tapering from one to the next)."""
        image = np.zeros((self.size_px, self.size_px), np.uint8)
        self.stroke(image, points, widths)
        covered: Coverage = image.astype(np.float32) / 255
        return covered

    def stroke(self, image: UInt8[np.ndarray, "h w"], points: Sequence[Point], widths: Sequence[float]) -> None:
        """Draw a polyline into an image of uint8."""
        # OpenCV takes sub-pixel ends as fixed-point numbers.
        shift = 4
        ends = [tuple(round(((value + 1) / 2 * self.size_px - 0.5) * 2**shift) for value in point) for point in points]
        for i in range(len(ends) - 1):
            thickness = max(1, round((widths[i] + widths[i + 1]) / 4 * self.size_px))
            cv2.line(image, ends[i], ends[i + 1], 255, thickness, cv2.LINE_AA, shift)

    def polygon(self, points: Sequence[Point], *, soft: float = 0.01) -> Coverage:
        """A filled polygon with a blurred edge."""
        shift = 4
        corners = np.rint(((np.array(points) + 1) / 2 * self.size_px - 0.5) * 2**shift).astype(np.int32)
        image = np.zeros((self.size_px, self.size_px), np.uint8)
        cv2.fillPoly(image, [corners], 255, cv2.LINE_AA, shift)
        return self.blur(image.astype(np.float32) / 255, soft)


def arc(centre: Point, radii: Point, start: float, end: float, steps: int = 24) -> list[Point]:
    """Points of an ellipse's arc between two angles in radians, clockwise from the right."""
    angles = np.linspace(start, end, steps)
    return [(float(centre[0] + radii[0] * np.cos(a)), float(centre[1] + radii[1] * np.sin(a))) for a in angles]


def smooth_path(points: Sequence[Point], steps: int = 32) -> list[Point]:
    """A Catmull-Rom curve through points, so that few points make an anatomical outline."""
    knots = np.array([points[0], *points, points[-1]], dtype=np.float64)
    per_piece = max(steps // (len(points) - 1), 2)
    t = (np.arange(per_piece) / per_piece)[:, np.newaxis]
    path = []
    for p0, p1, p2, p3 in zip(knots, knots[1:], knots[2:], knots[3:], strict=False):
        path.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return [(float(x), float(y)) for x, y in np.concatenate([*path, knots[-1:]])]


def blend(under: float | Coverage, value: float | Coverage, covered: Coverage) -> Coverage:
    """Lay a value over another, as far as it covers."""
    blended: Coverage = (under + (value - under) * covered).astype(np.float32)
    return blended
