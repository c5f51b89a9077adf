"""What is read of a DICOM file before its pixels, and what that may cost.

pydicom reads what a file says, however long it says it: eight million empty elements fit into a file that passes, and
a spacing of two million numbers into 4 MiB. So only what is looked at here is kept, the pieces that a header is read
in are counted, and the value of an element is no longer than explicit VR can make it.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from typing import BinaryIO, Final, cast

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.filereader import read_dataset, read_partial, read_sequence
from pydicom.tag import BaseTag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from serving.errors import ScanTooLarge, UnreadableScan
from serving.limits import (
    MAX_CHARACTER_SET_BYTES,
    MAX_FILE_BYTES,
    MAX_HEADER_BYTES,
    MAX_HEADER_READS,
    MAX_META_BYTES,
    MAX_STUDY_READS,
    MAX_VALUE_BYTES,
)

PREAMBLE_BYTES: Final = 128
DICOM_MAGIC: Final = b"DICM"

PER_FRAME: Final = "PerFrameFunctionalGroupsSequence"
SHARED: Final = "SharedFunctionalGroupsSequence"

_UNDEFINED: Final = 0xFFFFFFFF
_META_GROUP: Final = 2
_PIXELS: Final = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_TABLES: Final = tuple(
    f"{kind}{colour}PaletteColorLookupTableData" for kind in ("", "Segmented") for colour in ("Red", "Green", "Blue")
)
_SEQUENCES: Final = (PER_FRAME, SHARED, "ModalityLUTSequence", "VOILUTSequence")
_LONG: Final = (*_PIXELS, *_TABLES, *_SEQUENCES, "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_SHORT: Final = (
    *("ImageType", "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesDescription", "SeriesInstanceUID"),
    *("SliceThickness", "ImagerPixelSpacing", "PixelSpacing", "InstanceNumber"),
    *("ImagePositionPatient", "ImageOrientationPatient"),
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleIntercept", "RescaleSlope", "RescaleType"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
)
READ: Final = (*_SHORT, *_LONG)
"""Keywords of all that is kept of a file; what is not among them reads as if the file did not have it."""

_SHORT_TAGS: Final = frozenset(tag_for_keyword(keyword) for keyword in _SHORT)
_READ_TAGS: Final = [tag for keyword in READ if (tag := tag_for_keyword(keyword)) is not None]
_PIXEL_TAGS: Final = frozenset(tag_for_keyword(keyword) for keyword in _PIXELS)
_CHARACTER_SET: Final = frozenset({b"\x08\x00\x05\x00", b"\x00\x08\x00\x05"})

# A file's beginning up to its data set, in explicit VR little endian.
_INFLATED: Final = bytes(PREAMBLE_BYTES) + DICOM_MAGIC + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00"


class StudyReads:
    """How often the headers of a study may still be read from."""

    def __init__(self) -> None:
        self._left = MAX_STUDY_READS

    @property
    def are_spent(self) -> bool:
        """Whether nothing is left."""
        return self._left < 0

    def spend(self) -> None:
        """One more.

        Raises:
            ScanTooLarge: If nothing was left.
        """
        self._left -= 1
        if self.are_spent:
            raise ScanTooLarge(f"expected a study with headers of at most {MAX_STUDY_READS:,} pieces, got more")


class BoundedStream:
    """A stream that gives out only so much: pydicom keeps what it reads, and does not ask how often.

    Args:
        stream: The file.
        max_bytes: Most bytes in all; what is read twice counts twice. None for no more limit than the file has.
        study: Of the study that the file belongs to, if it does.
    """

    def __init__(
        self, stream: BinaryIO, max_bytes: int | None = MAX_HEADER_BYTES, study: StudyReads | None = None
    ) -> None:
        self._stream, self._bytes_left, self._reads_left = stream, max_bytes, MAX_HEADER_READS
        self._character_set_left = MAX_CHARACTER_SET_BYTES
        self._tag = b""
        self._max_bytes, self._study = max_bytes, study
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        """As of a stream.

        Raises:
            ScanTooLarge: If it is more than a header may have.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ScanTooLarge(f"expected a DICOM header of at most {MAX_HEADER_READS:,} pieces, got more")
        if self._study is not None:
            self._study.spend()
        if size > 4 and self._tag in _CHARACTER_SET:
            self._count_character_set(size)
        if self._bytes_left is None:
            data = self._stream.read(size)
        else:
            data = self._stream.read(min(size, self._bytes_left + 1) if size >= 0 else self._bytes_left + 1)
            self._bytes_left -= len(data)
            if self._bytes_left < 0:
                raise ScanTooLarge(f"expected a DICOM header of at most {self._max_bytes:,} bytes, got more")
        if size == 8:  # Of an element its tag, its VR, and its length or what says where that is.
            self._tag = data[:4]
        return data

    def _count_character_set(self, size: int) -> None:
        # pydicom looks each of its names up at once, in items of sequences that nobody asks for as well: 4 s a MB.
        self._character_set_left -= size
        if self._character_set_left < 0:
            raise ScanTooLarge(f"expected character sets of at most {MAX_CHARACTER_SET_BYTES:,} bytes, got more")


