"""A drawn CT study: slices of one anatomy from below the lungs to above them. See `serving.phantom`."""

from __future__ import annotations

import io
import zipfile
from typing import Final

import numpy as np
from jaxtyping import UInt8

from serving.phantom import ct_slice
from serving.phantom_files import Place, dicom_bytes

_BELOW_AND_ABOVE: Final = 1.12
"""How far the study reaches, in half heights of the lungs: its first and last slices show none."""

_EFFUSION_BELOW: Final = -0.1
_CONSOLIDATED: Final = (-0.7, 0.3)
_GROUND_GLASS: Final = (-0.5, 0.7)


def ct_volume(seed: int = 0, slices: int = 24, size_px: int = 256) -> UInt8[np.ndarray, "n h w"]:
    """Draw the slices of a study through the lung window, from the feet to the head.

    Args:
        seed: Of the anatomy and its lesions, see `serving.phantom.ct_slice`. Fluid lies at the base, consolidation
            above it, ground glass up to the upper fields.
        slices: How many.
        size_px: Side of each in pixels.
    """
    heights = np.linspace(-_BELOW_AND_ABOVE, _BELOW_AND_ABOVE, slices)
    return np.stack(
        [
            ct_slice(
                seed,
                size_px,
                ground_glass=_GROUND_GLASS[0] < height < _GROUND_GLASS[1],
                consolidation=_CONSOLIDATED[0] < height < _CONSOLIDATED[1],
                pleural_effusion=-0.9 < height < _EFFUSION_BELOW,
                height=float(height),
            ).pixels
            for height in heights
        ]
    )


def series_zip_bytes(
    volume: UInt8[np.ndarray, "n h w"],
    spacing_mm: tuple[float, float, float] = (10.0, 1.4, 1.4),
    *,
    series: int = 1,
    description: str = "",
) -> bytes:
    """A zip of a DICOM series of such slices. It names nobody.

    Args:
        volume: As `ct_volume` draws it.
        spacing_mm: Distance of slices, of rows, of columns.
        series: Its number in a study: files of different numbers are of different series.
        description: What the files call the series.

    Returns:
        The archive; its files are numbered.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for index, pixels in enumerate(volume):
            place = Place(
                position_mm=(0.0, 0.0, index * spacing_mm[0]), number=index + 1, series=series, description=description
            )
            data = dicom_bytes(pixels, "ct", pixel_spacing_mm=spacing_mm[1:], place=place)
            archive.writestr(f"{series:02d}-{index + 1:04d}.dcm", data)
    return stream.getvalue()
