"""The files of a study, one at a time: from a list of paths, a folder, or a zip.

Nothing is unpacked beside the archive, an archive inside it is not opened, and no name in it is ever used as a path.
Files are called by their place in the study ("file 3 of 120"), since their names may be a patient's.
"""

from __future__ import annotations

import io
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final, cast

from serving.errors import ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.limits import MAX_FILE_BYTES, MAX_STUDY_BYTES, MAX_STUDY_FILES, check_expansion, fence

_END_MAGIC: Final = b"PK\x05\x06"
ZIP_MAGICS: Final = (b"PK\x03\x04", _END_MAGIC)
"""What a zip begins with, with files and without."""

_END_BYTES: Final = 22
_ZIP64_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_ZIP64_LOCATOR_BYTES: Final = 20
# Fixed part of an entry of the central directory, and a generous name with extra fields.
_ENTRY_BYTES: Final = 46 + 1024
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED: Final = 0x1


@dataclass(frozen=True)
class Blob:
    """One file of a study, not read yet.

    Attributes:
        label: What to call it in messages; says nothing of its name.
        size_bytes: Its size.
        opened: Opens it for reading from its first byte.
    """

    label: str
    size_bytes: int
    opened: Callable[[], BinaryIO] = field(repr=False)

    def read(self) -> bytes:
        """The whole file.

        Raises:
            ScanTooLarge: If it has more than `MAX_FILE_BYTES`.
            UnreadableScan: If it can not be read.
        """
        if self.size_bytes > MAX_FILE_BYTES:
            raise ScanTooLarge(
                f"{self.label}: expected at most {MAX_FILE_BYTES:,} bytes, got {self.size_bytes:,} bytes"
            )
        with fence("a file that can be read"), self.opened() as stream:
            # No more than it says: a member of a zip that lies would be inflated up to what is asked for.
            return stream.read(self.size_bytes)

    def seekable(self) -> BinaryIO:
        """The file as a stream that can be sought in without keeping it in memory. The caller closes it.

        Raises:
            UnreadableScan: If it can not be read.
        """
        with fence("a file that can be read"):
            stream = self.opened()
            if not isinstance(stream, zipfile.ZipExtFile):
                return stream
            # Seeking backwards in a compressed member inflates it from its beginning, each time.
            copy = tempfile.TemporaryFile()
            with stream:
                shutil.copyfileobj(stream, copy, 2**20)
            copy.seek(0)
            return copy


def blobs(source: Path | bytes | Iterable[Path]) -> list[Blob]:
    """The files of a study.

    Args:
        source: A file, a folder (searched through, links and hidden files left out), a zip (a path or its bytes), or
            several files.

    Returns:
        In the order of their names for a folder, else as given.

    Raises:
        ScanTooLarge: More than `MAX_STUDY_FILES` or `MAX_STUDY_BYTES`, or a zip that expands by more than
            `MAX_EXPANSION`; raised before anything is inflated.
        UnsupportedScan: An encrypted zip, or one with a compression other than deflate.
        UnreadableScan: No such file, or a broken zip.
    """
    if isinstance(source, bytes):
        return _zip_blobs(source) if source.startswith(ZIP_MAGICS) else [_of_bytes(source)]
    if isinstance(source, Path):
        if not source.exists():
            raise UnreadableScan(f"expected a file or folder at {source}, got none")
        if source.is_file() and _is_zip(source):
            return _zip_blobs(source)
        paths = _walk(source) if source.is_dir() else [source]
    else:
        paths = list(source)
    _check_count(len(paths))
    with fence("files that can be read"):
        sizes = [path.stat().st_size for path in paths]
    _check_total(sum(sizes))
    return [
        Blob(_label(i, len(paths)), size, _opener(path))
        for i, (path, size) in enumerate(zip(paths, sizes, strict=True))
    ]


def _is_zip(path: Path) -> bool:
    with fence("a file that can be read"), path.open("rb") as stream:
        return stream.read(4) in ZIP_MAGICS


def _walk(folder: Path) -> list[Path]:
    found: list[Path] = []
    with fence("a folder that can be read"):
        for path in folder.rglob("*"):
            if path.is_symlink() or path.name.startswith(".") or not path.is_file():
                continue
            found.append(path)
            _check_count(len(found))
    return sorted(found)


def _of_bytes(data: bytes) -> Blob:
    return Blob("the file", len(data), partial(io.BytesIO, data))


def _opener(path: Path) -> Callable[[], BinaryIO]:
    return lambda: path.open("rb")


def _label(index: int, count: int) -> str:
    return f"file {index + 1:,} of {count:,}" if count > 1 else "the file"


def _check_count(count: int) -> None:
    if count > MAX_STUDY_FILES:
        raise ScanTooLarge(f"expected a study of at most {MAX_STUDY_FILES:,} files, got more")


def _check_total(total_bytes: int) -> None:
    if total_bytes > MAX_STUDY_BYTES:
        raise ScanTooLarge(f"expected a study of at most {MAX_STUDY_BYTES:,} bytes, got {total_bytes:,} bytes")


def _zip_blobs(source: Path | bytes) -> list[Blob]:
    with fence("a whole zip archive"):
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
            packed_bytes = stream.seek(0, io.SEEK_END)
            _check_directory(stream, packed_bytes)
        # Closes itself with the last blob that reads from it.
        archive = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        members = [info for info in archive.infolist() if not info.is_dir()]
    _check_members(members, packed_bytes)
    return [
        Blob(_label(i, len(members)), info.file_size, cast(Callable[[], BinaryIO], partial(archive.open, info)))
        for i, info in enumerate(members)
    ]


def _check_directory(stream: BinaryIO, packed_bytes: int) -> None:
    """Hold the size of the central directory against the limits: `zipfile` reads all of it into objects at once."""
    tail_bytes = min(packed_bytes, _END_BYTES + 0xFFFF + _ZIP64_LOCATOR_BYTES)
    stream.seek(packed_bytes - tail_bytes)
    tail = stream.read(tail_bytes)
    at = tail.rfind(_END_MAGIC)
    if at < 0 or at + _END_BYTES > len(tail):
        raise UnreadableScan("expected a whole zip archive, got one without its directory")
    if tail[max(at - _ZIP64_LOCATOR_BYTES, 0) :].startswith(_ZIP64_LOCATOR_MAGIC):
        raise ScanTooLarge("expected a zip archive of less than 4 GiB and 65,535 files, got a zip64 archive")
    count, directory_bytes = struct.unpack("<HI", tail[at + 10 : at + 16])
    _check_count(count)
    if directory_bytes > MAX_STUDY_FILES * _ENTRY_BYTES:
        raise ScanTooLarge(f"expected a study of at most {MAX_STUDY_FILES:,} files, got a larger zip directory")


def _check_members(members: list[zipfile.ZipInfo], packed_bytes: int) -> None:
    _check_count(len(members))
    # `zipfile` never gives more of a member than this, so what the directory says is a bound even where it lies.
    total_bytes = sum(info.file_size for info in members)
    _check_total(total_bytes)
    check_expansion(packed_bytes, total_bytes)
    for info in members:
        if info.flag_bits & _ENCRYPTED:
            raise UnsupportedScan("expected a zip archive without a password, got an encrypted one")
        if info.compress_type not in _METHODS:
            raise UnsupportedScan("expected a zip archive of stored or deflated files, got another compression")
