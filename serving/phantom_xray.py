"""A drawn frontal chest radiograph: `serving.phantom` is where to import it from."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from serving.brushes import Canvas, Coverage, smooth_path


def chest_xray(seed: int = 0, size_px: int = 512) -> UInt8[np.ndarray, "h w"]:
    """Draw a frontal chest radiograph: bone is bright, air dark.

    Args:
        seed: What the anatomy is drawn from; the same seed draws the same image.
        size_px: Side of the square image in pixels.

    Returns:
        Grey pixels; row 0 is the top, the patient's left is on the right.
    """
    canvas = Canvas(size_px, np.random.default_rng(seed))
    body = _body(canvas)
    lungs = _lungs(canvas)
    # What rays lose adds up along their way: tissue and bone add to it, air in the lungs takes away.
    density = 0.66 * body + 0.05 * body * canvas.noise(0.5)
    density -= 0.43 * lungs * (1 + 0.06 * canvas.noise(0.3))
    density += _soft_tissue(canvas, body, lungs) + _markings(canvas, lungs)
    density += _ribs(canvas, body) + _shoulders(canvas)
    density = canvas.blur(density.astype(np.float32), 0.004)
    density += 0.012 * canvas.rng.standard_normal(density.shape).astype(np.float32)
    grey: UInt8[np.ndarray, "h w"] = np.rint(255 * np.clip(0.03 + 0.93 * density, 0, 1)).astype(np.uint8)
    return grey


def _mirror(path: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return path + [(-x, y) for x, y in reversed(path)]


def _body(canvas: Canvas) -> Coverage:
    rng = canvas.rng
    waist = rng.uniform(0.84, 0.92)
    side = smooth_path(
        [(0.0, -1.3), (0.2, -1.1), (0.24, -0.92), (0.5, -0.84), (0.9, -0.74), (1.3, -0.5), (1.3, 0.0)], 60
    ) + smooth_path([(1.02, -0.05), (0.93, 0.1), (waist, 0.5), (waist + 0.02, 1.2)])
    return canvas.polygon(_mirror(side), soft=0.02)


def _lungs(canvas: Canvas) -> Coverage:
    """Both lungs down to the domes of the diaphragm; the right dome, on the image's left, stands higher."""
    rng = canvas.rng
    base = rng.uniform(0.42, 0.52)
    apex = rng.uniform(-0.8, -0.74)
    outer = rng.uniform(0.7, 0.76)
    lungs = np.zeros((canvas.size_px, canvas.size_px), np.float32)
    for side, dome in ((-1, base - 0.06), (1, base)):
        heart = 0.14 if side < 0 else 0.2
        outline = smooth_path(
            [
                (0.12, -0.5), (0.15, apex + 0.04), (0.28, apex), (0.42, apex + 0.1), (0.58, -0.4), (outer - 0.03, 0.0),
                (outer, 0.35), (outer - 0.01, dome + 0.2), (outer - 0.09, dome + 0.1), (0.42, dome),
                (heart, dome + 0.07), (heart - 0.03, 0.1), (0.12, -0.2), (0.12, -0.5),
            ],
            120,
        )  # fmt: skip
        lungs = np.maximum(lungs, canvas.polygon([(side * x, y) for x, y in outline], soft=0.012))
    return lungs


def _soft_tissue(canvas: Canvas, body: Coverage, lungs: Coverage) -> Coverage:
    """Heart, aortic knob, mediastinum with the spine, trachea, the abdomen under the diaphragm."""
    rng = canvas.rng
    size = rng.uniform(0.92, 1.08)
    heart = canvas.ellipse((0.13, 0.25), (0.37 * size, 0.27 * size), tilt=0.5, soft=0.06)
    right_atrium = canvas.ellipse((-0.06, 0.22), (0.14 * size, 0.27), soft=0.05)
    knob = canvas.ellipse((0.12, -0.36), (0.1, 0.1), soft=0.04)
    trunk = canvas.ellipse((0.01, -0.2), (0.15, 0.6), soft=0.05)
    silhouette = np.maximum.reduce([heart, right_atrium, knob, 0.8 * trunk])
    density = 0.36 * silhouette * lungs + 0.09 * silhouette * (1 - lungs)
    density += 0.11 * canvas.ellipse((0, 0.3), (0.1, 1.6), soft=0.03) * body
    for y in np.arange(-1.0, 1.1, 0.125):
        density += 0.045 * canvas.ellipse((0, float(y)), (0.1, 0.042), soft=0.02)
    density -= 0.13 * canvas.ellipse((-0.01, -0.75), (0.045, 0.36), soft=0.03)
    below = np.clip((canvas.y - 0.5) / 0.25, 0, 1) * body * (1 - lungs)
    stomach = canvas.ellipse((0.4, 0.72), (0.13, 0.07), tilt=0.2, soft=0.04)
    tissue: Coverage = density + 0.14 * below - 0.16 * stomach * (1 - lungs)
    return tissue


