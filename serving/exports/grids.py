"""Masks as NIfTI files on the voxels that the scan has: one file a stream, uint8.

A NIfTI source's own transforms are copied to the bit (qform, sform, their codes, zooms and unit; none of its texts).
A DICOM source's voxels are written as ITK reads a series: (column, row, slice), slices in order of position, its
affine from positions and spacings. What has no such grid is refused and not made up: a PNG, slices that are not equally
far apart, an unknown distance of slices.

Class ids are in the header's description, which also says how many slices were read where that is not all of them:
the others are 0, which is *not read*.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from jaxtyping import Float64, UInt8

from serving.dicom_volumes import DicomVoxels, series_affine
from serving.errors import RequestError
from serving.exports.case import Case
from serving.exports.pictures import no_picture
from serving.labels import ALL_STREAM, MANIFESTATION_NAMES
from serving.nifti import NiftiVoxels
from serving.volumes import Volume

_RAS_OF_LPS: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
# What says where voxels are (NIfTI-1, section "3D image orientation and location in space").
_GEOMETRY: Final = (
    *("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_UNEVEN: Final = "expected slices that are equally far apart, got others: NIfTI has no such grid"
_DEPTH: Final = "expected files that say how far slices are apart or how thick they are, got none that do"
_NOWHERE: Final = "expected files that say where slices are and how large pixels are, got none that do"


def no_grid(case: Case) -> str | None:
    """Why a case's masks are on no grid that NIfTI has, if so."""
    if (refusal := no_picture(case)) is not None:
        return refusal
    if case.volume is not None:
        return _no_grid_of(case.volume)
    if case.series is None:
        return "expected a scan with a place in the patient (DICOM, or a NIfTI volume), got a picture"
    if series_affine(case.series) is None:
        return _NOWHERE
    return _DEPTH if case.series.spacing_mm is None or case.series.spacing_mm[0] is None else None


def mask_image(case: Case, stream: str) -> Any:
    """The nibabel image of a stream's mask.

    Raises:
        RequestError: If the stream did not run, or there is no grid for it (`no_grid`).
    """
    if (refusal := no_grid(case)) is not None:
        raise RequestError(refusal)
    masks, volume = case.source_masks(stream), case.volume
    if volume is not None and not isinstance(volume.source, DicomVoxels):
        image = _like_nifti(masks, volume)
    else:
        image = _like_series(masks, _affine_of(case))
    image.header.set_intent("label", name=stream)
    image.header["descrip"] = description(case, stream)
    return image


def description(case: Case, stream: str) -> str:
    """What the values of a stream's mask mean, in at most 80 ASCII characters."""
    names = MANIFESTATION_NAMES if stream == ALL_STREAM.name else (stream,)
    said = " ".join(f"{i} {name}" for i, name in enumerate(names, start=1))
    if case.study is None or case.study.complete:
        return said
    return f"{said}; read {len(case.study.slices)}/{case.study.shape[0]}"


def write_nifti(case: Case, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write ``<prefix>.<stream>.nii.gz`` of each stream that ran."""
    paths = []
    for stream in case.ran:
        paths.append(folder / f"{prefix}.{stream}.nii.gz")
        nibabel.save(mask_image(case, stream), paths[-1])
    return tuple(paths)


def _no_grid_of(volume: Volume) -> str | None:
    if volume.source_affine is None:
        return _NOWHERE
    if not volume.depth_known:
        return _DEPTH
    return None if volume.even else _UNEVEN


def _affine_of(case: Case) -> Float64[np.ndarray, "4 4"]:
    affine = case.volume.source_affine if case.volume is not None else None
    if affine is None and case.series is not None:
        affine = series_affine(case.series)
    assert affine is not None
    return affine


def _like_series(masks: UInt8[np.ndarray, "n h w"], affine_lps: Float64[np.ndarray, "4 4"]) -> Any:
    image = nibabel.Nifti1Image(masks.transpose(2, 1, 0), _RAS_OF_LPS @ affine_lps[:, [2, 1, 0, 3]])
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code="scanner")
    image.set_sform(image.affine, code="scanner")
    return image


def _like_nifti(masks: UInt8[np.ndarray, "a b c"], volume: Volume) -> Any:
    source = volume.source
    if not isinstance(source, NiftiVoxels):
        assert volume.source_affine is not None
        image = nibabel.Nifti1Image(masks, _RAS_OF_LPS @ volume.source_affine)
        image.header.set_xyzt_units("mm")
        return image
    theirs = source.header
    second = isinstance(theirs, nibabel.Nifti2Header)
    header = nibabel.Nifti2Header() if second else nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(masks.shape)
    for name in _GEOMETRY:
        header[name] = theirs[name]
    # A fourth axis, of time, is no longer there.
    header["pixdim"][4:] = 1.0
    kind = nibabel.Nifti2Image if second else nibabel.Nifti1Image
    return kind(masks, theirs.get_best_affine(), header)
