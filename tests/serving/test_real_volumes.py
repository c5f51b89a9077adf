"""Two files of one real patient: a series of DICOM, and NIfTI of half its resolution."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest

from serving.errors import AmbiguousStudy, UnsupportedScan
from serving.scans import decode
from serving.series import read_study
from serving.studies import open_volume
from tests.real_data import DATA

THORAX = DATA / "volumes" / "LUNG1-016_ct.nii.gz"
SERIES = DATA / "dicom" / "ct_series_LUNG1-016"

pytestmark = pytest.mark.skipif(
    not (THORAX.is_file() and SERIES.is_dir()), reason="needs volumes and dicom under LUNGSTREAMS_DATA"
)


def test_a_series_and_a_nifti_file_of_one_patient_agree_on_where_its_voxels_are() -> None:
    series, thorax = open_volume(SERIES), open_volume(THORAX)
    assert series.affine is not None
    assert thorax.affine is not None
    assert series.shape == (10, 512, 512)
    assert series.problems == ()
    for index in (0, 4, 9):
        position = series.affine @ [index, 0.5, 0.5, 1]
        at = np.linalg.solve(thorax.affine, position)
        np.testing.assert_allclose(at[1:3], 0, atol=1e-3)
        assert at[0] == pytest.approx(round(at[0]), abs=1e-3)
        mean = series.slice_hu(index).reshape(256, 2, 256, 2).mean(axis=(1, 3))
        assert np.abs(mean - thorax.slice_hu(round(at[0]))).max() <= 0.5


def test_slices_of_a_series_look_as_its_files_do() -> None:
    volume = open_volume(SERIES)
    looks = {decode(path.read_bytes()).pixels.tobytes() for path in SERIES.iterdir()}
    assert {volume.slice_scan(i).pixels.tobytes() for i in range(10)} == looks


def test_the_thorax_reads_as_nibabel_reads_it_and_its_mask_goes_back() -> None:
    volume = open_volume(THORAX)
    image = nibabel.load(THORAX)
    theirs = np.asarray(nibabel.as_closest_canonical(image).dataobj)[::-1, ::-1].transpose(2, 1, 0)
    np.testing.assert_array_equal(np.stack(list(volume.slices_hu())), theirs)
    path = DATA / "volumes" / "LUNG1-016_effusion_mask.nii.gz"
    with pytest.raises(UnsupportedScan, match=r"a mask\?"):
        open_volume(path)
    stored = np.asarray(nibabel.load(path).dataobj)
    mask = volume.layout.axial(stored).astype(np.uint8)
    assert mask.any()
    np.testing.assert_array_equal(volume.to_source_grid(mask), stored)


def test_a_folder_of_many_patients_is_listed_and_nothing_of_them_is_said() -> None:
    study = read_study(DATA / "dicom")
    assert len(study.series) == 10
    assert sorted(series.modality for series in study.series).count("xray") == 2
    with pytest.raises(AmbiguousStudy) as refused:
        study.choose()
    for identity in ("LUNG1", "A0", "Covid0000", "9RG1", "1.3.6.1", "1900", "1901"):
        assert identity not in str(refused.value)
        assert identity not in repr(study)
