"""Whole files of every kind that is read, drawn in code and small: what mutations start from."""

from __future__ import annotations

import gzip
import io
from functools import cache
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from serving.phantom import chest_xray, ct_slice, dicom_bytes, png_bytes
from tests.serving.dicom_files import compressed, edited, saved, with_pixels
from tests.serving.volume_files import affine_ras, dicom_series, dicom_slice, file_of, nifti_bytes, zipped

SIDE_PX = 64
SPACING_LPS = np.array([[0, 0, 0.5, -10], [0, 0.75, 0, -20], [2.5, 0, 0, 30], [0, 0, 0, 1]])


@cache
def seeds() -> dict[str, bytes]:
    """By name, in the order in which mutations are numbered."""
    return {**_rasters(), **_radiographs(), **_slices(), **_studies()}


def _rasters() -> dict[str, bytes]:
    grey, colour = ct_slice(7, SIDE_PX).pixels, np.stack([chest_xray(i, SIDE_PX) for i in range(4)], axis=-1)
    exif = Image.Exif()
    exif[0x0112] = 6
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "drawn", zip=True)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    return {
        "png": png_bytes(ct_slice(3, 128).pixels),
        "png with a palette": _image(Image.fromarray(grey).convert("P"), "PNG", transparency=3),
        "png of 16 bits": _image(deep, "PNG"),
        "png in rgba": _image(Image.fromarray(colour), "PNG", pnginfo=text),
        "png of one bit": _image(Image.fromarray(grey).convert("1"), "PNG"),
        "jpeg": _image(Image.fromarray(grey), "JPEG", quality=60, exif=exif),
        "progressive jpeg": _image(Image.fromarray(colour[..., :3]), "JPEG", progressive=True),
        "cmyk jpeg": _image(Image.fromarray(colour, "CMYK"), "JPEG", quality=50),
    }


def _radiographs() -> dict[str, bytes]:
    xray = chest_xray(1, SIDE_PX)
    whole = dicom_bytes(xray, "xray")
    colour = np.stack([xray] * 3, axis=-1)
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], np.arange(256, dtype="<u2").tobytes()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    palette = {
        f"{name}PaletteColorLookupTable{part}": value
        for name in ("Red", "Green", "Blue")
        for part, value in (("Descriptor", [256, 0, 16]), ("Data", np.arange(0, 65536, 256, dtype="<u2").tobytes()))
    }
    return {
        "radiograph": dicom_bytes(xray, "xray", "MONOCHROME1"),
        "radiograph with a table": edited(data=whole, VOILUTSequence=Sequence([table])),
        "radiograph in colour": with_pixels(colour),
        "radiograph with a palette": edited(data=whole, PhotometricInterpretation="PALETTE COLOR", **palette),
        "radiograph in jpeg": compressed(_image(Image.fromarray(xray), "JPEG"), JPEGBaseline8Bit, whole),
        "radiograph in jpeg 2000": compressed(
            _image(Image.fromarray(xray), "JPEG2000", no_jp2=True), JPEG2000Lossless, whole
        ),
    }


def _slices() -> dict[str, bytes]:
    hu = np.random.default_rng(3).integers(-1000, 400, (SIDE_PX, SIDE_PX)).astype(np.int16)
    one = dicom_slice(hu, SOPInstanceUID="1.2.3.1")
    return {
        "slice": file_of(one),
        "slice in run lengths": _syntax(one, RLELossless),
        "slice, deflated": _syntax(one, DeflatedExplicitVRLittleEndian),
        "slice in implicit vr": _syntax(one, ImplicitVRLittleEndian),
        "slice in big endian": _syntax(one, ExplicitVRBigEndian),
        "enhanced ct": _enhanced(hu),
    }


def _studies() -> dict[str, bytes]:
    hu = np.random.default_rng(5).integers(-1000, 400, (3, 56, 60)).astype(np.int16)
    affine = affine_ras((0, 1, 2), (1, 1, 1), (0.5, 0.75, 2.5))
    values = np.moveaxis(hu, 0, 2)
    series = dicom_series(hu, SPACING_LPS)
    for i, dataset in enumerate(series):
        dataset.SOPInstanceUID = f"1.2.3.{i}"
    return {
        "nifti": nifti_bytes(values, affine),
        "nifti in gzip": nifti_bytes(values, affine, packed=True),
        "nifti-2": nifti_bytes(values.astype(np.float32), affine, kind=nibabel.Nifti2Image),
        "nifti in two gzip members": _members(nifti_bytes(values, affine)),
        "zip": zipped(series),
        "stored zip": zipped(series, compression=0),
    }


def _image(image: Image.Image, image_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=image_format, **options)
    return stream.getvalue()


def _syntax(dataset: Dataset, syntax: UID) -> bytes:
    again = pydicom.dcmread(io.BytesIO(file_of(dataset)))
    if syntax == RLELossless:
        again.compress(RLELossless, generate_instance_uid=False)
        return saved(again)
    again.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        again.PixelData = np.frombuffer(again.PixelData, "<i2").astype(">i2").tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(
        stream, again, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian
    )
    return stream.getvalue()


def _enhanced(hu: np.ndarray) -> bytes:
    whole = dicom_slice(
        hu,
        position=None,
        spacing=None,
        NumberOfFrames=2,
        SOPClassUID=EnhancedCTImageStorage,
        SOPInstanceUID="1.2.3.1",
    )
    whole.PixelData = whole.PixelData * 2
    whole.PerFrameFunctionalGroupsSequence = Sequence([_frame_group(z) for z in (0.0, 2.5)])
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.5, 0.5], 2.5
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([orientation])
    whole.SharedFunctionalGroupsSequence = Sequence([shared])
    return file_of(whole)


def _frame_group(z_mm: float) -> Dataset:
    position, group = Dataset(), Dataset()
    position.ImagePositionPatient = [0, 0, z_mm]
    group.PlanePositionSequence = Sequence([position])
    return group


def _members(data: bytes) -> bytes:
    half = len(data) // 2
    return gzip.compress(data[:half], 1, mtime=0) + gzip.compress(data[half:], 1, mtime=0)
