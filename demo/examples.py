"""Example files for the page, drawn when it starts: no scan of a person is shipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import UInt8

from serving import phantom
from serving.overlay import fit

_THUMBNAIL_PX: Final = 96
_SEED_CT_PNG: Final = 3
_SEED_CT_DICOM: Final = 11
_SEED_XRAY: Final = 5


@dataclass(frozen=True)
class Example:
    """A file that a visitor can try.

    Attributes:
        title: What its button says.
        path: The file.
        thumbnail: A small PNG of it.
    """

    title: str
    path: Path
    thumbnail: Path


def draw_examples(folder: Path) -> tuple[Example, ...]:
    """Draw the examples into a folder: a CT slice as PNG and as DICOM, and an X-ray as PNG."""
    ct_png = phantom.ct_slice(seed=_SEED_CT_PNG).pixels
    ct_dicom = phantom.ct_slice(seed=_SEED_CT_DICOM, pleural_effusion=False).pixels
    xray = phantom.chest_xray(seed=_SEED_XRAY)
    return (
        _write(folder, "CT slice, PNG", "phantom-ct.png", ct_png, phantom.png_bytes),
        _write(folder, "CT slice, DICOM", "phantom-ct.dcm", ct_dicom, _ct_dicom_bytes),
        _write(folder, "Chest X-ray, PNG", "phantom-xray.png", xray, phantom.png_bytes),
    )


def _ct_dicom_bytes(pixels: UInt8[np.ndarray, "h w"]) -> bytes:
    return phantom.dicom_bytes(pixels, modality="ct")


def _write(
    folder: Path,
    title: str,
    name: str,
    pixels: UInt8[np.ndarray, "h w"],
    encode: Callable[[UInt8[np.ndarray, "h w"]], bytes],
) -> Example:
    path = folder / name
    path.write_bytes(encode(pixels))
    thumbnail = folder / f"{path.stem}-{path.suffix[1:]}-thumbnail.png"
    thumbnail.write_bytes(phantom.png_bytes(fit(pixels, _THUMBNAIL_PX, is_mask=False)))
    return Example(title, path, thumbnail)
