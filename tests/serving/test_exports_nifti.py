"""Masks on the voxels of their source, as nibabel and ITK see them."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from pydicom.dataset import Dataset

from serving.errors import CanNotExport, RequestError
from serving.exports import Case, possible, write
from serving.exports.grids import mask_image
from serving.labels import STREAM_NAMES
from serving.phantom import ct_slice, dicom_bytes
from serving.studies import open_volume
from tests.serving.export_cases import classes_of, ct_report, drawn_case, hu_case, streams_of, study_case
from tests.serving.volume_files import (
    ORIENTATIONS,
    affine_ras,
    block,
    dicom_series,
    dicom_slice,
    file_of,
    nifti_bytes,
    shuffled,
    zipped,
)

# Every axis in every place, and flips of each, without all 48.
SOME = ORIENTATIONS[::7]
SPACING = (0.5, 0.75, 2.5)
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def written(case: Case, folder: Path) -> dict[str, Path]:
    return {path.name.split(".")[1]: path for path in write(case, ["nifti"], folder, "case")["nifti"]}


@pytest.mark.parametrize(
    ("axes", "signs", "degrees"), [(*lies, (4, -3, 9) if i % 2 else (0, 0, 0)) for i, lies in enumerate(SOME)]
)
def test_masks_of_a_nifti_file_are_on_its_grid_to_the_bit(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...], degrees: tuple[float, ...]
) -> None:
    source = nibabel.Nifti1Image(block(), affine_ras(axes, signs, SPACING, degrees))
    source.set_qform(source.affine, code="aligned")
    source.set_sform(source.affine, code="mni")
    nibabel.save(source, tmp_path / "source.nii.gz")
    paths = written(hu_case(open_volume(tmp_path / "source.nii.gz")), tmp_path)
    assert list(paths) == list(STREAM_NAMES)
    mask = nibabel.load(paths["all"])
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(mask.dataobj), classes_of(block()))
    again = nibabel.load(tmp_path / "source.nii.gz")
    for field in ("pixdim", "qform_code", "sform_code", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z"):
        np.testing.assert_array_equal(mask.header[field], again.header[field])
    theirs, ours = SimpleITK.ReadImage(str(tmp_path / "source.nii.gz")), SimpleITK.ReadImage(str(paths["all"]))
    assert (ours.GetSize(), ours.GetOrigin()) == (theirs.GetSize(), theirs.GetOrigin())
    assert (ours.GetSpacing(), ours.GetDirection()) == (theirs.GetSpacing(), theirs.GetDirection())
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(ours), classes_of(SimpleITK.GetArrayFromImage(theirs).astype(np.float32))
    )


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 2)])
def test_codes_are_those_of_the_source_even_where_it_says_nothing(tmp_path: Path, codes: tuple[int, int]) -> None:
    source = nibabel.Nifti2Image(block(), affine_ras((0, 1, 2), (1, -1, 1), SPACING))
    header = source.header.copy()
    header["qform_code"], header["sform_code"] = codes
    nibabel.save(nibabel.Nifti2Image(block(), header.get_best_affine(), header), tmp_path / "source.nii")
    mask = nibabel.load(written(study_case(open_volume(tmp_path / "source.nii")), tmp_path)["all"])
    assert isinstance(mask, nibabel.Nifti2Image)
    assert (int(mask.header["qform_code"]), int(mask.header["sform_code"])) == codes
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "source.nii").affine)


def itk_series(files: list[Dataset], folder: Path) -> SimpleITK.Image:
    folder.mkdir()
    for i, dataset in enumerate(shuffled(files)):
        (folder / f"{i}.dcm").write_bytes(file_of(dataset))
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


@pytest.mark.parametrize(("axes", "signs"), [((2, 1, 0), (1, 1, 1)), ((2, 1, 0), (-1, 1, -1)), ((0, 2, 1), (1, -1, 1))])
@pytest.mark.parametrize("degrees", [(0, 0, 0), (3, -4, 8)])
def test_masks_of_a_series_are_where_itk_reads_the_series(
    tmp_path: Path, axes: tuple[int, ...], signs: tuple[int, ...], degrees: tuple[float, ...]
) -> None:
    affine = LPS @ affine_ras(axes, signs, (2.5, 0.75, 0.5), degrees)
    # ITK orders slices along the normal of their rows and columns.
    if np.linalg.det(affine[:3, :3][:, [2, 1, 0]]) < 0:
        affine[:3, 0] *= -1
    files = dicom_series(block(), affine)
    theirs = itk_series(files, tmp_path / "dicom")
    case = hu_case(open_volume(tmp_path / "dicom"))
    ours = SimpleITK.ReadImage(str(written(case, tmp_path)["all"]))
    assert ours.GetSize() == theirs.GetSize()
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(ours.GetSpacing(), theirs.GetSpacing(), atol=1e-4)
    np.testing.assert_allclose(ours.GetDirection(), theirs.GetDirection(), atol=1e-5)
    expected = classes_of(SimpleITK.GetArrayFromImage(theirs).astype(np.float32))
    assert set(np.unique(expected)) == {0, 1, 2, 3}
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), expected)


def test_one_slice_that_says_where_it_lies_is_a_volume_of_one(tmp_path: Path) -> None:
    stored = np.tile(np.arange(50, 110, dtype=np.int16) * 3, (50, 1))
    data = file_of(dicom_slice(stored, (-10, 20, 30), SliceThickness=2.0))
    case = Case.of_scan(data, ct_report(streams_of(classes_of(stored))))
    ours = SimpleITK.ReadImage(str(written(case, tmp_path)["all"]))
    (tmp_path / "one.dcm").write_bytes(data)
    theirs = SimpleITK.ReadImage(str(tmp_path / "one.dcm"))
    assert ours.GetSize() == theirs.GetSize() == (60, 50, 1)
    np.testing.assert_allclose(ours.GetOrigin(), theirs.GetOrigin())
    np.testing.assert_allclose(ours.GetSpacing(), (0.5, 0.75, 2.0))
    expected = classes_of(SimpleITK.GetArrayFromImage(theirs).astype(np.float32))
    assert expected.any()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(ours), expected)


def test_what_has_no_grid_is_refused_and_says_why() -> None:
    affine = np.array([[0, 0, 0.5, -10], [0, 0.75, 0, -20], [2.5, 0, 0, 30], [0, 0, 0, 1]])
    values = block()
    uneven = dicom_series(values, affine)
    uneven[-1].ImagePositionPatient[2] += 1.0
    nowhere = [dicom_slice(plane, None, None, InstanceNumber=i) for i, plane in enumerate(values)]
    for files, why in ((uneven, "equally far apart"), (nowhere, "say where slices are")):
        case = study_case(open_volume(zipped(files)))
        assert "nifti" not in possible(case)
        with pytest.raises(CanNotExport, match=why):
            write(case, ["nifti"], Path("nowhere"), "case")
    flat = drawn_case(dicom_bytes(ct_slice(3).pixels))
    with pytest.raises(RequestError, match="say where slices are"):
        mask_image(flat, "all")
    no_thickness = file_of(dicom_slice(values[0]))
    thin = Case.of_scan(no_thickness, ct_report(streams_of(classes_of(values[0]))))
    with pytest.raises(RequestError, match="how thick they are"):
        mask_image(thin, "all")


def test_the_description_says_what_ids_are_and_what_was_not_read(tmp_path: Path) -> None:
    volume = open_volume(nifti_bytes(block(), affine_ras((0, 1, 2), (1, 1, 1), SPACING)))
    paths = written(study_case(volume, read=7), tmp_path)
    said = {name: bytes(nibabel.load(path).header["descrip"].tobytes()).rstrip(b"\0") for name, path in paths.items()}
    assert said["all"] == f"1 ground_glass 2 consolidation 3 pleural_effusion; read 7/{volume.shape[0]}".encode()
    assert said["consolidation"] == f"1 consolidation; read 7/{volume.shape[0]}".encode()


def test_texts_of_a_nifti_header_stay_where_they_are(tmp_path: Path) -> None:
    source = nibabel.Nifti1Image(block(), affine_ras((0, 1, 2), (1, 1, 1), SPACING))
    for field in ("descrip", "db_name", "aux_file", "intent_name"):
        source.header[field] = b"Mustermann"
    volume = open_volume(source.to_bytes())
    for stream in STREAM_NAMES:
        assert b"Mustermann" not in mask_image(study_case(volume), stream).to_bytes()


def test_a_stream_that_did_not_run_has_no_file(tmp_path: Path) -> None:
    volume = open_volume(nifti_bytes(block(), affine_ras((0, 1, 2), (1, 1, 1), SPACING)))
    case = study_case(volume)
    report = replace(case.study, masks={**case.study.masks, "consolidation": None})
    assert "consolidation" not in written(Case.of_volume(volume, report), tmp_path)


def test_masks_on_the_voxels_of_a_file_are_in_memory_once() -> None:
    hu = np.resize(block(), (60, 160, 64)).astype(np.int16)
    case = study_case(open_volume(nifti_bytes(hu, affine_ras((2, 1, 0), (1, 1, 1), (1, 1, 1)))))
    tracemalloc.start()
    try:
        masks = case.source_masks("all")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert masks.shape == hu.shape
    assert masks.any()
    assert peak < 1.5 * masks.nbytes
