"""Drawings that are no chest scan, by kind: `train.not_chest` is where to import them from.

Formulas and a seed, as in `serving.phantom`. They need not fool anybody: each has to differ from a chest scan in
another way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np
from jaxtyping import Num, UInt8

from serving.brushes import Canvas, blend
from serving.dicom_pixels import lung_window

Picture = UInt8[np.ndarray, "h w"]

_SIZES: Final = (192, 256, 384)


def drawn(count: int, seed: int = 0) -> Iterator[tuple[str, Picture]]:
    """Drawn pictures.

    Args:
        count: Of each kind.
        seed: What they are drawn from.

    Yields:
        The kind and the picture.
    """
    for kind, draw in DRAWINGS.items():
        for i in range(count):
            rng = np.random.default_rng((seed, i, len(kind), *kind.encode()))
            yield kind, draw(Canvas(int(rng.choice(_SIZES)), rng))


def stretched(values: Num[np.ndarray, "h w"]) -> Picture:
    """Grey from one half per cent of the values to the other."""
    low, high = np.percentile(values, (0.5, 99.5))
    return np.asarray(np.uint8(255 * np.clip((values - low) / max(high - low, 1e-6), 0, 1)))


def _noise(canvas: Canvas) -> Picture:
    rng, size = canvas.rng, canvas.size_px
    sigma = rng.choice([0, 0, 1, 3, 8])
    values = rng.normal(0, 1, (size, size)).astype(np.float32)
    if sigma:
        values = cv2.GaussianBlur(values, (0, 0), float(sigma))
    elif rng.random() < 0.4:
        values = (values > rng.uniform(-1, 2)).astype(np.float32)
    return stretched(values * rng.uniform(0.3, 1))


def _clouds(canvas: Canvas) -> Picture:
    slope = canvas.rng.uniform(0.6, 1.2)
    octaves = [canvas.noise(2 * 0.5**i) * 0.5 ** (slope * i) for i in range(6)]
    return stretched(np.sum(octaves, axis=0))


def _gradient(canvas: Canvas) -> Picture:
    angle = canvas.rng.uniform(0, 2 * np.pi)
    if canvas.rng.random() < 0.5:
        return stretched(canvas.x * np.cos(angle) + canvas.y * np.sin(angle))
    centre = canvas.rng.uniform(-0.5, 0.5, 2)
    return stretched(np.sign(np.cos(angle)) * np.hypot(canvas.x - centre[0], canvas.y - centre[1]))


def _blank(canvas: Canvas) -> Picture:
    grey = canvas.rng.choice([0, 255, canvas.rng.integers(256)])
    return np.full((canvas.size_px, canvas.size_px), grey, np.uint8)


def _page(canvas: Canvas) -> Picture:
    rng, size = canvas.rng, canvas.size_px
    paper, ink = (250, 20) if rng.random() < 0.75 else (15, 230)
    page = np.full((round(size * rng.uniform(0.8, 1.4)), size), paper, np.uint8)
    step = int(rng.integers(9, 24))
    for y in range(step * 2, len(page) - step, step):
        if rng.random() < 0.85:
            text = "".join(rng.choice(list("abcdefghinorstu    ")) for _ in range(int(rng.integers(8, 70))))
            cv2.putText(page, text, (size // 12, y), cv2.FONT_HERSHEY_SIMPLEX, step / 40, ink, 1, cv2.LINE_AA)
    return page


def _screenshot(canvas: Canvas) -> Picture:
    rng, size = canvas.rng, canvas.size_px
    screen = np.full((round(size * 0.625), size), int(rng.integers(256)), np.uint8)
    for _ in range(int(rng.integers(2, 6))):
        x, y = (int(v) for v in rng.integers(0, size // 2, 2))
        w, h = (int(v) for v in rng.integers(size // 6, size // 2, 2))
        cv2.rectangle(screen, (x, y), (x + w, y + h), int(rng.integers(150, 256)), -1)
        cv2.rectangle(screen, (x, y), (x + w, y + 8), int(rng.integers(0, 120)), -1)
        for line in range(y + 20, y + h - 4, 12):
            cv2.putText(screen, "menu item value", (x + 4, line), cv2.FONT_HERSHEY_PLAIN, 0.6, 40, 1, cv2.LINE_AA)
    return screen


def _hand(canvas: Canvas) -> Picture:
    """Palm with metacarpals, five fingers of three phalanges (the thumb of two), wrist and forearm."""
    rng, size = canvas.rng, canvas.size_px
    soft, bone = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    scale, side = rng.uniform(0.8, 1.05), rng.choice([-1, 1])
    wrist = np.array([rng.uniform(-0.1, 0.1), 0.55])
    for i, (angle, length) in enumerate(zip((-0.95, -0.3, -0.05, 0.18, 0.42), (0.75, 1.2, 1.3, 1.2, 1.0), strict=True)):
        heading = np.array([side * np.sin(angle + rng.normal(0, 0.04)), -np.cos(angle)]) * length * scale
        parts = [0.0, 0.42, 0.72, 1.0] if i == 0 else [0.0, 0.45, 0.7, 0.88, 1.02]
        canvas.stroke(soft, [tuple(wrist), tuple(wrist + heading)], [0.17 * scale, 0.12 * scale])
        for a, b in pairwise(parts):
            ends = [tuple(wrist + heading * (part + inset)) for part, inset in ((a, 0.02), (b, -0.015))]
            canvas.stroke(bone, ends, [0.075 * scale, 0.055 * scale])
    canvas.stroke(soft, [(wrist[0], wrist[1] - 0.3), tuple(wrist)], [0.5 * scale, 0.38 * scale])
    canvas.stroke(soft, [tuple(wrist), (wrist[0], 1.4)], [0.34 * scale, 0.4 * scale])
    for x in (-0.08, 0.08):
        canvas.stroke(bone, [(wrist[0] + x, wrist[1] + 0.06), (wrist[0] + x, 1.4)], [0.1 * scale, 0.08 * scale])
    density = 0.3 * canvas.blur(soft / np.float32(255), 0.02) + 0.4 * canvas.blur(bone / np.float32(255), 0.012)
    density = np.rot90(density, int(rng.choice([0, 0, 0, 1, 2]))) + 0.01 * rng.standard_normal((size, size))
    return np.asarray(np.uint8(255 * np.clip(0.05 + density, 0, 1)))


def _limb(canvas: Canvas) -> Picture:
    """One or two long bones in a limb, upright or lying."""
    rng, size = canvas.rng, canvas.size_px
    soft, bone = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    lean = rng.uniform(-0.25, 0.25)
    canvas.stroke(soft, [(lean, -1.3), (-lean, 1.3)], [rng.uniform(0.5, 0.8), rng.uniform(0.35, 0.7)])
    for x in [0.0] if rng.random() < 0.4 else [-0.1, 0.1]:
        canvas.stroke(bone, [(lean + x, -1.2), (x, 0), (x - lean, 1.2)], [0.14, 0.09, 0.13])
    density = 0.35 * canvas.blur(soft / np.float32(255), 0.03) + 0.4 * canvas.blur(bone / np.float32(255), 0.012)
    density = np.rot90(density, int(rng.integers(2))) + 0.01 * rng.standard_normal((size, size))
    return np.asarray(np.uint8(255 * np.clip(0.05 + density, 0, 1)))


def _skull(canvas: Canvas) -> Picture:
    """A skull from the side: vault, face, neck."""
    rng, side = canvas.rng, canvas.rng.choice([-1, 1])
    outer = canvas.ellipse((0, -0.2), (0.75, 0.62), soft=0.02, wobble=0.02)
    inner = canvas.ellipse((0, -0.2), (0.69, 0.56), soft=0.02)
    density = 0.75 * outer - 0.35 * inner
    density += 0.3 * canvas.ellipse((side * 0.5, 0.35), (0.26, 0.32), soft=0.05, wobble=0.1) * (1 - inner)
    density += 0.35 * canvas.line([(-side * 0.1, 0.4), (-side * 0.05, 1.3)], [0.24, 0.26]) * (1 - outer)
    density += 0.03 * canvas.noise(0.1) * outer + 0.01 * rng.standard_normal(density.shape)
    return np.asarray(np.uint8(255 * np.clip(0.04 + canvas.blur(density.astype(np.float32), 0.01), 0, 1)))


def _abdomen(canvas: Canvas) -> Picture:
    """An axial slice below the lungs through the lung window: liver, spine, kidneys, some gas in the bowel."""
    rng = canvas.rng
    width, depth = rng.uniform(0.78, 0.92), rng.uniform(0.55, 0.68)
    hu = np.full((canvas.size_px, canvas.size_px), -1000, np.float32)
    hu = blend(hu, -450, canvas.line([(-0.7, 0.78), (0, 0.88), (0.7, 0.78)], [0.014] * 3))
    hu = blend(hu, -100 + 12 * canvas.noise(0.06), canvas.ellipse((0, 0), (width, depth), wobble=0.015))
    hu = blend(hu, 45 + 10 * canvas.noise(0.05), canvas.ellipse((0, 0.01), (width - 0.07, depth - 0.06), wobble=0.03))
    hu = blend(
        hu, -100 + 10 * canvas.noise(0.05), canvas.ellipse((0.05, -0.02), (width - 0.25, depth - 0.2), wobble=0.2)
    )
    hu = blend(hu, 60 + 8 * canvas.noise(0.05), canvas.ellipse((-0.32, -0.1), (0.36, 0.36), tilt=0.4, wobble=0.06))
    for side in (-1, 1):
        hu = blend(hu, 35, canvas.ellipse((side * 0.34, 0.26), (0.13, 0.1), tilt=side * 0.6, wobble=0.05))
    hu = blend(hu, 350, canvas.ellipse((0, 0.3), (0.13, 0.11), wobble=0.05))
    for _ in range(int(rng.integers(0, 5))):
        at = (rng.uniform(-0.1, 0.55), rng.uniform(-0.4, 0.05))
        hu = blend(hu, -950, canvas.ellipse(at, (rng.uniform(0.02, 0.1), rng.uniform(0.02, 0.07)), wobble=0.15))
    hu = canvas.blur(hu, 0.003) + 22 * rng.standard_normal(hu.shape).astype(np.float32)
    return lung_window(hu)


def _head(canvas: Canvas) -> Picture:
    """An axial slice of a head: the ring of the skull, brain, ventricles, in some window."""
    rng = canvas.rng
    radii = (rng.uniform(0.45, 0.7), rng.uniform(0.55, 0.85))
    bone, brain, ventricles = rng.uniform(0.75, 1), rng.uniform(0.25, 0.9), rng.uniform(0.1, 0.8)
    values = np.full((canvas.size_px, canvas.size_px), rng.choice([0, 0, 0.2]), np.float32)
    values = blend(values, 0.6 * brain, canvas.ellipse((0, 0), (radii[0] + 0.04, radii[1] + 0.04)))
    values = blend(values, bone, canvas.ellipse((0, 0), radii, wobble=0.01))
    values = blend(values, brain, canvas.ellipse((0, 0), (radii[0] - 0.06, radii[1] - 0.06), wobble=0.01))
    for side in (-1, 1):
        ventricle = canvas.ellipse((side * 0.1, rng.uniform(-0.1, 0.1)), (0.06, 0.22), tilt=side * 0.3, wobble=0.1)
        values = blend(values, ventricles, ventricle)
    values += 0.03 * canvas.noise(0.08) + 0.02 * rng.standard_normal(values.shape)
    return np.asarray(np.uint8(255 * np.clip(canvas.blur(values.astype(np.float32), 0.01), 0, 1)))


def _blobs(canvas: Canvas) -> Picture:
    values = np.full((canvas.size_px, canvas.size_px), canvas.rng.uniform(0, 1), np.float32)
    for _ in range(int(canvas.rng.integers(2, 12))):
        at, radii = canvas.rng.uniform(-0.9, 0.9, 2), canvas.rng.uniform(0.05, 0.5, 2)
        shape = canvas.ellipse((float(at[0]), float(at[1])), (float(radii[0]), float(radii[1])), wobble=0.1)
        values = blend(values, canvas.rng.uniform(0, 1), shape)
    return np.asarray(np.uint8(255 * np.clip(values, 0, 1)))


DRAWINGS: Final[Mapping[str, Callable[[Canvas], Picture]]] = MappingProxyType(
    {
        "noise": _noise,
        "clouds": _clouds,
        "gradient": _gradient,
        "blank": _blank,
        "text, drawn": _page,
        "screenshot, drawn": _screenshot,
        "X-ray of a hand, drawn": _hand,
        "X-ray of a limb, drawn": _limb,
        "X-ray of a skull, drawn": _skull,
        "CT of the abdomen, drawn": _abdomen,
        "CT of the head, drawn": _head,
        "blobs": _blobs,
    }
)
"""What is drawn, by kind."""
