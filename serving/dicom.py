"""DICOM to grey pixels.

No message quotes a value of the file other than its modality, transfer syntax, class and geometry: the rest may
be a patient's.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, Final

import numpy as np
import pydicom
from jaxtyping import Num, UInt8
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels import get_decoder, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, RLELossless

from serving.dicom_pixels import for_display, luma
from serving.errors import ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.labels import Modality
from serving.limits import MAX_FILE_BYTES, check_size, fence
from serving.rasters import JPEG_MAGIC, check_jpeg_scans, jpeg_size_hw

PREAMBLE_BYTES: Final = 128
DICOM_MAGIC: Final = b"DICM"

# PS3.3 C.7.3.1.1.1. DR is not in the standard, and is in the wild.
MODALITY_OF_TAG: Final[dict[str, Modality]] = {"CT": "ct", "CR": "xray", "DX": "xray", "DR": "xray", "RG": "xray"}

# pydicom logs the values that it stumbles over, and they may be a patient's.
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

_J2K_MAGIC: Final = b"\xff\x4f\xff\x51"
_JP2_MAGIC: Final = b"\x00\x00\x00\x0cjP  "
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
        dataset = read_dicom(io.BytesIO(data))
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


def read_dicom(stream: BinaryIO, *, stop_before_pixels: bool = False) -> pydicom.Dataset:
    """Parse a DICOM file. To be called inside of a `serving.limits.fence`.

    Args:
        stream: The file; can be sought in. With `stop_before_pixels` it is left where its pixel data's tag begins.
        stop_before_pixels: Whether to leave the pixels unread.

    Raises:
        UnreadableScan: If it has no transfer syntax.
        ScanTooLarge: If it is deflated to more than `MAX_FILE_BYTES`.
    """
    stream.seek(PREAMBLE_BYTES + len(DICOM_MAGIC))
    meta = read_dataset(stream, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    for _ in meta:
        pass  # reads each element; pydicom would take a meta group that can not be read so for another encoding
    if not meta.get("TransferSyntaxUID"):
        raise UnreadableScan("expected a DICOM with a transfer syntax, got one without")
    if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        # pydicom inflates without a bound.
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(stream.read(MAX_FILE_BYTES), MAX_FILE_BYTES)
        if inflater.unconsumed_tail or stream.read(1):
            raise ScanTooLarge(f"expected at most {MAX_FILE_BYTES:,} bytes of deflated DICOM, got more")
    stream.seek(0)
    return pydicom.dcmread(stream, stop_before_pixels=stop_before_pixels)


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
    if "PixelData" not in dataset:
        raise UnsupportedScan("expected a DICOM of integer pixels, got floating-point pixels")
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
        _check_codestream(get_frame(dataset.PixelData, 0, number_of_frames=1), dataset, syntax)


def _check_codestream(frame: bytes, dataset: pydicom.Dataset, syntax: UID) -> None:
    """Hold the size inside a compressed frame against that of the data set, which is what the limits were held to."""
    expected = int(dataset.Rows), int(dataset.Columns)
    if syntax == RLELossless:
        expected_bytes = expected[0] * expected[1] * dataset.SamplesPerPixel * -(-dataset.BitsAllocated // 8)
        if rle_exceeds(frame, expected_bytes + 64):
            raise UnreadableScan(f"expected RLE pixels of {expected_bytes:,} bytes, got more")
        return
    if frame.startswith(JPEG_MAGIC):
        check_jpeg_scans(frame)
        got = jpeg_size_hw(frame)
    else:
        got = _j2k_size_hw(frame, int(dataset.SamplesPerPixel))
    if got != expected:
        raise UnreadableScan(
            f"expected compressed pixels of {expected[1]} x {expected[0]} (width x height), got {got[1]} x {got[0]}"
        )


def _j2k_size_hw(frame: bytes, samples: int) -> tuple[int, int]:
    """Height and width from SIZ of a JPEG 2000 codestream (ITU T.800, A.5.1)."""
    at = _j2k_start(frame)
    right, bottom, left, top = struct.unpack(">IIII", frame[at + 8 : at + 24])
    (components,) = struct.unpack(">H", frame[at + 40 : at + 42])
    if components != samples:
        raise UnreadableScan(f"expected compressed pixels of {samples} sample(s), got {components:,}")
    return bottom - top, right - left


def _j2k_start(frame: bytes) -> int:
    """Where the codestream begins: at once, or in a box of a JP2 file, which the standard forbids and people send."""
    at = 0
    if frame.startswith(_JP2_MAGIC):
        # Walked here because pydicom 3.0.2 walks it too, and for ever if a box is 0 bytes long.
        while frame[at + 4 : at + 8] != b"jp2c":
            length = int.from_bytes(frame[at : at + 4], "big")
            if length < 8 or at + length >= len(frame):
                raise UnreadableScan("expected a JPEG 2000 codestream, got broken JP2 boxes")
            at += length
        at += 8
    if not frame.startswith(_J2K_MAGIC, at):
        raise UnreadableScan("expected a JPEG 2000 codestream, got something else")
    return at


def rle_exceeds(frame: bytes, limit_bytes: int) -> bool:
    """Whether an RLE frame (PS3.5 annex G) expands to more than a limit, without expanding it."""
    header = struct.unpack("<16I", frame[:64])
    # Segment by segment: each may be padded to an even length, and read on from there the next would be garbage.
    offsets = [*header[1 : 1 + min(header[0], 15)], len(frame)]
    total = 0
    for start, end in pairwise(offsets):
        total += _rle_bytes(frame[start:end], limit_bytes - total)
    return total > limit_bytes


def _rle_bytes(segment: bytes, limit_bytes: int) -> int:
    """What a segment expands to, counted up to somewhat over a limit."""
    total, at = 0, 0
    while at < len(segment) and total <= limit_bytes:
        code = segment[at]
        if code < 128:
            total += code + 1
            at += code + 2
        else:
            total += 257 - code if code > 128 else 0
            at += 2 if code > 128 else 1
    return total


def spacing_mm(dataset: pydicom.Dataset) -> tuple[float, float] | None:
    """Distance of rows and distance of columns in mm; None where the data set does not say, or says nonsense."""
    try:
        spacing = dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
        row, column = (float(value) for value in spacing)
    except (TypeError, ValueError):
        # Left out, or not two numbers: no reason to lose the scan.
        return None
    return (row, column) if np.isfinite([row, column]).all() and min(row, column) > 0 else None