def _markings(canvas: Canvas, lungs: Coverage) -> Coverage:
    """Hila and the vessels that fan out of them."""
    rng = canvas.rng
    drawn = np.zeros((canvas.size_px, canvas.size_px), np.uint8)
    for side in (-1, 1):
        for angle in np.concatenate([np.linspace(-1.3, 1.45, 12), rng.uniform(-1.2, 1.4, 8)]):
            at, direction = (side * 0.19, -0.06 + 0.1 * float(np.sin(angle))), float(angle + rng.normal(0, 0.08))
            points, widths = [at], [0.022]
            for _ in range(int(rng.integers(6, 11))):
                direction += rng.normal(0, 0.12)
                at = (at[0] + side * 0.05 * float(np.cos(direction)), at[1] + 0.05 * float(np.sin(direction)))
                points.append(at)
                widths.append(widths[-1] * 0.84)
            canvas.stroke(drawn, points, widths)
    vessels = canvas.blur(drawn.astype(np.float32) / 255, 0.007)
    hila = [canvas.ellipse((side * 0.22, -0.06), (0.09, 0.14), soft=0.07, wobble=0.2) for side in (-1, 1)]
    markings: Coverage = (0.1 * vessels + 0.11 * np.maximum(*hila) + 0.012 * canvas.noise(0.03)) * lungs
    return markings


def _ribs(canvas: Canvas, body: Coverage) -> Coverage:
    """Posterior ribs fall gently to the sides, anterior ones steeply to the middle, and end before the sternum."""
    rng = canvas.rng
    density = np.zeros((canvas.size_px, canvas.size_px), np.float32)
    slope = rng.uniform(0.08, 0.14)
    for i, y in enumerate(np.linspace(-0.78, 0.62, 10)):
        reach = float(np.interp(y, [-0.8, -0.4, 0.2, 0.6], [0.4, 0.66, 0.78, 0.8]))
        for side in (-1, 1):
            posterior = smooth_path(
                [
                    (side * 0.1, y),
                    (side * reach * 0.45, y - 0.05),
                    (side * reach * 0.85, y + slope),
                    (side * reach, y + slope + 0.12),
                ]
            )
            density += (0.5 if y < 0.45 else 0.3) * _bone(canvas, posterior, 0.062)
            if 1 <= i <= 5:
                front = [(side * reach, y + 0.14), (side * reach * 0.8, y + 0.33), (side * reach * 0.5, y + 0.42)]
                density += 0.32 * _bone(canvas, smooth_path(front), 0.056)
    ribs: Coverage = 0.17 * np.minimum(density, 1.2) * body
    return ribs


def _bone(canvas: Canvas, path: list[tuple[float, float]], width: float) -> Coverage:
    """A tube: its rim, where the ray runs along the cortex, is brighter than its middle."""
    outer = canvas.line(path, [width] * len(path))
    inner = canvas.line(path, [width * 0.62] * len(path))
    tube: Coverage = outer - 0.35 * inner
    return tube


def _shoulders(canvas: Canvas) -> Coverage:
    rng = canvas.rng
    lift = rng.uniform(-0.03, 0.03)
    density = np.zeros((canvas.size_px, canvas.size_px), np.float32)
    for side in (-1, 1):
        clavicle = smooth_path(
            [(side * 0.07, -0.62 + lift), (side * 0.3, -0.7 + lift), (side * 0.55, -0.76), (side * 0.85, -0.74)]
        )
        density += 0.2 * _bone(canvas, clavicle, 0.065)
        blade = canvas.polygon(
            [(side * 0.78, -0.66), (side * 0.7, -0.5), (side * 0.78, 0.0), (side * 0.93, -0.5)], soft=0.015
        )
        density += 0.09 * blade
        head = canvas.ellipse((side * 1.0, -0.56), (0.13, 0.13), soft=0.02)
        density += 0.13 * head + 0.13 * canvas.line([(side * 1.0, -0.5), (side * 1.14, 0.6)], [0.13, 0.11])
    return density
