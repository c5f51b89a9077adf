"""DICOM SEG and SR: read back by pydicom, highdicom and ITK, voxel for voxel in patient coordinates; whose they are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage

from serving.errors import CanNotExport
from serving.exports import Case, possible, write, write_possible
from serving.exports.codes import LUNG_PERCENT, MANIFESTATION_CODES, PRIVATE, PROBABILITY
from serving.exports.segmentations import segmentation, segments_of
from serving.exports.sources import PATIENT, STUDY
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES
from serving.phantom import chest_xray, dicom_bytes
from serving.studies import open_volume
from serving.volumes import Volume
from tests.hostile.mutations import mutant
from tests.serving.dicom_files import edited
from tests.serving.export_cases import ct_report, marks, streams_of, study_case, study_report, xray_report
from tests.serving.volume_files import (
    PATIENT_ID,
    affine_ras,
    block,
    dicom_series,
    dicom_slice,
    file_of,
    shuffled,
    zipped,
)

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
VALUES = block()[:9]
WHOSE = {
    "StudyInstanceUID": "1.2.4",
    "FrameOfReferenceUID": "1.2.5",
    "PatientBirthDate": "19500101",
    "PatientSex": "F",
    "AccessionNumber": "A-1",
    "StudyID": "S-1",
    "StudyTime": "101010",
    "ReferringPhysicianName": "Arzt^Ärztin",
    "SpecificCharacterSet": "ISO_IR 100",
}


def axial() -> np.ndarray:
    return np.array([[0, 0, 0.5, -10], [0, 0.75, 0, -20], [2.5, 0, 0, 30], [0, 0, 0, 1.0]])


def turned() -> np.ndarray:
    """Neither slices nor rows nor columns run the patient's way, and all of them are oblique."""
    return np.asarray(LPS @ affine_ras((2, 1, 0), (-1, 1, -1), (2.5, 0.75, 0.5), (3, -4, 8)))


def series(affine: np.ndarray, **elements: object) -> list[Dataset]:
    return dicom_series(VALUES, affine, SliceThickness=2.5, **{**WHOSE, **elements})


def enhanced(affine: np.ndarray) -> Dataset:
    """The slices of `series` as one file, its frames in another order than their positions."""
    singles = shuffled(series(affine), 5)
    dataset = singles[0]
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, 2.5
    orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    frames = []
    for single in singles:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = single.ImagePositionPatient
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    dataset.PixelData = b"".join(single.PixelData for single in singles)
    for keyword in ("RescaleSlope", "RescaleIntercept", "ImagePositionPatient", "ImageOrientationPatient"):
        del dataset[keyword]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    dataset.NumberOfFrames = len(singles)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    return dataset


def volume_of(kind: str) -> Volume:
    affine = turned() if "turned" in kind else axial()
    if "enhanced" in kind:
        return open_volume(file_of(enhanced(affine)))
    return open_volume(zipped(shuffled(series(affine))))


def one_slice(**elements: object) -> Case:
    stored = np.tile(np.arange(50, 110, dtype=np.int16) * 3, (50, 1))
    ids = np.zeros(stored.shape, np.uint8)
    ids[3:9, 5:30], ids[40:, 50:] = 1, 3
    data = file_of(dicom_slice(stored, (-10, 20, 30), **{"SliceThickness": 2.0, **WHOSE, **elements}))
    return Case.of_scan(data, ct_report(streams_of(ids)))


def places(mask: np.ndarray, affine: np.ndarray) -> set[tuple[float, ...]]:
    """Where the marked voxels are, LPS in mm."""
    index = np.argwhere(mask)
    return {tuple(place) for place in np.round(index @ affine[:3, :3].T + affine[:3, 3], 2) + 0.0}


def frames_of(dataset: Dataset, number: int) -> Iterator[tuple[np.ndarray, np.ndarray, Dataset]]:
    """Pixels, affine (1, row, column) and functional groups of each frame of a segment, by the standard's formula."""
    shared = dataset.SharedFunctionalGroupsSequence[0]
    cosines = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64)
    rows_mm, columns_mm = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    for plane, frame in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber != number:
            continue
        affine = np.eye(4)
        affine[:3, 1], affine[:3, 2] = cosines[3:] * rows_mm, cosines[:3] * columns_mm
        affine[:3, 3] = frame.PlanePositionSequence[0].ImagePositionPatient
        yield plane[None], affine, frame


