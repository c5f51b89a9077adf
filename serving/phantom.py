"""Drawings that look like chest scans, for tests, demonstrations and load tests.

No patient is in them: every line is a formula and a seed. They are no simulation of physics either, and what a
network says of one means nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from serving.brushes import Canvas, Coverage, Point, arc, blend
from serving.dicom_pixels import lung_window
from serving.labels import BACKGROUND_CLASS, MANIFESTATION_NAMES
from serving.phantom_files import dicom_bytes, png_bytes
from serving.phantom_xray import chest_xray

__all__ = ["Phantom", "chest_xray", "ct_slice", "dicom_bytes", "png_bytes"]

PADDING_HU: Final = -2000.0
AIR_HU: Final = -1000.0
LUNG_HU: Final = -860.0
FAT_HU: Final = -95.0
MUSCLE_HU: Final = 45.0
BLOOD_HU: Final = 60.0
MARROW_HU: Final = 180.0
CORTEX_HU: Final = 600.0
FLUID_HU: Final = 10.0


@dataclass(frozen=True)
class Phantom:
    """A drawn CT slice and what was drawn into it.

    Attributes:
        pixels: Grey through the lung window; row 0 is the top (anterior), the patient's left is on the right.
        mask: Class ids as in `serving.labels`.
    """

    pixels: UInt8[np.ndarray, "h w"]
    mask: UInt8[np.ndarray, "h w"]


def ct_slice(
    seed: int = 0,
    size_px: int = 512,
    *,
    ground_glass: bool = True,
    consolidation: bool = True,
    pleural_effusion: bool = True,
    height: float = 0.0,
) -> Phantom:
    """Draw an axial chest slice through the lung window.

    Args:
        seed: What the anatomy and its lesions are drawn from; the same seed draws the same slice.
        size_px: Side of the square image in pixels.
        ground_glass: Whether to draw hazy patches through which vessels are seen.
        consolidation: Whether to draw a dense patch with air bronchograms.
        pleural_effusion: Whether to draw a crescent of fluid behind a lung.
        height: Where the slice lies, from -1 at the base of the lungs to 1 at their tops: they are widest at 0.

    Returns:
        The slice and its class mask.
    """
    canvas = Canvas(size_px, np.random.default_rng(seed))
    hu, wall = _chest_wall(canvas)
    lungs = _lungs(canvas, wall)
    if height:
        lungs = _at_height(lungs[0], height), _at_height(lungs[1], height)
    hu = blend(hu, LUNG_HU + 25 * canvas.noise(0.08) + 70 * np.clip(canvas.y, -1, 1), np.maximum(*lungs))
    hu = _vessels(canvas, hu, lungs)
    mask = np.full((size_px, size_px), BACKGROUND_CLASS, np.uint8)
    sick, other = lungs if canvas.rng.random() < 0.5 else lungs[::-1]
    # In the order of the classes: a later one lies over an earlier.
    for name, wanted, draw in (
        ("ground_glass", ground_glass, _ground_glass),
        ("consolidation", consolidation, _consolidation),
        ("pleural_effusion", pleural_effusion, _effusion),
    ):
        # Each lesion takes its own chance, so that one that is left out does not change the others.
        own = Canvas(size_px, np.random.default_rng((seed, MANIFESTATION_NAMES.index(name))))
        if wanted:
            hu, covered = draw(own, hu, (sick, other))
            mask[covered > 0.5] = MANIFESTATION_NAMES.index(name) + 1
    # Scanners know nothing outside of their circle, and fill it with a value below air.
    hu = blend(PADDING_HU, hu, canvas.ellipse((0, 0), (1, 1)))
    hu = canvas.blur(hu, 0.003) + 22 * canvas.rng.standard_normal(hu.shape).astype(np.float32)
    return Phantom(lung_window(hu), mask)


def _chest_wall(canvas: Canvas) -> tuple[Float32[np.ndarray, "h w"], Coverage]:
    """Body, bones, heart and vessels before the lungs are cut out; and the space inside the ribs."""
    rng = canvas.rng
    width, depth = 0.88 + 0.05 * rng.random(), 0.64 + 0.05 * rng.random()
    hu = np.full((canvas.size_px, canvas.size_px), AIR_HU, np.float32)
    table = canvas.line(arc((0, -2.3), (3.2, 3.13), 1.25, 1.9), [0.014] * 24)
    hu = blend(hu, -450, table)
    hu = blend(hu, FAT_HU + 12 * canvas.noise(0.06), canvas.ellipse((0, 0), (width, depth), wobble=0.012))
    muscle = canvas.ellipse((0, 0.015), (width - 0.07, depth - 0.06), wobble=0.02)
    hu = blend(hu, MUSCLE_HU + 10 * canvas.noise(0.05), muscle)
    inner = (width - 0.17, depth - 0.14)
    # Fat planes between the muscles of the back and of the flanks.
    for side in (-1, 1):
        plane = canvas.line(
            arc((0, 0.01), (inner[0] + 0.075, inner[1] + 0.065), 1.57 - side * 0.5, 1.57 - side * 1.5), [0.012] * 24
        )
        hu = blend(hu, FAT_HU, 0.8 * plane)
    wall = canvas.ellipse((0, 0), inner, wobble=0.015)
    hu = _bones(canvas, hu, inner)
    return hu, wall


def _bones(canvas: Canvas, hu: Coverage, inner: Point) -> Coverage:
    rng = canvas.rng
    first = rng.uniform(0.1, 0.35)
    for side in (-1, 1):
        for angle in np.arange(first, 2.9, 0.52):
            middle = -np.pi / 2 + side * (angle + 0.12)
            half = rng.uniform(0.07, 0.14)
            points = arc((0, 0), (inner[0] + 0.035, inner[1] + 0.035), middle - half, middle + half, 8)
            hu = blend(hu, CORTEX_HU, canvas.line(points, [0.045] * 8))
            hu = blend(hu, MARROW_HU, canvas.line(points, [0.018] * 8))
    hu = _bone(canvas, hu, (0, -inner[1] - 0.01), (0.12, 0.035))
    spine = inner[1] - 0.06
    hu = blend(hu, MUSCLE_HU, canvas.ellipse((0, spine - 0.02), (0.2, 0.2)))
    hu = _bone(canvas, hu, (0, spine - 0.07), (0.125, 0.1))
    for side in (-1, 1):
        points = [(side * 0.07, spine + 0.03), (side * 0.2, spine + 0.09)]
        hu = blend(hu, CORTEX_HU * 0.7, canvas.line(points, [0.06, 0.035]))
    hu = _bone(canvas, hu, (0, spine + 0.11), (0.025, 0.06))
    return blend(hu, 30, canvas.ellipse((0, spine + 0.06), (0.055, 0.045)))


def _bone(canvas: Canvas, hu: Coverage, centre: Point, radii: Point) -> Coverage:
    hu = blend(hu, CORTEX_HU, canvas.ellipse(centre, radii, wobble=0.04))
    marrow = canvas.ellipse(centre, (radii[0] - 0.015, radii[1] - 0.015), wobble=0.04)
    return blend(hu, MARROW_HU + 60 * canvas.noise(0.03), marrow)


def _lungs(canvas: Canvas, wall: Coverage) -> tuple[Coverage, Coverage]:
    """The patient's right lung, which is on the image's left, and the left one, which makes room for the heart."""
    rng = canvas.rng
    tilt = rng.uniform(-0.05, 0.05)
    mediastinum = canvas.ellipse((0, -0.02), (0.13, 0.62), tilt=tilt, wobble=0.05)
    hilum = canvas.ellipse((0, 0.02), (0.24, 0.17), wobble=0.08)
    heart = canvas.ellipse((0.13, -0.19), (0.28, 0.2 + 0.03 * rng.random()), tilt=0.45, soft=0.015, wobble=0.03)
    spine = canvas.ellipse((0, 0.36), (0.19, 0.2), wobble=0.03)
    aorta = canvas.ellipse((0.16, 0.24), (0.09, 0.09))
    solid = np.maximum.reduce([mediastinum, hilum, heart, spine, aorta])
    space = np.clip(wall - solid, 0, 1)
    return space * (canvas.x < 0), space * (canvas.x >= 0)


def _at_height(lung: Coverage, height: float) -> Coverage:
    """A lung of a higher or lower slice: drawn in towards its middle, as a ball is."""
    part = max(1 - height**2, 0.0) ** 0.5
    weight = max(float(lung.sum()), 1.0)
    middle = [float((lung.sum(axis=axis) * np.arange(lung.shape[1])).sum()) / weight for axis in (0, 1)]
    move = np.array([[part, 0, (1 - part) * middle[0]], [0, part, (1 - part) * middle[1]]], np.float32)
    smaller: Coverage = cv2.warpAffine(lung, move, lung.shape[::-1]) if part > 0.05 else np.zeros_like(lung)
    return smaller


def _vessels(canvas: Canvas, hu: Coverage, lungs: tuple[Coverage, Coverage]) -> Coverage:
    """Trees from the hila, dots of vessels that cross the slice, main bronchi."""
    rng = canvas.rng
    drawn = np.zeros((canvas.size_px, canvas.size_px), np.uint8)
    for side in (-1, 1):
        for angle in np.linspace(-1.2, 1.2, 7) + rng.uniform(-0.12, 0.12, 7):
            start = (side * 0.2, 0.02 + 0.1 * float(np.sin(angle)))
            _branch(canvas, drawn, start, angle if side > 0 else np.pi - angle, 0.026, 4)
    for _ in range(130):
        at = (rng.uniform(-0.72, 0.72), rng.uniform(-0.48, 0.48))
        width = rng.uniform(0.004, 0.013)
        canvas.stroke(drawn, [at, (at[0] + 0.004, at[1] + 0.004)], [width, width])
    inside = np.maximum(*lungs)
    hu = blend(hu, -120, canvas.blur(drawn.astype(np.float32) / 255, 0.0035) * 0.8 * inside)
    for side in (-1, 1):
        centre = (side * 0.135, 0.02 + rng.uniform(-0.02, 0.02))
        hu = blend(hu, AIR_HU, canvas.ellipse(centre, (0.05, 0.036), tilt=side * 0.4))
    blood = canvas.ellipse((0.15, 0.24), (0.075, 0.075)) + canvas.ellipse((0.1, -0.18), (0.2, 0.15), soft=0.05)
    return blend(hu, BLOOD_HU + 40, np.clip(blood, 0, 1) * (1 - inside))


def _branch(
    canvas: Canvas, drawn: UInt8[np.ndarray, "h w"], start: Point, angle: float, width: float, depth: int
) -> None:
    rng = canvas.rng
    points, widths = [start], [width]
    for _ in range(4):
        angle += rng.normal(0, 0.24)
        step = rng.uniform(0.03, 0.05)
        points.append((points[-1][0] + step * float(np.cos(angle)), points[-1][1] + step * float(np.sin(angle))))
        widths.append(widths[-1] * 0.9)
    canvas.stroke(drawn, points, widths)
    if depth > 1:
        for turn in (-1, 1):
            _branch(canvas, drawn, points[-1], angle + turn * rng.uniform(0.25, 0.6), widths[-1] * 0.8, depth - 1)


def _patch(canvas: Canvas, lung: Coverage, radius: float, *, depth: float) -> tuple[Coverage, Point]:
    """An irregular patch inside a lung. `depth` in `[0, 1]` is how far from the front; 1 lies at the back."""
    rng = canvas.rng
    rows, columns = np.nonzero(lung > 0.9)
    # Lesions of COVID-19 lie mostly under the pleura: of some random places, take the one furthest from the middle.
    chosen = rng.integers(len(rows), size=24)
    x, y = canvas.x[0, columns[chosen]], canvas.y[rows[chosen], 0]
    best = int(np.argmax(np.abs(x) + y * (2 * depth - 1)))
    centre = (float(x[best]) * 0.92, float(y[best]) * 0.92)
    shape = canvas.ellipse(
        centre, (radius, radius * rng.uniform(0.7, 1.1)), tilt=rng.uniform(0, 3), soft=0.05, wobble=0.3
    )
    return shape * lung, centre


def _ground_glass(canvas: Canvas, hu: Coverage, lungs: tuple[Coverage, Coverage]) -> tuple[Coverage, Coverage]:
    patches = [
        _patch(canvas, lung, canvas.rng.uniform(0.1, 0.22), depth=canvas.rng.uniform(0.4, 1))[0]
        for lung in (*lungs, lungs[0])
    ]
    covered = canvas.blur(np.maximum.reduce(patches), 0.012)
    inside = np.maximum(*lungs)
    haze = np.clip(290 + 60 * canvas.noise(0.05) + 35 * canvas.noise(0.02), 120, 430)
    # Added, not laid over: the vessels stay visible, which is what makes it ground glass.
    return np.minimum(hu + haze * covered * inside, np.maximum(hu, -80)), covered * inside


def _consolidation(canvas: Canvas, hu: Coverage, lungs: tuple[Coverage, Coverage]) -> tuple[Coverage, Coverage]:
    covered, centre = _patch(canvas, lungs[0], canvas.rng.uniform(0.13, 0.19), depth=0.85)
    hu = blend(hu, 20 + 25 * canvas.noise(0.03), np.clip(covered * 1.3, 0, 1))
    bronchi = np.zeros((canvas.size_px, canvas.size_px), np.uint8)
    away = float(np.arctan2(centre[1], centre[0]))
    start = (centre[0] - 0.1 * float(np.cos(away)), centre[1] - 0.1 * float(np.sin(away)))
    _branch(canvas, bronchi, start, away, 0.011, 2)
    return blend(hu, -750, canvas.blur(bronchi.astype(np.float32) / 255, 0.004) * 0.8 * covered), covered


def _effusion(canvas: Canvas, hu: Coverage, lungs: tuple[Coverage, Coverage]) -> tuple[Coverage, Coverage]:
    """A meniscus: what the lung leaves free behind it when it floats forwards and inwards."""
    rng = canvas.rng
    lung = lungs[1] if rng.random() < 0.5 else lungs[0]
    side = 1 if float((lung * canvas.x).sum()) > 0 else -1
    rise, inward = rng.uniform(0.12, 0.2), rng.uniform(0.03, 0.06)
    pixel = canvas.size_px / 2
    move = np.array([[1, 0, -side * inward * pixel], [0, 1, -rise * pixel]], np.float32)
    floating = cv2.warpAffine(lung, move, lung.shape[::-1])
    posterior = np.clip((canvas.y - 0.02 + 0.02 * canvas.noise(0.4)) / 0.06, 0, 1)
    # The mediastinal side of the moved lung would leave a gap there too.
    lateral = np.clip((side * canvas.x - 0.12) / 0.08, 0, 1)
    covered = canvas.blur((lung * (1 - floating) * posterior * lateral).astype(np.float32), 0.004) * lung
    return blend(hu, FLUID_HU + 8 * canvas.noise(0.05), np.clip(covered * 1.2, 0, 1)), covered
