"""What a file may cost: each limit where it begins, with the file just under it read."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image
from pydicom.uid import ImplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from serving.dicom_headers import READ, read_dicom
from serving.errors import ScanError, ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.limits import (
    MAX_CHARACTER_SET_BYTES,
    MAX_JPEG_SEGMENTS,
    MAX_META_BYTES,
    MAX_PNG_CHUNKS,
    MAX_VALUE_BYTES,
)
from serving.phantom import ct_slice, dicom_bytes, png_bytes
from serving.scans import decode
from serving.studies import open_volume
from tests.hostile.elements import (
    END_OF_ITEM,
    END_OF_SEQUENCE,
    ITEM,
    UNDEFINED,
    dicom_file,
    element,
    encapsulated,
    image_elements,
    implicit,
    jpeg_segment,
    pixels,
    png_chunk,
    us,
)
from tests.serving.volume_files import affine_ras, dicom_slice, file_of, nifti_bytes, zipped

GREY = ct_slice(7, 64).pixels
IMAGE = image_elements(64, 64)


def refused(error: type[ScanError], says: str, data: bytes) -> None:
    with pytest.raises(error, match=says):
        decode(data)


def test_chunks_of_a_png_are_counted() -> None:
    whole = png_bytes(GREY)
    few, many = (whole[:33] + png_chunk(b"prVt", b"") * count + whole[33:] for count in (100, MAX_PNG_CHUNKS))
    np.testing.assert_array_equal(decode(few).pixels, GREY)
    refused(ScanTooLarge, "expected a PNG of at most 20,000 chunks, got more", many)


@pytest.mark.parametrize("piece", [jpeg_segment(0xFE, b""), b"\xff", b"\0"], ids=["comments", "fill", "zeros"])
@pytest.mark.parametrize("before", [b"\xff\xc0", b"\xff\xda"], ids=["before its header", "after it"])
def test_segments_of_a_jpeg_and_what_is_between_are_counted(piece: bytes, before: bytes) -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, format="JPEG")
    whole = stream.getvalue()
    at = whole.index(before)
    few, many = (whole[:at] + piece * count + whole[at:] for count in (20, MAX_JPEG_SEGMENTS))
    assert decode(few).size_hw == (64, 64)
    refused(ScanTooLarge, "expected a JPEG of at most 2,000 segments before its pixels, got more", many)


def test_a_hierarchical_jpeg_is_refused() -> None:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, format="JPEG")
    whole = stream.getvalue()
    hierarchy = jpeg_segment(0xDE, struct.pack(">BHHB", 8, 65_535, 65_535, 1) + b"\x01\x11\0")
    refused(UnreadableScan, "got a hierarchical one", whole[:2] + hierarchy + whole[2:])


def test_what_is_not_looked_at_is_not_kept() -> None:
    kept = read_dicom(io.BytesIO(dicom_bytes(GREY, "ct")))
    assert {one.keyword for one in kept} <= {*READ, "SpecificCharacterSet"}
    assert "PatientID" not in kept
    assert kept.Rows == 64


def test_pieces_of_a_header_are_counted_inside_of_sequences_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def nested(count: int) -> bytes:
        items = implicit(ITEM, b"") * count + implicit(END_OF_SEQUENCE, b"")
        return dicom_file([*IMAGE, element(0x00081140, "SQ", items, UNDEFINED), pixels(bytes(4096))])

    monkeypatch.setattr("serving.dicom_headers.MAX_HEADER_READS", 1000)
    assert decode(nested(10)).size_hw == (64, 64)
    with pytest.raises(ScanError):
        decode(nested(2000))
    many = b"".join(element(0x10010000 + number, "LO", b"") for number in range(2000))
    refused(ScanTooLarge, "at most 1,000 pieces, got more", dicom_file([*IMAGE, many, pixels(bytes(4096))]))


def test_pieces_of_a_study_are_counted_over_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    hu = np.zeros((64, 64), np.int16)
    files = [file_of(dicom_slice(hu, (0, 0, z))) for z in range(10)]
    assert open_volume(zipped(files)).shape == (10, 64, 64)
    monkeypatch.setattr("serving.dicom_headers.MAX_STUDY_READS", 200)
    with pytest.raises(ScanTooLarge, match="expected a study with headers of at most 200 pieces, got more"):
        open_volume(zipped(files))


def implicit_file(more: bytes) -> bytes:
    parts = [part[:4] + struct.pack("<I", len(part) - 8) + part[8:] for part in IMAGE]
    return dicom_file([*parts, more, implicit(0x7FE00010, bytes(4096))], ImplicitVRLittleEndian)


def test_values_are_no_longer_than_explicit_vr_can_make_them() -> None:
    assert decode(implicit_file(implicit(0x00280030, b"1\\1 "))).pixel_spacing_mm == (1, 1)
    too_long = implicit_file(implicit(0x00280030, b"1\\" * (MAX_VALUE_BYTES // 2 + 1)))
    refused(ScanTooLarge, "expected a DICOM element of at most 65,536 bytes, got 65,538 bytes", too_long)


def test_long_values_in_functional_groups_read_as_if_they_were_not_there() -> None:
    measures = implicit(0x00289110, implicit(ITEM, implicit(0x00280030, b"1\\" * MAX_VALUE_BYTES)))
    groups = implicit(0x52009230, implicit(ITEM, measures) * 2)
    parts = [part[:4] + struct.pack("<I", len(part) - 8) + part[8:] for part in image_elements(64, 64, modality="CT")]
    frames = implicit(0x00280008, b"2 ")
    data = dicom_file([*parts, frames, groups, implicit(0x7FE00010, bytes(8192))], ImplicitVRLittleEndian)
    assert open_volume(data).spacing_mm is None


@pytest.mark.parametrize("is_nested", [False, True])
def test_names_of_character_sets_are_counted_wherever_they_are(is_nested: bool) -> None:
    def holding(names: bytes) -> bytes:
        character_set = implicit(0x00080005, names)
        if not is_nested:
            return implicit_file(character_set)
        item = implicit(ITEM, character_set + implicit(END_OF_ITEM, b""), UNDEFINED)
        return implicit_file(implicit(0x00081140, item + implicit(END_OF_SEQUENCE, b""), UNDEFINED))

    assert decode(holding(b"ISO_IR 100")).size_hw == (64, 64)
    too_many = holding(b"A\\" * MAX_CHARACTER_SET_BYTES)
    refused(ScanTooLarge, "expected character sets of at most 16,384 bytes, got more", too_many)


def test_the_meta_group_is_bounded() -> None:
    whole = dicom_bytes(GREY, "ct")
    at = whole.index(b"\x02\x00\x10\x00UI")
    private = element(0x00020102, "OB", bytes(MAX_META_BYTES))
    refused(ScanTooLarge, "at most 65,536 bytes, got more", whole[:at] + private + whole[at:])


def test_a_segmented_palette_is_refused() -> None:
    parts = image_elements(64, 64, photometric="PALETTE COLOR")
    tables = [
        part
        for number in (0x00281101, 0x00281102, 0x00281103)
        for part in (us(number, 256, 0, 16), element(number + 0x0120, "OW", struct.pack("<HHH", 0, 1, 7)))
    ]
    data = dicom_file([*parts, *tables, pixels(bytes(4096))])
    refused(UnsupportedScan, "expected a palette of plain tables, got a segmented one", data)


def test_run_lengths_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x07" * 32
    data = dicom_file([*IMAGE, encapsulated([frame])], RLELossless)
    assert (decode(data).pixels == 7).all()
    monkeypatch.setattr("serving.codestreams.MAX_RLE_CODES", 31)
    refused(ScanTooLarge, "expected RLE pixels of at most 31 runs, got more", data)


def jpeg_2000(**options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY).save(stream, format="JPEG2000", no_jp2=True, **options)
    codestream = stream.getvalue() + b"\0" * (len(stream.getvalue()) % 2)
    return dicom_file([*IMAGE, encapsulated([codestream])], JPEG2000Lossless)


@pytest.mark.parametrize(
    ("options", "blocks"),
    [
        # 64 x 64 to 2 x 2: six resolutions in one precinct each; in blocks of 8 x 8, and 1 in those up to that size.
        ({"codeblock_size": (8, 8)}, 6 + 64 + 16 + 4 + 1 + 1 + 1),
        ({"codeblock_size": (64, 64)}, 6 + 6),
        # Precincts are halved from resolution to resolution, and code blocks are half as large as they.
        ({"precinct_size": (32, 32)}, 6 * 4 + 5 * 16 + 4),
    ],
)
def test_blocks_of_jpeg_2000_are_counted(
    options: dict[str, object], blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = jpeg_2000(**options)
    monkeypatch.setattr("serving.codestreams.MAX_J2K_BLOCKS", blocks)
    decode(data)
    monkeypatch.setattr("serving.codestreams.MAX_J2K_BLOCKS", blocks - 1)
    refused(ScanTooLarge, f"in at most {blocks - 1:,} blocks, got {blocks:,}", data)


def test_jpeg_2000_in_tiles_is_read_and_its_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = jpeg_2000(tile_size=(32, 32))
    np.testing.assert_array_equal(decode(data).pixels, GREY)
    monkeypatch.setattr("serving.codestreams.MAX_J2K_BYTES", 100)
    refused(ScanTooLarge, "expected at most 100 bytes of JPEG 2000, got", data)


VALUES = np.zeros((64, 64, 49), np.int16)
AFFINE = affine_ras((0, 1, 2), (1, 1, 1), (1, 1, 1))


def test_members_of_a_gzip_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    data = nifti_bytes(VALUES, AFFINE)
    pieces = [data[at : at + 10_000] for at in range(0, len(data), 10_000)]
    packed = b"".join(gzip.compress(piece, 1) for piece in pieces)
    assert open_volume(packed).shape == (49, 64, 64)
    monkeypatch.setattr("serving.nifti.MAX_GZIP_MEMBERS", len(pieces) - 1)
    with pytest.raises(ScanTooLarge, match="expected a gzip of at most 40 members, got more"):
        open_volume(packed)


def test_a_gzip_is_refused_by_how_much_it_expands(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = nifti_bytes(VALUES, AFFINE, packed=True)
    assert open_volume(packed).shape == (49, 64, 64)
    monkeypatch.setattr("serving.limits.MIN_EXPANSION_BYTES", 1000)
    with pytest.raises(ScanTooLarge, match="expected an archive that expands at most 200 times, got"):
        open_volume(packed)


@pytest.mark.parametrize("intercept", [np.nan, np.inf])
def test_an_intercept_that_is_no_number_is_refused(intercept: float) -> None:
    data = bytearray(nifti_bytes(VALUES, AFFINE))
    data[112:120] = struct.pack("<2f", 1.0, intercept)
    with pytest.raises(UnreadableScan, match="expected a NIfTI file, got"):
        open_volume(bytes(data))


def test_numbers_that_overflow_are_read_without_a_warning() -> None:
    data = bytearray(nifti_bytes(VALUES, AFFINE))
    data[112:120] = struct.pack("<2f", 3.4e38, 3.4e38)
    data[352:] = b"\xff\x7f" * VALUES.size
    assert (open_volume(bytes(data)).slice_scan(0).pixels == 255).all()
