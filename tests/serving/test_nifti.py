"""NIfTI files of all kinds, and those that are refused before they cost anything."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from serving.errors import ScanError, ScanTooLarge, ScanTooSmall, UnreadableScan, UnsupportedScan
from serving.nifti import HEAD_BYTES, is_nifti, read_nifti
from serving.scans import decode
from serving.studies import open_volume
from tests.serving.volume_files import affine_ras, block, nifti_bytes

# The file's axes are x to the right, y to the front, z to the head.
AFFINE = affine_ras((0, 1, 2), (1, 1, 1), (0.7, 0.9, 2.5))
STORED = np.ascontiguousarray(block().transpose(2, 1, 0)[::-1, ::-1])


def image(values: np.ndarray = STORED, kind: type[nibabel.Nifti1Image] = nibabel.Nifti1Image) -> nibabel.Nifti1Image:
    made = kind(values, AFFINE)
    made.header.set_xyzt_units("mm")
    return made


def axial(source: bytes | Path) -> np.ndarray:
    return np.stack(list(read_nifti(source).slices_hu()))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_both_versions_read_alike_from_bytes_and_from_a_file(
    kind: type[nibabel.Nifti1Image], packed: bool, tmp_path: Path
) -> None:
    data = nifti_bytes(STORED, AFFINE, packed=packed, kind=kind)
    np.testing.assert_array_equal(axial(data), block())
    # Contents tell, not the name.
    path = tmp_path / "scan"
    path.write_bytes(data)
    np.testing.assert_array_equal(np.stack(list(open_volume(path).slices_hu())), block())


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("order", ["<", ">"])
def test_types_and_byte_orders_read_as_nibabel_reads_them(kind: type[np.generic], order: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, STORED.shape).astype(np.dtype(kind).newbyteorder(order))
    made = nibabel.Nifti1Image(values, AFFINE, nibabel.Nifti1Header(endianness=order))
    made.set_data_dtype(np.dtype(kind).newbyteorder(order))
    data = made.to_bytes()
    theirs = np.asarray(nibabel.Nifti1Image.from_bytes(data).dataobj)
    np.testing.assert_array_equal(axial(data), theirs[::-1, ::-1].transpose(2, 1, 0).astype(np.float32))


def test_slope_and_intercept_are_applied_as_nibabel_applies_them() -> None:
    made = image(np.random.default_rng(0).integers(0, 4000, STORED.shape).astype(np.int16))
    data = bytearray(made.to_bytes())
    data[112:120] = np.array([0.25, -1024], "<f4").tobytes()
    theirs = np.asarray(nibabel.Nifti1Image.from_bytes(bytes(data)).dataobj)
    assert theirs.min() < -900
    np.testing.assert_array_equal(axial(bytes(data)), theirs[::-1, ::-1].transpose(2, 1, 0).astype(np.float32))


def test_what_is_no_number_is_black() -> None:
    values = STORED.astype(np.float32)
    values[7, 8, 9] = np.nan
    read = read_nifti(nifti_bytes(values, AFFINE))
    hu = read.slice_hu(9)
    assert np.isfinite(hu).all()
    assert (hu == -2000).sum() == 1
    at = tuple(np.argwhere(hu == -2000)[0])
    assert read.slice_scan(9).pixels[at] == 0


@pytest.mark.parametrize(("sform", "qform"), [(1, 1), (0, 1), (1, 0), (2, 1)])
def test_transforms_have_the_priority_that_nibabel_gives_them(sform: int, qform: int) -> None:
    made = image()
    other = affine_ras((0, 1, 2), (-1, 1, 1), (0.7, 0.9, 2.5))
    made.set_sform(AFFINE, sform)
    made.set_qform(other, qform)
    data = made.to_bytes()
    theirs = np.diag([-1.0, -1, 1, 1]) @ nibabel.Nifti1Image.from_bytes(data).affine
    np.testing.assert_allclose(read_nifti(data).source_affine, theirs, atol=1e-5)


def test_a_file_that_does_not_say_how_the_patient_lies_says_so() -> None:
    made = image()
    made.set_sform(None, 0)
    made.set_qform(None, 0)
    volume = read_nifti(made.to_bytes())
    assert any("left and right" in problem for problem in volume.problems)
    assert not any("left and right" in problem for problem in read_nifti(image().to_bytes()).problems)


def test_hounsfield_units_are_assumed_and_said() -> None:
    assert "values are taken for Hounsfield units: NIfTI does not say" in read_nifti(image().to_bytes()).problems


def test_tilted_slices_are_said() -> None:
    tilted = affine_ras((0, 1, 2), (1, 1, 1), (1, 1, 1), (12, 0, 0))
    assert any("tilted by 12 degrees" in problem for problem in read_nifti(nifti_bytes(STORED, tilted)).problems)


def test_a_fourth_axis_of_one_is_dropped_and_a_longer_one_refused() -> None:
    np.testing.assert_array_equal(axial(image(STORED[..., None]).to_bytes()), block())
    with pytest.raises(UnsupportedScan, match=r"expected a NIfTI file of three axes, got 4 \(54 x 51 x 49 x 2\)"):
        read_nifti(image(np.stack([STORED, STORED], -1)).to_bytes())


def edited(at: int, values: bytes, data: bytes | None = None) -> bytes:
    changed = bytearray(data or image().to_bytes())
    changed[at : at + len(values)] = values
    return bytes(changed)


def dim(*lengths: int) -> bytes:
    return np.array([len(lengths), *lengths], "<i2").tobytes()


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (edited(344, b"ni1\0"), UnsupportedScan, "got the header of a pair of files"),
        (edited(344, b"n+9\0"), UnreadableScan, "expected a NIfTI file, got another format"),
        (b"", UnreadableScan, "got another format"),
        (image().to_bytes()[:300], UnreadableScan, "got another format"),
        (image().to_bytes()[:-2], UnreadableScan, "it is truncated"),
        (image(STORED[:40]).to_bytes(), ScanTooSmall, "got 40 x 51"),
        (edited(40, dim(32000, 32000, 32000)), ScanTooLarge, "expected axes of at most 4,000 voxels"),
        (edited(40, dim(2000, 2000, 2000)), ScanTooLarge, "at most 536,870,912 voxels"),
        (edited(40, dim(64, 64, 0)), UnreadableScan, "at least one voxel"),
        (edited(40, dim(64, 64)), UnsupportedScan, "expected a NIfTI file of three axes, got 2"),
        (edited(70, np.array([128, 24], "<i2").tobytes()), UnsupportedScan, "expected voxels of whole or real numbers"),
        (edited(123, b"\x01"), UnsupportedScan, "expected lengths in mm, got meter"),
        (edited(108, np.array(-5, "<f4").tobytes()), ScanError, "expected"),
        (edited(108, np.array(1e30, "<f4").tobytes()), ScanError, "expected"),
        (edited(108, np.array(np.nan, "<f4").tobytes()), ScanError, "expected"),
        (edited(280, bytes(48)), UnreadableScan, "three independent axes"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_refused_is_named(data: bytes, error: type[ScanError], says: str, packed: bool) -> None:
    with pytest.raises(error, match=says):
        read_nifti(gzip.compress(data, 1) if packed else data)


def bomb(head: bytes, inflated_bytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    packed = [packer.compress(head)]
    zeros = bytes(2**20)
    packed += [packer.compress(zeros) for _ in range(inflated_bytes // len(zeros))]
    return b"".join([*packed, packer.flush()])


class Inflated:
    """Counts what is inflated."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        real = zlib.decompressobj

        def counting(*args: int) -> object:
            inner, outer = real(*args), self

            class Counting:
                def __getattr__(self, name: str) -> object:
                    return getattr(inner, name)

                def decompress(self, data: bytes, limit: int) -> bytes:
                    out = inner.decompress(data, limit)
                    outer.count += len(out)
                    return out

            return Counting()

        monkeypatch.setattr("serving.nifti.zlib.decompressobj", counting)


