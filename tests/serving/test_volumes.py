"""Geometry: the same voxels in every orientation, held against nibabel and SimpleITK."""

from __future__ import annotations

import io
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from serving.errors import GeometryError
from serving.scans import from_hu
from serving.studies import open_volume
from serving.volumes import Layout, Volume
from serving.voxels import Memory
from tests.serving.volume_files import (
    ORIENTATIONS,
    SHAPE,
    affine_ras,
    block,
    dicom_series,
    nifti_bytes,
    shuffled,
    zipped,
)

SPACINGS = [(0.7, 0.9, 2.5), (3.0, 0.5, 1.25)]
LPS = np.diag([-1.0, -1, 1, 1])
OBLIQUE = (12.0, -17.0, 9.0)


def read_all(volume: Volume) -> np.ndarray:
    return np.stack(list(volume.slices_hu()))


def stored_in(axes: tuple[int, ...], signs: tuple[int, ...]) -> np.ndarray:
    """`block` (z, y, x, increasing LPS) as a file of these axes and signs (of RAS) has it."""
    values = block().transpose(2, 1, 0)[::-1, ::-1]
    for axis, sign in zip(axes, signs, strict=True):
        values = np.flip(values, axis) if sign < 0 else values
    return np.ascontiguousarray(values.transpose(axes))


@pytest.mark.parametrize("degrees", [(0, 0, 0), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("spacing", SPACINGS, ids=str)
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS, ids=str)
def test_nifti_in_every_orientation_reads_alike_and_masks_go_back_exactly(
    axes: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...], degrees: tuple[float, ...]
) -> None:
    stored = stored_in(axes, signs)
    data = nifti_bytes(stored, affine_ras(axes, signs, spacing, degrees))
    volume = open_volume(data)
    axial = read_all(volume)
    assert volume.shape == SHAPE
    np.testing.assert_array_equal(axial, block())

    image = nibabel.Nifti1Image.from_bytes(data)
    canonical = nibabel.as_closest_canonical(image)
    np.testing.assert_array_equal(axial, np.asarray(canonical.dataobj)[::-1, ::-1].transpose(2, 1, 0))
    assert volume.affine is not None
    mark = np.argwhere(axial >= 3000)[0]
    theirs = image.affine @ [*np.argwhere(np.asarray(image.dataobj) >= 3000)[0], 1]
    np.testing.assert_allclose(volume.affine @ [*mark, 1], LPS @ theirs, atol=1e-4)
    assert volume.spacing_mm == pytest.approx(np.array(nibabel.affines.voxel_sizes(canonical.affine))[::-1], rel=1e-5)

    masks = np.random.default_rng(0).integers(0, 4, SHAPE, np.uint8)
    back = volume.to_source_grid(masks)
    assert back.shape == stored.shape
    again = nibabel.as_closest_canonical(nibabel.Nifti1Image(back, image.affine))
    np.testing.assert_array_equal(masks, np.asarray(again.dataobj)[::-1, ::-1].transpose(2, 1, 0))


@pytest.mark.parametrize("degrees", [(0, 0, 0), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS[::5], ids=str)
def test_simpleitk_agrees_where_voxels_are_and_where_masks_lie(
    axes: tuple[int, ...], signs: tuple[int, ...], degrees: tuple[float, ...], tmp_path: Path
) -> None:
    affine = affine_ras(axes, signs, SPACINGS[0], degrees)
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(nifti_bytes(stored_in(axes, signs), affine, packed=True))
    volume, image = open_volume(path), sitk.ReadImage(str(path))
    assert volume.affine is not None
    mark = np.argwhere(read_all(volume) >= 3000)[0]
    theirs = np.argwhere(sitk.GetArrayFromImage(image) >= 3000)[0][::-1]
    np.testing.assert_allclose(
        (volume.affine @ [*mark, 1])[:3], image.TransformIndexToPhysicalPoint(theirs.tolist()), atol=1e-3
    )

    masks = np.random.default_rng(1).integers(0, 4, SHAPE, np.uint8)
    written = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.to_source_grid(masks), affine), written)
    grid = sitk.Image(SHAPE[::-1], sitk.sitkUInt8)
    assert volume.spacing_mm is not None
    directions = volume.affine[:3, :3] / np.array(volume.spacing_mm)
    grid.SetOrigin(volume.affine[:3, 3].tolist())
    grid.SetSpacing(volume.spacing_mm[::-1])
    grid.SetDirection(directions[:, ::-1].ravel().tolist())
    resampled = sitk.Resample(sitk.ReadImage(str(written)), grid, sitk.Transform(), sitk.sitkNearestNeighbor)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(resampled), masks)


