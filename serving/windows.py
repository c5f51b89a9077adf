"""CT windows for whoever looks: Hounsfield units to grey (PS3.3 C.11.2.1.2).

The models see CT through `serving.dicom_pixels.lung_window` alone, whatever is looked at.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Num, UInt8

from serving.dicom_pixels import LUNG_LEVEL_HU, LUNG_WIDTH_HU
from serving.errors import RequestError

LEVEL_RANGE_HU: Final = (-2000.0, 4000.0)
WIDTH_RANGE_HU: Final = (1.0, 8000.0)


@dataclass(frozen=True)
class Window:
    """A window: what it is centred on and how wide it is.

    Attributes:
        level_hu: Its centre, in `LEVEL_RANGE_HU`.
        width_hu: Its width, in `WIDTH_RANGE_HU`.

    Raises:
        RequestError: If either is out of its range or no number.
    """

    level_hu: float
    width_hu: float

    def __post_init__(self) -> None:
        for what, value, (low, high) in (
            ("level", self.level_hu, LEVEL_RANGE_HU),
            ("width", self.width_hu, WIDTH_RANGE_HU),
        ):
            if not (math.isfinite(value) and low <= value <= high):
                raise RequestError(f"window {what}: expected HU in [{low:g}, {high:g}], got {value:g}")


LUNG: Final = Window(LUNG_LEVEL_HU, LUNG_WIDTH_HU)
MEDIASTINAL: Final = Window(40.0, 400.0)
WINDOWS: Final = {"lung": LUNG, "mediastinal": MEDIASTINAL}
"""The windows that have a name."""


def window(name: str) -> Window:
    """A window by its name.

    Raises:
        RequestError: If there is none of that name.
    """
    if name not in WINDOWS:
        raise RequestError(f"expected a window of {', '.join(WINDOWS)}, got {name!r}")
    return WINDOWS[name]


def through(hu: Num[np.ndarray, "h w"], seen: Window) -> UInt8[np.ndarray, "h w"]:
    """Hounsfield units as grey through a window, by DICOM's rule LINEAR.

    The rule is about whole numbers: a window of width `w` shows `w` values, so that grey rises over `w - 1` HU,
    around half a unit below the level. `lung_window` is the plain line and differs by a grey level at most.

    Args:
        hu: Hounsfield units of any real type; NaN reads as air.
        seen: The window.

    Returns:
        `[0, 255]`, a new array.
    """
    values = np.asarray(hu, np.float32)
    # Of a window of width 1 the line is a step: what is above it is white.
    unit = (values - (seen.level_hu - 0.5)) / max(seen.width_hu - 1, 1e-6) + 0.5
    grey: UInt8[np.ndarray, "h w"] = np.rint(np.nan_to_num(np.clip(unit, 0, 1), nan=0.0) * 255).astype(np.uint8)
    return grey
