"""Masks as a DICOM Segmentation (PS3.3 A.51) by highdicom: binary, uncompressed, voxel for voxel on the source images.

Segments come in this order: one for each specialised stream that ran, then the classes of the stream of all
manifestations, where it ran; a segment's algorithm name says which network marked it. Both may mark the same voxel. A
segment in which nothing is marked is there and has no frames (a segmentation in which nothing at all is marked has
empty frames of the first image, since it may not be without frames).

It is a clinical object: it carries `serving.exports.sources.PATIENT` and `STUDY`, the UIDs of its source images and
their frame of reference, and the date on which it was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom
from jaxtyping import UInt8
from pydicom.uid import generate_uid

from serving.dicom_planes import Plane
from serving.errors import CanNotExport
from serving.exports import codes
from serving.exports.about import RESEARCH_USE, SOFTWARE, UNVERIFIED, software_version
from serving.exports.case import Case
from serving.exports.pictures import no_picture
from serving.exports.sources import header_of, identity, images_of, no_references
from serving.labels import ALL_STREAM, MANIFESTATIONS
from serving.pipeline import segmentation_model

if TYPE_CHECKING:
    import highdicom

SERIES_NUMBER: Final = 901
_ORIENTATION_TOLERANCE: Final = 1e-4
MAX_SEG_VOXELS: Final = 2**30
"""Most voxels of all segments in the slices with a mark: of six segments and 512 x 512, 682 slices. Each is a byte, and
highdicom takes two to three times as much to look for overlaps."""


@dataclass(frozen=True)
class Segment:
    """One segment.

    Attributes:
        number: From 1.
        stream: Which network marked it.
        class_id: Which value of the stream's mask it is.
        finding: Which manifestation it is.
    """

    number: int
    stream: str
    class_id: int
    finding: str


def segments_of(case: Case) -> tuple[Segment, ...]:
    """The segments of a case, in order of their numbers."""
    single = [(label.name, 1, label.name) for label in MANIFESTATIONS if label.name in case.ran]
    every = [(ALL_STREAM.name, i, label.name) for i, label in enumerate(MANIFESTATIONS, start=1)]
    both = (*single, *(every if ALL_STREAM.name in case.ran else ()))
    return tuple(Segment(number, *rest) for number, rest in enumerate(both, start=1))


def no_segmentation(case: Case) -> str | None:
    """Why there can be no segmentation of a case, if so.

    Raises:
        ScanError: If its files can no longer be read.
    """
    planes = case.planes
    if (refusal := no_picture(case) or no_references(planes)) is not None:
        return refusal
    placed = all(
        plane.position_mm is not None and plane.along_row is not None and plane.spacing_mm is not None
        for plane in planes
    )
    if not placed or not header_of(planes[0].blob).get("FrameOfReferenceUID"):
        return (
            "expected images that say where they lie (frame of reference, position, orientation, spacing), got others"
        )
    if _thickness_mm(case) is None:
        return "expected images that say how thick slices are or how far apart, got others"
    if _turned(planes) > _ORIENTATION_TOLERANCE:
        return "expected slices of one orientation, got some that are turned against each other"
    files = len({plane.sop_uid for plane in planes})
    if files > 1 and max(plane.frame_count for plane in planes) > 1:
        return f"expected files of one frame each or one file of several, got {files:,} files of several frames"
    return None


def segmentation(case: Case) -> highdicom.seg.Segmentation:
    """The segmentation of a case.

    Raises:
        CanNotExport: If it can not be made (`no_segmentation`), or highdicom refuses the images.
        ScanError: If a file can no longer be read.
    """
    if (refusal := no_segmentation(case)) is not None:
        raise CanNotExport(f"seg: {refusal}")
    planes, segments = case.planes, segments_of(case)
    marked, pixels = _pixels(case, segments)
    images = images_of(planes)
    for image in images:
        _align(image, images[0], _thickness_mm(case))
    try:
        made = _build(images, [planes[i] for i in marked], pixels, [_described(one, case) for one in segments])
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CanNotExport(f"seg: expected images that highdicom takes, got others ({type(error).__name__})") from None
    _check_references(made, [planes[i] for i in marked])
    claim(made, case)
    return made


def claim(made: pydicom.Dataset, case: Case) -> None:
    """Give a new object the patient and the study of its source images."""
    made.SpecificCharacterSet = "ISO_IR 192"
    for element in identity(header_of(case.planes[0].blob)):
        made[element.tag] = element


def write_seg(case: Case, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write ``<prefix>.seg.dcm``.

    Raises:
        CanNotExport: As `segmentation`.
        ScanError: As `segmentation`.
    """
    path = folder / f"{prefix}.seg.dcm"
    pydicom.dcmwrite(path, segmentation(case), enforce_file_format=True)
    return (path,)


def _thickness_mm(case: Case) -> float | None:
    if (said := case.planes[0].thickness_mm) is not None:
        return said
    if case.volume is None or not case.volume.depth_known or case.volume.source_affine is None:
        return None
    return float(np.linalg.norm(case.volume.source_affine[:3, 0]))


