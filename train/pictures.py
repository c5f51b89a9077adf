"""Scans as the models see them, with the outlines of their masks: to see whether a dataset was read upright."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8

from serving.labels import ALL_STREAM, MANIFESTATIONS
from train.data import Example, load_codes, load_image
from train.targets import Code

_LESIONS: Final = (Code.GROUND_GLASS, Code.CONSOLIDATION, Code.PLEURAL_EFFUSION)
_COLOURS_RGB: Final = {
    **{code: label.colour_rgb for code, label in zip(_LESIONS, MANIFESTATIONS, strict=True)},
    Code.INFECTION: ALL_STREAM.colour_rgb,
    Code.NODULE: ALL_STREAM.colour_rgb,
}


def picture(example: Example, root: Path) -> UInt8[np.ndarray, "512 512 3"]:
    """The scan in RGB; what was drawn in is outlined in the colour of its label."""
    grey = load_image(example, root)
    rgb = np.repeat(grey[..., None], 3, axis=-1)
    if example.codes:
        codes = load_codes(example, root)
        for code, colour in _COLOURS_RGB.items():
            outlines, _ = cv2.findContours((codes == code).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(rgb, outlines, -1, colour, 1)
    return rgb


def save_pictures(examples: Sequence[Example], root: Path, out: Path, n: int = 8) -> list[Path]:
    """Write some scans as PNG: the same number from everywhere in the list.

    Returns:
        The files, named by source and place in the list.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for row in np.unique(np.linspace(0, len(examples) - 1, min(n, len(examples))).astype(int)):
        path = out / f"{examples[row].source.split(':')[0]}.{row:05d}.png"
        cv2.imwrite(str(path), picture(examples[row], root)[..., ::-1])
        written.append(path)
    return written