def inflated(stream: BinaryIO) -> BinaryIO:
    """The same file without deflation; the stream itself, if it is not deflated. To be called inside of a fence.

    Raises:
        UnreadableScan: If it has no transfer syntax.
        ScanTooLarge: If it is deflated to more than `MAX_FILE_BYTES`.
    """
    stream.seek(PREAMBLE_BYTES + len(DICOM_MAGIC))
    bounded = cast(BinaryIO, BoundedStream(stream, MAX_META_BYTES))
    meta = read_dataset(bounded, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != _META_GROUP)
    for _ in meta:
        pass  # reads each element; pydicom would take a meta group that can not be read so for another encoding
    if not meta.get("TransferSyntaxUID"):
        raise UnreadableScan("expected a DICOM with a transfer syntax, got one without")
    if meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return stream
    # pydicom inflates without a bound.
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(stream.read(MAX_FILE_BYTES), MAX_FILE_BYTES)
    if inflater.unconsumed_tail or stream.read(1):
        raise ScanTooLarge(f"expected at most {MAX_FILE_BYTES:,} bytes of deflated DICOM, got more")
    if not inflater.eof:
        raise UnreadableScan("expected a whole DICOM file, got a truncated one")
    return io.BytesIO(_INFLATED + body)


def read_dicom(
    stream: BinaryIO,
    *,
    stop_before_pixels: bool = False,
    study: StudyReads | None = None,
    also: Sequence[str] = (),
) -> pydicom.Dataset:
    """Parse what of a DICOM file is looked at. To be called inside of a `serving.limits.fence`.

    Args:
        stream: The file, `inflated`; can be sought in. With `stop_before_pixels` it is left where its pixel data's tag
            begins.
        stop_before_pixels: Whether to leave the pixels unread.
        study: Of the study that it belongs to, if it does.
        also: Keywords of further short elements.

    Returns:
        Those of the elements `READ` and `also` that it has.

    Raises:
        ScanTooLarge: If there is more of it than a header may have.
    """
    stream.seek(0)
    bounded = cast(BinaryIO, BoundedStream(stream, MAX_HEADER_BYTES if stop_before_pixels else None, study))
    further = [tag for keyword in also if (tag := tag_for_keyword(keyword)) is not None]
    short = _SHORT_TAGS.union(further)

    def stop(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if stop_before_pixels and tag in _PIXEL_TAGS:
            return True
        if tag in short and MAX_VALUE_BYTES < length != _UNDEFINED:
            raise ScanTooLarge(f"expected a DICOM element of at most {MAX_VALUE_BYTES:,} bytes, got {length:,} bytes")
        return False

    return read_partial(bounded, stop_when=stop, specific_tags=[*_READ_TAGS, *further])


def items_of(dataset: pydicom.Dataset, keyword: str) -> list[pydicom.Dataset]:
    """The items of a sequence, read in bounds; none if there is none. To be called inside of a fence.

    Raises:
        ScanTooLarge: If there is more of it than a header may have.
    """
    raw = dataset.get_item(keyword) if keyword in dataset else None
    if isinstance(raw, RawDataElement):
        stored = raw.value or b""
        bounded = cast(BinaryIO, BoundedStream(io.BytesIO(stored)))
        items = read_sequence(bounded, raw.is_implicit_VR, raw.is_little_endian, len(stored), "iso8859")
        dataset[keyword] = DataElement(raw.tag, "SQ", items)
    return list(dataset.get(keyword) or ())


def is_short(dataset: pydicom.Dataset, keyword: str) -> bool:
    """Whether a data set has an element, of a length that it may have."""
    raw = dataset.get_item(keyword) if keyword in dataset else None
    return raw is not None and not (isinstance(raw, RawDataElement) and len(raw.value or b"") > MAX_VALUE_BYTES)
