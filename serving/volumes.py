"""A CT study as axial slices, read one at a time, and the way back to the voxels of its file.

**Order.** Slices go from the feet to the head, rows from the front of the body to its back, columns from the
patient's right to the left: increasing index is increasing LPS coordinate, LPS being DICOM's and ITK's patient
coordinates (towards left, posterior, superior; mm). A slice is shown as radiology shows it, row 0 at the top. Of a
tilted grid each axis is taken for the patient axis that it is closest to; nothing is resampled, so a mask's way
back is a permutation and flips, and exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import nibabel
import numpy as np
from jaxtyping import Float32, Float64, Num, Shaped

from serving.errors import GeometryError, UnsupportedScan
from serving.scans import Scan, from_hu
from serving.voxels import VoxelSource

_SLICE, _ROW, _COLUMN = range(3)
# Index of the slice, row and column axis among L, P and S.
_PATIENT_AXES = (2, 1, 0)
_MAX_TILT_DEGREES = 5.0


@dataclass(frozen=True)
class Layout:
    """Which axis of the file is which axis of the axial volume.

    Attributes:
        axes: The file's axis of slices, of rows and of columns.
        flipped: Whether each of these runs the other way in the file.

    Raises:
        GeometryError: If `axes` is no permutation.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flipped: tuple[bool, bool, bool] = (False, False, False)

    def __post_init__(self) -> None:
        if sorted(self.axes) != [0, 1, 2]:
            raise GeometryError(f"expected a permutation of three axes, got {self.axes}")

    @classmethod
    def of(cls, affine_lps: Float64[np.ndarray, "4 4"]) -> Layout:
        """The layout whose axes are closest to the patient's.

        Args:
            affine_lps: Index in the file -> LPS in mm.

        Raises:
            GeometryError: If an axis has no direction of its own.
        """
        directions = nibabel.io_orientation(check_affine(affine_lps))
        patient_axis, sign = directions[:, 0], directions[:, 1]
        axes = [int(np.flatnonzero(patient_axis == wanted)[0]) for wanted in _PATIENT_AXES]
        slices, rows, columns = axes
        flips = [bool(sign[axis] < 0) for axis in axes]
        return cls((slices, rows, columns), (flips[0], flips[1], flips[2]))

    def axial(self, source: Shaped[np.ndarray, "a b c"]) -> Shaped[np.ndarray, "n h w"]:
        """A view of an array of the file's order in axial order."""
        return source.transpose(self.axes)[self._steps()]

    def source(self, axial: Shaped[np.ndarray, "n h w"]) -> Shaped[np.ndarray, "a b c"]:
        """A view of an array in axial order in the file's order."""
        return axial[self._steps()].transpose(tuple(int(i) for i in np.argsort(self.axes)))

    def plane(self, source_plane: Shaped[np.ndarray, "a b"]) -> Shaped[np.ndarray, "h w"]:
        """A view of a plane of the file, without the slice axis, as an axial slice."""
        turned = source_plane if self.axes[_ROW] < self.axes[_COLUMN] else source_plane.T
        return turned[self._steps()[1:]]

    def _steps(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else 1) for flip in self.flipped)


