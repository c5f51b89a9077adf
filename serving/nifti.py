"""NIfTI-1 and NIfTI-2, plain or gzipped, to a `Volume`.

nibabel reads the header and settles which of its transforms holds (sform before qform, before a guess from the
voxel sizes). Its limits are checked before anything else is inflated, and a gzipped file is inflated to a file
without a name in a bounded stream, so that a study costs no more memory than a slice.

The format has no notion of Hounsfield units: values, after the header's slope and intercept, are taken for them.
"""

from __future__ import annotations

import io
import logging
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

import nibabel
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from serving.errors import GeometryError, ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.limits import (
    MAX_GZIP_MEMBERS,
    MAX_SLICES,
    MAX_STUDY_BYTES,
    MAX_VOXELS,
    check_expansion,
    check_size,
    fence,
)
from serving.volumes import Layout, Volume, tilt_problem
from serving.voxels import UNMEASURED_HU, Memory

GZIP_MAGIC: Final = b"\x1f\x8b"

_HEADERS: Final = ((348, nibabel.Nifti1Header, b"n+1\0", 344), (540, nibabel.Nifti2Header, b"n+2\0\r\n\x1a\n", 4))
_PAIR_MAGICS: Final = (b"ni1\0", b"ni2\0")
_HEADER_BYTES: Final = 540
_TYPES: Final = frozenset({"uint8", "int8", "int16", "uint16", "int32", "uint32", "float32", "float64"})
_LPS_OF_RAS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
# A label map of lungs, lobes and lesions has some; a CT has air, at -1000.
_MOST_CLASSES: Final = 20
_CHUNK_BYTES: Final = 2**20
_PACKED_BYTES: Final = 2**16

# nibabel logs what it mends in a header.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)


def is_nifti(head: bytes) -> bool:
    """Whether a file is NIfTI, by its first `HEAD_BYTES` bytes or more; gzip is looked into."""
    if head.startswith(GZIP_MAGIC):
        try:
            head = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, _HEADER_BYTES)
        except zlib.error:
            return False
    return any(head.startswith(magic, at) for _, _, magic, at in _HEADERS)


HEAD_BYTES: Final = 4096
"""What `is_nifti` needs of a file."""


def read_nifti(source: Path | bytes) -> Volume:
    """Read a NIfTI file.

    Args:
        source: The file, or its bytes. A file that is not gzipped is mapped, and must stay as it is.

    Returns:
        The volume; its axes are those closest to the patient's, whatever order the file has them in.

    Raises:
        UnreadableScan: Not NIfTI, broken or truncated.
        UnsupportedScan: A pair of files, a number of axes other than three (a fourth of length 1 is dropped), a
            type of voxels other than whole or real numbers, lengths in another unit than mm, or class ids of a mask.
        ScanTooLarge: Over a limit of `serving.limits`; raised before the voxels are inflated.
        ScanTooSmall: Under a limit of `serving.limits`, likewise.
    """
    with _opened(source) as stream:
        with fence("a NIfTI file"):
            packed = stream.read(len(GZIP_MAGIC)) == GZIP_MAGIC
            stream.seek(0)
            inflated = _inflate(stream) if packed else iter([stream.read(_HEADER_BYTES)])
            head = _take(inflated, _HEADER_BYTES)
            header = _header(head)
            shape, offset = _check(header)
            affine = _LPS_OF_RAS @ np.asarray(header.get_best_affine(), np.float64)
            layout = _layout(affine)
            height, width = (shape[axis] for axis in layout.axes[1:])
            check_size(height, width)
            scale = _scale(header)
        needed = offset + int(np.prod(shape, dtype=np.int64)) * header.get_data_dtype().itemsize
        if packed:
            check_expansion(_size_bytes(stream), needed)
        stored = _inflated_to_file(head, inflated, needed) if packed else _mapped(source)
    if stored.size < needed:
        raise UnreadableScan(f"expected a NIfTI file of {needed:,} bytes, got {stored.size:,}: it is truncated")
    values: np.ndarray = np.ndarray(shape, header.get_data_dtype(), buffer=stored, offset=offset, order="F")
    voxels = NiftiVoxels(values, header, *scale)
    _check_values(voxels)
    return Volume(voxels, affine, layout, problems=_problems(header, affine))


class NiftiVoxels(Memory):
    """Mapped values times slope plus intercept; what is no number is air.

    Attributes:
        header: nibabel's header of the file. Its texts may name anybody: not for logs, not for exports.
    """

    def __init__(self, values: np.ndarray, header: Any, slope: float, intercept: float) -> None:
        super().__init__(values, "nifti")
        self.header = header
        self._slope, self._intercept = slope, intercept

    def plane(self, axis: int, index: int) -> Float32[np.ndarray, "a b"]:
        """Hounsfield units of one plane, a new array."""
        # Values that overflow or are none are the file's, and nothing to warn of.
        with np.errstate(all="ignore"):
            stored = self._values[(slice(None),) * axis + (index,)].astype(np.float64)
            scaled = (stored * self._slope + self._intercept).astype(np.float32)
        return np.nan_to_num(scaled, copy=False, nan=UNMEASURED_HU)


@contextmanager
def _opened(source: Path | bytes) -> Iterator[BinaryIO]:
    if isinstance(source, bytes):
        yield io.BytesIO(source)
        return
    with fence("a file that can be read"):
        stream = source.open("rb")
    with stream:
        yield stream


