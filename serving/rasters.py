"""PNG and JPEG to grey pixels.

Sizes come from a look at the header of our own: nothing is decoded, not even by Pillow's notion of a header,
before the limits are held against it.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageOps

from serving.errors import ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.limits import MAX_JPEG_SCANS, MAX_JPEG_SEGMENTS, MAX_PNG_CHUNKS, check_size, fence

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC: Final = b"\xff\xd8\xff"

RasterFormat = Literal["png", "jpeg"]

# Start-of-frame markers: every SOF but DHT (C4), JPG (C8) and DAC (CC), which share their range.
_SOF_MARKERS: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
_DHP: Final = 0xDE
_SOS: Final = 0xDA
_MARKERS_WITHOUT_LENGTH: Final = frozenset({0x01, *range(0xD0, 0xD9)})


def png_size_hw(data: bytes) -> tuple[int, int]:
    """Height and width in pixels from a PNG's IHDR (PNG specification, 11.2.1).

    Raises:
        UnreadableScan: If the file does not begin with a whole IHDR.
    """
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise UnreadableScan("expected a PNG with a header, got a broken or truncated one")
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def check_png_chunks(data: bytes) -> None:
    """Refuse a PNG in more pieces than anyone needs: Pillow looks at each, five million of them in a file that passes.

    Raises:
        ScanTooLarge: If it has more than `MAX_PNG_CHUNKS`.
    """
    at = len(PNG_MAGIC)
    for _ in range(MAX_PNG_CHUNKS):
        # What follows the end is no chunk, and nobody's.
        if data[at + 4 : at + 8] == b"IEND":
            return
        # Length, kind and checksum around the data.
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at >= len(data):
            return
    raise ScanTooLarge(f"expected a PNG of at most {MAX_PNG_CHUNKS:,} chunks, got more")


def jpeg_size_hw(data: bytes) -> tuple[int, int]:
    """Height and width in pixels from a JPEG's or JPEG-LS's first start-of-frame (ITU T.81, B.2.2).

    Raises:
        UnreadableScan: If the file has no whole start-of-frame before its first scan, or is hierarchical.
        ScanTooLarge: If it has more than `MAX_JPEG_SEGMENTS` before its first scan.
    """
    size_hw = None
    for marker, at in _jpeg_segments(data):
        if marker == _DHP:
            raise UnreadableScan("expected a JPEG of one frame, got a hierarchical one")
        if marker in _SOF_MARKERS and size_hw is None and at + 9 <= len(data):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            size_hw = height, width
    if size_hw is None:
        raise UnreadableScan("expected a JPEG with a frame header, got a broken or truncated one")
    return size_hw


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers up to the first scan and where they are. What is between segments is skipped, as Pillow skips it."""
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):
        marker = data[at + 1 : at + 2]
        if not marker or marker[0] == _SOS:
            return
        if data[at] != 0xFF or marker[0] in (0, 0xFF):  # something else, or a fill byte
            at += 1
            continue
        yield marker[0], at
        at += 2 if marker[0] in _MARKERS_WITHOUT_LENGTH else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ScanTooLarge(f"expected a JPEG of at most {MAX_JPEG_SEGMENTS:,} segments before its pixels, got more")


def check_jpeg_scans(data: bytes) -> None:
    """Refuse a JPEG that would be decoded over and over.

    Each scan of a progressive JPEG costs a pass over the whole image, and a few bytes of file.

    Raises:
        ScanTooLarge: If it has more than `MAX_JPEG_SCANS`.
    """
    # Compressed data never holds this pair of bytes: 0xFF is followed by 0 there.
    scans = data.count(b"\xff\xda")
    if scans > MAX_JPEG_SCANS:
        raise ScanTooLarge(f"expected a JPEG of at most {MAX_JPEG_SCANS} scans, got {scans:,}")


def stretch(values: UInt16[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """Map the smallest value to 0 and the largest to 255, linearly. A constant image becomes 0."""
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return np.zeros(values.shape, np.uint8)
    scaled: UInt8[np.ndarray, "h w"] = np.rint((values.astype(np.float32) - low) * (255 / (high - low))).astype(
        np.uint8
    )
    return scaled


def decode_raster(data: bytes, source_format: RasterFormat) -> UInt8[np.ndarray, "h w"]:
    """Decode a PNG or JPEG to grey.

    Colours become luma (ITU-R 601), transparency is laid on black, the EXIF orientation is applied. A 16-bit grey
    PNG is stretched from its own minimum and maximum to `[0, 255]`; of a 16-bit colour PNG the upper bytes are used.

    Args:
        data: The file.
        source_format: What its first bytes say it is.

    Returns:
        Grey pixels, row 0 at the top.

    Raises:
        ScanTooLarge: Over a limit of `serving.limits`, before decoding.
        ScanTooSmall: Under a limit of `serving.limits`, before decoding.
        UnsupportedScan: If it is animated.
        UnreadableScan: If it can not be decoded.
    """
    if source_format == "png":
        check_size(*png_size_hw(data))
        check_png_chunks(data)
    else:
        check_size(*jpeg_size_hw(data))
        check_jpeg_scans(data)
    with fence(f"a whole {source_format.upper()}"), Image.open(io.BytesIO(data), formats=[source_format]) as image:
        # A JPEG of several pictures (MPO) is a photograph with a preview or a depth map: the first is the picture.
        frames = getattr(image, "n_frames", 1) if source_format == "png" else 1
        if frames != 1:
            raise UnsupportedScan(f"expected one image, got an animated PNG of {frames} frames")
        return _grey(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # Unreadable EXIF says nothing about the orientation; viewers show such a file as it is stored.
        return image


def _grey(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    if image.mode.startswith("I"):
        return stretch(np.asarray(image).astype(np.uint16))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    if image.mode not in ("1", "L"):
        image = image.convert("RGB")
    return np.array(image.convert("L"), dtype=np.uint8)
