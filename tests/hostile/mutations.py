"""Ten thousand files and more, each with its number: seeds, damaged at random and with knowledge of their format.

`mutant(number)` is the same bytes on every machine and in every process, so that a number is all that it takes to send
a file to a worker, and to look at one again.
"""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from tests.hostile.elements import ITEM, UNDEFINED, element, implicit, png_chunk
from tests.hostile.seeds import seeds

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]

SEED = 20_260
ODD_NUMBERS = (
    0,
    1,
    2,
    7,
    47,
    48,
    127,
    128,
    255,
    256,
    4095,
    32_767,
    32_768,
    65_535,
    65_536,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
VRS = tuple("AE AS AT CS DA DS DT FL FD IS LO LT OB OD OF OL OW PN SH SL SQ SS ST TM UC UI UL UN UR US UT XX".split())
SYNTAXES = tuple(
    f"1.2.840.10008.1.2{end}".encode()
    for end in ("", ".1", ".1.99", ".2", ".4.50", ".4.51", ".4.57", ".4.70", ".4.80", ".4.90", ".4.91", ".5", ".4.201")
)


def mutant(number: int) -> tuple[str, bytes]:
    """A file by its number: the name of its seed, and its bytes. The seeds take turns."""
    names = list(seeds())
    name = names[number % len(names)]
    rng = np.random.default_rng((SEED, number))
    data = seeds()[name]
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        data = _mutated(name, data, rng)
    return name, data


def _mutated(name: str, data: bytes, rng: Rng) -> bytes:
    known = _knowing(name)
    # Half of them know the format: bytes at random seldom come through checksums and magic numbers.
    mutations: Iterable[Mutation] = known if rng.random() < 0.5 else BLIND
    chosen = tuple(mutations)
    return chosen[int(rng.integers(len(chosen)))](data, rng)


def _knowing(name: str) -> tuple[Mutation, ...]:
    if name.startswith("png"):
        return PNG
    if name.endswith("jpeg") and "radiograph" not in name:
        return JPEG
    if "nifti" in name:
        return NIFTI
    if "zip" in name:
        return ZIP
    return DICOM


def _at(data: bytes, rng: Rng) -> int:
    """A place, more often near the front, where headers are."""
    return int(len(data) * rng.random() ** 2)


def odd(rng: Rng) -> int:
    """A number that someone forgot to think of."""
    return int(rng.choice(ODD_NUMBERS)) if rng.random() < 0.8 else int(rng.integers(2**32))


def _pick(rng: Rng, found: list[int]) -> int:
    return found[int(rng.integers(len(found)))]


# Blind


def flip_bits(data: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[min(_at(data, rng), len(changed) - 1)] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def set_bytes(data: bytes, rng: Rng) -> bytes:
    at, value = _at(data, rng), int(rng.choice([0, 0x7F, 0x80, 0xFF, rng.integers(256)]))
    count = int(rng.integers(1, 9))
    return data[:at] + bytes([value]) * count + data[at + count :]


def truncate(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def cut_out(data: bytes, rng: Rng) -> bytes:
    at = _at(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 200)) :]


def repeat(data: bytes, rng: Rng) -> bytes:
    at = _at(data, rng)
    part = data[at : at + int(rng.integers(1, 400))]
    return data[:at] + part * int(rng.choice([2, 3, 50])) + data[at:]


def splice(data: bytes, rng: Rng) -> bytes:
    """The front of this file, the back of another."""
    others = list(seeds().values())
    other = others[int(rng.integers(len(others)))]
    return data[: _at(data, rng)] + other[_at(other, rng) :]


def odd_length(data: bytes, rng: Rng) -> bytes:
    """A number of two or four bytes somewhere, in either order."""
    at, form = _at(data, rng), str(rng.choice(["<H", ">H", "<I", ">I"]))
    size = struct.calcsize(form)
    return data[:at] + struct.pack(form, odd(rng) % 256**size) + data[at + size :]


def trailing(data: bytes, rng: Rng) -> bytes:
    return data + rng.bytes(int(rng.integers(1, 5000)))


BLIND: tuple[Mutation, ...] = (flip_bits, set_bytes, truncate, cut_out, repeat, splice, odd_length, trailing)


# PNG


def _chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(kind, body) for kind, body in chunks)


