"""A `Scan` to what every network sees: 512 x 512 x 3, uint8. The one implementation, for training as for serving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from serving.errors import RequestError
from serving.labels import RequestedModality
from serving.pipeline import MODEL_HW, NEVER, THRESHOLD_NAMES
from serving.scans import Scan, decode

CLAHE_CLIP_LIMIT: Final = 2.0
CLAHE_TILES: Final = (8, 8)
"""Contrast-limited adaptive histogram equalisation over 8 x 8 tiles (Zuiderveld, Graphics Gems IV, 1994)."""


def resize(pixels: UInt8[np.ndarray, "h w"], size_hw: tuple[int, int]) -> UInt8[np.ndarray, "out_h out_w"]:
    """Stretch to a size: area mean along an axis that shrinks, linear along one that grows.

    Args:
        pixels: Grey.
        size_hw: Height and width wanted; the aspect ratio is not kept.

    Returns:
        A new array.
    """
    # In two steps, because OpenCV's INTER_AREA takes single pixels along both axes if only one of them shrinks.
    height, width = (min(had, wanted) for had, wanted in zip(pixels.shape, size_hw, strict=True))
    shrunk = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    grown: UInt8[np.ndarray, "out_h out_w"] = cv2.resize(shrunk, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
    return grown


def preprocess(scan: Scan, *, clahe: bool = True) -> UInt8[np.ndarray, "512 512 3"]:
    """What the networks see of a scan.

    Args:
        scan: The scan. It is not changed.
        clahe: Whether to equalise; off for images that were equalised upstream.

    Returns:
        The scan stretched to `MODEL_HW`, equalised, its grey repeated in three equal channels, `[0, 255]`.
    """
    grey = resize(scan.pixels, MODEL_HW)
    if clahe:
        # Made anew: OpenCV's CLAHE object keeps buffers, so that one shared by threads mixes their images.
        grey = cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_TILES).apply(grey)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), dtype=np.uint8)


def prepare(
    data: bytes, modality: str, thresholds: Sequence[float] | Float32[np.ndarray, " thresholds"]
) -> tuple[UInt8[np.ndarray, "512 512 3"], Float32[np.ndarray, " thresholds"]]:
    """What the ``preprocess`` model answers for one item of a batch.

    Args:
        data: The file.
        modality: As in `serving.scans.decode`.
        thresholds: In the order of `THRESHOLD_NAMES`, each in `[0, 1]`.

    Returns:
        The image, and the gates: the thresholds as asked for CT, all `NEVER` for an X-ray.

    Raises:
        ScanError: If the file can not be used.
        RequestError: If there is no such modality or threshold.
    """
    asked = check_thresholds(thresholds)
    scan = decode(data, cast(RequestedModality, modality))
    gates = asked if scan.modality == "ct" else np.full_like(asked, NEVER)
    return preprocess(scan), gates


def check_thresholds(
    thresholds: Sequence[float] | Float32[np.ndarray, " thresholds"],
) -> Float32[np.ndarray, " thresholds"]:
    """The thresholds of a request as an array of their own.

    Raises:
        RequestError: If there are too few or too many, or one is not a number in `[0, 1]`.
    """
    values = np.array(thresholds, dtype=np.float32)
    if values.shape != (len(THRESHOLD_NAMES),):
        raise RequestError(f"expected {len(THRESHOLD_NAMES)} thresholds, got an array of shape {values.shape}")
    for name, value in zip(THRESHOLD_NAMES, values, strict=True):
        if not 0 <= value <= 1:
            raise RequestError(f"expected a threshold of {name} in [0, 1], got {value:g}")
    return values
