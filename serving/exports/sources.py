"""What a DICOM object that belongs to a patient's study takes over from the images that it was made from.

Nothing is copied wholesale: `PATIENT` and `STUDY` are the attributes of type 1 and 2 of the modules Patient and General
Study (PS3.3 C.7.1.1, C.7.2.1), which any composite object must have, and are all that an export carries of whom a scan
is of. A value that breaks the rules of its type is left empty, and no message quotes one.
"""

from __future__ import annotations

import io
import logging
import re
from typing import Final

import pydicom
from pydicom import config
from pydicom.uid import RE_VALID_UID
from pydicom.valuerep import validate_value

from serving.archives import Blob
from serving.dicom_headers import PER_FRAME, inflated, read_dicom
from serving.dicom_planes import Plane, frame_view
from serving.errors import UnreadableScan
from serving.limits import MAX_FILE_BYTES, fence

PATIENT: Final = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex")
STUDY: Final = ("StudyInstanceUID", "StudyDate", "StudyTime", "ReferringPhysicianName", "StudyID", "AccessionNumber")
# What highdicom reads of a source image beside these.
_IMAGE: Final = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "Modality",
    "Rows",
    "Columns",
)
_PLANE: Final = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness")
_LOSSY: Final = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_CARRIED: Final = (*PATIENT, *STUDY, *_IMAGE, *_LOSSY)
_UIDS: Final = ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")
_LONGEST_UID: Final = 64
_SEXES: Final = ("M", "F", "O")

# It logs UIDs, and names that it takes for odd ones.
logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)


def header_of(blob: Blob) -> pydicom.Dataset:
    """The header of a file, without its pixels.

    Raises:
        ScanError: If it can no longer be read.
    """
    # Outside of the fence, which `Blob` goes through itself and which can not be entered twice.
    stream = io.BytesIO(blob.read()) if blob.size_bytes <= MAX_FILE_BYTES else blob.seekable()
    with stream, fence("a whole DICOM file"):
        header = read_dicom(inflated(stream), stop_before_pixels=True, also=_CARRIED)
        header.decode()
        return header


def no_references(planes: tuple[Plane, ...]) -> str | None:
    """Why no DICOM object can refer to these images, if so: also since what their header says of them is damaged.

    Raises:
        ScanError: If the first of them is not there any more.
    """
    if not planes:
        return "expected DICOM images, which such an object belongs to, got another format"
    try:
        header = header_of(planes[0].blob)
    except UnreadableScan as error:
        return f"expected DICOM images with a whole header, got others: {error}"
    missing = [keyword for keyword in _UIDS if not _is_uid(header.get(keyword))]
    if not missing and not all(_is_uid(plane.sop_uid) for plane in planes):
        missing = ["SOPInstanceUID"]
    return f"expected DICOM images with a valid {', '.join(missing)}, got others" if missing else None


def identity(header: pydicom.Dataset) -> pydicom.Dataset:
    """`PATIENT` and `STUDY` of a header; what it lacks, or has in a form that the standard forbids, is empty."""
    carried = pydicom.Dataset()
    with fence("a whole DICOM file"):
        for keyword in (*PATIENT, *STUDY):
            setattr(carried, keyword, _valid(header, keyword))
    return carried


def image_of(planes: tuple[Plane, ...]) -> pydicom.Dataset:
    """A source image as highdicom wants it: references and geometry, nothing of its patient.

    Args:
        planes: The frames of one file that are used, at least one.

    Raises:
        ScanError: If the file can no longer be read.
    """
    header = header_of(planes[0].blob)
    image = pydicom.Dataset()
    with fence("a whole DICOM file"):
        for keyword in (*PATIENT, *STUDY):
            setattr(image, keyword, None)
        image.StudyInstanceUID = header.StudyInstanceUID
        for keyword in (*_IMAGE, *_LOSSY):
            if header.get(keyword) not in (None, ""):
                image[keyword] = header[keyword]
        if PER_FRAME in header or planes[0].frame_count > 1:
            _add_frames(image, header, planes)
        else:
            image.update({element.tag: element for element in _plane(header, planes[0])})
    return image


def images_of(planes: tuple[Plane, ...]) -> tuple[pydicom.Dataset, ...]:
    """`image_of` each file, in the order in which their first frames come.

    Raises:
        ScanError: If one can no longer be read.
    """
    files: dict[str, list[Plane]] = {}
    for plane in planes:
        files.setdefault(plane.sop_uid, []).append(plane)
    return tuple(image_of(tuple(frames)) for frames in files.values())


def _add_frames(image: pydicom.Dataset, header: pydicom.Dataset, planes: tuple[Plane, ...]) -> None:
    image.NumberOfFrames = planes[0].frame_count
    first = _plane(header, planes[0])
    shared, orientation, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = first.get("ImageOrientationPatient")
    measures.PixelSpacing, measures.SliceThickness = first.get("PixelSpacing"), first.get("SliceThickness")
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    image.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number in range(planes[0].frame_count):
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = frame_view(header, number).get("ImagePositionPatient")
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = frames


def _plane(header: pydicom.Dataset, plane: Plane) -> pydicom.Dataset:
    """Where a frame lies, digit by digit as its file says."""
    view, lies = frame_view(header, plane.frame), pydicom.Dataset()
    for keyword in _PLANE:
        if view.get(keyword) not in (None, ""):
            lies[keyword] = view[keyword]
    return lies


def _valid(header: pydicom.Dataset, keyword: str) -> str:
    value = str(header.get(keyword) or "").strip()
    if keyword == "PatientSex" and value not in _SEXES:
        return ""
    try:
        validate_value(pydicom.datadict.dictionary_VR(keyword), value, config.RAISE)
    except ValueError:
        return ""
    return value


def _is_uid(value: object) -> bool:
    # Not by making a `UID` of it: that warns, and quotes what is not valid.
    return isinstance(value, str) and len(value) <= _LONGEST_UID and re.fullmatch(RE_VALID_UID, value) is not None
