"""Stored DICOM pixels to grey for display (PS3.3 C.11)."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pydicom
from jaxtyping import Bool, Float, Num, UInt8
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi

from serving.dicom_headers import items_of
from serving.labels import Modality

LUNG_LEVEL_HU: Final = -600.0
LUNG_WIDTH_HU: Final = 1500.0
"""The lung window: `[-1350, 150]` HU."""

_LUMA: Final = np.array([0.299, 0.587, 0.114], np.float32)


def lung_window(hu: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Map Hounsfield units to grey through the lung window.

    Args:
        hu: Hounsfield units, any real type; NaN reads as air.

    Returns:
        0 at and below -1350 HU, 255 at and above 150 HU, linear between, rounded to the nearest.
    """
    low = LUNG_LEVEL_HU - LUNG_WIDTH_HU / 2
    unit = np.clip((hu.astype(np.float32) - low) / LUNG_WIDTH_HU, 0, 1)
    return _to_uint8(np.nan_to_num(unit, nan=0.0))


def luma(rgb: Num[np.ndarray, "h w 3"], full: int) -> UInt8[np.ndarray, "h w"]:
    """Grey of colours (ITU-R BT.601), where `full` is the brightest value of a channel."""
    return _to_uint8(np.clip(rgb @ _LUMA / full, 0, 1))


def for_display(
    stored: Num[np.ndarray, "h w"], dataset: pydicom.Dataset, modality: Modality
) -> UInt8[np.ndarray, "h w"]:
    """Grey pixels of stored ones: CT through the lung window, radiographs as the file asks.

    Args:
        stored: As the file has them, decompressed.
        dataset: The rest of the file.
        modality: From its tag.

    Returns:
        Grey for display; padding is 0.
    """
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)[..., :3]
        return luma(coloured, int(np.iinfo(coloured.dtype).max))
    padding = padding_of(stored, dataset)
    items_of(dataset, "ModalityLUTSequence")  # for pydicom, which would read it without a bound
    values = apply_modality_lut(stored, dataset)
    if modality == "ct":
        grey = lung_window(values)
    else:
        unit = _voi(values, dataset, padding)
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
        grey = _to_uint8(1 - unit if inverted else unit)
    grey[padding] = 0
    return grey


def padding_of(stored: Num[np.ndarray, "h w"], dataset: pydicom.Dataset) -> Bool[np.ndarray, "h w"]:
    """Where the image is padded (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted((value, limit if isinstance(limit, int) else value))
    padding: Bool[np.ndarray, "h w"] = (stored >= ends[0]) & (stored <= ends[1])
    return padding


def _voi(
    values: Num[np.ndarray, "h w"], dataset: pydicom.Dataset, padding: Bool[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """Values of interest on `[0, 1]` (PS3.3 C.11.2)."""
    if tables := items_of(dataset, "VOILUTSequence"):
        bits = int(tables[0].LUTDescriptor[2])
        looked_up: Float[np.ndarray, "h w"] = apply_voi(values.astype(np.int64), dataset) / (2**bits - 1)
        return np.clip(looked_up, 0, 1)
    window = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if all(np.isfinite(window)) and window[1] >= 1:
        return _window(values.astype(np.float32), window, str(dataset.get("VOILUTFunction") or "LINEAR"))
    if int(dataset.BitsStored) == 8 and values.dtype == np.uint8:
        return values.astype(np.float32) / 255
    seen = values[~padding]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)
    return np.clip((values.astype(np.float32) - low) / max(high - low, 1e-6), 0, 1)


def _window(values: Float[np.ndarray, "h w"], window: tuple[float, float], function: str) -> Float[np.ndarray, "h w"]:
    centre, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80)))
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-6) + 0.5, 0, 1)


def _first(value: Any) -> float:
    if isinstance(value, (list, tuple)) or (hasattr(value, "__iter__") and not isinstance(value, str)):
        value = next(iter(value), None)
    return float("nan") if value is None else float(value)


def _to_uint8(unit: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    grey: UInt8[np.ndarray, "h w"] = np.rint(unit * 255).astype(np.uint8)
    return grey