def _inflate(stream: BinaryIO) -> Iterator[bytes]:
    """The gzip's contents in chunks of at most `_CHUNK_BYTES`; members that follow each other are one file."""
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
    members = 1
    while rest := stream.read(_PACKED_BYTES):
        while rest:
            yield inflater.decompress(rest, _CHUNK_BYTES)
            rest = inflater.unconsumed_tail or inflater.unused_data
            if inflater.eof:
                members += 1
                if members > MAX_GZIP_MEMBERS:
                    raise ScanTooLarge(f"expected a gzip of at most {MAX_GZIP_MEMBERS:,} members, got more")
                inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
                if not rest.startswith(GZIP_MAGIC[: len(rest)]):
                    return


def _take(chunks: Iterator[bytes], count: int) -> bytes:
    taken = b""
    while len(taken) < count and (chunk := next(chunks, None)) is not None:
        taken += chunk
    return taken


def _header(head: bytes) -> Any:
    for size, kind, magic, at in _HEADERS:
        if head.startswith(magic, at) and len(head) >= size:
            return kind.from_fileobj(io.BytesIO(head[:size]))
    if any(head.startswith(magic, at) for magic in _PAIR_MAGICS for at in (4, 344)):
        raise UnsupportedScan("expected NIfTI in one file, got the header of a pair of files")
    raise UnreadableScan("expected a NIfTI file, got another format")


def _check(header: Any) -> tuple[tuple[int, int, int], int]:
    shape = tuple(int(length) for length in header.get_data_shape())
    if len(shape) > 3 and all(length == 1 for length in shape[3:]):
        shape = shape[:3]
    if len(shape) != 3:
        raise UnsupportedScan(f"expected a NIfTI file of three axes, got {len(shape)} ({' x '.join(map(str, shape))})")
    if min(shape) < 1:
        raise UnreadableScan(f"expected axes of at least one voxel, got {' x '.join(map(str, shape))}")
    if max(shape) > MAX_SLICES:
        raise ScanTooLarge(f"expected axes of at most {MAX_SLICES:,} voxels, got {' x '.join(map(str, shape))}")
    voxels, kind = int(np.prod(shape, dtype=np.int64)), header.get_data_dtype()
    if voxels > MAX_VOXELS or voxels * kind.itemsize > MAX_STUDY_BYTES:
        raise ScanTooLarge(
            f"expected at most {MAX_VOXELS:,} voxels and {MAX_STUDY_BYTES:,} bytes, got {voxels:,} of "
            f"{kind.itemsize} bytes"
        )
    if kind.name not in _TYPES:
        raise UnsupportedScan(f"expected voxels of whole or real numbers, got {kind.name}")
    if (unit := header.get_xyzt_units()[0]) not in ("mm", "unknown"):
        raise UnsupportedScan(f"expected lengths in mm, got {unit}")
    offset = int(header.get_data_offset())
    if not header.sizeof_hdr <= offset <= MAX_STUDY_BYTES:
        raise UnreadableScan(f"expected voxels after a header of {header.sizeof_hdr} bytes, got them at {offset:,}")
    return (shape[0], shape[1], shape[2]), offset


def _layout(affine: Float64[np.ndarray, "4 4"]) -> Layout:
    try:
        return Layout.of(affine)
    except GeometryError:
        raise UnreadableScan("expected a NIfTI file with three independent axes, got one without") from None


def _mapped(source: Path | bytes) -> UInt8[np.ndarray, " bytes"]:
    if isinstance(source, bytes):
        return np.frombuffer(source, np.uint8)
    return np.memmap(source, np.uint8, "r")


def _inflated_to_file(head: bytes, inflated: Iterator[bytes], needed: int) -> UInt8[np.ndarray, " bytes"]:
    """The first bytes of what is inflated, mapped; what follows the voxels stays packed."""
    # No fence around it: that would hold up every other decoder of the process for seconds.
    with tempfile.TemporaryFile() as file:
        file.write(head)
        written = len(head)
        try:
            while written < needed and (chunk := next(inflated, None)) is not None:
                written += file.write(chunk)
        except (zlib.error, OSError) as error:
            raise UnreadableScan(
                f"expected a whole NIfTI file, got a broken or truncated one ({type(error).__name__})"
            ) from None
        file.flush()
        return np.memmap(file, np.uint8, "r", shape=(written,))


def _check_values(voxels: NiftiVoxels) -> None:
    """Refuse class ids: a folder of scans holds masks, too, and one read as CT would be a chest without air.

    A plane of a CT ends the search, so that only a mask is read as a whole.
    """
    highest = 0.0
    for index in range(voxels.shape[2]):
        plane = voxels.plane(2, index)
        highest = max(highest, float(plane.max()))
        if plane.min() < 0 or highest > _MOST_CLASSES or (plane != np.rint(plane)).any():
            return
    if highest > 0:
        raise UnsupportedScan(
            f"expected a CT volume in Hounsfield units, got whole numbers from 0 to {highest:.0f}: a mask?"
        )


def _scale(header: Any) -> tuple[float, float]:
    """Slope and intercept. To be called inside of a fence: nibabel raises where one is no number."""
    slope, intercept = header.get_slope_inter()
    return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


def _size_bytes(stream: BinaryIO) -> int:
    at = stream.tell()
    size_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(at)
    return size_bytes


def _problems(header: Any, affine: Float64[np.ndarray, "4 4"]) -> tuple[str, ...]:
    said = ["values are taken for Hounsfield units: NIfTI does not say"]
    if not (int(header["sform_code"]) or int(header["qform_code"])):
        said.append("the file does not say how the patient lies: left and right, front and back may be swapped")
    return (*said, *tilt_problem(affine))