# The slices' own direction follows from that of rows and columns: half of the 48.
DICOM_ORIENTATIONS = [
    (axes, signs) for axes, signs in ORIENTATIONS if np.linalg.det(affine_ras(axes, signs, (1, 1, 1))[:3, :3]) < 0
]


@pytest.mark.parametrize(("axes", "signs"), DICOM_ORIENTATIONS, ids=str)
def test_dicom_series_in_every_orientation_read_alike_and_masks_go_back_to_their_files(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    degrees = OBLIQUE if sum(signs) > 0 else (0, 0, 0)
    stored = stored_in(axes, signs)
    affine = LPS @ affine_ras(axes, signs, SPACINGS[1], degrees)
    files = dicom_series(stored, affine)
    volume = open_volume(zipped(shuffled(files)))
    axial = read_all(volume)
    np.testing.assert_array_equal(axial, block())
    assert volume.affine is not None
    mark = np.argwhere(axial >= 3000)[0]
    np.testing.assert_allclose(volume.affine @ [*mark, 1], affine @ [*np.argwhere(stored >= 3000)[0], 1], atol=1e-4)
    assert sorted(volume.spacing_mm or ()) == pytest.approx(sorted(SPACINGS[1]), abs=1e-5)

    masks = np.random.default_rng(2).integers(0, 4, SHAPE, np.uint8)
    by_instance = volume.masks_by_instance(masks)
    back = np.stack([by_instance[str(dataset.SOPInstanceUID), 0] for dataset in files])
    np.testing.assert_array_equal(back, volume.to_source_grid(masks))
    np.testing.assert_array_equal(Layout.of(affine).axial(back), masks)


def test_simpleitk_reads_the_same_volume_from_a_dicom_series(tmp_path: Path) -> None:
    stored = block()
    affine = LPS @ affine_ras((2, 1, 0), (1, -1, -1), (2.5, 0.75, 0.5), (8, -5, 4))
    for i, dataset in enumerate(shuffled(dicom_series(stored, affine))):
        dataset.save_as(tmp_path / f"{i}.dcm", enforce_file_format=True)
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path))
    image = sitk.ReadImage(names)
    volume = open_volume(tmp_path)
    np.testing.assert_array_equal(read_all(volume), sitk.GetArrayFromImage(image))
    assert volume.affine is not None
    for index in ((0, 0, 0), (2, 3, 4), (48, 50, 53)):
        point = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose((volume.affine @ [*index, 1])[:3], point, atol=1e-3)


def test_a_slice_is_what_the_models_see_of_it() -> None:
    volume = open_volume(nifti_bytes(stored_in((0, 1, 2), (1, 1, 1)), affine_ras((0, 1, 2), (1, 1, 1), SPACINGS[0])))
    scan = volume.slice_scan(2)
    np.testing.assert_array_equal(scan.pixels, from_hu(block()[2]).pixels)
    assert (scan.modality, scan.source_format) == ("ct", "nifti")
    assert scan.pixel_spacing_mm == pytest.approx((0.9, 0.7))


@pytest.mark.parametrize("index", [-1, SHAPE[0]])
def test_a_slice_that_there_is_none_of_is_refused(index: int) -> None:
    volume = Volume(Memory(block()), np.eye(4), Layout())
    with pytest.raises(GeometryError, match=rf"expected a slice in \[0, 49\), got {index}"):
        volume.slice_hu(index)


def test_masks_of_another_shape_are_refused() -> None:
    volume = Volume(Memory(block()), np.eye(4), Layout())
    with pytest.raises(GeometryError, match=r"expected the volume's shape \(49, 51, 54\), got \(49, 51, 53\)"):
        volume.to_source_grid(np.zeros((49, 51, 53), np.uint8))
    with pytest.raises(GeometryError, match="expected a volume from DICOM, got one from nifti"):
        volume.masks_by_instance(np.zeros(SHAPE, np.uint8))


def test_an_affine_without_three_axes_is_refused() -> None:
    flat = np.diag([1.0, 1, 0, 1])
    with pytest.raises(GeometryError, match="three independent axes"):
        Volume(Memory(block()), flat, Layout())


def test_voxels_have_the_volume_of_their_affine_whatever_the_layout() -> None:
    affine = affine_ras((1, 2, 0), (-1, 1, -1), (0.5, 2.0, 3.0), OBLIQUE)
    volume = open_volume(io.BytesIO(nifti_bytes(stored_in((1, 2, 0), (-1, 1, -1)), affine)).getvalue())
    ml = volume.voxel_ml(7)
    assert ml is not None
    np.testing.assert_allclose(ml, 0.003, rtol=1e-6)
