"""Files made by hand to cost more than they are, or to lead somewhere else. Each says what it is."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import nibabel
import numpy as np
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from serving.limits import MAX_FILE_BYTES, MAX_SIDE_PX, MAX_SLICES
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
    png_file,
    tag,
    us,
)

HUGE = 2**28
"""Bytes of what is packed small: beyond every limit of a file, and quick to make."""

LARGEST = (3_145, 10_000)
"""Height and width of the largest image that the limits let through."""

LARGEST_DEEP = (1_572, 10_000)
"""The same in three colours of 16 bits."""


@dataclass(frozen=True)
class Bomb:
    """One file.

    Attributes:
        name: In a few words.
        why: What it tries.
        make: Its bytes.
    """

    name: str
    why: str
    make: Callable[[], bytes]


BOMBS: dict[str, Bomb] = {}


def bomb(why: str) -> Callable[[Callable[[], bytes]], Callable[[], bytes]]:
    def keep(make: Callable[[], bytes]) -> Callable[[], bytes]:
        name = make.__name__.strip("_").replace("_", " ")
        BOMBS[name] = Bomb(name, why, make)
        return make

    return keep


def _zeros(count: int) -> bytes:
    packer = zlib.compressobj(6)
    return b"".join(packer.compress(bytes(min(2**20, count - at))) for at in range(0, count, 2**20)) + packer.flush()


def _fill(unit: bytes, beside: int = 4096) -> bytes:
    """As many of these as a file may hold."""
    return unit * ((MAX_FILE_BYTES - beside) // len(unit))


# PNG


@bomb("declares 2^31 x 2^31 pixels over a few bytes")
def png_of_two_to_the_62_pixels() -> bytes:
    return png_file(2**31 - 1, 2**31 - 1, png_chunk(b"IDAT", _zeros(4096)))


@bomb("a hundred kB of zeros that are 100 million pixels")
def png_of_100_million_pixels() -> bytes:
    return png_file(10_000, 10_000, png_chunk(b"IDAT", _zeros(10_001 * 10_000)))


@bomb("the largest image that passes, in RGBA of 16 bits")
def png_at_the_limit_in_sixteen_bit_colour() -> bytes:
    height, width = LARGEST
    return png_file(width, height, png_chunk(b"IDAT", _zeros(height * (width * 8 + 1))), depth=16, colour=6)


@bomb("the largest image that passes, with a palette and transparency")
def png_at_the_limit_with_a_palette() -> bytes:
    height, width = LARGEST
    palette = png_chunk(b"PLTE", bytes(768)), png_chunk(b"tRNS", bytes(256))
    return png_file(width, height, *palette, png_chunk(b"IDAT", _zeros(height * (width + 1))), colour=3)


@bomb("pixels of zlib data that go on for 256 MiB after the image is full")
def png_whose_data_goes_on() -> bytes:
    return png_file(64, 64, png_chunk(b"IDAT", _zeros(HUGE)))


@bomb("a compressed text of 256 MiB")
def png_with_a_compressed_text() -> bytes:
    text = png_chunk(b"zTXt", b"Comment\0\0" + _zeros(HUGE))
    return png_file(64, 64, text, png_chunk(b"IDAT", _zeros(64 * 65)))


@bomb("a colour profile of 256 MiB, compressed")
def png_with_a_compressed_profile() -> bytes:
    profile = png_chunk(b"iCCP", b"sRGB\0\0" + _zeros(HUGE))
    return png_file(64, 64, profile, png_chunk(b"IDAT", _zeros(64 * 65)))


@bomb("five million empty chunks before the pixels")
def png_of_many_chunks() -> bytes:
    return png_file(64, 64, _fill(png_chunk(b"prVt", b"")), png_chunk(b"IDAT", _zeros(64 * 65)))


@bomb("five million empty chunks after the pixels")
def png_of_many_chunks_after_its_pixels() -> bytes:
    return png_file(64, 64, png_chunk(b"IDAT", _zeros(64 * 65)), _fill(png_chunk(b"prVt", b"")))


@bomb("sixty thousand texts")
def png_of_many_texts() -> bytes:
    texts = b"".join(png_chunk(b"tEXt", b"k%d\0" % i + b"v" * 1000) for i in range(60_000))
    return png_file(64, 64, texts, png_chunk(b"IDAT", _zeros(64 * 65)))


@bomb("an animation that announces four billion frames")
def png_of_many_frames() -> bytes:
    return png_file(64, 64, png_chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0)), png_chunk(b"IDAT", _zeros(64 * 65)))


@bomb("a chunk that says it has 4 GiB")
def png_with_a_chunk_of_4_gib() -> bytes:
    return png_file(64, 64, struct.pack(">I", 2**32 - 1) + b"IDAT")


# JPEG


def _jpeg(side: int = 64, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(stream, format="JPEG", **options)
    return stream.getvalue()


def _with_size(jpeg: bytes, height: int, width: int) -> bytes:
    at = next(i for i in range(len(jpeg)) if jpeg[i] == 0xFF and jpeg[i + 1] in (0xC0, 0xC2))
    return jpeg[: at + 5] + struct.pack(">HH", height, width) + jpeg[at + 9 :]


@bomb("declares 65,535 x 65,535 pixels")
def jpeg_of_four_billion_pixels() -> bytes:
    return _with_size(_jpeg(), 65_535, 65_535)


@bomb("a frame header of the largest size that passes over the pixels of a small one")
def jpeg_at_the_limit_over_few_pixels() -> bytes:
    return _with_size(_jpeg(), *LARGEST)


def _progressive(scans: int, components: int = 1) -> bytes:
    """A progressive JPEG at the limit whose every scan is one run of nothing after another."""
    whole = _with_size(_jpeg(progressive=True), *LARGEST)
    start = whole.index(b"\xff\xda")
    head = whole[:start]
    # An AC refinement-free scan of component 1, coefficients 1 to 63, of end-of-band runs alone.
    table = jpeg_segment(0xC4, bytes([0x10, 1, *[0] * 15, 0xE0]))
    blocks = -(-LARGEST[0] // 8) * -(-LARGEST[1] // 8)
    # Code 0 is EOBRUN of 2^14 plus 14 bits: 15 bits of 0 and then ones end 2^14 blocks each.
    runs = -(-blocks // 2**14)
    bits = "0" * (15 * runs)
    data = int(bits + "1" * (-len(bits) % 8), 2).to_bytes(-(-len(bits) // 8), "big").replace(b"\xff", b"\xff\0")
    scan = table + jpeg_segment(0xDA, bytes([1, 1, 0x00, 1, 63, 0x00])) + data
    return head + scan * scans + b"\xff\xd9"


@bomb("a hundred scans over the largest image that passes")
def jpeg_of_a_hundred_scans() -> bytes:
    return _progressive(100)


@bomb("a million scans")
def jpeg_of_a_million_scans() -> bytes:
    whole = _jpeg(progressive=True)
    scan = whole[whole.index(b"\xff\xda") : -2]
    return whole[:-2] + scan * 1_000_000 + b"\xff\xd9"


@bomb("sixteen million empty comments before the frame header")
def jpeg_of_many_comments() -> bytes:
    whole = _jpeg()
    return whole[:2] + _fill(jpeg_segment(0xFE, b"")) + whole[2:]


@bomb("sixteen million empty comments after the frame header")
def jpeg_of_many_comments_after_its_frame_header() -> bytes:
    whole = _jpeg()
    at = whole.index(b"\xff\xda")
    return whole[:at] + _fill(jpeg_segment(0xFE, b"")) + whole[at:]


@bomb("64 million fill bytes before a marker")
def jpeg_of_fill_bytes() -> bytes:
    whole = _jpeg()
    return whole[:2] + _fill(b"\xff") + whole[2:]


@bomb("a segment of length 0, again and again")
def jpeg_with_a_segment_of_no_length() -> bytes:
    whole = _jpeg()
    return whole[:2] + jpeg_segment(0xE0, b"", length=0) * 1000 + whole[2:]


@bomb("EXIF whose directory points to itself")
def jpeg_whose_exif_is_a_ring() -> bytes:
    # One entry: an EXIF directory (0x8769) at 8, where this one is.
    ring = b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x8769, 4, 1, 8, 8)
    whole = _jpeg()
    return whole[:2] + jpeg_segment(0xE1, ring) + whole[2:]


# DICOM


@bomb("rows and columns as 32-bit numbers whose lower half is harmless")
def dicom_with_rows_of_32_bits() -> bytes:
    parts = [part for part in image_elements(64, 64) if part[:4] not in (tag(0x00280010), tag(0x00280011))]
    long = [element(number, "UL", struct.pack("<I", 2**31 + 64)) for number in (0x00280010, 0x00280011)]
    return dicom_file([*parts, *long, pixels(bytes(64 * 64))])


@bomb("rows that are negative")
def dicom_with_negative_rows() -> bytes:
    parts = [part for part in image_elements(64, 64) if part[:4] != tag(0x00280010)]
    return dicom_file([*parts, element(0x00280010, "SL", struct.pack("<i", -64)), pixels(bytes(64 * 64))])


@bomb("two billion frames")
def dicom_of_two_billion_frames() -> bytes:
    return dicom_file([*image_elements(64, 64), element(0x00280008, "IS", b"2147483647"), pixels(bytes(4096))])


@bomb("as many frames as a study may have, of no pixels")
def dicom_of_many_empty_frames() -> bytes:
    parts = image_elements(64, 64, modality="CT", bits=16)
    return dicom_file([*parts, element(0x00280008, "IS", b"%04d" % MAX_SLICES), pixels(bytes(8192), "OW")])


@bomb("65,535 bits stored of 8")
def dicom_of_65535_bits() -> bytes:
    parts = [part for part in image_elements(64, 64, samples=3, photometric="RGB") if part[:4] != tag(0x00280101)]
    return dicom_file([*parts, us(0x00280101, 65_535), pixels(bytes(64 * 64 * 3))])


@bomb("four billion bits stored")
def dicom_of_four_billion_bits() -> bytes:
    parts = [part for part in image_elements(64, 64, samples=3, photometric="RGB") if part[:4] != tag(0x00280101)]
    many = element(0x00280101, "UL", struct.pack("<I", 2**32 - 1))
    return dicom_file([*parts, many, pixels(bytes(64 * 64 * 3))])


@bomb("the largest image that passes, in colours of 8 bits")
def dicom_at_the_limit_in_colour() -> bytes:
    height, width = 1_900, 10_000
    parts = image_elements(height, width, samples=3, photometric="RGB")
    return dicom_file([*parts, pixels(bytes(height * width * 3))])


@bomb("the largest image that passes in 16 bits, through a window")
def dicom_at_the_limit_through_a_window() -> bytes:
    height, width = LARGEST[0] - 8, LARGEST[1]
    window = element(0x00281050, "DS", b"128 "), element(0x00281051, "DS", b"256 ")
    return dicom_file([*image_elements(height, width, bits=16), *window, pixels(bytes(height * width * 2), "OW")])


@bomb("the largest CT slice that passes")
def dicom_ct_at_the_limit() -> bytes:
    height, width = LARGEST[0] - 8, LARGEST[1]
    scale = element(0x00281052, "DS", b"-1024 "), element(0x00281053, "DS", b"1.5 ")
    parts = image_elements(height, width, bits=16, modality="CT")
    return dicom_file([*parts, *scale, pixels(bytes(height * width * 2), "OW")])


@bomb("eight million empty elements")
def dicom_of_many_elements() -> bytes:
    # As many different tags as the standard's private groups take.
    empty = b"".join(
        struct.pack("<HH2sH", group, number, b"LO", 0) for group in range(0x1001, 0x1081, 2) for number in range(65_536)
    )
    return dicom_file([*image_elements(64, 64), empty, pixels(bytes(4096))])


@bomb("a thousand sequences inside of each other")
def dicom_of_nested_sequences() -> bytes:
    inner = b""
    for _ in range(1000):
        item = implicit(ITEM, inner + implicit(END_OF_ITEM, b""), UNDEFINED)
        inner = element(0x00081140, "SQ", item + implicit(END_OF_SEQUENCE, b""), UNDEFINED)
    return dicom_file([*image_elements(64, 64), inner, pixels(bytes(4096))])


@bomb("eight million empty items of a sequence")
def dicom_of_many_items() -> bytes:
    items = _fill(implicit(ITEM, b""), 65_536) + implicit(END_OF_SEQUENCE, b"")
    return dicom_file([*image_elements(64, 64), element(0x00081140, "SQ", items, UNDEFINED), pixels(bytes(4096))])


@bomb("four million empty frames' functional groups")
def dicom_of_many_functional_groups() -> bytes:
    items = _fill(implicit(ITEM, b""), 2**18)
    frames = element(0x00280008, "IS", b"10")
    parts = image_elements(64, 64, modality="CT", bits=16)
    return dicom_file([*parts, frames, element(0x52009230, "SQ", items), pixels(bytes(8192 * 10), "OW")])


@bomb("an element that says it has 4 GiB")
def dicom_with_an_element_of_4_gib() -> bytes:
    return dicom_file([*image_elements(64, 64), element(0x00091001, "OB", b"", 2**32 - 2), pixels(bytes(4096))])


@bomb("sixteen million numbers for the spacing")
def dicom_of_many_spacings() -> bytes:
    return _implicit_file(implicit(0x00280030, _fill(b"1\\1\\", 65_536)))


def _implicit_file(more: bytes, modality: str = "CR") -> bytes:
    """A file in implicit VR, where every value may be long, with more elements."""
    parts = []
    for part in image_elements(64, 64, modality=modality):
        group, number = struct.unpack("<HH", part[:4])
        parts.append(implicit(group << 16 | number, part[8:]))
    return dicom_file([*parts, more, implicit(0x7FE00010, bytes(40_960))], ImplicitVRLittleEndian)


@bomb("thirty million numbers for the window, as a text of unlimited length")
def dicom_of_many_windows() -> bytes:
    window = element(0x00281050, "UC", _fill(b"1\\", 65_536)), element(0x00281051, "DS", b"1 ")
    return dicom_file([*image_elements(64, 64), *window, pixels(bytes(4096))])


@bomb("four MB of names of character sets")
def dicom_of_many_character_sets() -> bytes:
    return _implicit_file(implicit(0x00080005, b"A\\" * 2**21))


@bomb("names of character sets in an item that nobody looks at")
def dicom_of_nested_character_sets() -> bytes:
    inner = implicit(ITEM, implicit(0x00080005, b"A\\" * 2**21) + implicit(END_OF_ITEM, b""), UNDEFINED)
    return _implicit_file(implicit(0x00081140, inner + implicit(END_OF_SEQUENCE, b""), UNDEFINED))


@bomb("a spacing of a million numbers in the functional groups of each frame")
def dicom_of_many_spacings_a_frame() -> bytes:
    measures = implicit(0x00289110, implicit(ITEM, implicit(0x00280030, b"1\\" * 2**20)))
    groups = implicit(0x52009230, implicit(ITEM, measures) * 10)
    return _implicit_file(implicit(0x00280008, b"10") + groups, modality="CT")


@bomb("a table of values of interest with eight million empty items")
def dicom_of_many_tables() -> bytes:
    return _implicit_file(implicit(0x00283010, _fill(implicit(ITEM, b""), 65_536)))


@bomb("a compressed frame in eight million fragments")
def dicom_of_many_fragments() -> bytes:
    return dicom_file([*image_elements(64, 64), encapsulated([_fill_fragments()])], JPEGBaseline8Bit)


def _fill_fragments() -> bytes:
    return _fill(implicit(ITEM, b""), 65_536)


@bomb("fragments of nothing, as many as fit")
def dicom_of_empty_fragments() -> bytes:
    items = implicit(ITEM, b"") + _fill(implicit(ITEM, b""), 65_536) + implicit(END_OF_SEQUENCE, b"")
    return dicom_file([*image_elements(64, 64), element(0x7FE00010, "OB", items, UNDEFINED)], JPEGBaseline8Bit)


@bomb("RLE of 64 million codes that say nothing")
def dicom_of_empty_run_lengths() -> bytes:
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + _fill(b"\x80", 65_536)
    return dicom_file([*image_elements(64, 64), encapsulated([frame])], RLELossless)


@bomb("RLE of single bytes over the largest image that passes")
def dicom_of_run_lengths_of_one() -> bytes:
    height, width = 3_000, 10_000
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\0\x07" * (height * width)
    return dicom_file([*image_elements(height, width), encapsulated([frame])], RLELossless)


@bomb("RLE that expands a hundredfold beyond its image")
def dicom_of_endless_run_lengths() -> bytes:
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 1_000_000
    return dicom_file([*image_elements(64, 64), encapsulated([frame])], RLELossless)


@bomb("RLE whose fifteen segments are the same bytes")
def dicom_of_overlapping_segments() -> bytes:
    frame = struct.pack("<16I", 15, *[64] * 15) + b"\x81\0" * 1_000_000
    return dicom_file([*image_elements(64, 64), encapsulated([frame])], RLELossless)


@bomb("60 MB of zeros as the whole file, deflated")
def dicom_deflated_to_the_limit() -> bytes:
    return _deflated(bytes(60 * 2**20))


@bomb("256 MiB of zeros, deflated")
def dicom_deflated_beyond_the_limit() -> bytes:
    return _deflated(bytes(HUGE))


def _deflated(private: bytes) -> bytes:
    whole = dicom_file([], DeflatedExplicitVRLittleEndian)
    body = b"".join([*image_elements(64, 64), pixels(bytes(4096))])
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = element(0x00091001, "OB", b"", len(private))
    return whole + packer.compress(head + private + body) + packer.flush()


@bomb("a palette whose eight thousand segments are 65,535 colours long each")
def dicom_with_a_segmented_palette() -> bytes:
    segments = struct.pack("<HHH", 0, 1, 7) + struct.pack("<HHH", 1, 65_535, 9) * 8_000
    parts = image_elements(64, 64, photometric="PALETTE COLOR")
    tables = [
        part
        for number in (0x00281101, 0x00281102, 0x00281103)
        for part in (us(number, 256, 0, 16), element(number + 0x0120, "OW", segments))
    ]
    return dicom_file([*parts, *tables, pixels(bytes(4096))])


@bomb("a segmented palette that points to itself")
def dicom_with_a_palette_in_a_ring() -> bytes:
    segments = struct.pack("<HHHHHHH", 0, 1, 7, 2, 2, 0, 0) * 100
    parts = image_elements(64, 64, photometric="PALETTE COLOR")
    tables = [
        part
        for number in (0x00281101, 0x00281102, 0x00281103)
        for part in (us(number, 256, 0, 16), element(number + 0x0120, "OW", segments))
    ]
    return dicom_file([*parts, *tables, pixels(bytes(4096))])


def _j2k(side: int = 64, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((side, side), np.uint8)).save(stream, format="JPEG2000", no_jp2=True, **options)
    return stream.getvalue()


def _j2k_sized(codestream: bytes, height: int, width: int, tile: tuple[int, int] | None = None) -> bytes:
    at = codestream.index(b"\xff\x51") + 6
    tile_h, tile_w = tile or (height, width)
    sizes = struct.pack(">IIIIIIII", width, height, 0, 0, tile_w, tile_h, 0, 0)
    return codestream[:at] + sizes + codestream[at + 32 :]


def _j2k_file(codestream: bytes, height: int, width: int) -> bytes:
    return dicom_file([*image_elements(height, width), encapsulated([codestream])], JPEG2000Lossless)


@bomb("JPEG 2000 at the limit over few bytes")
def jpeg_2000_at_the_limit() -> bytes:
    return _j2k_file(_j2k_sized(_j2k(), *LARGEST), *LARGEST)


@bomb("JPEG 2000 at the limit in three colours of 16 bits, in some of the smallest blocks that pass")
def jpeg_2000_at_the_limit_in_colour() -> bytes:
    stream = io.BytesIO()
    options = {"codeblock_size": (32, 16)}
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(stream, "JPEG2000", no_jp2=True, **options)
    codestream = bytearray(_j2k_sized(stream.getvalue(), *LARGEST_DEEP))
    at = codestream.index(b"\xff\x51") + 40
    for component in range(3):
        codestream[at + 3 * component] = 15
    parts = image_elements(*LARGEST_DEEP, bits=16, samples=3, photometric="RGB")
    return dicom_file([*parts, encapsulated([bytes(codestream)])], JPEG2000Lossless)


@bomb("RLE at the limit in three colours of 16 bits")
def dicom_of_run_lengths_at_the_limit_in_colour() -> bytes:
    height, width = LARGEST_DEEP
    runs, rest = divmod(height * width, 128)
    segments = 6
    segment = b"\x81\0" * runs + bytes([257 - rest, 0])
    offsets = [64 + i * len(segment) for i in range(segments)]
    frame = struct.pack("<16I", segments, *offsets, *[0] * (15 - segments)) + segment * segments
    parts = image_elements(height, width, bits=16, samples=3, photometric="RGB")
    return dicom_file([*parts, encapsulated([frame])], RLELossless)


@bomb("lossless JPEG at the limit in three colours of 16 bits, over few bytes")
def lossless_jpeg_at_the_limit_in_colour() -> bytes:
    height, width = LARGEST_DEEP
    components = b"".join(bytes([i, 0x11, 0]) for i in (1, 2, 3))
    frame = jpeg_segment(0xC3, struct.pack(">BHHB", 16, height, width, 3) + components)
    table = jpeg_segment(0xC4, bytes([0, 1, *[0] * 15, 0]))
    scan = jpeg_segment(0xDA, b"\x03" + b"".join(bytes([i, 0]) for i in (1, 2, 3)) + b"\x01\0\0")
    data = b"\xff\xd8" + frame + table + scan + bytes(64) + b"\xff\xd9"
    parts = image_elements(height, width, bits=16, samples=3, photometric="RGB")
    return dicom_file([*parts, encapsulated([data])], JPEGLosslessSV1)


@bomb("a radiograph at the limit in 16 bits through tables of values")
def dicom_at_the_limit_through_tables() -> bytes:
    height, width = LARGEST[0] - 30, LARGEST[1]

    def table(number: int) -> bytes:
        parts = us(0x00283002, 0, 0, 16), element(0x00283006, "OW", bytes(131_072))
        return element(number, "SQ", implicit(ITEM, b"".join(parts)))

    whole = image_elements(height, width, bits=16)
    return dicom_file([*whole, table(0x00283000), table(0x00283010), pixels(bytes(height * width * 2), "OW")])


@bomb("JPEG 2000 at the limit in precincts of one pixel")
def jpeg_2000_of_tiny_precincts() -> bytes:
    codestream = _j2k_sized(_j2k(precinct_size=(128, 128)), *LARGEST)
    at = codestream.index(b"\xff\x52")
    length = int.from_bytes(codestream[at + 2 : at + 4], "big")
    precincts = at + 4 + 10
    # 2^1 by 2^1 at each resolution; 0 is allowed at the lowest alone.
    tiny = b"\x11" * (at + 2 + length - precincts)
    return _j2k_file(codestream[:precincts] + tiny + codestream[precincts + len(tiny) :], *LARGEST)


@bomb("JPEG 2000 at the limit in code blocks of four pixels")
def jpeg_2000_of_tiny_code_blocks() -> bytes:
    return _j2k_file(_j2k_sized(_j2k(codeblock_size=(4, 4)), *LARGEST), *LARGEST)


@bomb("JPEG 2000 in tiles of one pixel")
def jpeg_2000_of_tiny_tiles() -> bytes:
    return _j2k_file(_j2k_sized(_j2k(), *LARGEST, tile=(1, 1)), *LARGEST)


@bomb("JPEG 2000 whose canvas begins two billion pixels away")
def jpeg_2000_far_away() -> bytes:
    codestream = _j2k()
    at = codestream.index(b"\xff\x51") + 6
    far = struct.pack(">IIIIIIII", 2**31 + 64, 2**31 + 64, 2**31, 2**31, 2**31 + 64, 2**31 + 64, 0, 0)
    return _j2k_file(codestream[:at] + far + codestream[at + 32 :], 64, 64)


@bomb("lossless JPEG at the limit over few bytes")
def lossless_jpeg_at_the_limit() -> bytes:
    height, width = LARGEST
    frame = jpeg_segment(0xC3, struct.pack(">BHHB", 8, height, width, 1) + b"\x01\x11\0")
    table = jpeg_segment(0xC4, bytes([0, 1, *[0] * 15, 0]))
    data = b"\xff\xd8" + frame + table + jpeg_segment(0xDA, b"\x01\x01\0\x01\0\0") + bytes(64) + b"\xff\xd9"
    return dicom_file([*image_elements(height, width), encapsulated([data])], JPEGLosslessSV1)


@bomb("hierarchical JPEG that declares 65,535 x 65,535 before its frame header")
def hierarchical_jpeg() -> bytes:
    huge = jpeg_segment(0xDE, struct.pack(">BHHB", 8, 65_535, 65_535, 1) + b"\x01\x11\0")
    frame = jpeg_segment(0xC3, struct.pack(">BHHB", 8, 64, 64, 1) + b"\x01\x11\0")
    table = jpeg_segment(0xC4, bytes([0, 1, *[0] * 15, 0]))
    data = b"\xff\xd8" + huge + frame + table + jpeg_segment(0xDA, b"\x01\x01\0\x01\0\0") + bytes(64) + b"\xff\xd9"
    return dicom_file([*image_elements(64, 64), encapsulated([data])], JPEGLosslessSV1)


@bomb("a second frame header of 65,535 x 65,535 after the first")
def jpeg_with_two_frame_headers() -> bytes:
    whole = _jpeg()
    at = whole.index(b"\xff\xda")
    second = jpeg_segment(0xC0, struct.pack(">BHHB", 8, 65_535, 65_535, 1) + b"\x01\x11\0")
    data = whole[:at] + second + whole[at:]
    return dicom_file([*image_elements(64, 64), encapsulated([data])], JPEGBaseline8Bit)


@bomb("a header that has no end")
def dicom_with_a_header_of_64_mb() -> bytes:
    return dicom_file([*image_elements(64, 64), element(0x00091001, "OB", bytes(MAX_FILE_BYTES - 8192))])


# NIfTI


def _nifti(shape: tuple[int, ...], kind: type[np.generic] = np.int16, body: int | None = None) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(shape)
    header.set_sform(np.diag([-1.0, -1, 1, 1]), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + bytes(4) + (b"" if body is None else bytes(body))


@bomb("32,767 x 32,767 x 32,767 voxels, in a header alone")
def nifti_of_35_terabytes() -> bytes:
    return _nifti((32_767, 32_767, 32_767))


@bomb("the largest volume that passes, gzipped to 2 MB")
def nifti_gzipped_a_thousandfold() -> bytes:
    stream = io.BytesIO()
    with gzip.GzipFile(fileobj=stream, mode="wb", compresslevel=6) as packed:
        packed.write(_nifti((512, 512, 2_000)))
        for _ in range(1_000):
            packed.write(bytes(2**20))
    return stream.getvalue()


@bomb("three million empty gzip members")
def nifti_of_many_gzip_members() -> bytes:
    return gzip.compress(_nifti((64, 64, 64))) + _fill(gzip.compress(b"", 1), 65_536) + gzip.compress(bytes(2 * 64**3))


@bomb("three million gzip members of one byte each")
def nifti_in_gzip_members_of_one_byte() -> bytes:
    return gzip.compress(_nifti((128, 128, 128))) + _fill(gzip.compress(b"\0", 1), 65_536)


@bomb("a gzip in a gzip, to 256 MiB of zeros")
def nifti_gzipped_twice() -> bytes:
    return gzip.compress(gzip.compress(_zeros(HUGE)))


@bomb("voxels that begin beyond the file's end")
def nifti_with_an_offset_of_2_gib() -> bytes:
    data = bytearray(_nifti((64, 64, 64), body=2 * 64**3))
    data[108:112] = struct.pack("<f", 2.0**31)
    return bytes(data)


@bomb("an affine that is no number, and a slope that is infinite")
def nifti_of_no_numbers() -> bytes:
    data = bytearray(_nifti((64, 64, 64), body=2 * 64**3))
    data[280:328] = struct.pack("<12f", *[float("nan")] * 12)
    data[112:120] = struct.pack("<2f", float("inf"), float("nan"))
    return bytes(data)


@bomb("numbers that overflow: slope and intercept at the end of what a float holds")
def nifti_of_the_largest_numbers() -> bytes:
    data = bytearray(_nifti((64, 64, 64), body=2 * 64**3))
    data[112:120] = struct.pack("<2f", 3.4e38, 3.4e38)
    data[352:] = b"\xff\x7f" * 64**3
    return bytes(data)


@bomb("a NIfTI whose axis has no length")
def nifti_of_no_voxels() -> bytes:
    return _nifti((64, 0, 64))


# Zip


def _zip(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression, 1)
    return stream.getvalue()


def _slice() -> bytes:
    return dicom_file([*image_elements(64, 64, bits=16, modality="CT"), pixels(bytes(8192), "OW")])


@bomb("names that climb out of a folder")
def zip_with_paths_that_climb() -> bytes:
    names = (
        "../../../../tmp/climbed",
        "/etc/climbed",
        "..\\..\\climbed",
        "a/../../climbed",
        "C:\\climbed",
    )
    return _zip([(name, _slice()) for name in names])


@bomb("256 MiB of zeros")
def zip_of_zeros() -> bytes:
    return _zip([("slice.dcm", bytes(HUGE))])


@bomb("a zip in a zip in a zip")
def zip_of_zips() -> bytes:
    data = _slice()
    for _ in range(20):
        data = _zip([("slice.zip", data)])
    return data


@bomb("five thousand members that are the same bytes of the archive")
def zip_of_overlapping_members() -> bytes:
    whole = _zip([("a", bytes(2**20))])
    at = whole.index(b"PK\x01\x02")
    end = whole.index(b"PK\x05\x06")
    entry, count = whole[at:end], 5_000
    tail = whole[end : end + 8] + struct.pack("<HHIIH", count, count, len(entry) * count, at, 0)
    return whole[:at] + entry * count + tail


@bomb("65,535 members")
def zip_of_many_members() -> bytes:
    return _zip([(str(i), b"") for i in range(65_535)], zipfile.ZIP_STORED)


@bomb("a directory that says one member has 4 GiB")
def zip_with_a_member_of_4_gib() -> bytes:
    whole = bytearray(_zip([("slice.dcm", _slice())]))
    at = whole.index(b"PK\x01\x02")
    whole[at + 24 : at + 28] = struct.pack("<I", 2**32 - 2)
    return bytes(whole)


@bomb("a directory that says its member has 10 bytes, for 256 MiB")
def zip_with_a_member_that_lies() -> bytes:
    whole = bytearray(_zip([("slice.dcm", bytes(HUGE))]))
    at = whole.index(b"PK\x01\x02")
    whole[at + 24 : at + 28] = struct.pack("<I", 10)
    return bytes(whole)


@bomb("a thousand slices, each with thousands of empty elements")
def zip_of_slow_slices() -> bytes:
    empty = b"".join(struct.pack("<HH2sH", 0x1001, number, b"LO", 0) for number in range(20_000))
    slow = dicom_file([*image_elements(64, 64, bits=16, modality="CT"), empty, pixels(bytes(8192), "OW")])
    return _zip([(str(i), slow) for i in range(1_000)])


@bomb("a link out of the archive")
def zip_with_a_link() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        info = zipfile.ZipInfo("slice.dcm")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    return stream.getvalue()


@bomb("four thousand frames under thousands of empty elements")
def dicom_of_many_frames_and_elements() -> bytes:
    empty = b"".join(struct.pack("<HH2sH", 0x1001, number, b"LO", 0) for number in range(60_000))
    parts = image_elements(64, 64, modality="CT", bits=16)
    frames = element(0x00280008, "IS", b"%04d" % MAX_SLICES)
    return dicom_file([*parts, frames, empty, pixels(bytes(8192), "OW")])


# What is no scan at all


@bomb("nothing")
def empty_file() -> bytes:
    return b""


@bomb("64 MB of zeros")
def zeros() -> bytes:
    return bytes(MAX_FILE_BYTES)


@bomb("one byte more than a file may have")
def one_byte_too_many() -> bytes:
    return b"\x89PNG\r\n\x1a\n".ljust(MAX_FILE_BYTES + 1, b"\0")


@bomb("noise at the longest side that passes, as a PNG that can not be compressed")
def png_of_noise_at_the_longest_side() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (3_000, MAX_SIDE_PX), np.uint8)
    return bytes(cv2.imencode(".png", noise, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())
