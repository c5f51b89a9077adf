"""`lungstreams predict` on scans of a real patient, and what it writes read back by the programs of others."""

from __future__ import annotations

from pathlib import Path

import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK

from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.lungs import within_body
from serving.preprocessing import preprocess
from serving.scans import decode
from serving.tritonserver import TritonServer
from tests.real_data import DATA
from tests.test_cli import ALL_OPEN, cases_of, lungstreams
from tests.toy_models import expected_mask

THORAX = DATA / "volumes" / "LUNG1-016_ct.nii.gz"
SERIES = DATA / "dicom" / "ct_series_LUNG1-016"

pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(
        not (THORAX.is_file() and SERIES.is_dir()), reason="needs volumes and dicom under LUNGSTREAMS_DATA"
    ),
]


def predicted(server: TritonServer, source: Path, out: Path, *kinds: str) -> dict[str, list[Path]]:
    """The files of each kind that a run wrote."""
    wanted = [f"--export={kind}" for kind in kinds]
    done = lungstreams("predict", source, "--json", "--out", out, "--url", server.grpc_url, *wanted, *ALL_OPEN)
    assert done.returncode == 0, done.stderr[-2000:]
    (case,) = cases_of(done)
    return {kind: [Path(path) for path in case["exports"][kind]] for kind in kinds}


@pytest.fixture(scope="module")
def written(toy_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | list[Path]]:
    files = predicted(toy_triton, SERIES, tmp_path_factory.mktemp("series"), "seg", "sr", "nifti")
    (seg,), (sr,) = files["seg"], files["sr"]
    return {"seg": seg, "sr": sr, "nifti": files["nifti"]}


@pytest.fixture(scope="module")
def names() -> list[str]:
    """The files of the series in ITK's order."""
    return list(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(SERIES)))


@pytest.fixture(scope="module")
def image(names: list[str]) -> SimpleITK.Image:
    """The series as ITK reads it."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(names)
    return reader.Execute()


@pytest.fixture(scope="module")
def marked(names: list[str]) -> dict[str, np.ndarray]:
    """What the toy networks mark on each file, in the body; files are as large as their input: nothing is resized."""
    masks: dict[str, list[np.ndarray]] = {stream: [] for stream in STREAM_NAMES}
    for name in names:
        scan = decode(Path(name).read_bytes())
        body = within_body(scan.pixels, np.zeros(scan.size_hw, np.uint8))
        assert body is not None
        seen = preprocess(scan)
        for stream in STREAM_NAMES:
            masks[stream].append(np.where(body, expected_mask(seen, stream), 0))
    return {stream: np.stack(slices) for stream, slices in masks.items()}


def on_grid_of(image: SimpleITK.Image, mask: SimpleITK.Image) -> np.ndarray:
    """A mask at the places of the image's voxels; 255 where the mask has none."""
    there = SimpleITK.Resample(mask, image, SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 255)
    return np.asarray(SimpleITK.GetArrayFromImage(there))


def alone(seg: Path, number: int, to: Path) -> Path:
    """A segmentation of one of its segments. Of more than one, ITK takes no spacing."""
    dataset = pydicom.dcmread(seg)
    groups = dataset.PerFrameFunctionalGroupsSequence
    kept = [i for i, group in enumerate(groups) if _segment_of(group) == number]
    size = dataset.Rows * dataset.Columns // 8
    dataset.PixelData = b"".join(dataset.PixelData[i * size : (i + 1) * size] for i in kept)
    dataset.PerFrameFunctionalGroupsSequence = [groups[i] for i in kept]
    dataset.NumberOfFrames = len(kept)
    dataset.save_as(to)
    return to


def _segment_of(group: pydicom.Dataset) -> int:
    return int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber)


def test_highdicom_finds_each_segment_on_the_image_that_was_marked(
    written: dict[str, Path], names: list[str], marked: dict[str, np.ndarray]
) -> None:
    read = highdicom.seg.segread(written["seg"])
    headers = [pydicom.dcmread(name, stop_before_pixels=True) for name in names]
    assert (read.StudyInstanceUID, read.FrameOfReferenceUID) == (
        headers[0].StudyInstanceUID,
        headers[0].FrameOfReferenceUID,
    )
    pixels = read.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in headers], assert_missing_frames_are_empty=True
    )
    expected = [marked[name] == 1 for name in MANIFESTATION_NAMES]
    expected += [marked["all"] == i for i in range(1, len(MANIFESTATION_NAMES) + 1)]
    np.testing.assert_array_equal(pixels, np.stack(expected, axis=-1))
    assert expected[0].any(axis=(1, 2)).all()


def test_itk_finds_a_segment_in_the_place_of_the_series(
    written: dict[str, Path], image: SimpleITK.Image, marked: dict[str, np.ndarray], tmp_path: Path
) -> None:
    segment = SimpleITK.ReadImage(str(alone(written["seg"], 1, tmp_path / "alone.dcm")))
    assert segment.GetSize() == image.GetSize()
    np.testing.assert_allclose(segment.GetSpacing(), image.GetSpacing(), atol=1e-6)
    np.testing.assert_array_equal(on_grid_of(image, segment) > 0, marked[MANIFESTATION_NAMES[0]] == 1)


def test_itk_finds_every_mask_of_a_series_in_its_place(
    written: dict[str, list[Path]], image: SimpleITK.Image, marked: dict[str, np.ndarray]
) -> None:
    masks = {path.name.split(".")[-3]: path for path in written["nifti"]}
    assert set(masks) == set(STREAM_NAMES)
    for stream, path in masks.items():
        np.testing.assert_array_equal(on_grid_of(image, SimpleITK.ReadImage(str(path))), marked[stream])


def test_the_report_of_a_series_is_about_its_images_and_segments(written: dict[str, Path], names: list[str]) -> None:
    report = highdicom.sr.srread(written["sr"])
    (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
    referred = {
        item.ReferencedSOPInstanceUID
        for series in evidence.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    images = {pydicom.dcmread(name, stop_before_pixels=True).SOPInstanceUID for name in names}
    assert referred == {*images, pydicom.dcmread(written["seg"]).SOPInstanceUID}


def test_masks_of_a_volume_have_its_affine_and_its_shape(toy_triton: TritonServer, tmp_path: Path) -> None:
    thorax = nibabel.load(THORAX)
    files = predicted(toy_triton, THORAX, tmp_path, "nifti")["nifti"]
    assert len(files) == len(STREAM_NAMES)
    for file in files:
        mask = nibabel.load(file)
        np.testing.assert_array_equal(mask.affine, thorax.affine)
        assert mask.shape == thorax.shape
        assert nibabel.aff2axcodes(mask.affine) == nibabel.aff2axcodes(thorax.affine)
    # The toys mark what is bright: in the place of the volume's own voxels that is tissue, and not air.
    bright = np.asarray(nibabel.load(files[0]).dataobj) > 0
    hu = np.asarray(thorax.dataobj)
    assert np.median(hu[bright]) > np.median(hu[~bright]) + 500
