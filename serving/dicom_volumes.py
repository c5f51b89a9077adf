"""A DICOM series as a `Volume`: decoded a slice at a time from where it lies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
from jaxtyping import Float32, Float64, Shaped, UInt8

from serving.dicom_frames import MultiFrame
from serving.dicom_planes import Plane
from serving.errors import GeometryError, ScanTooLarge, UnreadableScan, UnsupportedScan
from serving.limits import check_size
from serving.scans import SourceFormat
from serving.series import Series, normal_of
from serving.volumes import Layout, Volume, tilt_problem
from serving.voxels import spool

_UNKNOWN_STEP_MM: Final = 1.0
_NAMED: Final = 5


def series_volume(series: Series) -> Volume:
    """The volume of a CT series.

    Args:
        series: As `serving.series.read_study` lists it. Its files are read when a slice is; all of them, to a file
            without a name, if it is not axial.

    Returns:
        The volume, with the series' problems.

    Raises:
        UnsupportedScan: If it is no CT, or all slices lie in one place.
        ScanTooSmall: If its axial slices would be: a few sagittal or coronal ones.
    """
    if series.modality != "ct":
        raise UnsupportedScan(f"expected a CT series for a volume, got {series.modality}")
    if series.stack is not None and series.stack.step_mm is None and series.stack.duplicates:
        # Frames of a perfusion or of a breath: which of them is meant is not for us to guess.
        count = 1 + len(series.stack.duplicates)
        raise UnsupportedScan(
            f"expected slices in different places, got {count:,} in one place (a time series, or copies?): "
            "read one of them alone"
        )
    source = DicomVoxels(series.planes)
    instances = tuple((plane.sop_uid, plane.frame) for plane in series.planes)
    problems = list(series.problems)
    if not source.is_hu:
        problems.append("values are no Hounsfield units: shown as grey, without windows")
    affine = series_affine(series)
    if affine is None:
        problems.append("the files do not say how large and where slices are: taken for axial, no volumes in ml")
        return Volume(source, None, Layout(), depth_known=False, instances=instances, problems=tuple(problems))
    between = None if series.spacing_mm is None else series.spacing_mm[0]
    if between is None:
        problems.append("the distance of slices is not known: no volumes in ml")
    layout = Layout.of(affine)
    height, width = (source.shape[axis] for axis in layout.axes[1:])
    check_size(height, width)
    return Volume(
        source=source,
        source_affine=affine,
        layout=layout,
        even=series.stack is None or series.stack.even,
        extent=None if series.stack is None else series.stack.extent,
        depth_known=between is not None,
        instances=instances,
        problems=(*problems, *_gap_problem(series, layout), *tilt_problem(affine)),
    )


def _gap_problem(series: Series, layout: Layout) -> tuple[str, ...]:
    """Between which slices others are missing, as the volume counts them; none if it is no axial series."""
    if series.stack is None or layout.axes[0] != 0:
        return ()
    count = len(series.planes)
    after = sorted(count - 1 - i if layout.flipped[0] else i + 1 for i in series.stack.gaps)
    if not after:
        return ()
    named = ", ".join(f"{i:,} and {i + 1:,}" for i in after[:_NAMED])
    more = f", and in {len(after) - _NAMED:,} more places" if len(after) > _NAMED else ""
    return (f"slices are missing between slices {named}{more}, counted from the feet",)


class DicomVoxels:
    """Voxels of DICOM files in the order (slice, row, column).

    Args:
        planes: The slices, in order.
    """

    source_format: SourceFormat = "dicom"

    def __init__(self, planes: tuple[Plane, ...]) -> None:
        self._planes = planes
        self._lock = threading.RLock()
        self._file: tuple[Plane, MultiFrame] | None = None
        self._spooled: dict[str, np.ndarray] = {}

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The slices, in order."""
        return self._planes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        return len(self._planes), *self._planes[0].size_hw

    @property
    def is_hu(self) -> bool:
        """Whether the values are Hounsfield units."""
        return self._planes[0].is_hu

    def plane(self, axis: int, index: int) -> Float32[np.ndarray, "a b"]:
        """Hounsfield units of one plane, a new array.

        Raises:
            ScanError: If a file can not be decoded.
            GeometryError: If a file is not of the size that its header said.
        """
        return np.array(self._hu(index) if axis == 0 else self._across("hu", axis, index))

    def grey_plane(self, axis: int, index: int) -> UInt8[np.ndarray, "a b"]:
        """Grey of one plane, a new array.

        Raises:
            ScanError: If a file can not be decoded.
        """
        return np.array(self._grey(index) if axis == 0 else self._across("grey", axis, index))

    def _hu(self, index: int) -> Float32[np.ndarray, "h w"]:
        plane = self._planes[index]
        with self._lock, _named(plane):
            return self._sized(self._frames(plane).hu(plane.frame))

    def _grey(self, index: int) -> UInt8[np.ndarray, "h w"]:
        plane = self._planes[index]
        with self._lock, _named(plane):
            return self._sized(self._frames(plane).grey(plane.frame))

    def _sized(self, values: Shaped[np.ndarray, "h w"]) -> Shaped[np.ndarray, "h w"]:
        if values.shape != self.shape[1:]:
            raise GeometryError(f"expected a slice of {self.shape[1:]}, got {values.shape}")
        return values

    def _frames(self, plane: Plane) -> MultiFrame:
        """The opened file of a plane. One is kept open: of a multi-frame file the next frame follows."""
        if self._file is None or self._file[0].blob is not plane.blob:
            if self._file is not None:
                self._file[1].close()
                self._file = None
            self._file = (plane, MultiFrame(plane.blob))
        return self._file[1]

    def _across(self, kind: str, axis: int, index: int) -> Shaped[np.ndarray, "a b"]:
        with self._lock:
            if kind not in self._spooled:
                read = self._hu if kind == "hu" else self._grey
                self._spooled[kind] = spool(self.shape, read, np.float32 if kind == "hu" else np.uint8)
        across: Shaped[np.ndarray, "a b"] = self._spooled[kind][(slice(None),) * axis + (index,)]
        return across


@contextmanager
def _named(plane: Plane) -> Iterator[None]:
    """Say in an error which file it is of, by its place among the files."""
    try:
        yield
    except (UnreadableScan, UnsupportedScan, ScanTooLarge, GeometryError) as error:
        where = plane.blob.label + (f", frame {plane.frame + 1:,}" if plane.frame_count > 1 else "")
        said = str(error).removeprefix(f"{plane.blob.label}: ")
        raise type(error)(f"{where}: {said}") from error


def series_affine(series: Series) -> Float64[np.ndarray, "4 4"] | None:
    """Slice, row, column -> LPS in mm (PS3.3 C.7.6.2.1.1); None if the files do not say.

    Where the distance of slices is not known (`Series.spacing_mm`), it is taken for `_UNKNOWN_STEP_MM`; where slices
    are not equally far apart, it is the mean.
    """
    first = series.planes[0]
    if (
        series.stack is None
        or first.spacing_mm is None
        or first.along_row is None
        or first.down_column is None
        or first.position_mm is None
    ):
        return None
    step = series.stack.step_mm
    if step is None:
        step = normal_of(first) * (first.thickness_mm or _UNKNOWN_STEP_MM)
    affine = np.eye(4)
    affine[:3, 0] = step
    # Spacing is (of rows, of columns): rows follow each other down a column.
    affine[:3, 1] = np.asarray(first.down_column) * first.spacing_mm[0]
    affine[:3, 2] = np.asarray(first.along_row) * first.spacing_mm[1]
    affine[:3, 3] = first.position_mm
    return affine
