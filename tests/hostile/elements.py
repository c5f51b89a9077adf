"""DICOM, PNG and JPEG by hand: files that no library would write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian

UNDEFINED = 0xFFFFFFFF
ITEM, END_OF_ITEM, END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_LONG = ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV")


def tag(number: int) -> bytes:
    return struct.pack("<HH", number >> 16, number & 0xFFFF)


def element(number: int, vr: str, value: bytes, length: int | None = None) -> bytes:
    """An element in explicit VR little endian; `length` is what it says, if not the truth."""
    said = len(value) if length is None else length
    if vr in _LONG:
        return tag(number) + vr.encode() + struct.pack("<HI", 0, said) + value
    return tag(number) + vr.encode() + struct.pack("<H", said & 0xFFFF) + value


def implicit(number: int, value: bytes, length: int | None = None) -> bytes:
    """An element in implicit VR little endian, or an item."""
    return tag(number) + struct.pack("<I", len(value) if length is None else length) + value


def us(number: int, *values: int) -> bytes:
    return element(number, "US", struct.pack(f"<{len(values)}H", *values))


def image_elements(
    rows: int, columns: int, *, bits: int = 8, samples: int = 1, photometric: str = "MONOCHROME2", modality: str = "CR"
) -> list[bytes]:
    """What an image needs, but for its pixels, in order of tag."""
    photometric += " " * (len(photometric) % 2)
    return [
        element(0x00080016, "UI", _even(CTImageStorage if modality == "CT" else ComputedRadiographyImageStorage)),
        element(0x00080018, "UI", _even("1.2.3")),
        element(0x00080060, "CS", modality.encode()),
        us(0x00280002, samples),
        element(0x00280004, "CS", photometric.encode()),
        *([us(0x00280006, 0)] if samples > 1 else []),
        us(0x00280010, rows),
        us(0x00280011, columns),
        us(0x00280100, bits),
        us(0x00280101, bits),
        us(0x00280102, bits - 1),
        us(0x00280103, 0),
    ]


def _even(text: str) -> bytes:
    return text.encode() + b"\0" * (len(text) % 2)


def dicom_file(elements: Sequence[bytes], syntax: str = ExplicitVRLittleEndian) -> bytes:
    """A file of these elements, put into the order of their tags."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = syntax, ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    stream = io.BytesIO()
    write_file_meta_info(stream, meta)
    body = b"".join(sorted(elements, key=lambda one: struct.unpack("<HH", one[:4])))
    return bytes(128) + b"DICM" + stream.getvalue() + body


def pixels(data: bytes, vr: str = "OB") -> bytes:
    return element(0x7FE00010, vr, data)


def encapsulated(fragments: Sequence[bytes], table: bytes = b"") -> bytes:
    """Compressed pixels of these fragments."""
    items = b"".join(implicit(ITEM, fragment) for fragment in (table, *fragments))
    return element(0x7FE00010, "OB", items + implicit(END_OF_SEQUENCE, b""), UNDEFINED)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk whose checksum is right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_file(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG of this header and these chunks."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IEND", b"")


def jpeg_segment(marker: int, data: bytes, length: int | None = None) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2 if length is None else length) + data
