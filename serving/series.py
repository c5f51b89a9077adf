"""DICOM files to series of slices: grouped, sorted by position, and with what is wrong with them in words.

Nothing of a file's name and nothing of its patient gets into a message. A series' own description may name anybody:
`Series.title` quotes it for whoever sent the files, and errors do not.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64

from serving.archives import blobs
from serving.dicom_frames import read_planes
from serving.dicom_headers import StudyReads
from serving.dicom_planes import Plane
from serving.errors import AmbiguousStudy, RequestError, ScanError, ScanTooLarge, UnreadableScan
from serving.labels import Modality
from serving.limits import MAX_SLICES, MAX_VOXELS
from serving.stacking import Stack, stack

# Of a direction cosine: half a degree or so.
_ORIENTATION_TOLERANCE: Final = 0.01
_SPACING_TOLERANCE_MM: Final = 1e-3
# A radial reconstruction has some dozens.
_MAX_KINDS: Final = 100
_REASONS: Final = 20
_NAMED: Final = 5
_NAMES: Final = ("sagittal", "coronal", "axial")
_AXIS_ALIGNED: Final = 0.8


@dataclass(frozen=True)
class LeftOut:
    """Files of a study that are not read.

    Attributes:
        files: How many.
        why: What was expected, and what came.
        which: The first of them, by their place among the files: "file 3 of 120".
    """

    files: int
    why: str
    which: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """One line that names no file."""
        more = f" and {self.files - len(self.which):,} more" if self.files > len(self.which) > 0 else ""
        return f"{', '.join(self.which) or f'{self.files:,} file(s)'}{more} can not be read: {self.why}"


@dataclass(frozen=True, eq=False)
class Series:
    """Slices that belong together, in order of their position.

    Attributes:
        planes: The slices; along their normal where they have a position, else in order of instance number.
        stack: How they lie; None where they have no position.
        modality: Of all of them.
        size_hw: Height and width of each in pixels.
        spacing_mm: Distance of slices (the mean; None if not known), then of rows, then of columns; None if the files
            do not say.
        orientation: ``axial``, ``coronal``, ``sagittal``, ``oblique``, or ``unknown``.
        problems: What whoever reads the series should know, in words.
    """

    planes: tuple[Plane, ...] = field(repr=False)
    stack: Stack | None = field(repr=False)
    modality: Modality
    size_hw: tuple[int, int]
    spacing_mm: tuple[float | None, float, float] | None
    orientation: str
    problems: tuple[str, ...]

    @property
    def description(self) -> str:
        """What the files call the series: for the one who sent them, not for logs."""
        return self.planes[0].description

    @property
    def summary(self) -> str:
        """One line that names nobody."""
        height, width = self.size_hw
        apart = ""
        if self.spacing_mm is not None:
            between, row, column = self.spacing_mm
            apart = ", " + " x ".join(f"{mm:.2f}" for mm in (between, row, column) if mm is not None) + " mm"
        count = len(self.planes)
        slices = f"{count:,} slice{'s' if count > 1 else ''}"
        said = "".join(f"; {problem}" for problem in self.problems)
        return f"{self.modality.upper()}, {self.orientation}, {slices} of {width} x {height}{apart}{said}"

    @property
    def title(self) -> str:
        """`summary` after what the files call the series, for the one who sent them."""
        return f"{self.description}: {self.summary}" if self.description else self.summary


@dataclass(frozen=True)
class Study:
    """What DICOM files hold.

    Attributes:
        series: In the order in which their first files came.
        left_out: What is not read, and why, most first.
    """

    series: tuple[Series, ...]
    left_out: tuple[LeftOut, ...]

    def choose(self, number: int | None = None) -> Series:
        """One of the series.

        Args:
            number: Which, from 0; may be left out where there is only one.

        Raises:
            AmbiguousStudy: If there are several and no number.
            RequestError: If there is no such series.
        """
        if number is None:
            if len(self.series) > 1:
                raise AmbiguousStudy([series.summary for series in self.series])
            return self.series[0]
        if not 0 <= number < len(self.series):
            raise RequestError(f"expected a series in [0, {len(self.series)}), got {number}")
        return self.series[number]


def read_study(source: Path | bytes | Iterable[Path]) -> Study:
    """List the series of DICOM files; no pixels are decoded.

    Args:
        source: A file, a folder, a zip (a path or its bytes), or several files. See `serving.archives.blobs`.

    Returns:
        The series, of which there is at least one, and what was left out.

    Raises:
        ScanError: If nothing of it can be read: the file's own error for one file, else `UnreadableScan` with reasons.
        ScanTooLarge: Over a limit of `serving.limits`.
    """
    files = blobs(source)
    planes: list[Plane] = []
    refused: list[tuple[str, ScanError]] = []
    reads = StudyReads()
    for blob in files:
        try:
            planes.extend(read_planes(blob, reads))
        except ScanError as error:
            if reads.are_spent:
                raise
            refused.append((blob.label, error))
        if len(planes) > 4 * MAX_SLICES:
            raise ScanTooLarge(f"expected a study of at most {4 * MAX_SLICES:,} slices, got more")
    if not planes and len(refused) == 1:
        raise refused[0][1]
    left_out = _left_out(refused)
    if not planes:
        why = "; ".join(f"{left.files:,} x {left.why}" for left in left_out[:3]) or "no files"
        raise UnreadableScan(f"expected a study with DICOM images, got none ({why})")
    return Study(tuple(_series_of(planes)), left_out)


def _left_out(refused: Sequence[tuple[str, ScanError]]) -> tuple[LeftOut, ...]:
    which: dict[str, list[str]] = defaultdict(list)
    for label, error in refused:
        # Some messages begin with the file already.
        which[str(error).removeprefix(f"{label}: ")].append(label)
    # Damaged files have numbers of their own in their messages: not a thousand lines of them.
    most_first = sorted(which.items(), key=lambda one: -len(one[1]))[:_REASONS]
    return tuple(LeftOut(len(labels), why, tuple(labels[:_NAMED])) for why, labels in most_first)


def _series_of(planes: Sequence[Plane]) -> list[Series]:
    by_uid: dict[tuple[str, str], list[Plane]] = defaultdict(list)
    for plane in planes:
        # A file without a series' UID belongs to no other file.
        by_uid[plane.series_uid, "" if plane.series_uid else plane.blob.label].append(plane)
    found: list[Series] = []
    for together in by_uid.values():
        groups = _alike(together)
        mixed = _mixed([group[0] for group in groups])
        found.extend(_series(group, mixed) for group in groups)
    return found


def _alike(planes: Iterable[Plane]) -> list[list[Plane]]:
    groups: list[list[Plane]] = []
    for plane in planes:
        for group in groups:
            if not _differences(group[0], plane):
                group.append(plane)
                break
        else:
            groups.append([plane])
        if len(groups) > _MAX_KINDS:
            raise ScanTooLarge(f"expected a series of at most {_MAX_KINDS} sizes and orientations, got more")
    return groups


def _differences(one: Plane, other: Plane) -> set[str]:
    """Why two slices can not be of one volume."""
    differ = {
        "sizes": one.size_hw != other.size_hw,
        "orientations": not _close(_axes(one), _axes(other), _ORIENTATION_TOLERANCE),
        "pixel spacings": not _close(one.spacing_mm, other.spacing_mm, _SPACING_TOLERANCE_MM),
        "modalities": one.modality != other.modality,
        "units of values": one.is_hu != other.is_hu,
    }
    return {what for what, differs in differ.items() if differs}


def _axes(plane: Plane) -> tuple[float, ...] | None:
    if plane.along_row is None or plane.down_column is None or plane.position_mm is None:
        return None
    return (*plane.along_row, *plane.down_column)


def _close(one: tuple[float, ...] | None, other: tuple[float, ...] | None, tolerance: float) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.abs(np.subtract(one, other)).max() <= tolerance)


def _mixed(firsts: Sequence[Plane]) -> tuple[str, ...]:
    differ = sorted({what for plane in firsts[1:] for what in _differences(firsts[0], plane)})
    return (f"the series mixes {' and '.join(differ)}: each is listed apart",) if differ else ()


def _series(planes: Sequence[Plane], mixed: tuple[str, ...]) -> Series:
    planes, problems = _distinct(planes)
    _check_cost(planes)
    first = planes[0]
    lies = _lies(planes)
    if lies is None:
        ordered = sorted(planes, key=lambda plane: (plane.instance_number, plane.frame))
        if len(planes) > 1:
            problems = (*problems, "slices do not say where they lie: they are in order of their numbers")
    else:
        ordered = [planes[i] for i in lies.order]
        problems = (*problems, *lies.problems)
    between = _between_mm(first, lies)
    spacing = None if first.spacing_mm is None else (between, *first.spacing_mm)
    return Series(
        planes=tuple(ordered),
        stack=lies,
        modality=first.modality,
        size_hw=first.size_hw,
        spacing_mm=spacing,
        orientation=_orientation(first),
        problems=(*mixed, *problems),
    )


def normal_of(plane: Plane) -> Float64[np.ndarray, " 3"]:
    """The unit normal of a slice that has an orientation: rows times columns."""
    cross: Float64[np.ndarray, " 3"] = np.cross(
        np.asarray(plane.along_row, np.float64), np.asarray(plane.down_column, np.float64)
    )
    return np.asarray(cross / np.linalg.norm(cross))


def _lies(planes: Sequence[Plane]) -> Stack | None:
    positions = [plane.position_mm for plane in planes if plane.position_mm is not None]
    if planes[0].along_row is None or len(positions) < len(planes):
        return None
    return stack(positions, normal_of(planes[0]), [plane.instance_number for plane in planes])


def _between_mm(plane: Plane, lies: Stack | None) -> float | None:
    if lies is not None and lies.step_mm is not None:
        return float(lies.step_mm @ normal_of(plane))
    return plane.thickness_mm


def _distinct(planes: Sequence[Plane]) -> tuple[list[Plane], tuple[str, ...]]:
    """Without the second copy of the same instance."""
    seen: dict[tuple[str, int], Plane] = {}
    for index, plane in enumerate(planes):
        seen.setdefault((plane.sop_uid or f"unnamed {index}", plane.frame), plane)
    again = len(planes) - len(seen)
    return list(seen.values()), (f"{again:,} file(s) were sent twice; each is used once",) if again else ()


def _check_cost(planes: Sequence[Plane]) -> None:
    height, width = planes[0].size_hw
    if len(planes) > MAX_SLICES:
        raise ScanTooLarge(f"expected a series of at most {MAX_SLICES:,} slices, got {len(planes):,}")
    if len(planes) * height * width > MAX_VOXELS:
        raise ScanTooLarge(f"expected a series of at most {MAX_VOXELS:,} voxels, got {len(planes) * height * width:,}")


def _orientation(plane: Plane) -> str:
    if plane.along_row is None:
        return "unknown"
    normal = np.abs(normal_of(plane))
    return _NAMES[int(normal.argmax())] if normal.max() > _AXIS_ALIGNED else "oblique"