def written(case: Case, folder: Path, *kinds: str) -> list[Dataset]:
    made = write(case, kinds, folder, "case")
    return [pydicom.dcmread(made[kind][0]) for kind in kinds]


@pytest.mark.parametrize("kind", ["series", "series turned", "enhanced", "enhanced turned"])
def test_segments_are_where_the_masks_are_voxel_for_voxel(tmp_path: Path, kind: str) -> None:
    volume = volume_of(kind)
    case = study_case(volume)
    (dataset,) = written(case, tmp_path, "seg")
    assert volume.affine is not None
    for segment in segments_of(case):
        mask = case.report.masks[segment.stream].array() == segment.class_id  # type: ignore[union-attr]
        found = set().union(*(places(plane, affine) for plane, affine, _ in frames_of(dataset, segment.number)))
        assert found
        assert found == places(mask, volume.affine)


@pytest.mark.parametrize("kind", ["series turned", "enhanced"])
def test_each_frame_refers_to_the_image_that_it_is_of(tmp_path: Path, kind: str) -> None:
    case = study_case(volume_of(kind))
    (dataset,) = written(case, tmp_path, "seg")
    by_place = {tuple(np.round(plane.position_mm or (), 3)): plane for plane in case.planes}
    for _, affine, frame in frames_of(dataset, 1):
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        plane = by_place[tuple(np.round(affine[:3, 3], 3))]
        assert source.ReferencedSOPInstanceUID == plane.sop_uid
        assert source.get("ReferencedFrameNumber") == (plane.frame + 1 if plane.frame_count > 1 else None)
    referred = {
        str(item.ReferencedSOPInstanceUID) for item in dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referred == {plane.sop_uid for plane in case.planes}
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    assert dataset.FrameOfReferenceUID == "1.2.5"


def test_highdicom_gives_the_masks_back_by_source_image(tmp_path: Path) -> None:
    case = study_case(volume_of("series turned"))
    (path,) = write(case, ["seg"], tmp_path, "case")["seg"]
    read = highdicom.seg.segread(path)
    uids = [plane.sop_uid for plane in case.planes]
    pixels = read.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    for segment in segments_of(case):
        expected = case.source_masks(segment.stream) == segment.class_id
        np.testing.assert_array_equal(pixels[..., segment.number - 1], expected)


def test_itk_reads_a_segment_in_the_same_place(tmp_path: Path) -> None:
    # ITK takes one segment on slices that follow each other, and unpacks frames of whole bytes only: 56 x 64 pixels.
    values = block((9, 56, 64))
    volume = open_volume(zipped(shuffled(dicom_series(values, turned(), SliceThickness=2.5, **WHOSE))))
    ids = marks(volume.shape)
    ids[:, 10, 10:14] = 1
    report = study_report(volume, ids)
    alone = {name: mask if name == "ground_glass" else None for name, mask in report.masks.items()}
    (path,) = write(Case.of_volume(volume, replace(report, masks=alone)), ["seg"], tmp_path, "case")["seg"]
    image = SimpleITK.ReadImage(str(path))
    pixels = SimpleITK.GetArrayViewFromImage(image)
    found = {
        tuple(np.round(image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]]), 2) + 0.0)
        for index in np.argwhere(pixels)
    }
    mask = report.masks["ground_glass"]
    assert mask is not None
    assert volume.affine is not None
    assert found == places(mask.array(), volume.affine)


def test_segments_say_what_they_are_and_which_network_marked_them(tmp_path: Path) -> None:
    (dataset,) = written(study_case(volume_of("series")), tmp_path, "seg")
    said = [
        (
            item.SegmentNumber,
            item.SegmentedPropertyTypeCodeSequence[0].CodeValue,
            item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName,
            item.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion,
        )
        for item in dataset.SegmentSequence
    ]
    codes = [MANIFESTATION_CODES[name].value for name in MANIFESTATION_NAMES]
    networks = [*(f"lungstreams segment_{name}" for name in MANIFESTATION_NAMES), *["lungstreams segment_all"] * 3]
    assert said == [(i + 1, codes[i % 3], networks[i], "3") for i in range(6)]
    assert dataset.SegmentationType == "BINARY"
    assert not dataset.file_meta.TransferSyntaxUID.is_compressed


