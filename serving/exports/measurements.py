"""What was said of a case as a DICOM Structured Report: TID 1500 "Measurement Report" by highdicom (Comprehensive SR).

A group for each diagnosis and one for each manifestation: probability; for manifestations also the threshold and
whether it is reached, whether the network ran, the area or volume, and the part of the lung, both lungs and left and
right. A group refers to its segment if the segmentation was written with it, else to the slice in which the finding is
likeliest. Codes: `serving.exports.codes`. The observer is a device; nothing is verified, and the document says so.

Like ``seg`` it is a clinical object, with patient and study of its source images.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pydicom
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from serving.burden import BOTH
from serving.errors import CanNotExport
from serving.exports import codes
from serving.exports.about import RESEARCH_USE, SOFTWARE, UNVERIFIED, software_version
from serving.exports.case import Case
from serving.exports.segmentations import claim, segments_of
from serving.exports.sources import images_of, no_references
from serving.exports.tables import doubts_of, problems_of
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES
from serving.pipeline import MANIFESTATION_STEP, RECOGNITION
from serving.results import MANIFESTATIONS_STAGE

if TYPE_CHECKING:
    import highdicom

SERIES_NUMBER: Final = 902
# Of this software as an observer, whatever machine it runs on: TID 1004 demands one.
_OBSERVER_UID: Final = generate_uid(entropy_srcs=[SOFTWARE])
_SIDES: Final = ((BOTH, None), ("right", codes.RIGHT), ("left", codes.LEFT))


def no_measurements(case: Case) -> str | None:
    """Why there can be no structured report of a case, if so.

    Raises:
        ScanError: If its files can no longer be read.
    """
    return no_references(case.planes)


def measurements(case: Case, segmentation: pydicom.Dataset | None = None) -> highdicom.sr.ComprehensiveSR:
    """The structured report of a case.

    Args:
        case: The case.
        segmentation: Its segmentation, to be referred to.

    Raises:
        CanNotExport: If it can not be made.
        ScanError: If a file can no longer be read.
    """
    if (refusal := no_measurements(case)) is not None:
        raise CanNotExport(f"sr: {refusal}")
    images = images_of(case.planes)
    try:
        made = _build(case, images, segmentation)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CanNotExport(f"sr: expected images that highdicom takes, got others ({type(error).__name__})") from None
    scheme = pydicom.Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = codes.PRIVATE, f"{SOFTWARE}: codes that no standard has"
    made.CodingSchemeIdentificationSequence = [scheme]
    claim(made, case)
    return made


def write_sr(case: Case, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write ``<prefix>.sr.dcm``; it refers to ``<prefix>.seg.dcm``, if that is in the same folder.

    Raises:
        CanNotExport: As `measurements`.
        ScanError: As `measurements`.
    """
    path, beside = folder / f"{prefix}.sr.dcm", folder / f"{prefix}.seg.dcm"
    segmentation = pydicom.dcmread(beside, stop_before_pixels=True) if beside.exists() else None
    pydicom.dcmwrite(path, measurements(case, segmentation), enforce_file_format=True)
    return (path,)


def _build(
    case: Case, images: Sequence[pydicom.Dataset], segmentation: pydicom.Dataset | None
) -> highdicom.sr.ComprehensiveSR:
    import highdicom

    sr = highdicom.sr
    observer = sr.ObserverContext(
        observer_type=Code("121007", "DCM", "Device"),
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=_OBSERVER_UID, name=SOFTWARE, manufacturer_name=SOFTWARE, model_name=software_version()
        ),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.PROCEDURES["ct" if case.single is None else case.single.modality],
        imaging_measurements=[
            *(_diagnosis(case, name) for name in DIAGNOSIS_NAMES),
            *(_finding(case, name, segmentation) for name in MANIFESTATION_NAMES),
        ],
        title=Code("126000", "DCM", "Imaging Measurement Report"),
    )
    for said in (RESEARCH_USE, UNVERIFIED, *doubts_of(case), *problems_of(case)):
        comment = sr.TextContentItem(
            name=Code("121106", "DCM", "Comment"), value=said, relationship_type=sr.RelationshipTypeValues.CONTAINS
        )
        report[0].ContentSequence.append(comment)
    return sr.ComprehensiveSR(
        evidence=[*images, *(() if segmentation is None else (segmentation,))],
        content=report[0],
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=SOFTWARE,
        manufacturer_model_name=SOFTWARE,
        software_versions=software_version(),
        series_description=f"{SOFTWARE} report. {RESEARCH_USE}"[:64],
        is_complete=case.study is None or case.study.complete,
        is_final=False,
        is_verified=False,
    )


def _diagnosis(case: Case, name: str) -> Any:
    import highdicom

    return highdicom.sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=_tracked(name),
        finding_type=codes.DIAGNOSIS_CODES[name],
        algorithm_id=_algorithm(case, RECOGNITION.model),
        measurements=[_measured(codes.PROBABILITY, case.report.diagnosis[name], "1")],
    )