def png_header(data: bytes, rng: Rng) -> bytes:
    """A size, depth, colour type, filter or interlacing of IHDR, under a right checksum."""
    chunks = _chunks(data)
    if not chunks or len(chunks[0][1]) < 13:
        return data
    header = bytearray(chunks[0][1])
    if rng.random() < 0.5:
        at = int(rng.choice([0, 4]))
        header[at : at + 4] = struct.pack(">I", odd(rng) if rng.random() < 0.5 else int(rng.integers(1, 12_000)))
    else:
        header[int(rng.integers(8, 13))] = int(rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 32, 255]))
    return _png([(chunks[0][0], bytes(header)), *chunks[1:]])


def png_body(data: bytes, rng: Rng) -> bytes:
    """A chunk damaged under a right checksum, or one doubled, dropped or moved."""
    chunks = _chunks(data)
    if not chunks:
        return data
    i = int(rng.integers(len(chunks)))
    kind, body = chunks[i]
    what = int(rng.integers(5))
    if what == 0:
        chunks[i] = kind, flip_bits(body, rng)
    elif what == 1:
        chunks.insert(int(rng.integers(len(chunks) + 1)), (kind, body))
    elif what == 2:
        del chunks[i]
    elif what == 3:
        chunks.insert(int(rng.integers(len(chunks) + 1)), chunks.pop(i))
    else:
        kinds = (b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"iTXt", b"gAMA", b"eXIf", b"sBIT")
        chunks.insert(1, (kinds[int(rng.integers(len(kinds)))], rng.bytes(int(rng.integers(0, 60)))))
    return _png(chunks)


def png_pixels(data: bytes, rng: Rng) -> bytes:
    """Pixels inflated, damaged and deflated again: what the zlib checksum can not tell."""
    chunks = _chunks(data)
    packed = b"".join(body for kind, body in chunks if kind == b"IDAT")
    try:
        rows = zlib.decompressobj().decompress(packed, 2**22)
    except zlib.error:
        return data
    others = [chunk for chunk in chunks if chunk[0] != b"IDAT"]
    changed = BLIND[int(rng.integers(len(BLIND)))](rows, rng) if rows else b""
    return _png([*others[:-1], (b"IDAT", zlib.compress(changed, 1)), *others[-1:]])


PNG: tuple[Mutation, ...] = (png_header, png_body, png_pixels)


# JPEG


def _markers(data: bytes) -> list[int]:
    return [match.start() for match in re.finditer(rb"\xff[\xc0-\xfe]", data)]


def jpeg_marker(data: bytes, rng: Rng) -> bytes:
    """Another marker in a segment's place."""
    found = _markers(data)
    if not found:
        return data
    at = _pick(rng, found)
    return data[: at + 1] + bytes([int(rng.integers(0xC0, 0xFF))]) + data[at + 2 :]


def jpeg_length(data: bytes, rng: Rng) -> bytes:
    found = _markers(data)
    if not found:
        return data
    at = _pick(rng, found)
    return data[: at + 2] + struct.pack(">H", odd(rng) % 2**16) + data[at + 4 :]


def jpeg_frame(data: bytes, rng: Rng) -> bytes:
    """Another size, precision, number of components or sampling in the frame header."""
    match = re.search(rb"\xff[\xc0-\xc3]", data)
    if match is None or match.start() + 16 > len(data):
        return data
    at, changed = match.start(), bytearray(data)
    if rng.random() < 0.5:
        side = int(rng.integers(1, 12_000)) if rng.random() < 0.5 else odd(rng) % 2**16
        where = at + 5 + 2 * int(rng.integers(2))
        changed[where : where + 2] = struct.pack(">H", side)
    else:
        changed[at + int(rng.choice([1, 4, 9, 10, 11, 12, 13]))] = int(rng.integers(256))
    return bytes(changed)


def jpeg_scan(data: bytes, rng: Rng) -> bytes:
    """A scan doubled, or its parameters changed."""
    found = [match.start() for match in re.finditer(rb"\xff\xda", data)]
    if not found:
        return data
    at = _pick(rng, found)
    if rng.random() < 0.5:
        return data[:-2] + data[at:-2] * int(rng.integers(1, 30)) + data[-2:]
    return data[: at + 4] + rng.bytes(6) + data[at + 10 :]


JPEG: tuple[Mutation, ...] = (jpeg_marker, jpeg_length, jpeg_frame, jpeg_scan)


# DICOM


