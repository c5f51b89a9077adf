"""What was named on the command line, as cases: scans and studies, in an order that does not change from run to run.

A file that is named is a case of its own. A folder is searched through: its CT slices that share a series are one case
(and their files' names do not matter), everything else is a case a file.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from serving.dicom_headers import DICOM_MAGIC, PREAMBLE_BYTES, inflated, read_dicom
from serving.errors import RequestError, ScanError
from serving.limits import fence
from serving.nifti import HEAD_BYTES
from serving.rasters import JPEG_MAGIC, PNG_MAGIC
from serving.studies import ct_frames, is_study_head

MAX_BATCH_FILES: Final = 200_000
"""Most files of a folder that is searched through: what names and series of take some hundred MiB."""

# A file with such a name was meant to be a scan, whatever is in it.
_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".ima", ".nii", ".nii.gz", ".zip")
_RASTER_MAGICS: Final = (PNG_MAGIC, JPEG_MAGIC)


@dataclass(frozen=True)
class Source:
    """What one case, or those of one archive, are read from.

    Attributes:
        name: What it is called in the output: a path as the user gave it, or below what the user gave.
        paths: Its files; a folder where one is to be read as a study.
        is_study: Whether it is read as a volume.
        every_series: Whether each series of it is a case, and none needs to be chosen.
        place: Where below the output folder its files go, and what their names begin with; None: by its own name.
    """

    name: str
    paths: tuple[Path, ...]
    is_study: bool
    every_series: bool = False
    place: Path | None = None

    @property
    def stem(self) -> str:
        """Its last name without a suffix."""
        last = Path(self.name).name
        return last[: -len(".nii.gz")] if last.lower().endswith(".nii.gz") else Path(last).stem


@dataclass(frozen=True)
class Listing:
    """What is to be read.

    Attributes:
        sources: In the order in which they are read.
        folders: Those that were searched through; none: every file was named.
        left_out: How many files in them are no scans.
        unread: Folders in them that could not be searched.
    """

    sources: tuple[Source, ...]
    folders: tuple[Path, ...] = ()
    left_out: int = 0
    unread: tuple[OSError, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """What a file is, by its first bytes: `series_uid` is of a CT slice that others may belong to."""

    is_study: bool = False
    is_scan: bool = True
    series_uid: str = ""


def list_sources(given: Sequence[Path], series: int | None, output: Path | None) -> Listing:
    """Find what is to be read.

    Args:
        given: Files and folders. What does not exist is listed as a scan, which will say so.
        series: Which series was chosen; a folder then is one study.
        output: Is not searched: it holds what an earlier run wrote.

    Raises:
        RequestError: If there are folders and no scan is in them, or more than `MAX_BATCH_FILES` files are.
    """
    folders = tuple(path for path in given if path.is_dir()) if series is None else ()
    if not folders:
        return Listing(tuple(_named(path) for path in given))
    sources: list[Source] = []
    unread: list[OSError] = []
    left_out = 0
    for path in given:
        if path not in folders:
            sources.append(replace(_named(path), place=Path(path.name)))
            continue
        seen = [(file, _sniff(file)) for file in _walk(path, output, unread)]
        left_out += sum(not what.is_scan for _, what in seen)
        top = Path(path.resolve().name) if len(given) > 1 else Path()
        sources.extend(replace(one, place=top / one.place) for one in _grouped(path, seen) if one.place is not None)
    if not sources and not unread:
        raise RequestError(f"expected scans in {', '.join(map(str, folders))}, got none in {left_out:,} files")
    return Listing(tuple(_distinct(sources)), folders, left_out, tuple(unread))


def _named(path: Path) -> Source:
    is_study = path.is_dir() or _sniff(path).is_study
    return Source(str(path), (path,), is_study)


def _walk(folder: Path, output: Path | None, unread: list[OSError]) -> list[Path]:
    """Files of a folder in order of their paths, without links and hidden ones."""
    skipped = output.resolve() if output is not None else None
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=unread.append):
        here = Path(parent)
        folders[:] = [name for name in folders if not name.startswith(".") and (here / name).resolve() != skipped]
        for name in files:
            path = here / name
            if not name.startswith(".") and not path.is_symlink() and path.is_file():
                found.append(path)
        if len(found) > MAX_BATCH_FILES:
            raise RequestError(f"expected at most {MAX_BATCH_FILES:,} files in {folder}, got more: take its parts")
    return sorted(found)


def _grouped(folder: Path, seen: Iterable[tuple[Path, _Seen]]) -> Iterator[Source]:
    groups: dict[object, list[Path]] = {}
    studies: set[object] = set()
    for path, what in seen:
        if what.is_scan:
            key: object = ("series", what.series_uid) if what.series_uid else path
            groups.setdefault(key, []).append(path)
            if what.is_study:
                studies.add(key)
    shared = Counter(_common(paths) for paths in groups.values() if len(paths) > 1)
    for key, paths in groups.items():
        common = _common(paths)
        # The folder's name says more than a file's, where it says which series it is.
        named = common if len(paths) > 1 and shared[common] == 1 else paths[0]
        place = named.relative_to(folder)
        is_study = len(paths) > 1 or key in studies
        yield Source(str(named), tuple(paths), is_study, is_study, place if place.name else Path(folder.resolve().name))


def _common(paths: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([path.parent for path in paths]))


def _distinct(sources: Iterable[Source]) -> Iterator[Source]:
    """Each once, no two in one place."""
    names: set[str] = set()
    places: set[Path] = set()
    for source in sources:
        if source.name in names or source.place is None:
            continue
        place, n = source.place, 1
        while place in places:
            n += 1
            place = source.place.with_name(f"{source.place.name}.{n}")
        names.add(source.name)
        places.add(place)
        yield replace(source, place=place)


def _sniff(path: Path) -> _Seen:
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError:
        return _Seen()
    if is_study_head(head):
        return _Seen(is_study=True)
    if head.startswith(DICOM_MAGIC, PREAMBLE_BYTES):
        return _sniff_dicom(path)
    return _Seen(is_scan=head.startswith(_RASTER_MAGICS) or path.name.lower().endswith(_SUFFIXES))


def _sniff_dicom(path: Path) -> _Seen:
    try:
        with fence("a DICOM header"), path.open("rb") as stream:
            header = read_dicom(inflated(stream), stop_before_pixels=True)
            if "Rows" not in header or "LOCALIZER" in (header.get("ImageType") or ()):
                # Directories, reports, presentation states; and the scanner's own overview of what it is to scan.
                return _Seen(is_scan=False)
            if (frames := ct_frames(header)) is None:
                return _Seen()
            return _Seen(is_study=frames > 1, series_uid=str(header.get("SeriesInstanceUID") or ""))
    except ScanError:
        # It will be told why when it is read.
        return _Seen()
