"""What a file may cost before anything of it is decoded, and the fence around other people's decoders."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from serving.errors import LungstreamsError, ScanTooLarge, ScanTooSmall, UnreadableScan

MAX_FILE_BYTES: Final = 64 * 2**20
"""Most bytes of a file: room for an uncompressed 16-bit image of `MAX_PIXELS`."""

MAX_PIXELS: Final = 30 * 2**20
"""Most pixels of an image. The largest radiography detectors have about 20 million."""

MAX_DECODED_BYTES: Final = 3 * MAX_PIXELS
"""Most bytes of a DICOM's pixels, decoded: `MAX_PIXELS` in colours of 8 bits. Colours of 16 took twice as long."""

MAX_SIDE_PX: Final = 10_000
"""Longest side of an image in pixels."""

MIN_SIDE_PX: Final = 48
"""Shortest side of an image in pixels. Below it nothing of a chest is left to see."""

MAX_JPEG_SCANS: Final = 100
"""Most passes of a progressive JPEG; encoders make about ten."""

MAX_JPEG_SEGMENTS: Final = 2_000
"""Most segments of a JPEG before its first scan, fill bytes counted. A large colour profile takes 255."""

MAX_PNG_CHUNKS: Final = 20_000
"""Most chunks of a PNG. libpng writes pixels in pieces of 8 KiB, which are 8,192 in the largest file."""

MAX_RLE_CODES: Final = 8 * 2**20
"""Most runs of a DICOM frame in run lengths: pydicom expands them one by one, some three million a second."""

MAX_J2K_BYTES: Final = 32 * 2**20
"""Most bytes of a DICOM frame in JPEG 2000, of which ten million or so are decoded a second."""

MAX_J2K_BLOCKS: Final = 512 * 2**10
"""Most code blocks and precincts of it, of which the decoder keeps a quarter of a kB each. Blocks are 64 x 64 pixels as
a rule, which makes 25,000 of the largest image in colour."""

MAX_STUDY_FILES: Final = 5_000
"""Most files of a study."""

MAX_STUDY_BYTES: Final = 2 * 2**30
"""Most bytes of a study, unpacked: a volume of `MAX_VOXELS` in four bytes each."""

MAX_HEADER_BYTES: Final = 96 * 2**20
"""Most bytes of a DICOM file before its pixels, what is read twice counted twice. Frames take some kB each."""

MAX_HEADER_READS: Final = 140_000
"""Most pieces that a DICOM header is read in: two or three for each element, items and fragments. Some hundreds are
usual, and some dozens for each frame of an enhanced CT."""

MAX_STUDY_READS: Final = 1_200_000
"""Most pieces that the headers of a study are read in: three hundred for each of `MAX_SLICES`."""

MAX_META_BYTES: Final = 64 * 2**10
"""Most bytes of a DICOM file's meta group."""

MAX_VALUE_BYTES: Final = 64 * 2**10
"""Most bytes of a value in a DICOM header, tables and sequences apart: what explicit VR has room for."""

MAX_CHARACTER_SET_BYTES: Final = 16 * 2**10
"""Most bytes of all the names of character sets in a DICOM header."""

MAX_SLICES: Final = 4_000
"""Most slices of a volume, along any of its axes."""

MAX_VOXELS: Final = 512 * 2**20
"""Most voxels of a volume: two and a half times 512 x 512 x 800."""

MAX_EXPANSION: Final = 200
"""How many times an archive may expand. Scans of the chest expand two to five times, drawn ones forty."""

MIN_EXPANSION_BYTES: Final = 64 * 2**20
"""What an archive may expand to at any rate: of a small one nobody need ask."""

MAX_GZIP_MEMBERS: Final = 65_536
"""Most members of a gzip. Block-gzipped files have one for each 64 KiB."""

_quiet = threading.Lock()


def check_file_size(path: Path) -> None:
    """Hold a file's size on disk against the limit, before anything of it is read.

    Raises:
        ScanTooLarge: If it has more than `MAX_FILE_BYTES`.
        OSError: If it is not there.
    """
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ScanTooLarge(f"expected a file of at most {MAX_FILE_BYTES:,} bytes, got {size:,} bytes")


def check_file_bytes(data: bytes) -> None:
    """Hold a file's length against the limits.

    Raises:
        UnreadableScan: If it is empty.
        ScanTooLarge: If it has more than `MAX_FILE_BYTES`.
    """
    if not data:
        raise UnreadableScan("expected PNG, JPEG or DICOM, got an empty file")
    if len(data) > MAX_FILE_BYTES:
        raise ScanTooLarge(f"expected a file of at most {MAX_FILE_BYTES:,} bytes, got {len(data):,} bytes")


def check_size(height_px: int, width_px: int) -> None:
    """Hold an image's size, as its header declares it, against the limits.

    Raises:
        ScanTooLarge: If a side is over `MAX_SIDE_PX` or the area over `MAX_PIXELS`.
        ScanTooSmall: If a side is under `MIN_SIDE_PX`.
    """
    got = f"got {width_px:,} x {height_px:,} (width x height)"
    if max(height_px, width_px) > MAX_SIDE_PX:
        raise ScanTooLarge(f"expected sides of at most {MAX_SIDE_PX:,} pixels, {got}")
    if height_px * width_px > MAX_PIXELS:
        raise ScanTooLarge(f"expected at most {MAX_PIXELS:,} pixels, {got}")
    if min(height_px, width_px) < MIN_SIDE_PX:
        raise ScanTooSmall(f"expected sides of at least {MIN_SIDE_PX} pixels, {got}")


def check_expansion(packed_bytes: int, unpacked_bytes: int) -> None:
    """Hold what an archive says that it expands to against the limits.

    Raises:
        ScanTooLarge: If that is more than `MAX_EXPANSION` times its size, and more than `MIN_EXPANSION_BYTES`.
    """
    if unpacked_bytes > max(MAX_EXPANSION * packed_bytes, MIN_EXPANSION_BYTES):
        raise ScanTooLarge(
            f"expected an archive that expands at most {MAX_EXPANSION} times, "
            f"got {packed_bytes:,} bytes for {unpacked_bytes:,}"
        )


@contextmanager
def fence(expected: str) -> Iterator[None]:
    """Run a third-party decoder on bytes that nobody vouches for.

    Decoders raise whatever they run into (``struct.error``, ``KeyError``, ``zlib.error``, ...), and warn about
    values that are the sender's and not ours to see. Warnings are dropped; exceptions become `UnreadableScan`.

    Args:
        expected: What should have been there, as in "a JPEG that can be decoded".

    Raises:
        UnreadableScan: In place of whatever was raised, except our own errors. It names the type of what was
            raised and neither quotes nor chains it: a decoder's message may hold a patient's data.
    """
    # `catch_warnings` swaps state of the whole process: two of them that overlap would leave the filters wrong.
    with _quiet, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except LungstreamsError:
            raise
        except Exception as error:
            raise UnreadableScan(
                f"expected {expected}, got a broken or truncated one ({type(error).__name__})"
            ) from None
