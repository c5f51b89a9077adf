"""Geometric and photometric augmentation, the same for an image and its mask.

The paper augments by rotation, horizontal and vertical translation, zoom and shear ("Preprocessing and data
augmentation"); the photometric part and flips are ours. Everything is plain NumPy and OpenCV, so that it runs
the same under every Keras backend, and is a pure function of the random generator that it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float64, UInt8


@dataclass(frozen=True)
class Augmentation:
    """How far a sample may be moved. Each value is drawn uniformly from `[-x, x]` around no change.

    Attributes:
        rotation_deg: Rotation about the centre in degrees.
        translation: Shift as a fraction of the side, horizontally and vertically each.
        zoom: Relative change of scale: 0.2 is a factor in `[0.8, 1.2]`.
        shear_deg: Horizontal shear in degrees.
        gain: Relative change of contrast about mid grey.
        gamma: Exponent in `[1 / (1 + gamma), 1 + gamma]`.
        base_scale: Scale that everything is brought to first; nodule crops come four times enlarged.
        flip: Whether to mirror left and right in half of the samples. Off for X-rays: the heart has a side.
    """

    rotation_deg: float = 10.0
    translation: float = 0.06
    zoom: float = 0.12
    shear_deg: float = 6.0
    gain: float = 0.15
    gamma: float = 0.2
    base_scale: float = 1.0
    flip: bool = False


NONE = Augmentation(rotation_deg=0, translation=0, zoom=0, shear_deg=0, gain=0, gamma=0, flip=False)


def random_affine(
    rng: np.random.Generator, augmentation: Augmentation, size_px: int, crop_px: int
) -> Float64[np.ndarray, "2 3"]:
    """Draw the map from a square image to a square crop of it.

    Args:
        rng: Source of randomness; the only one.
        augmentation: The ranges.
        size_px: Side of the image.
        crop_px: Side of the crop, placed at random inside the image.

    Returns:
        Matrix for `cv2.warpAffine`, source to destination, in pixels with (0, 0) a pixel centre.
    """
    angle, shear = np.deg2rad(rng.uniform(-1, 1, 2) * (augmentation.rotation_deg, augmentation.shear_deg))
    scale = augmentation.base_scale * (1 + rng.uniform(-1, 1) * augmentation.zoom)
    shift_px = rng.uniform(-1, 1, 2) * augmentation.translation * crop_px
    mirror = -1.0 if augmentation.flip and rng.random() < 0.5 else 1.0
    slack_px = (size_px * augmentation.base_scale - crop_px) / 2
    offset_px = rng.uniform(-slack_px, slack_px, 2) if slack_px > 0 else np.zeros(2)

    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = scale * rotate @ np.array([[1.0, np.tan(shear)], [0.0, 1.0]]) @ np.diag([mirror, 1.0])
    centre = np.full(2, (size_px - 1) / 2)
    target = np.full(2, (crop_px - 1) / 2) + shift_px + offset_px
    return np.column_stack([linear, target - linear @ centre])


def warp(
    image: UInt8[np.ndarray, "h w"],
    matrix: Float64[np.ndarray, "2 3"],
    crop_px: int,
    *,
    is_mask: bool = False,
    border: int = 0,
) -> UInt8[np.ndarray, "crop crop"]:
    """Move one image, or its mask by the same matrix.

    Args:
        image: Grey values or class ids.
        matrix: From `random_affine`.
        crop_px: Side of the result.
        is_mask: Nearest neighbour: interpolating class ids would invent classes.
        border: Value of what lies outside.
    """
    moved = cv2.warpAffine(
        image,
        matrix,
        (crop_px, crop_px),
        flags=cv2.INTER_NEAREST if is_mask else cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=border,
    )
    return np.asarray(moved, dtype=np.uint8)


def jitter(
    rng: np.random.Generator, augmentation: Augmentation, image: UInt8[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w"]:
    """Change contrast and gamma through one table of 256 values."""
    exponent = (1 + augmentation.gamma) ** rng.uniform(-1, 1)
    gain = 1 + rng.uniform(-1, 1) * augmentation.gain
    levels = np.linspace(0, 1, 256) ** exponent
    table = np.clip(((levels - 0.5) * gain + 0.5) * 255, 0, 255).round().astype(np.uint8)
    # Nothing outside the body turns grey.
    table[0] = 0
    return np.asarray(table[image], dtype=np.uint8)