def _turned(planes: Sequence[Plane]) -> float:
    axes = np.array([[*(plane.along_row or ()), *(plane.down_column or ())] for plane in planes])
    return float(np.abs(axes - axes[0]).max())


def _pixels(case: Case, segments: Sequence[Segment]) -> tuple[list[int], UInt8[np.ndarray, "marked h w segments"]]:
    """The planes in which anything is marked (the first, if nothing is), and their segments."""
    planes, (height, width) = len(case.planes), case.planes[0].size_hw
    # A stream at a time: of a large study even one is hundreds of MiB.
    hit = np.zeros(planes, bool)
    for stream in case.ran:
        hit |= case.source_masks(stream).any(axis=(1, 2))
    marked = [int(i) for i in np.flatnonzero(hit)] or [0]
    if (needed := len(marked) * height * width * len(segments)) > MAX_SEG_VOXELS:
        raise CanNotExport(
            f"seg: expected at most {MAX_SEG_VOXELS:,} voxels of segments, got {needed:,}; NIfTI takes any number"
        )
    pixels = np.empty((len(marked), height, width, len(segments)), np.uint8)
    for stream in case.ran:
        mask = case.source_masks(stream)
        for segment in segments:
            if segment.stream == stream:
                for at, plane in enumerate(marked):
                    pixels[at, ..., segment.number - 1] = mask[plane] == segment.class_id
    return marked, pixels


def _align(image: pydicom.Dataset, first: pydicom.Dataset, thickness_mm: float | None) -> None:
    """Say what all images share in the same digits, as highdicom wants; `no_segmentation` held them together."""
    if "SharedFunctionalGroupsSequence" in image:
        image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness = f"{thickness_mm:.10g}"
        return
    image.ImageOrientationPatient = first.ImageOrientationPatient
    image.PixelSpacing = first.PixelSpacing
    image.SliceThickness = f"{thickness_mm:.10g}"


def _build(
    images: Sequence[pydicom.Dataset],
    planes: Sequence[Plane],
    pixels: UInt8[np.ndarray, "n h w segments"],
    described: Sequence[Any],
) -> highdicom.seg.Segmentation:
    import highdicom

    by_uid = {image.SOPInstanceUID: image for image in images}
    positions = [
        highdicom.PlanePositionSequence(
            coordinate_system=highdicom.CoordinateSystemNames.PATIENT,
            image_position=_position(by_uid[plane.sop_uid], plane),
        )
        for plane in planes
    ]
    return highdicom.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        plane_positions=positions,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=described,
        series_instance_uid=generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=SOFTWARE,
        manufacturer_model_name=SOFTWARE,
        software_versions=software_version(),
        device_serial_number="none",
        content_label=SOFTWARE.upper(),
        content_description=RESEARCH_USE,
        series_description=f"{SOFTWARE} findings. {RESEARCH_USE}"[:64],
    )


def _position(image: pydicom.Dataset, plane: Plane) -> Any:
    if "PerFrameFunctionalGroupsSequence" in image:
        return image.PerFrameFunctionalGroupsSequence[plane.frame].PlanePositionSequence[0].ImagePositionPatient
    return image.ImagePositionPatient


def _described(segment: Segment, case: Case) -> Any:
    import highdicom

    label = next(label for label in MANIFESTATIONS if label.name == segment.finding)
    model = segmentation_model(segment.stream)
    of_all = " (network of all manifestations)" if segment.stream == ALL_STREAM.name else ""
    described = highdicom.seg.SegmentDescription(
        segment_number=segment.number,
        segment_label=f"{label.title}{of_all}",
        segmented_property_category=codes.ABNORMAL,
        segmented_property_type=codes.MANIFESTATION_CODES[segment.finding],
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=f"{SOFTWARE} {model}",
            family=codes.AI,
            version=case.report.models.get(model, "unknown"),
            source=f"{SOFTWARE} {software_version()}",
        ),
        tracking_id=f"{SOFTWARE} {segment.stream} {segment.finding}",
        tracking_uid=generate_uid(),
        anatomic_regions=[codes.REGION_CODES[segment.finding]],
        display_color=highdicom.color.CIELabColor.from_rgb(*label.colour_rgb),
    )
    described.SegmentDescription = f"{UNVERIFIED} {RESEARCH_USE}"
    return described


def _check_references(made: pydicom.Dataset, planes: Sequence[Plane]) -> None:
    """Hold the images that highdicom found for each frame, by position, against those that it was made from."""
    places = {(plane.sop_uid, plane.frame if plane.frame_count > 1 else 0): plane.position_mm for plane in planes}
    for frame in made.PerFrameFunctionalGroupsSequence:
        source = frame.DerivationImageSequence[0].SourceImageSequence[0]
        number = source.get("ReferencedFrameNumber")
        found = places.get((str(source.ReferencedSOPInstanceUID), 0 if number is None else int(number) - 1))
        lies = frame.PlanePositionSequence[0].ImagePositionPatient
        if found is None or not np.allclose(np.asarray(found, np.float64), np.asarray(lies, np.float64), atol=1e-6):
            raise CanNotExport("seg: expected each slice in a place of its own, got several frames in one place")