def _finding(case: Case, name: str, segmentation: pydicom.Dataset | None) -> Any:
    import highdicom

    sr, probability, threshold = highdicom.sr, case.report.manifestations[name], case.report.thresholds[name]
    measured = [_measured(codes.THRESHOLD, threshold, "1"), *_sizes(case, name)]
    evaluated = [sr.QualitativeEvaluation(codes.STATUS, codes.STATUS_VALUES[case.report.status[MANIFESTATIONS_STAGE]])]
    if probability is not None:
        measured.insert(0, _measured(codes.PROBABILITY, probability, "1"))
        reached = codes.YES if probability >= threshold else codes.NO
        evaluated.append(sr.QualitativeEvaluation(codes.REACHED, reached))
    said: dict[str, Any] = {
        "finding_type": codes.MANIFESTATION_CODES[name],
        "finding_sites": [sr.FindingSite(codes.REGION_CODES[name])],
        "algorithm_id": _algorithm(case, MANIFESTATION_STEP.model),
        "measurements": measured,
        "qualitative_evaluations": evaluated,
    }
    segment = None if segmentation is None else _segment(case, name, segmentation)
    if segment is None:
        return sr.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=_tracked(name), source_images=_shown_on(case, name), **said
        )
    tracking = sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID)
    if case.study is None:
        return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=tracking, referenced_segment=_frame(case, segment, segmentation), **said
        )
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=tracking, referenced_segment=_region(case, segment, segmentation), **said
    )


def _sizes(case: Case, name: str) -> list[Any]:
    """Area of a scan; ml and per cent of a study, of both sides and each."""
    if case.study is not None:
        sizes = []
        for side, laterality in _SIDES:
            amount = case.study.burden.found.get(name, {}).get(side)
            if amount is not None and amount.ml is not None:
                sizes.append(_measured(codes.VOLUME, amount.ml, "ml", laterality))
            if amount is not None and amount.percent is not None:
                sizes.append(_measured(codes.LUNG_PERCENT, amount.percent, "%", laterality))
        return sizes
    area = area_mm2(case, name)
    return [] if area is None else [_measured(codes.AREA, area, "mm2")]


def area_mm2(case: Case, stream: str) -> float | None:
    """The marked area of a scan in mm2; None if the stream did not run or the size of pixels is not known."""
    if case.single is None or case.scan is None or case.scan.pixel_spacing_mm is None:
        return None
    part, (height, width) = case.single.area_fraction[stream], case.single.size_hw
    row_mm, column_mm = case.scan.pixel_spacing_mm
    return None if part is None else part * height * width * row_mm * column_mm


def _measured(name: Code, value: float, unit: str, laterality: Code | None = None) -> Any:
    import highdicom

    site = None if laterality is None else [highdicom.sr.FindingSite(codes.LUNG, laterality=laterality)]
    # A decimal string has 16 characters, and no network is good to six digits.
    return highdicom.sr.Measurement(name=name, value=float(f"{value:.6g}"), unit=codes.UNITS[unit], finding_sites=site)


def _algorithm(case: Case, model: str) -> Any:
    import highdicom

    version = case.report.models.get(model, "unknown")
    return highdicom.sr.AlgorithmIdentification(name=f"{SOFTWARE} {model}", version=version)


def _tracked(name: str) -> Any:
    import highdicom

    return highdicom.sr.TrackingIdentifier(uid=generate_uid(), identifier=f"{SOFTWARE} {name}")


def _shown_on(case: Case, name: str) -> list[Any] | None:
    """The image of a scan, or the one of a study in which the finding is likeliest."""
    import highdicom

    index = 0
    if case.study is not None and case.volume is not None:
        likeliest = case.study.likeliest(name)
        # Only where slices are the files' own planes is a slice an image.
        if likeliest is None or case.volume.layout.axes[0] != 0:
            return None
        count = case.volume.shape[0]
        index = count - 1 - likeliest[0] if case.volume.layout.flipped[0] else likeliest[0]
    plane = case.planes[index]
    frames = [plane.frame + 1] if plane.frame_count > 1 else None
    image = images_of((plane,))[0]
    return [highdicom.sr.SourceImageForMeasurementGroup(image.SOPClassUID, plane.sop_uid, frames)]


def _segment(case: Case, name: str, segmentation: pydicom.Dataset) -> pydicom.Dataset | None:
    """The segment of a finding by its own stream; None if it has no frames, since a region may not be empty."""
    numbers = [one.number for one in segments_of(case) if one.stream == name]
    if not numbers or not case.report.area_fraction[name]:
        return None
    found: pydicom.Dataset = next(one for one in segmentation.SegmentSequence if one.SegmentNumber == numbers[0])
    return found


def _frame(case: Case, segment: pydicom.Dataset, segmentation: pydicom.Dataset) -> Any:
    import highdicom

    frames = segmentation.PerFrameFunctionalGroupsSequence
    of_segment = [
        number
        for number, frame in enumerate(frames, start=1)
        if frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment.SegmentNumber
    ]
    image, plane = images_of(case.planes)[0], case.planes[0]
    referred = highdicom.sr.ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=of_segment[0],
        segment_number=segment.SegmentNumber,
        source_image=highdicom.sr.SourceImageForSegmentation(
            image.SOPClassUID, image.SOPInstanceUID, [plane.frame + 1] if plane.frame_count > 1 else None
        ),
    )
    # PS3.3 C.17.3 has a frame or a segment; the one frame of this segment is meant at any rate.
    del referred[0].ReferencedSOPSequence[0].ReferencedFrameNumber
    return referred


def _region(case: Case, segment: pydicom.Dataset, segmentation: pydicom.Dataset) -> Any:
    import highdicom

    return highdicom.sr.ReferencedSegment(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        segment_number=segment.SegmentNumber,
        source_series=highdicom.sr.SourceSeriesForSegmentation(case.planes[0].series_uid),
    )
