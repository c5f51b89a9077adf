"""DICOM files of any kind, written in code: what `serving.phantom.dicom_bytes` is too well behaved for."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from serving.phantom import dicom_bytes

PATIENT = "Mustermann^Erika"
GRADIENT = np.linspace(0, 255, 64 * 96).astype(np.uint8).reshape(64, 96)


def edited(change: Callable[[Dataset], object] | None = None, data: bytes | None = None, **elements: Any) -> bytes:
    """A phantom's file with elements set (`None` deletes), then changed; it carries a patient's name."""
    dataset = pydicom.dcmread(io.BytesIO(data or dicom_bytes(GRADIENT, "xray")))
    dataset.PatientName = PATIENT
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
            if " or " in dataset[keyword].VR:
                # Where the standard leaves a choice, pydicom writes nothing before it is made.
                dataset[keyword].VR = "OW" if isinstance(value, bytes) else "US"
    if change is not None:
        change(dataset)
    return saved(dataset)


def saved(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def with_pixels(stored: np.ndarray, **elements: Any) -> bytes:
    """A file of these stored values, of whatever type they are."""
    bits = stored.dtype.itemsize * 8
    frame: dict[str, Any] = {
        "Rows": stored.shape[0],
        "Columns": stored.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "SamplesPerPixel": 3 if stored.ndim == 3 else 1,
        "PixelData": stored.tobytes(),
    }
    if stored.ndim == 3:
        frame.update(PhotometricInterpretation="RGB", PlanarConfiguration=0)
    return edited(**(frame | elements))


def compressed(frame: bytes, syntax: UID, data: bytes | None = None, **elements: Any) -> bytes:
    """A file whose one frame is already compressed."""

    def change(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.PixelData = encapsulate([frame])
        dataset["PixelData"].VR = "OB"

    return edited(change, data, **elements)
