"""One frame at a time of a DICOM file's pixels.

The frame's own bytes are cut out of the file and read as those of a single-frame file, so that every check of
`serving.dicom` holds for it too.
"""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

import numpy as np
import pydicom
from jaxtyping import Float32, Num, UInt8
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import apply_modality_lut

from serving.archives import ZIP_MAGICS, Blob
from serving.dicom import check_image, decode_stored, modality_of, without_pixels
from serving.dicom_headers import (
    DICOM_MAGIC,
    PER_FRAME,
    PREAMBLE_BYTES,
    BoundedStream,
    StudyReads,
    inflated,
    items_of,
    read_dicom,
)
from serving.dicom_pixels import for_display, padding_of
from serving.dicom_planes import Plane, frame_view, plane_of
from serving.errors import GeometryError, ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.limits import MAX_FILE_BYTES, MAX_SLICES, fence
from serving.voxels import UNMEASURED_HU

_PIXEL_GROUP: Final = 0x7FE0
_PIXEL_DATA: Final = 0x0010


def read_planes(blob: Blob, study: StudyReads | None = None) -> list[Plane]:
    """The frames of a DICOM file, from its header alone.

    Args:
        blob: The file.
        study: Of the study that it belongs to, if it does.

    Raises:
        UnreadableScan: Not DICOM, broken, or without pixels.
        UnsupportedScan: A modality, an image type or a pixel type that is not read.
        ScanTooLarge: Over a limit of `serving.limits`.
        ScanTooSmall: Under a limit of `serving.limits`.
    """
    with MultiFrame(blob, study) as frames:
        return list(frames.planes())


class MultiFrame:
    """The frames of a DICOM file, decoded one at a time. Its header is parsed once, its pixels stay in the file.

    Args:
        blob: The file.
        study: Of the study that it belongs to, if it does.

    Raises:
        ScanError: As `read_planes`.
    """

    def __init__(self, blob: Blob, study: StudyReads | None = None) -> None:
        self._blob, self._study = blob, study
        # A small file is cheaper to hold than to seek in, above all inside a zip.
        in_memory = blob.size_bytes <= MAX_FILE_BYTES
        self._stream: BinaryIO = io.BytesIO(blob.read()) if in_memory else blob.seekable()
        self._close = weakref.finalize(self, self._stream.close)
        try:
            with fence("a whole DICOM file"):
                self._parse()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> MultiFrame:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; it closes itself with its last user, too."""
        self._close()

    def planes(self) -> Iterator[Plane]:
        """What the file says of each frame.

        Raises:
            ScanError: As `read_planes`.
        """
        for frame in range(self._count):
            with fence("a whole DICOM file"):
                plane = plane_of(self._blob, frame_view(self._header, frame), frame, self._count)
            yield plane

    def hu(self, frame: int) -> Float32[np.ndarray, "h w"]:
        """Hounsfield units of a frame; padding is `UNMEASURED_HU`.

        Raises:
            ScanError: If the frame can not be decoded.
        """
        with fence("a whole DICOM file"):
            dataset, stored = self._decoded(frame)
            values: Float32[np.ndarray, "h w"] = apply_modality_lut(stored, dataset).astype(np.float32)
            values[padding_of(stored, dataset)] = UNMEASURED_HU
            return values

    def grey(self, frame: int) -> UInt8[np.ndarray, "h w"]:
        """Grey of a frame whose values are no Hounsfield units, as the file asks for it to be shown.

        Raises:
            ScanError: If the frame can not be decoded.
        """
        with fence("a whole DICOM file"):
            dataset, stored = self._decoded(frame)
            return for_display(stored, dataset, "xray")

    def _parse(self) -> None:
        self._stream.seek(0)
        head = self._stream.read(PREAMBLE_BYTES + len(DICOM_MAGIC))
        if head[PREAMBLE_BYTES:] != DICOM_MAGIC:
            archived = head.startswith((*ZIP_MAGICS, b"\x1f\x8b"))
            got = "an archive, which is not opened" if archived else "another format"
            raise UnreadableScan(f"expected a DICOM file, got {got}")
        self._stream = inflated(self._stream)
        self._header = read_dicom(self._stream, stop_before_pixels=True, study=self._study)
        self._syntax = self._header.file_meta.TransferSyntaxUID
        self._find_pixels()
        self._count = int(self._header.get("NumberOfFrames") or 1)
        if not 1 <= self._count <= MAX_SLICES:
            raise ScanTooLarge(f"expected at most {MAX_SLICES:,} frames, got {self._count:,}")
        modality_of(self._header)
        self._check_frames()

    def _find_pixels(self) -> None:
        order = "little" if self._syntax.is_little_endian else "big"
        start = self._stream.read(8)
        group, element = (int.from_bytes(start[i : i + 2], order) for i in (0, 2))  # type: ignore[arg-type]
        if len(start) < 8 or group != _PIXEL_GROUP:
            raise without_pixels(self._header)
        if element != _PIXEL_DATA:
            raise UnsupportedScan("expected a DICOM of integer pixels, got floating-point pixels")
        # An explicit VR of pixels is followed by two reserved bytes and four of length.
        self._at = self._stream.tell() + (0 if self._syntax.is_implicit_VR else 4)

    def _check_frames(self) -> None:
        if self._count == 1:
            return
        got = len(items_of(self._header, PER_FRAME))
        if got not in (0, self._count):
            raise UnreadableScan(f"expected functional groups of {self._count:,} frames, got {got:,}")
        if int(self._header.BitsAllocated) % 8:
            raise UnsupportedScan(f"expected frames of whole bytes, got {int(self._header.BitsAllocated)} bit a pixel")

    def _decoded(self, frame: int) -> tuple[pydicom.Dataset, Num[np.ndarray, "h w"]]:
        if not 0 <= frame < self._count:
            raise GeometryError(f"expected a frame in [0, {self._count:,}), got {frame:,}")
        view = frame_view(self._header, frame)
        check_image(view)
        view.PixelData = self._frame_bytes(view, frame)
        view["PixelData"].VR = "OB" if self._syntax.is_encapsulated or view.BitsAllocated <= 8 else "OW"
        stored = decode_stored(view)
        if stored.ndim != 2:
            raise UnsupportedScan("expected slices in grey, got colour")
        return view, stored

    def _frame_bytes(self, view: pydicom.Dataset, frame: int) -> bytes:
        if self._syntax.is_encapsulated:
            self._stream.seek(self._at)
            offsets = self._extended_offsets()
            bounded = cast(BinaryIO, BoundedStream(self._stream, None))
            cut = get_frame(bounded, frame, number_of_frames=self._count, extended_offsets=offsets)
            encapsulated: bytes = encapsulate([cut])
            return encapsulated
        pixels = int(view.Rows) * int(view.Columns) * int(view.SamplesPerPixel)
        frame_bytes = pixels * (int(view.BitsAllocated) // 8)
        self._stream.seek(self._at + frame * frame_bytes)
        data = self._stream.read(frame_bytes)
        if len(data) < frame_bytes:
            raise UnreadableScan(f"expected {frame_bytes:,} bytes of pixels, got {len(data):,}")
        return data + b"\0" * (frame_bytes % 2)

    def _extended_offsets(self) -> tuple[bytes, bytes] | None:
        table, lengths = (self._header.get(f"ExtendedOffsetTable{part}") for part in ("", "Lengths"))
        return (table, lengths) if table and lengths else None
