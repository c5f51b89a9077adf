"""Kinds of exports by name, which of them can be made of a case, and how they get to where they belong.

Everything that was asked for is made in a folder beside its place and then moved there, file by file: whoever sees a
file sees all of it, and what can not be made leaves nothing behind.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from serving.errors import CanNotExport, RequestError
from serving.exports.case import Case
from serving.exports.documents import write_json
from serving.exports.grids import no_grid, write_nifti
from serving.exports.measurements import no_measurements, write_sr
from serving.exports.pages import write_pdf
from serving.exports.pictures import no_picture, write_overlay
from serving.exports.segmentations import no_segmentation, write_seg
from serving.exports.tables import write_csv


def _always(case: Case) -> str | None:
    return None


@dataclass(frozen=True)
class _Kind:
    title: str
    write: Callable[[Case, Path, str], tuple[Path, ...]]
    refusal: Callable[[Case], str | None] = _always


_KINDS: Final[Mapping[str, _Kind]] = MappingProxyType(
    {
        "json": _Kind("JSON document of everything but the masks", write_json),
        "csv": _Kind("CSV: a row for the case, and one for each slice of a study", write_csv),
        "overlay": _Kind("PNG: the scan with its masks, or a montage of a study", write_overlay, no_picture),
        "nifti": _Kind("NIfTI masks on the scan's own voxels, a file for each stream", write_nifti, no_grid),
        "seg": _Kind("DICOM Segmentation; it carries the patient and study of its source", write_seg, no_segmentation),
        "sr": _Kind(
            "DICOM Structured Report; it carries the patient and study of its source", write_sr, no_measurements
        ),
        "pdf": _Kind("PDF of one page for people", write_pdf),
    }
)

KINDS: Final[Mapping[str, str]] = MappingProxyType({name: kind.title for name, kind in _KINDS.items()})
"""What can be written, and what it is in words. ``seg`` is made before ``sr``, which refers to it."""


def possible(case: Case) -> tuple[str, ...]:
    """The kinds that can be made of a case, in the order of `KINDS`."""
    return tuple(name for name, kind in _KINDS.items() if kind.refusal(case) is None)


def write(case: Case, kinds: Sequence[str], folder: Path, prefix: str) -> dict[str, tuple[Path, ...]]:
    """Write a case as files ``<prefix>.<...>``; those that are there already are written over.

    Args:
        case: The case.
        kinds: Of `KINDS`. All of them are made before the first is put into its place.
        folder: Where to; made if it is not there.
        prefix: What their names begin with.

    Returns:
        The files by kind, in the order asked for.

    Raises:
        RequestError: If there is no such kind, or `prefix` is no plain file name.
        CanNotExport: If one of them can not be made of this case.
        ScanError: If a file that the case was read from is no longer as it was.
        OSError: If a file can not be written.
    """
    _check(kinds, prefix)
    for refusal in _refusals(case, kinds).values():
        raise CanNotExport(refusal)
    return _written(case, kinds, folder, prefix)


def write_possible(
    case: Case, kinds: Sequence[str], folder: Path, prefix: str
) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    """Write a case as `write` does, in those of the kinds that it can be written in.

    Some are refused at once (`possible`), others when they are made: a segmentation of too many marked slices.

    Args:
        case: See `write`.
        kinds: See `write`.
        folder: See `write`.
        prefix: See `write`.

    Returns:
        The files by kind, and why there are none by kind, each in the order asked for.

    Raises:
        RequestError: As `write`.
        ScanError: As `write`.
        OSError: As `write`.
    """
    _check(kinds, prefix)
    refused = _refusals(case, kinds)
    made = _written(case, [name for name in kinds if name not in refused], folder, prefix, refused)
    return made, {name: refused[name] for name in kinds if name in refused}


def _refusals(case: Case, kinds: Sequence[str]) -> dict[str, str]:
    """What can be told before anything is made."""
    said = {name: _KINDS[name].refusal(case) for name in kinds}
    return {name: f"{name}: {refusal}" for name, refusal in said.items() if refusal is not None}


def _written(
    case: Case, kinds: Sequence[str], folder: Path, prefix: str, refused: dict[str, str] | None = None
) -> dict[str, tuple[Path, ...]]:
    """The files by kind; a kind that can not be made is added to `refused`, without which it is raised."""
    made: dict[str, tuple[Path, ...]] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".lungstreams-", dir=folder) as staging:
        for name in (name for name in _KINDS if name in kinds):
            try:
                made[name] = _KINDS[name].write(case, Path(staging), prefix)
            except CanNotExport as error:
                if refused is None:
                    raise
                refused[name] = str(error)
        placed = {name: tuple(path.replace(folder / path.name) for path in paths) for name, paths in made.items()}
    return {name: placed[name] for name in dict.fromkeys(kinds) if name in placed}


def _check(kinds: Sequence[str], prefix: str) -> None:
    _check_prefix(prefix)
    for name in kinds:
        if name not in _KINDS:
            raise RequestError(f"export: expected one of {', '.join(_KINDS)}, got {name!r}")


def _check_prefix(prefix: str) -> None:
    plain = prefix and prefix == Path(prefix).name and "\0" not in prefix and "\\" not in prefix
    if not plain or prefix in (".", ".."):
        raise RequestError("prefix: expected the beginning of a file name, got an empty one or a path")
