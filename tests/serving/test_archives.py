"""Zips and folders: what is refused before anything of it is unpacked."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from serving.archives import blobs
from serving.errors import ScanError, ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.studies import open_volume
from tests.serving.volume_files import dicom_slice, file_of, zipped

SLICE = file_of(dicom_slice(np.zeros((64, 64), np.int16)))


def never_inflate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("opened a member"))


def test_a_zip_bomb_is_refused_by_its_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    data = zipped([bytes(100 * 2**20)])
    assert len(data) < 2**20
    never_inflate(monkeypatch)
    tracemalloc.start()
    try:
        with pytest.raises(ScanTooLarge, match="expected an archive that expands at most 200 times, got"):
            open_volume(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def patched(data: bytes, **values: int) -> bytes:
    """A zip whose first directory entry and last record lie."""
    changed = bytearray(data)
    entry, end = changed.rindex(b"PK\x01\x02"), changed.rindex(b"PK\x05\x06")
    places = {
        "flags": (entry + 8, "<H"),
        "method": (entry + 10, "<H"),
        "size": (entry + 24, "<I"),
        "count": (end + 10, "<H"),
        "directory": (end + 12, "<I"),
    }
    for name, value in values.items():
        at, kind = places[name]
        changed[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
    return bytes(changed)


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (patched(zipped([SLICE]), size=2**31 + 1), ScanTooLarge, "at most 2,147,483,648 bytes, got 2,147,483,649"),
        (patched(zipped([SLICE]), size=2**31 - 1), ScanTooLarge, "expands at most 200 times"),
        (patched(zipped([SLICE]), flags=1), UnsupportedScan, "without a password, got an encrypted one"),
        (patched(zipped([SLICE]), method=12), UnsupportedScan, "stored or deflated files"),
        (patched(zipped([SLICE]), count=60_000), ScanTooLarge, "at most 5,000 files"),
        (patched(zipped([SLICE]), directory=2**30), ScanTooLarge, "a larger zip directory"),
        (zipped([SLICE])[:-30], UnreadableScan, "without its directory"),
        (zipped([SLICE])[:200] + zipped([SLICE])[260:], ScanError, "expected"),
    ],
)
def test_what_is_refused_is_named(
    data: bytes, error: type[ScanError], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "study.zip").write_bytes(data)
    for source in (data, tmp_path / "study.zip"):
        with pytest.raises(error, match=says):
            open_volume(source)


def test_a_zip_with_too_many_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.archives.MAX_STUDY_FILES", 3)
    assert len(blobs(zipped([b"1", b"2", b"3"]))) == 3
    with pytest.raises(ScanTooLarge, match="at most 3 files"):
        blobs(zipped([b"1", b"2", b"3", b"4"]))
    # The count in the last record may lie; the entries do not.
    with pytest.raises(ScanTooLarge, match="at most 3 files"):
        blobs(patched(zipped([b"1", b"2", b"3", b"4"]), count=1))


def test_a_folder_with_too_many_files_or_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        (tmp_path / f"{i}").write_bytes(SLICE)
    assert len(blobs(tmp_path)) == 4
    monkeypatch.setattr("serving.archives.MAX_STUDY_BYTES", 3 * len(SLICE))
    with pytest.raises(ScanTooLarge, match="expected a study of at most"):
        blobs(tmp_path)
    monkeypatch.setattr("serving.archives.MAX_STUDY_FILES", 3)
    with pytest.raises(ScanTooLarge, match="at most 3 files"):
        blobs(tmp_path)


def test_a_zip64_directory_is_refused_since_only_larger_archives_need_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zipfile.ZIP_FILECOUNT_LIMIT", 1)
    data = zipped([SLICE, SLICE])
    assert b"PK\x06\x07" in data
    with pytest.raises(ScanTooLarge, match="got a zip64 archive"):
        blobs(data)


def test_a_member_that_is_larger_than_it_says_is_not_unpacked_further() -> None:
    data = patched(zipped([SLICE + bytes(40 * 2**20)]), size=len(SLICE))
    tracemalloc.start()
    try:
        with pytest.raises(ScanError, match="expected"):
            open_volume(data)
        assert tracemalloc.get_traced_memory()[1] < 10 * 2**20
    finally:
        tracemalloc.stop()


def test_a_zip_in_a_zip_is_not_opened() -> None:
    with pytest.raises(UnreadableScan, match="got an archive, which is not opened"):
        open_volume(zipped([zipped([SLICE])]))


def test_names_of_members_say_and_do_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("../../../Mustermann^Erika", SLICE)
        archive.writestr("/etc/Mustermann^Erika", b"x")
    monkeypatch.chdir(tmp_path)
    assert open_volume(stream.getvalue()).shape == (1, 64, 64)
    assert not list(tmp_path.iterdir())
    assert "Mustermann" not in repr(blobs(stream.getvalue()))


@pytest.mark.parametrize("source", [Path("nowhere"), [Path("nowhere"), Path("nor here")]])
def test_a_path_without_a_file_is_refused(source: Path | list[Path]) -> None:
    with pytest.raises(UnreadableScan, match="expected"):
        open_volume(source)


def test_an_empty_folder_has_no_images(tmp_path: Path) -> None:
    with pytest.raises(UnreadableScan, match=r"got none \(no files\)"):
        open_volume(tmp_path)


def test_damaged_zips_are_read_or_refused_and_nothing_else() -> None:
    whole = zipped([SLICE, SLICE])
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 9))):
            data[int(rng.integers(4, len(data)))] = int(rng.integers(256))
        try:
            open_volume(bytes(data)).slice_scan(0)
        except ScanError:
            refused += 1
    assert 10 < refused