def _elements(data: bytes) -> list[int]:
    """Where elements with an explicit VR seem to begin."""
    return [match.start() for match in re.finditer(rb"..(?s:..)(?:%s)" % "|".join(VRS).encode(), data[:8192])]


def dicom_vr(data: bytes, rng: Rng) -> bytes:
    """Another VR: a 16-bit number as one of 32 bits, a text as a sequence."""
    found = _elements(data)
    if not found:
        return data
    at = _pick(rng, found)
    return data[: at + 4] + str(rng.choice(VRS)).encode() + data[at + 6 :]


def dicom_length(data: bytes, rng: Rng) -> bytes:
    found = _elements(data)
    if not found:
        return data
    at = _pick(rng, found)
    if rng.random() < 0.5:
        return data[: at + 6] + struct.pack("<H", odd(rng) % 2**16) + data[at + 8 :]
    return data[: at + 8] + struct.pack("<I", odd(rng)) + data[at + 12 :]


def dicom_value(data: bytes, rng: Rng) -> bytes:
    """Another value of an element of the image module: rows, columns, bits, representation, frames."""
    places = [match.start() for match in re.finditer(rb"\x28\x00..US\x02\x00", data[:8192], re.DOTALL)]
    if not places:
        return odd_length(data, rng)
    at = _pick(rng, places)
    return data[: at + 8] + struct.pack("<H", odd(rng) % 2**16) + data[at + 10 :]


def dicom_wide(data: bytes, rng: Rng) -> bytes:
    """A number of 32 bits where there were 16."""
    places = [match.start() for match in re.finditer(rb"\x28\x00..US\x02\x00", data[:8192], re.DOTALL)]
    if not places:
        return data
    at = _pick(rng, places)
    return data[: at + 4] + b"UL\x04\x00" + struct.pack("<I", odd(rng)) + data[at + 10 :]


def dicom_syntax(data: bytes, rng: Rng) -> bytes:
    """A transfer syntax that is a lie."""
    match = re.search(rb"\x02\x00\x10\x00UI(..)1\.2\.840\.10008\.[0-9.]*\0?", data, re.DOTALL)
    if match is None:
        return data
    uid = SYNTAXES[int(rng.integers(len(SYNTAXES)))]
    return data[: match.start()] + element(0x00020010, "UI", uid + b"\0" * (len(uid) % 2)) + data[match.end() :]


def dicom_nest(data: bytes, rng: Rng) -> bytes:
    """Sequences inside of sequences of no known length, ended or not."""
    found = _elements(data)
    if not found:
        return data
    at = _pick(rng, found)
    depth = int(rng.choice([1, 3, 50, 400]))
    nested = (element(0x00081140, "SQ", b"", UNDEFINED) + implicit(ITEM, b"", UNDEFINED)) * depth
    return data[:at] + nested + data[at:]


def dicom_insert(data: bytes, rng: Rng) -> bytes:
    """An element that the reader looks at, of any VR and value, where the first of them is."""
    found = _elements(data)
    if not found:
        return data
    wanted = (0x00280008, 0x00280010, 0x00280101, 0x00280120, 0x00281050, 0x00281051, 0x00281052, 0x00281053)
    more = (0x00280004, 0x00080008, 0x00280030, 0x00283000, 0x00283010, 0x52009230, 0x00200032, 0x00200037)
    number = int(rng.choice(wanted + more))
    values = (
        b"",
        b"0 ",
        b"-1",
        b"1e308 ",
        b"nan ",
        b"inf ",
        b"1\\2\\3 ",
        b"9" * 16,
        rng.bytes(8),
        struct.pack("<Q", 2**63),
    )
    value = values[int(rng.integers(len(values)))]
    return data[: found[-1]] + element(number, str(rng.choice(VRS)), value) + data[found[-1] :]


def dicom_fragments(data: bytes, rng: Rng) -> bytes:
    """An item among the fragments of compressed pixels, or anywhere in the file."""
    at = _pick(rng, [match.start() for match in re.finditer(rb"\xfe\xff\x00\xe0", data)] or [_at(data, rng)])
    return (
        data[:at] + implicit(ITEM, rng.bytes(int(rng.integers(0, 20))), odd(rng)) * int(rng.integers(1, 4)) + data[at:]
    )


