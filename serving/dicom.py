"""DICOM to grey pixels.

No message quotes a value of the file other than its modality, transfer syntax, class and geometry: the rest may
be a patient's.
"""

from __future__ import annotations

import io
import logging
import re
from dataclasses import dataclass
from typing import Final

import numpy as np
import pydicom
from jaxtyping import Num, UInt8
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID

from serving.codestreams import check_codestream
from serving.dicom_headers import inflated, read_dicom
from serving.dicom_pixels import for_display, luma
from serving.errors import ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.labels import Modality
from serving.limits import MAX_DECODED_BYTES, check_size, fence

# PS3.3 C.7.3.1.1.1. DR is not in the standard, and is in the wild.
MODALITY_OF_TAG: Final[dict[str, Modality]] = {"CT": "ct", "CR": "xray", "DX": "xray", "DR": "xray", "RG": "xray"}

# pydicom logs the values that it stumbles over, and they may be a patient's.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

_PIXEL_KEYWORDS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass(frozen=True)
class DicomImage:
    """What `decode_dicom` reads of a file.

    Attributes:
        pixels: Grey for display, row 0 at the top.
        modality: From the file's own tag.
        pixel_spacing_mm: Distance of rows, distance of columns, in mm; None if the file does not say.
    """

    pixels: UInt8[np.ndarray, "h w"]
    modality: Modality
    pixel_spacing_mm: tuple[float, float] | None


def decode_dicom(data: bytes) -> DicomImage:
    """Decode a DICOM file of one grey or colour frame.

    CT is shown through the lung window whatever window the file asks for: its values are physical. Radiographs
    are shown as the file asks: VOI LUT or first window, else the whole range; MONOCHROME1 is inverted. Padding is
    black.

    Args:
        data: The file.

    Returns:
        Pixels, modality and spacing.

    Raises:
        ScanTooLarge: Over a limit of `serving.limits`, before its pixels are decoded.
        ScanTooSmall: Under a limit of `serving.limits`, likewise.
        UnsupportedScan: Another modality, several frames, a CT localizer or colour CT.
        UnreadableScan: No pixels, a transfer syntax that can not be decoded, broken or truncated.
    """
    with fence("a whole DICOM file"):
        dataset = read_dicom(inflated(io.BytesIO(data)))
        if not any(keyword in dataset for keyword in _PIXEL_KEYWORDS):
            raise without_pixels(dataset)
        modality = modality_of(dataset)
        stored = decode_stored(dataset)
        grey = (
            luma(stored, 2 ** int(dataset.BitsStored) - 1)
            if stored.ndim == 3
            else for_display(stored, dataset, modality)
        )
        return DicomImage(pixels=grey, modality=modality, pixel_spacing_mm=spacing_mm(dataset))


def decode_stored(dataset: pydicom.Dataset) -> Num[np.ndarray, "h w *samples"]:
    """The stored pixels of a data set of one frame, checked before they are decoded. To be called inside of a fence.

    Raises:
        ScanError: As `decode_dicom` does.
    """
    check_image(dataset)
    _check_syntax(dataset)
    stored: Num[np.ndarray, "h w *samples"] = pixel_array(dataset)
    return stored


def without_pixels(dataset: pydicom.Dataset) -> UnreadableScan:
    """What to raise for a DICOM file that is no image."""
    return UnreadableScan(f"expected a DICOM image, got one without pixels ({_class_name(dataset)})")


def _class_name(dataset: pydicom.Dataset) -> str:
    uid = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID")
    return _uid_name(uid) if uid else "of no class"


def _uid_name(uid: UID) -> str:
    # `name` is the UID itself where the standard has none.
    return uid.name if re.fullmatch(r"[0-9.]{1,64}", uid) else "an invalid UID"


def modality_of(dataset: pydicom.Dataset) -> Modality:
    """What kind of scan a data set says that it is.

    Raises:
        UnsupportedScan: If it is none that this pipeline takes.
    """
    tag = str(dataset.get("Modality") or "")
    if tag not in MODALITY_OF_TAG:
        shown = tag if re.fullmatch(r"[A-Z0-9_ ]{1,16}", tag) else "none"
        raise UnsupportedScan(f"expected a DICOM of modality {', '.join(MODALITY_OF_TAG)}, got {shown}")
    return MODALITY_OF_TAG[tag]


def check_image(dataset: pydicom.Dataset) -> None:
    """Hold what a data set declares of its one frame against what is read here.

    Raises:
        ScanTooLarge: Over a limit of `serving.limits`.
        ScanTooSmall: Under a limit of `serving.limits`.
        UnsupportedScan: Several frames, a CT localizer, colour CT, or pixels of a type that is not read.
    """
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnsupportedScan(f"expected a DICOM of one frame, got {frames:,} frames")
    check_size(int(dataset.Rows), int(dataset.Columns))
    samples, bits = int(dataset.SamplesPerPixel), int(dataset.BitsAllocated)
    if samples not in (1, 3) or bits > 32:
        raise UnsupportedScan(f"expected 1 or 3 samples of up to 32 bits, got {samples:,} of {bits:,} bits")
    decoded_bytes = int(dataset.Rows) * int(dataset.Columns) * samples * -(-bits // 8)
    if decoded_bytes > MAX_DECODED_BYTES:
        raise ScanTooLarge(f"expected pixels of at most {MAX_DECODED_BYTES:,} bytes, got {decoded_bytes:,} bytes")
    if "PixelData" not in dataset:
        raise UnsupportedScan("expected a DICOM of integer pixels, got floating-point pixels")
    if "SegmentedRedPaletteColorLookupTableData" in dataset:
        # pydicom expands it without a bound: to half a billion colours from 48 kB.
        raise UnsupportedScan("expected a palette of plain tables, got a segmented one")
    if dataset.Modality == "CT":
        _check_ct(dataset)


def _check_ct(dataset: pydicom.Dataset) -> None:
    if "LOCALIZER" in (dataset.get("ImageType") or ()):
        raise UnsupportedScan("expected an axial CT slice, got a CT localizer")
    if not str(dataset.PhotometricInterpretation).startswith("MONOCHROME"):
        raise UnsupportedScan("expected a CT slice in grey, got one in colour (a screen capture or rendering)")
    if "SharedFunctionalGroupsSequence" in dataset and "RescaleSlope" not in dataset:
        # Its rescale lies in functional groups; without it the values are not Hounsfield units.
        raise UnsupportedScan(f"expected CT Image Storage, got {_class_name(dataset)}")


def _check_syntax(dataset: pydicom.Dataset) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decodable = not syntax.is_encapsulated or get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        decodable = False
    if not decodable:
        raise UnreadableScan(
            f"expected a DICOM transfer syntax that can be decoded, got {_uid_name(syntax)} ({syntax})"
        )
    if syntax.is_encapsulated:
        check_codestream(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset, syntax)


def spacing_mm(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Distance of rows and distance of columns in mm; None where the data set does not say, or says nonsense."""
    try:
        spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
        row, column = (float(value) for value in spacing)
    except (TypeError, ValueError):
        # Left out, or not two numbers: no reason to lose the scan.
        return None
    return (row, column) if np.isfinite([row, column]).all() and min(row, column) > 0 else None