def test_a_segment_without_a_voxel_has_no_frames(tmp_path: Path) -> None:
    case = one_slice()
    (dataset,) = written(case, tmp_path, "seg")
    counts = [len(list(frames_of(dataset, segment.number))) for segment in segments_of(case)]
    assert counts == [1, 0, 1, 1, 0, 1]
    volume = volume_of("series")
    nothing = Case.of_volume(volume, study_report(volume, np.zeros(volume.shape, np.uint8)))
    (empty,) = written(nothing, tmp_path, "seg")
    assert not empty.pixel_array.any()
    assert len(empty.SegmentSequence) == 6


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"StudyInstanceUID": ""}, "a valid StudyInstanceUID"),
        ({"StudyInstanceUID": "x"}, "a valid StudyInstanceUID"),
        ({"FrameOfReferenceUID": ""}, "say where they lie"),
        ({"ImagePositionPatient": None}, "say where they lie"),
        ({"SliceThickness": None}, "how thick slices are"),
    ],
)
def test_images_that_no_segmentation_can_be_of_are_refused(change: dict[str, object], why: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, at the invalid UID
        case = one_slice(**change)
    assert "seg" not in possible(case)
    with pytest.raises(CanNotExport, match=why):
        segmentation(case)


def items(container: Dataset) -> Iterator[Dataset]:
    for item in container.get("ContentSequence", ()):
        yield item
        yield from items(item)


def groups(report: Dataset) -> dict[str, Dataset]:
    """Measurement groups by the code of their finding."""
    found = {}
    for item in items(report):
        if item.get("ConceptNameCodeSequence") and item.ConceptNameCodeSequence[0].CodeValue == "125007":
            finding = next(one for one in item.ContentSequence if one.ConceptNameCodeSequence[0].CodeValue == "121071")
            found[finding.ConceptCodeSequence[0].CodeValue] = item
    return found


def numbers(group: Dataset, code: str) -> dict[str, float]:
    """Values of a measurement by laterality ("" for none)."""
    found = {}
    for item in group.ContentSequence:
        if item.ConceptNameCodeSequence[0].CodeValue == code:
            side = [one.ConceptCodeSequence[0].CodeMeaning for one in items(item) if one.ValueType == "CODE"]
            found[side[-1] if side else ""] = float(item.MeasuredValueSequence[0].NumericValue)
    return found


@pytest.mark.parametrize("with_seg", [True, False])
def test_the_report_has_the_numbers_and_refers_to_the_segments(tmp_path: Path, with_seg: bool) -> None:
    case = study_case(volume_of("series turned"))
    *segmented, report = written(case, tmp_path, *(("seg",) if with_seg else ()), "sr")
    found = groups(report)
    assert len(found) == len(DIAGNOSIS_NAMES) + len(MANIFESTATION_NAMES)
    assert numbers(found["840539006"], PROBABILITY.value)[""] == pytest.approx(
        case.report.diagnosis["covid19"], abs=1e-5
    )
    study = case.study
    assert study is not None
    for name in MANIFESTATION_NAMES:
        group = found[MANIFESTATION_CODES[name].value]
        amounts = study.burden.found[name]
        expected = {"": "both", "Right": "right", "Left": "left"}
        assert numbers(group, "118565006") == pytest.approx({k: amounts[v].ml for k, v in expected.items()}, rel=1e-5)
        percent = {k: amounts[v].percent for k, v in expected.items() if amounts[v].percent is not None}
        assert numbers(group, LUNG_PERCENT.value) == pytest.approx(percent, rel=1e-5)
        refers = {
            str(item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID)
            for item in items(group)
            if item.ValueType == "IMAGE"
        }
        likeliest = study.likeliest(name)
        assert likeliest is not None
        count = study.shape[0]
        flipped = case.volume is not None and case.volume.layout.flipped[0]
        shown = case.planes[count - 1 - likeliest[0] if flipped else likeliest[0]].sop_uid
        assert refers == ({segmented[0].SOPInstanceUID} if with_seg else {shown})
    evidence = {
        str(ref.ReferencedSOPInstanceUID)
        for study_item in report.CurrentRequestedProcedureEvidenceSequence
        for series_item in study_item.ReferencedSeriesSequence
        for ref in series_item.ReferencedSOPSequence
    }
    assert {plane.sop_uid for plane in case.planes} <= evidence


def test_the_report_says_that_nobody_verified_it_and_what_it_is_not_for(tmp_path: Path) -> None:
    (report,) = written(one_slice(), tmp_path, "sr")
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    texts = [str(item.TextValue) for item in items(report) if item.ValueType == "TEXT"]
    assert "Research use only. Not a medical device." in texts
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == PRIVATE
    assert highdicom.sr.srread(tmp_path / "case.sr.dcm").SOPInstanceUID == report.SOPInstanceUID


def test_a_single_slice_refers_to_the_frame_and_has_its_area(tmp_path: Path) -> None:
    case = one_slice()
    segmented, report = written(case, tmp_path, "seg", "sr")
    group = groups(report)[MANIFESTATION_CODES["ground_glass"].value]
    (frame,) = (
        item.ReferencedSOPSequence[0]
        for item in group.ContentSequence
        if item.ValueType == "IMAGE" and "ReferencedSegmentNumber" in item.ReferencedSOPSequence[0]
    )
    assert (frame.ReferencedSOPInstanceUID, frame.ReferencedSegmentNumber) == (segmented.SOPInstanceUID, 1)
    assert "ReferencedFrameNumber" not in frame
    (read,) = highdicom.sr.srread(tmp_path / "case.sr.dcm").content.get_planar_roi_measurement_groups(
        finding_type=MANIFESTATION_CODES["ground_glass"]
    )
    assert read.get_measurements(PROBABILITY)[0].value == 0.9
    mask = case.masks()["ground_glass"]
    assert numbers(group, "42798000")[""] == pytest.approx(np.count_nonzero(mask) * 0.75 * 0.5)


def test_an_xray_has_a_report_and_no_segments(tmp_path: Path) -> None:
    pixels = chest_xray(1, 128)
    case = Case.of_scan(
        edited(data=dicom_bytes(pixels, "xray"), StudyInstanceUID="1.2.4", SeriesInstanceUID="1.2.3"),
        xray_report(pixels.shape),
    )
    assert possible(case) == ("json", "csv", "sr", "pdf")
    (report,) = written(case, tmp_path, "sr")
    found = groups(report)
    assert numbers(found["840539006"], PROBABILITY.value)[""] == pytest.approx(0.7)
    assert numbers(found[MANIFESTATION_CODES["ground_glass"].value], PROBABILITY.value) == {}


CANARY = "Zanderfang"
DATE = "19470813"


def poisoned(dataset: Dataset) -> Dataset:
    """A canary in every text of the standard's composite modules, and a date of its own in every date."""
    from pydicom.datadict import DicomDictionary

    texts = {"LO", "SH", "PN", "ST", "LT", "UT", "UC"}
    for tag, (vr, vm, _, retired, keyword) in DicomDictionary.items():
        group = tag >> 16
        if retired or vm not in ("1", "1-n") or group not in (0x0008, 0x0010, 0x0018, 0x0020, 0x0032, 0x0038, 0x0040):
            continue
        if keyword in dataset and vr not in ("PN", "LO", "SH", "DA"):
            continue
        if vr in texts:
            setattr(dataset, keyword, CANARY)
        elif vr == "DA":
            setattr(dataset, keyword, DATE)
    return dataset


def found_in(dataset: Dataset, path: str = "") -> Iterator[str]:
    for element in dataset:
        here = f"{path}{element.keyword or element.tag}"
        if element.VR == "SQ":
            for item in element.value:
                yield from found_in(item, f"{here}.")
        elif CANARY in str(element.value) or DATE in str(element.value):
            yield here


def test_nothing_of_a_patient_but_what_dicom_demands(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    canaries = {
        "scan": Case.of_scan(file_of(poisoned(pydicom.dcmread(_file(one_slice())))), one_slice().report),  # type: ignore[arg-type]
        "study": study_case(open_volume(zipped([file_of(poisoned(dataset)) for dataset in series(axial())]))),
    }
    caplog.set_level(logging.DEBUG)
    for name, case in canaries.items():
        made = write(case, possible(case), tmp_path, name)
        assert list(made) == ["json", "csv", "overlay", "nifti", "seg", "sr", "pdf"]
        for kind in ("json", "csv", "overlay", "nifti", "pdf"):
            for path in made[kind]:
                data = path.read_bytes()
                assert CANARY.encode() not in data, path.name
                assert DATE.encode() not in data, path.name
        for kind in ("seg", "sr"):
            carried = set(found_in(pydicom.dcmread(made[kind][0])))
            assert carried == {
                *("PatientName", "PatientID", "PatientBirthDate"),
                *("StudyDate", "ReferringPhysicianName", "StudyID", "AccessionNumber"),
            }
            assert carried <= {*PATIENT, *STUDY}
    out, err = capfd.readouterr()
    assert CANARY not in out + err + caplog.text


def _file(case: Case) -> pydicom.filebase.DicomBytesIO:
    assert case.data is not None
    return pydicom.filebase.DicomBytesIO(case.data)


@pytest.mark.parametrize("kind", ["seg", "sr"])
def test_whose_it_is_comes_from_the_source_and_what_is_not_valid_is_left_out(tmp_path: Path, kind: str) -> None:
    (dataset,) = written(one_slice(), tmp_path, kind)
    assert (dataset.PatientName, dataset.PatientID, dataset.StudyInstanceUID) == (
        "Mustermann^Erika",
        PATIENT_ID,
        "1.2.4",
    )
    assert str(dataset.ReferringPhysicianName) == "Arzt^Ärztin"
    assert (dataset.StudyDate, dataset.StudyTime, dataset.PatientSex) == ("19700101", "101010", "F")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, at what is not valid
        odd = one_slice(PatientSex="female", StudyDate="yesterday", PatientID="4" * 80)
    (dataset,) = written(odd, tmp_path, kind)
    assert (dataset.PatientSex, dataset.StudyDate, dataset.PatientID) == ("", "", "")
    assert str(dataset.PatientName) == "Mustermann^Erika"


def test_files_of_several_frames_each_are_refused() -> None:
    above = axial()
    above[2, 3] += len(VALUES) * 2.5
    case = study_case(open_volume(zipped([enhanced(axial()), enhanced(above)])))
    with pytest.raises(CanNotExport, match="got 2 files of several frames"):
        segmentation(case)


def test_too_many_marked_slices_are_why_there_is_no_segmentation_and_take_no_other_file_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study_case(volume_of("axial"))
    monkeypatch.setattr("serving.exports.segmentations.MAX_SEG_VOXELS", 99)
    assert "seg" in possible(case)
    with pytest.raises(CanNotExport, match=r"seg: expected at most 99 voxels of segments, got [\d,]+; NIfTI takes"):
        write(case, ["json", "seg"], tmp_path / "all", "case")
    assert not [*(tmp_path / "all").iterdir()]
    # The report is written after the segmentation, and then refers to slices.
    made, refused = write_possible(case, ["sr", "seg", "json"], tmp_path, "case")
    assert [*made] == ["sr", "json"]
    assert all(path.is_file() for paths in made.values() for path in paths)
    assert [*refused] == ["seg"]
    assert refused["seg"].startswith("seg: expected at most 99 voxels")


def test_a_damaged_header_is_why_there_is_no_object_and_takes_no_other_file_with_it(tmp_path: Path) -> None:
    # A radiograph that can be read, with an element that can not: found by uploads of damaged files.
    case = Case.of_scan(mutant(90_283)[1], xray_report((64, 64)))
    assert {"json", "csv", "pdf"} <= {*possible(case)}
    assert not {"seg", "sr"} & {*possible(case)}
    with pytest.raises(CanNotExport, match="expected DICOM images with a whole header, got others: expected a whole"):
        write(case, ["sr"], tmp_path, "case")
    assert not [*tmp_path.iterdir()]