def test_a_gzip_bomb_is_refused_by_its_header_and_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = bomb(edited(40, dim(4000, 4000, 4000))[:352], 256 * 2**20)
    inflated = Inflated(monkeypatch)
    with pytest.raises(ScanTooLarge):
        open_volume(packed)
    assert 0 < inflated.count <= 2 * 2**20


def test_a_gzip_is_not_inflated_beyond_its_voxels(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = image().to_bytes()
    packed = bomb(whole, 256 * 2**20)
    inflated = Inflated(monkeypatch)
    np.testing.assert_array_equal(axial(packed), block())
    assert inflated.count <= len(whole) + 2 * 2**20


def test_a_gzip_of_several_members_is_one_file() -> None:
    data = image().to_bytes()
    np.testing.assert_array_equal(axial(gzip.compress(data[:1000]) + gzip.compress(data[1000:])), block())


def test_damaged_files_are_read_or_refused_and_nothing_else() -> None:
    whole = image().to_bytes()[:352]
    rng = np.random.default_rng(0)
    rest = image().to_bytes()[352:]
    refusals = []
    for trial in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(len(data)))] = int(rng.integers(256))
        file = bytes(data) + rest
        try:
            read_nifti(gzip.compress(file, 1) if trial % 4 == 0 else file).slice_scan(0)
        except ScanError as refused:
            refusals.append(str(refused))
    assert 10 < len(refusals) < 300
    assert all("expected" in says for says in refusals)
    packed = gzip.compress(whole + rest, 1)
    for _ in range(50):
        data = bytearray(packed)
        data[int(rng.integers(20, len(data)))] ^= 1 << int(rng.integers(8))
        try:
            read_nifti(bytes(data)).slice_scan(0)
        except ScanError as refused:
            assert "expected" in str(refused)  # noqa: PT017


def test_other_files_are_not_taken_for_nifti() -> None:
    assert is_nifti(image().to_bytes()[:HEAD_BYTES])
    assert is_nifti(gzip.compress(image().to_bytes())[:HEAD_BYTES])
    for other in (b"", b"\x1f\x8b", b"\x1f\x8bnonsense", gzip.compress(b"text"), bytes(4096)):
        assert not is_nifti(other)


def test_one_nifti_file_still_is_no_upload_for_the_ensemble() -> None:
    with pytest.raises(UnsupportedScan, match="got NIfTI"):
        decode(image().to_bytes())


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
@pytest.mark.parametrize("classes", [1, 3, 20])
def test_a_mask_is_not_read_as_ct(dtype: type[np.generic], classes: int) -> None:
    mask = np.zeros((64, 50, 6), dtype)
    mask[10:20, 10:20, 2:5] = classes
    with pytest.raises(UnsupportedScan, match=rf"got whole numbers from 0 to {classes}: a mask\?"):
        read_nifti(nifti_bytes(mask, np.eye(4)))


def test_what_has_air_or_more_values_than_classes_is_no_mask() -> None:
    values = np.zeros((64, 50, 6), np.int16)
    values[10:20, 10:20, 5] = 21
    assert read_nifti(nifti_bytes(values, np.eye(4))).shape[0] == 6
    values[10:20, 10:20, 5] = -1000
    assert read_nifti(nifti_bytes(values, np.eye(4))).shape[0] == 6
    assert read_nifti(nifti_bytes(np.full((64, 50, 6), 0.5, np.float32), np.eye(4))).shape[0] == 6
