"""What a DICOM header says of one frame of its file.

A file of one frame and a multi-frame one (enhanced CT, multi-frame secondary capture) are the same to whoever reads
`Plane`s: the functional groups of a frame (PS3.3 C.7.6.16) are lifted to where a single-frame file has the same
attributes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pydicom

from serving.archives import Blob
from serving.dicom import check_image, modality_of, spacing_mm
from serving.dicom_headers import PER_FRAME, SHARED, is_short, items_of
from serving.labels import Modality

Vector = tuple[float, float, float]

_GROUPS: Final = (PER_FRAME, SHARED)
# Sequence of a functional group, and what of it is lifted.
_LIFTED: Final = (
    ("PlanePositionSequence", ("ImagePositionPatient",)),
    ("PlaneOrientationSequence", ("ImageOrientationPatient",)),
    ("PixelMeasuresSequence", ("PixelSpacing", "SliceThickness")),
    ("PixelValueTransformationSequence", ("RescaleSlope", "RescaleIntercept", "RescaleType")),
    ("FrameVOILUTSequence", ("WindowCenter", "WindowWidth", "VOILUTFunction")),
    ("CTImageFrameTypeSequence", ("FrameType",)),
)


@dataclass(frozen=True)
class Plane:
    """One frame of a file, not decoded.

    Attributes:
        blob: The file.
        frame: Its number in the file from 0.
        frame_count: Frames of the file.
        sop_uid: SOPInstanceUID of the file.
        series_uid: SeriesInstanceUID of the file.
        modality: From the file's own tag.
        is_hu: Whether its values are Hounsfield units.
        size_hw: Height and width in pixels.
        position_mm: Centre of the first pixel, LPS in mm; None if the file does not say.
        along_row, down_column: Unit vectors in LPS: where columns and rows increase. None if the file does not say.
        spacing_mm: Distance of rows, distance of columns; None if the file does not say.
        thickness_mm: Slice thickness; None if the file does not say.
        instance_number: As the file says; 0 if it does not.
        description: SeriesDescription, which people use for anything: show it to the owner of the file alone.
    """

    blob: Blob
    frame: int
    frame_count: int
    sop_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    modality: Modality
    is_hu: bool
    size_hw: tuple[int, int]
    position_mm: Vector | None
    along_row: Vector | None
    down_column: Vector | None
    spacing_mm: tuple[float, float] | None
    thickness_mm: float | None
    instance_number: int
    description: str = field(repr=False)


def frame_view(header: pydicom.Dataset, frame: int) -> pydicom.Dataset:
    """The header as a file of this frame alone would have it, with pixels of no bytes."""
    view = pydicom.Dataset()
    view.update({tag: header.get_item(tag) for tag in header.keys()})
    view.file_meta = header.file_meta
    for group in _GROUPS:
        view.pop(group, None)
    view.pop("NumberOfFrames", None)
    for sequence, keywords in _LIFTED:
        functional = _functional(header, frame, sequence)
        for keyword in keywords:
            if functional is not None and is_short(functional, keyword):
                view[keyword] = functional[keyword]
    if "FrameType" in view:
        view.ImageType = view.FrameType
    view.PixelData = b""
    return view


def _functional(header: pydicom.Dataset, frame: int, sequence: str) -> pydicom.Dataset | None:
    for group, index in zip(_GROUPS, (frame, 0), strict=True):
        items = items_of(header, group)
        if len(items) > index and (found := items_of(items[index], sequence)):
            return found[0]
    return None


def plane_of(blob: Blob, view: pydicom.Dataset, frame: int, frame_count: int) -> Plane:
    """Read a frame's view. To be called inside of a fence.

    Raises:
        ScanError: If it is not an image that is read here.
    """
    check_image(view)
    orientation = _numbers(view.get("ImageOrientationPatient"), 6)
    modality = modality_of(view)
    row, column = (orientation[:3], orientation[3:]) if orientation is not None else (None, None)
    if row is not None and column is not None and not _orthonormal(row, column):
        row = column = None
    return Plane(
        blob=blob,
        frame=frame,
        frame_count=frame_count,
        sop_uid=str(view.get("SOPInstanceUID") or ""),
        series_uid=str(view.get("SeriesInstanceUID") or ""),
        modality=modality,
        is_hu=modality == "ct" and _is_hu(view),
        size_hw=(int(view.Rows), int(view.Columns)),
        position_mm=_vector(_numbers(view.get("ImagePositionPatient"), 3)),
        along_row=_vector(row),
        down_column=_vector(column),
        spacing_mm=spacing_mm(view),
        thickness_mm=_positive(view.get("SliceThickness")),
        instance_number=_integer(view.get("InstanceNumber")),
        description=str(view.get("SeriesDescription") or "")[:64],
    )


def _is_hu(view: pydicom.Dataset) -> bool:
    """Whether CT values are Hounsfield units (PS3.3 C.11.1.1.2): a capture's are only where it says so."""
    declared = str(view.get("RescaleType") or "").upper()
    uid = view.get("SOPClassUID")
    captured = uid is not None and "Secondary Capture" in uid.name
    # Scanners leave the type out or "unspecified".
    return declared in (("HU", "HU_MOD") if captured else ("HU", "HU_MOD", "US", ""))


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and bool(np.isfinite(numbers).all()) else None


def _vector(numbers: tuple[float, ...] | None) -> Vector | None:
    return None if numbers is None else (numbers[0], numbers[1], numbers[2])


def _orthonormal(row: tuple[float, ...], column: tuple[float, ...]) -> bool:
    gram = np.array([row, column]) @ np.array([row, column]).T
    return bool(np.abs(gram - np.eye(2)).max() < 1e-2)


def _positive(value: Any) -> float | None:
    number = _numbers((value,), 1)
    return number[0] if number is not None and number[0] > 0 else None


def _integer(value: Any) -> int:
    number = _numbers((value,), 1)
    return int(number[0]) if number is not None else 0
