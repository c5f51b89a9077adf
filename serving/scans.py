"""Bytes to a `Scan`: the one decoder, for training as for serving.

Formats are told by their first bytes, never by a name. Every limit of `serving.limits` is held against the header
before anything is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from jaxtyping import Num, UInt8

from serving.dicom import decode_dicom
from serving.dicom_headers import DICOM_MAGIC, PREAMBLE_BYTES
from serving.dicom_pixels import lung_window
from serving.errors import GeometryError, RequestError, UnreadableScan, UnsupportedScan
from serving.labels import MODALITIES, REQUESTED_MODALITIES, Modality, RequestedModality
from serving.limits import MAX_FILE_BYTES, MAX_PIXELS, MAX_SIDE_PX, MIN_SIDE_PX, check_file_bytes, check_size
from serving.modality import guess_modality
from serving.rasters import JPEG_MAGIC, PNG_MAGIC, decode_raster

__all__ = ["MAX_FILE_BYTES", "MAX_PIXELS", "MAX_SIDE_PX", "MIN_SIDE_PX", "Scan", "SourceFormat", "decode", "from_hu"]

SourceFormat = Literal["png", "jpeg", "dicom", "nifti"]

# Images that people do upload, to be refused by name.
_OTHER_IMAGES: Final = (
    (0, b"GIF8", "GIF"),
    (8, b"WEBP", "WebP"),
    (0, b"BM", "BMP"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypavif", "AVIF"),
    (344, b"n+1\x00", "NIfTI"),
)
_OTHER_FILES: Final = ((0, b"%PDF", "PDF"), (0, b"PK\x03\x04", "a ZIP archive"), (0, b"\x1f\x8b", "a gzip archive"))
_EXPECTED: Final = "expected PNG, JPEG or DICOM"


@dataclass(frozen=True)
class Scan:
    """One chest scan, ready for display.

    Attributes:
        pixels: Grey, windowed and inverted for display (air is dark); row 0 is the top.
        modality: What kind of scan it is.
        source_format: What it was decoded from.
        pixel_spacing_mm: Distance of rows, distance of columns, in mm; None if the file does not say.

    Raises:
        GeometryError: If `pixels` is not a two-dimensional uint8 array.
        ScanTooLarge: Over a limit of `serving.limits`.
        ScanTooSmall: Under a limit of `serving.limits`.
        RequestError: If there is no such modality.
    """

    pixels: UInt8[np.ndarray, "h w"]
    modality: Modality
    source_format: SourceFormat
    pixel_spacing_mm: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.pixels.ndim != 2 or self.pixels.dtype != np.uint8:
            got = f"{self.pixels.dtype}{list(self.pixels.shape)}"
            raise GeometryError(f"expected pixels of uint8[h, w], got {got}")
        check_size(*self.size_hw)
        if self.modality not in MODALITIES:
            raise RequestError(f"expected a modality of {', '.join(MODALITIES)}, got {self.modality!r}")

    @property
    def size_hw(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.pixels.shape
        return height, width


def decode(data: bytes, modality: RequestedModality = "auto") -> Scan:
    """Decode a PNG, JPEG or DICOM file.

    Args:
        data: The file.
        modality: What the caller says it is. With ``auto`` a DICOM's own tag decides, and for PNG and JPEG
            `serving.modality.guess_modality`.

    Returns:
        The scan, with its modality resolved.

    Raises:
        UnreadableScan: Not an image, empty, truncated, without pixels or of a compression that can not be decoded.
        UnsupportedScan: An image of another format, several frames, or another DICOM modality.
        ScanTooLarge: Over a limit; raised before decoding.
        ScanTooSmall: Under a limit; raised before decoding.
        RequestError: No such modality, or it contradicts what the DICOM says it is.
    """
    if modality not in REQUESTED_MODALITIES:
        raise RequestError(f"expected a modality of {', '.join(REQUESTED_MODALITIES)}, got {modality!r}")
    check_file_bytes(data)
    source_format = _sniff(data)
    if source_format == "dicom":
        image = decode_dicom(data)
        if modality not in ("auto", image.modality):
            raise RequestError(f"expected a scan of modality {modality}, got a DICOM that says it is {image.modality}")
        return Scan(image.pixels, image.modality, source_format, image.pixel_spacing_mm)
    pixels = decode_raster(data, source_format)
    return Scan(pixels, guess_modality(pixels) if modality == "auto" else modality, source_format)


def from_hu(
    hu: Num[np.ndarray, "h w"],
    *,
    source_format: SourceFormat = "dicom",
    pixel_spacing_mm: tuple[float, float] | None = None,
) -> Scan:
    """A CT slice from Hounsfield units, through the lung window: as `decode` shows a CT slice of the same values.

    Args:
        hu: Hounsfield units of any real type; NaN reads as air.
        source_format: What the values come from.
        pixel_spacing_mm: Distance of rows, distance of columns, in mm.

    Raises:
        GeometryError: If `hu` is not two-dimensional.
        ScanTooLarge: Over a limit of `serving.limits`.
        ScanTooSmall: Under a limit of `serving.limits`.
    """
    return Scan(lung_window(hu), "ct", source_format, pixel_spacing_mm)


def _sniff(data: bytes) -> Literal["png", "jpeg", "dicom"]:
    if data.startswith(PNG_MAGIC):
        return "png"
    if data.startswith(JPEG_MAGIC):
        return "jpeg"
    if data.startswith(DICOM_MAGIC, PREAMBLE_BYTES):
        return "dicom"
    for offset, magic, name in _OTHER_IMAGES:
        if data.startswith(magic, offset):
            raise UnsupportedScan(f"{_EXPECTED}, got {name}")
    for offset, magic, name in _OTHER_FILES:
        if data.startswith(magic, offset):
            raise UnreadableScan(f"{_EXPECTED}, got {name}")
    raise UnreadableScan(f"{_EXPECTED}, got {len(data):,} bytes of an unknown format")
