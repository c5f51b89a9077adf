"""Files of drawn scans: `serving.phantom` is where to import it from."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8, UInt16
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from serving.dicom_pixels import LUNG_LEVEL_HU, LUNG_WIDTH_HU
from serving.labels import Modality

# Of every drawn study: there is one, and it is nobody's.
_STUDY: Final = "lungstreams phantom study"


@dataclass(frozen=True)
class Place:
    """Where a slice lies in a study.

    Attributes:
        position_mm: Centre of the first pixel, LPS. Slices are axial.
        number: Its number in the series, from 1.
        series: The series' number in the study.
        description: What the file calls the series.
    """

    position_mm: tuple[float, float, float]
    number: int = 1
    series: int = 1
    description: str = ""


def png_bytes(pixels: UInt8[np.ndarray, "h w *channels"]) -> bytes:
    """A PNG file of grey, RGB or RGBA pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


def dicom_bytes(
    pixels: UInt8[np.ndarray, "h w"],
    modality: Modality = "ct",
    photometric: str = "MONOCHROME2",
    pixel_spacing_mm: tuple[float, float] | None = (0.7, 0.7),
    place: Place | None = None,
) -> bytes:
    """A DICOM file that `serving.scans.decode` shows as exactly these pixels. It names nobody.

    Args:
        pixels: Grey for display.
        modality: ``ct`` stores Hounsfield units (the lung window undone), ``xray`` a computed radiograph.
        photometric: MONOCHROME1 stores a radiograph inverted. CT values are physical and stay.
        pixel_spacing_mm: Distance of rows, distance of columns; None to leave it out.
        place: Where it lies; None for a slice of no study.

    Returns:
        The file, in explicit VR little endian.
    """
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = CTImageStorage if modality == "ct" else ComputedRadiographyImageStorage
    # From the pixels, so that the same drawing is the same file.
    # And from its place: slices without lungs may be equal to the pixel.
    dataset.SOPInstanceUID = generate_uid(
        entropy_srcs=[pixels.tobytes().hex(), *([] if place is None else [str(place)])]
    )
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = "CT" if modality == "ct" else "CR"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL"] if modality == "ct" else ["DERIVED", "SECONDARY"]
    dataset.PatientName, dataset.PatientID = "", "PHANTOM"
    if pixel_spacing_mm is not None:
        dataset.PixelSpacing = list(pixel_spacing_mm)
    if place is not None:
        _put(dataset, place)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    if modality == "ct":
        _store_hu(dataset, pixels)
    else:
        _store(dataset, 255 - pixels if photometric == "MONOCHROME1" else pixels, bits=8)
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _put(dataset: Dataset, place: Place) -> None:
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[_STUDY])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[_STUDY, "frame of reference"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[_STUDY, str(place.series)])
    dataset.SeriesNumber, dataset.InstanceNumber = place.series, place.number
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(place.position_mm), [1, 0, 0, 0, 1, 0]
    # Attributes of a study that must be there and may be empty (PS3.3 C.7.1, C.7.2).
    dataset.PatientBirthDate = dataset.PatientSex = dataset.StudyDate = dataset.StudyTime = ""
    dataset.StudyID = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    if place.description:
        dataset.SeriesDescription = place.description


def _store_hu(dataset: Dataset, pixels: UInt8[np.ndarray, "h w"]) -> None:
    low = LUNG_LEVEL_HU - LUNG_WIDTH_HU / 2
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, -1400, "HU"
    hu = np.rint(low + pixels.astype(np.float64) / 255 * LUNG_WIDTH_HU)
    _store(dataset, (hu + 1400).astype(np.uint16), bits=16)


def _store(dataset: Dataset, stored: UInt8[np.ndarray, "h w"] | UInt16[np.ndarray, "h w"], *, bits: int) -> None:
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    # An element has an even length.
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
