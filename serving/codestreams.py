"""Compressed DICOM frames, held against their data set and the limits before a decoder sees them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import pydicom
from pydicom.uid import UID, RLELossless

from serving.errors import ScanTooLarge, UnreadableScan
from serving.limits import MAX_J2K_BLOCKS, MAX_J2K_BYTES, MAX_RLE_CODES
from serving.rasters import JPEG_MAGIC, check_jpeg_scans, jpeg_size_hw

_J2K_MAGIC: Final = b"\xff\x4f\xff\x51"
_JP2_MAGIC: Final = b"\x00\x00\x00\x0cjP  "
_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_MAX_J2K_MARKERS: Final = 100_000
_USER_PRECINCTS: Final = 0x01


def check_codestream(frame: bytes, dataset: pydicom.Dataset, syntax: UID) -> None:
    """Hold the size inside a compressed frame against that of the data set, which is what the limits were held to.

    To be called inside of a `serving.limits.fence`.

    Args:
        frame: Of the data set; all of its fragments.
        dataset: Of one frame.
        syntax: Its transfer syntax.

    Raises:
        UnreadableScan: If the two differ, or the frame is of no known form.
        ScanTooLarge: If it takes more than the limits to decode.
    """
    expected = int(dataset.Rows), int(dataset.Columns)
    if syntax == RLELossless:
        _check_rle(frame, expected[0] * expected[1] * dataset.SamplesPerPixel * -(-dataset.BitsAllocated // 8))
        return
    if frame.startswith(JPEG_MAGIC):
        check_jpeg_scans(frame)
        got = jpeg_size_hw(frame)
    else:
        got = _check_j2k(frame, int(dataset.SamplesPerPixel))
    if got != expected:
        raise UnreadableScan(
            f"expected compressed pixels of {expected[1]} x {expected[0]} (width x height), got {got[1]} x {got[0]}"
        )


def _check_j2k(frame: bytes, samples: int) -> tuple[int, int]:
    """Height and width from SIZ of a JPEG 2000 codestream (ITU T.800, A.5.1)."""
    at = _j2k_start(frame)
    right, bottom, left, top = struct.unpack(">IIII", frame[at + 8 : at + 24])
    (components,) = struct.unpack(">H", frame[at + 40 : at + 42])
    if components != samples:
        raise UnreadableScan(f"expected compressed pixels of {samples} sample(s), got {components:,}")
    if len(frame) > MAX_J2K_BYTES:
        raise ScanTooLarge(f"expected at most {MAX_J2K_BYTES:,} bytes of JPEG 2000, got {len(frame):,} bytes")
    size_hw = bottom - top, right - left
    for marker, segment in _j2k_segments(frame, at + 2):
        if marker in (_COD, _COC):
            # COD: Scod, four bytes on progression, layers and colour, SPcod. COC: the component, Scoc, SPcoc.
            style, said = (segment[0], segment[5:]) if marker == _COD else (segment[1], segment[2:])
            blocks = samples * _j2k_blocks(said, size_hw, has_precincts=bool(style & _USER_PRECINCTS))
            if blocks > MAX_J2K_BLOCKS:
                raise ScanTooLarge(f"expected JPEG 2000 in at most {MAX_J2K_BLOCKS:,} blocks, got {blocks:,}")
    return size_hw


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


def _j2k_segments(frame: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    """Marker and contents of the segments in the main header and in those of the tile-parts (T.800, A.2 to A.4)."""
    tile_part, end = 0, 0
    for _ in range(_MAX_J2K_MARKERS):
        if at + 4 > len(frame):
            return
        marker, length = struct.unpack(">HH", frame[at : at + 4])
        if marker == _EOC:
            return
        if marker == _SOD:
            # A length of 0 says that the tile-part goes on to the end.
            if end <= tile_part:
                return
            at = end
            continue
        yield marker, frame[at + 4 : at + 2 + length]
        if marker == _SOT:
            tile_part, end = at, at + int.from_bytes(frame[at + 6 : at + 10], "big")
        at += 2 + length
    raise ScanTooLarge(f"expected a JPEG 2000 codestream of at most {_MAX_J2K_MARKERS:,} markers, got more")


def _j2k_blocks(said: bytes, size_hw: tuple[int, int], *, has_precincts: bool) -> int:
    """Code blocks and precincts of a component, to within rounding (T.800, A.6.1 and B.6 to B.7).

    Args:
        said: SPcod or SPcoc: decomposition levels, exponents of a code block's width and height less two, two bytes of
            other things, and with `has_precincts` the exponents of a precinct's, a byte for each resolution.
        size_hw: Of the image.
        has_precincts: Whether there are such; else a precinct is as large as can be.
    """
    levels = said[0]
    total = 0
    for resolution in range(levels + 1):
        both = said[5 + resolution] if has_precincts else 0xFF
        exponents = both >> 4, both & 0xF
        # A code block lies within a precinct of a subband, which is half as large as that of the resolution.
        inner = (min(said[2 - axis] + 2, max(exponents[axis] - (resolution > 0), 0)) for axis in (0, 1))
        sides = [-(-side >> (levels - resolution)) for side in size_hw]
        for block in (exponents, tuple(inner)):
            total += (-(-sides[0] >> block[0])) * (-(-sides[1] >> block[1]))
    return total


def _check_rle(frame: bytes, expected_bytes: int) -> None:
    """Refuse an RLE frame (PS3.5 annex G) that expands to more than its image, or is expanded too slowly."""
    header = struct.unpack("<16I", frame[:64])
    # Segment by segment: each may be padded to an even length, and read on from there the next would be garbage.
    offsets = [*header[1 : 1 + min(header[0], 15)], len(frame)]
    total_bytes, total_codes = 0, 0
    for start, end in pairwise(offsets):
        expanded_bytes, codes = _rle_cost(frame[start:end], expected_bytes + 64 - total_bytes, total_codes)
        total_bytes, total_codes = total_bytes + expanded_bytes, total_codes + codes
        if total_bytes > expected_bytes + 64:
            raise UnreadableScan(f"expected RLE pixels of {expected_bytes:,} bytes, got more")


def _rle_cost(segment: bytes, limit_bytes: int, spent_codes: int) -> tuple[int, int]:
    """The bytes that a segment expands to, counted up to somewhat over a limit, and its codes."""
    total, at, codes = 0, 0, 0
    while at < len(segment) and total <= limit_bytes:
        code = segment[at]
        codes += 1
        if code < 128:
            total += code + 1
            at += code + 2
        else:
            total += 257 - code if code > 128 else 0
            at += 2 if code > 128 else 1
        if spent_codes + codes > MAX_RLE_CODES:
            raise ScanTooLarge(f"expected RLE pixels of at most {MAX_RLE_CODES:,} runs, got more")
    return total, codes