@dataclass(frozen=True, eq=False)
class Volume:
    """A study as axial slices.

    Attributes:
        source: Its voxels in the order of the file.
        source_affine: Index in the file -> LPS in mm. Of a series whose slices are not equally far apart it is the
            closest one; see `even`. None if the file has no geometry.
        layout: Which axis is which.
        even: Whether `source_affine` is exact.
        extent: Of each plane along the file's first axis, how far it reaches relative to the mean distance of
            planes: 1 where they are equally far apart.
        depth_known: Whether the distance of planes along the file's first axis is known, so that voxels have a volume.
        instances: For DICOM, SOPInstanceUID and frame (from 0) of each plane along the file's first axis.
        problems: What whoever reads the study should know of it, in words. They say nothing of the patient.

    Raises:
        GeometryError: If these do not fit together.
    """

    source: VoxelSource = field(repr=False)
    source_affine: Float64[np.ndarray, "4 4"] | None
    layout: Layout
    even: bool = True
    extent: Float64[np.ndarray, " a"] | None = None
    depth_known: bool = True
    instances: tuple[tuple[str, int], ...] = field(default=(), repr=False)
    problems: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        planes = self.source.shape[0]
        if self.source_affine is not None:
            check_affine(self.source_affine)
        if self.extent is not None and self.extent.shape != (planes,):
            raise GeometryError(f"expected an extent of each of {planes:,} planes, got {self.extent.shape}")
        if self.instances and len(self.instances) != planes:
            raise GeometryError(f"expected an instance of each of {planes:,} planes, got {len(self.instances):,}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Slices, rows, columns."""
        n, h, w = (self.source.shape[axis] for axis in self.layout.axes)
        return n, h, w

    @property
    def affine(self) -> Float64[np.ndarray, "4 4"] | None:
        """Slice, row, column (voxel centres, from 0) -> LPS in mm; None without geometry or if it is not exact."""
        if self.source_affine is None or not (self.even and self.depth_known):
            return None
        return self._axial_affine(self.source_affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance of slices, of rows and of columns in mm; None if one is not known. Uneven distances: the mean."""
        if self.source_affine is None or not self.depth_known:
            return None
        n, h, w = np.linalg.norm(self._axial_affine(self.source_affine)[:3, :3], axis=0)
        return float(n), float(h), float(w)

    def slice_hu(self, index: int) -> Float32[np.ndarray, "h w"]:
        """Hounsfield units of a slice, a new array.

        Raises:
            GeometryError: If there is no such slice.
            UnsupportedScan: If the values of this study are no Hounsfield units.
            ScanError: If it can not be decoded.
        """
        if not self.source.is_hu:
            raise UnsupportedScan("expected Hounsfield units, got a capture of grey values")
        plane = self.source.plane(self.layout.axes[_SLICE], self._source_index(index))
        return np.ascontiguousarray(self.layout.plane(plane))

    def slice_scan(self, index: int) -> Scan:
        """A slice as the models see it: through the lung window, or the grey of a capture.

        Raises:
            ScanError: As `slice_hu`, and if a slice is too small or too large.
            GeometryError: If there is no such slice.
        """
        spacing = self._in_plane_mm()
        if self.source.is_hu:
            return from_hu(self.slice_hu(index), source_format=self.source.source_format, pixel_spacing_mm=spacing)
        grey = self.source.grey_plane(self.layout.axes[_SLICE], self._source_index(index))
        return Scan(np.ascontiguousarray(self.layout.plane(grey)), "ct", self.source.source_format, spacing)

    def slices_hu(self) -> Iterator[Float32[np.ndarray, "h w"]]:
        """Hounsfield units of all slices, from the feet to the head, one at a time."""
        return (self.slice_hu(index) for index in range(self.shape[0]))

    def voxel_ml(self, index: int) -> Float64[np.ndarray, "h_or_1 w_or_1"] | None:
        """Volume of each voxel of a slice in ml, to be broadcast over it; None if spacings are not known.

        Of planes that are not equally far apart each reaches half-way to its neighbours.
        """
        if self.source_affine is None or not self.depth_known:
            return None
        mean_ml = abs(float(np.linalg.det(self.source_affine[:3, :3]))) / 1000
        if self.extent is None:
            return np.full((1, 1), mean_ml)
        along = self.layout.axes.index(0)
        if along == _SLICE:
            return np.full((1, 1), mean_ml * self.extent[self._source_index(index)])
        ordered = self.extent[::-1] if self.layout.flipped[along] else self.extent
        return mean_ml * (ordered[:, None] if along == _ROW else ordered[None, :])

    def to_source_grid(self, masks: Num[np.ndarray, "n h w"]) -> Num[np.ndarray, "a b c"]:
        """Masks of the axial slices on the file's own voxel grid, in the file's order: each voxel keeps its value.

        Returns:
            A new array of the shape of `source`: for NIfTI that of the file (i, j, k), for DICOM planes in order of
            position as in `instances`, each as its file has it.

        Raises:
            GeometryError: If `masks` is not of this volume's shape.
        """
        if masks.shape != self.shape:
            raise GeometryError(f"masks: expected the volume's shape {self.shape}, got {masks.shape}")
        return np.ascontiguousarray(self.layout.source(masks))

    def masks_by_instance(self, masks: Num[np.ndarray, "n h w"]) -> Mapping[tuple[str, int], Num[np.ndarray, "h w"]]:
        """Masks of the axial slices as planes of the DICOM files, by SOPInstanceUID and frame (from 0).

        Raises:
            GeometryError: If `masks` is not of this volume's shape, or the volume is not from DICOM.
        """
        if not self.instances:
            raise GeometryError(f"expected a volume from DICOM, got one from {self.source.source_format}")
        return MappingProxyType(dict(zip(self.instances, self.to_source_grid(masks), strict=True)))

    def _in_plane_mm(self) -> tuple[float, float] | None:
        if self.source_affine is None or not (self.depth_known or self.layout.axes[_SLICE] == 0):
            return None
        _, h, w = np.linalg.norm(self._axial_affine(self.source_affine)[:3, :3], axis=0)
        return float(h), float(w)

    def _source_index(self, index: int) -> int:
        count = self.shape[0]
        if not 0 <= index < count:
            raise GeometryError(f"expected a slice in [0, {count:,}), got {index:,}")
        return count - 1 - index if self.layout.flipped[_SLICE] else index

    def _axial_affine(self, source_affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
        axial = np.eye(4)
        axial[:3, 3] = source_affine[:3, 3]
        for to, (axis, flip) in enumerate(zip(self.layout.axes, self.layout.flipped, strict=True)):
            step = source_affine[:3, axis]
            axial[:3, to] = -step if flip else step
            if flip:
                axial[:3, 3] += step * (self.source.shape[axis] - 1)
        return axial


def check_affine(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    """The affine, if it can be inverted.

    Raises:
        GeometryError: If it can not, or holds what is no number.
    """
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise GeometryError("expected an affine of 4 x 4 numbers, got something else")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not lengths.min() > 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-3:
        raise GeometryError("expected an affine of three independent axes, got one without")
    return affine


def tilt_problem(affine_lps: Float64[np.ndarray, "4 4"]) -> tuple[str, ...]:
    """What to say of slices that are not quite axial, if they are not."""
    layout = Layout.of(affine_lps)
    rows, columns = (affine_lps[:3, layout.axes[axis]] for axis in (_ROW, _COLUMN))
    normal = np.cross(rows, columns)
    degrees = float(np.degrees(np.arccos(np.clip(abs(normal[2]) / np.linalg.norm(normal), 0, 1))))
    if degrees <= _MAX_TILT_DEGREES:
        return ()
    return (f"slices are tilted by {degrees:.0f} degrees against axial ones; shown as they are, not resampled",)
