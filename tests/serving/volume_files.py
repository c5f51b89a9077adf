"""Studies written in code: an asymmetric block in any orientation, as NIfTI and as DICOM."""

from __future__ import annotations

import gzip
import io
import itertools
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import nibabel
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

PATIENT = "Mustermann^Erika"
# Long enough that no random hexadecimal number holds it by chance.
PATIENT_ID = "Akte-4711-Erika"
SHAPE = (49, 51, 54)
# Every way to lie along the patient's axes: the file's axis of x, y and z, and the sign of each.
ORIENTATIONS = [
    (axes, signs) for axes in itertools.permutations((0, 1, 2)) for signs in itertools.product((1, -1), repeat=3)
]


def block(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """HU with a mark of its own along each axis: no permutation or flip of it is it."""
    hu = np.full(shape, -1000, np.int16)
    hu[2, 3, 4] = 3000
    hu[2:12, 3, 4] = 100
    hu[2, 3:25, 4] = 200
    hu[2, 3, 4:48] = 300
    hu[2, 3, 4] = 3000
    hu += np.arange(hu.size).reshape(shape).astype(np.int16) % 89
    return hu


def rotation(degrees: Sequence[float]) -> np.ndarray:
    turned = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        a, b = [i for i in range(3) if i != axis]
        step = np.eye(3)
        step[a, a] = step[b, b] = np.cos(angle)
        step[a, b], step[b, a] = -np.sin(angle), np.sin(angle)
        turned = step @ turned
    return turned


def affine_ras(
    axes: Sequence[int], signs: Sequence[int], spacing: Sequence[float], degrees: Sequence[float] = (0, 0, 0)
) -> np.ndarray:
    """Voxel -> RAS of a file whose axis `i` is patient axis `axes[i]`, with sign `signs[i]`."""
    affine = np.diag([0.0, 0, 0, 1])
    for i, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[axis, i] = sign
    affine[:3, :3] = rotation(degrees) @ affine[:3, :3] * np.asarray(spacing)
    affine[:3, 3] = (-31.5, 47.25, 12.125)
    return affine


def nifti_bytes(
    values: np.ndarray, affine: np.ndarray, *, packed: bool = False, kind: Any = nibabel.Nifti1Image
) -> bytes:
    data: bytes = kind(values, affine).to_bytes()
    return gzip.compress(data, 1, mtime=0) if packed else data


def dicom_slice(
    stored: np.ndarray,
    position: Sequence[float] | None = (0, 0, 0),
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    spacing: Sequence[float] | None = (0.75, 0.5),
    series: str = "1.2.3",
    **elements: Any,
) -> Dataset:
    """A CT slice of HU (int16), which names a patient."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, generate_uid()
    dataset.SeriesInstanceUID, dataset.Modality = series, "CT"
    dataset.PatientName, dataset.PatientID, dataset.StudyDate = PATIENT, PATIENT_ID, "19700101"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    if position is not None:
        dataset.ImagePositionPatient = [f"{x:.9g}"[:16] for x in position]
        dataset.ImageOrientationPatient = [f"{x:.10f}"[:16] for x in orientation]
    if spacing is not None:
        dataset.PixelSpacing = list(spacing)
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.PixelData = (stored.astype(np.int32) + 1024).astype("<i2").tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def dicom_frames(stored: np.ndarray, **elements: Any) -> Dataset:
    """A file of several CT frames of HU (frame, row, column), without places."""
    dataset = dicom_slice(stored[0], None, NumberOfFrames=len(stored), **elements)
    dataset.PixelData = (stored.astype(np.int32) + 1024).astype("<i2").tobytes()
    return dataset


def dicom_series(values: np.ndarray, affine_lps: np.ndarray, series: str = "1.2.3", **elements: Any) -> list[Dataset]:
    """Slices of an array (slice, row, column); the affine's columns are in that order."""
    steps, spacing = affine_lps[:3, :3], np.linalg.norm(affine_lps[:3, :3], axis=0)
    orientation = [*(steps[:, 2] / spacing[2]), *(steps[:, 1] / spacing[1])]
    return [
        dicom_slice(
            values[k],
            affine_lps[:3, 3] + k * steps[:, 0],
            orientation,
            [float(spacing[1]), float(spacing[2])],
            series,
            # A lie: numbers run the other way.
            InstanceNumber=len(values) - k,
            **elements,
        )
        for k in range(len(values))
    ]


def file_of(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def zipped(files: Iterable[bytes | Dataset], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression, compresslevel=1) as archive:
        for i, data in enumerate(files):
            # Names that lie about the order, as hashes do, and would climb out of a folder.
            entry = zipfile.ZipInfo(f"../{(i * 7919) % 1000:03d}/{PATIENT}")
            archive.writestr(entry, data if isinstance(data, bytes) else file_of(data), compression)
    return stream.getvalue()


def shuffled(files: Sequence[Dataset], seed: int = 0) -> list[Dataset]:
    return [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