DICOM: tuple[Mutation, ...] = (
    dicom_vr,
    dicom_length,
    dicom_value,
    dicom_wide,
    dicom_syntax,
    dicom_nest,
    dicom_insert,
    dicom_fragments,
)


# NIfTI and gzip


def nifti_field(data: bytes, rng: Rng) -> bytes:
    """Fields of the header: shape, type, offset, scale, units, codes, affine."""
    inside, packed = _unpacked(data)
    if len(inside) < 352:
        return data
    changed = bytearray(inside)
    for _ in range(int(rng.integers(1, 3))):
        form, places = FIELDS[int(rng.integers(len(FIELDS)))]
        at, size = _pick(rng, list(places)), struct.calcsize(form)
        value = float(rng.choice([0, -1, 352, 1e30, np.inf, np.nan])) if "f" in form else odd(rng) % 2**16 - 2**15
        changed[at : at + size] = struct.pack(form, value)
    return gzip.compress(bytes(changed), 1, mtime=0) if packed else bytes(changed)


FIELDS: tuple[tuple[str, range], ...] = (
    ("<h", range(40, 56, 2)),  # dim
    ("<h", range(70, 74, 2)),  # datatype, bitpix
    ("<f", range(76, 108, 4)),  # pixdim
    ("<f", range(108, 120, 4)),  # vox_offset, scl_slope, scl_inter
    ("<h", range(122, 124, 2)),  # slice_code, xyzt_units
    ("<h", range(252, 256, 2)),  # qform_code, sform_code
    ("<f", range(256, 328, 4)),  # quatern, qoffset, srow
)


def nifti_inside(data: bytes, rng: Rng) -> bytes:
    """Damage inside of the gzip, packed again."""
    inside, packed = _unpacked(data)
    changed = BLIND[int(rng.integers(len(BLIND)))](inside, rng) if inside else inside
    return gzip.compress(changed, 1, mtime=0) if packed else changed


def gzip_members(data: bytes, rng: Rng) -> bytes:
    """Members in front of it, behind it, or inside of another."""
    other = gzip.compress(rng.bytes(int(rng.integers(0, 400))), 1, mtime=0)
    return (other + data, data + other * int(rng.integers(1, 50)), gzip.compress(data, 1, mtime=0), data * 2)[
        int(rng.integers(4))
    ]


def gzip_flags(data: bytes, rng: Rng) -> bytes:
    """Flags, names and extra fields of a gzip member."""
    return data[:2] + rng.bytes(int(rng.integers(1, 9))) + data[10:]


NIFTI: tuple[Mutation, ...] = (nifti_field, nifti_field, nifti_inside, gzip_members, gzip_flags)


def _unpacked(data: bytes) -> tuple[bytes, bool]:
    if not data.startswith(b"\x1f\x8b"):
        return data, False
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, 2**22), True
    except zlib.error:
        return data, False


# Zip


def zip_directory(data: bytes, rng: Rng) -> bytes:
    """A field of the central directory, or of its end: sizes, counts, offsets, methods, flags."""
    found = [match.start() for match in re.finditer(rb"PK\x01\x02|PK\x05\x06", data)]
    if not found:
        return data
    at = _pick(rng, found) + int(rng.choice([4, 6, 8, 10, 12, 16, 20, 24, 28, 30, 32, 34, 38, 42]))
    form = str(rng.choice(["<H", "<I"]))
    return data[:at] + struct.pack(form, odd(rng) % 256 ** struct.calcsize(form)) + data[at + struct.calcsize(form) :]


def zip_local(data: bytes, rng: Rng) -> bytes:
    """A local header that the directory knows nothing of."""
    found = [match.start() for match in re.finditer(rb"PK\x03\x04", data)]
    if not found:
        return data
    at = _pick(rng, found) + int(rng.choice([0, 4, 6, 8, 14, 18, 22, 26, 28]))
    return data[:at] + struct.pack("<H", odd(rng) % 2**16) + data[at + 2 :]


def zip_names(data: bytes, rng: Rng) -> bytes:
    """Names of the same length that climb, are absolute, or hold what no name holds."""
    name = [b"/", b"../", b"..\\", b"C:\\", b"\0", b"\xff\xfe", b"CON", b"~/"][int(rng.integers(8))]
    return re.sub(rb"\.\./\d{3}/", lambda match: (name * 8)[: len(match[0])], data)


ZIP: tuple[Mutation, ...] = (zip_directory, zip_directory, zip_local, zip_names)
