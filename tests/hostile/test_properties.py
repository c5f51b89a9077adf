"""What hypothesis finds in bytes that it makes up, and shrinks: for `serving.scans` and `serving.studies`."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving.errors import LungstreamsError
from serving.scans import Scan, decode
from serving.studies import open_volume
from tests.hostile.elements import dicom_file, element, image_elements, pixels
from tests.hostile.mutations import VRS
from tests.hostile.seeds import seeds

SEEDS = tuple(seeds())
# Reading takes some milliseconds, on a machine that others use.
QUICKLY = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)

# Group by group, those that a reader looks at.
TAGS = st.sampled_from(
    [
        *(0x00080005, 0x00080008, 0x00080060),
        *(0x00200013, 0x0020000E, 0x00200032, 0x00200037),
        *(0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011, 0x00280030),
        *(0x00280100, 0x00280101, 0x00280102, 0x00280103, 0x00280120),
        *(0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00283000, 0x00283010),
        *(0x52009229, 0x52009230),
    ]
)
VALUES = st.one_of(
    st.binary(max_size=12),
    st.integers(0, 2**16 - 1).map(lambda value: struct.pack("<H", value)),
    st.integers(0, 2**32 - 1).map(lambda value: struct.pack("<I", value)),
    st.floats(width=32).map(lambda value: struct.pack("<f", value)),
    st.floats().map(lambda value: f"{value:.6g}".encode()),
    st.sampled_from([b"CT", b"DX", b"RGB ", b"PALETTE COLOR ", b"YBR_FULL", b"MONOCHROME1 ", b"1\\2 ", b"LOCALIZER "]),
)
ELEMENTS = st.lists(st.tuples(TAGS, st.sampled_from(VRS), VALUES), min_size=1, max_size=4)


def borne(data: bytes) -> None:
    """Hold a file against what is promised of any."""
    refusals = []
    for read in (decode, open_volume):
        try:
            found = read(data)
            scan = found if isinstance(found, Scan) else found.slice_scan(0)
            assert scan.pixels.dtype == np.uint8
        except LungstreamsError as refused:
            refusals.append(str(refused))
    assert all("expected" in says and "got" in says for says in refusals)


@QUICKLY
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6), st.integers(0, 8)), min_size=1, max_size=4),
)
def test_any_bytes_in_the_place_of_others_are_borne(name: str, edits: list[tuple[float, bytes, int]]) -> None:
    data = seeds()[name]
    for where, put, dropped in edits:
        at = int(where * len(data))
        data = data[:at] + put + data[at + dropped :]
    borne(data)


@QUICKLY
@given(st.sampled_from(SEEDS), st.floats(0, 1), st.binary(max_size=200))
def test_any_end_after_any_beginning_is_borne(name: str, where: float, end: bytes) -> None:
    borne(seeds()[name][: int(where * len(seeds()[name]))] + end)


@QUICKLY
@given(ELEMENTS, st.integers(0, 3), st.binary(max_size=64))
def test_any_elements_of_an_image_are_borne(elements: list[tuple[int, str, bytes]], frames: int, more: bytes) -> None:
    replaced = {struct.pack("<HH", number >> 16, number & 0xFFFF) for number, _, _ in elements}
    whole = [part for part in image_elements(64, 64, bits=16, modality="CT") if part[:4] not in replaced]
    changed = [element(number, vr, value) for number, vr, value in elements]
    borne(dicom_file([*whole, *changed, pixels(bytes(8192 * frames) + more, "OW")]))
