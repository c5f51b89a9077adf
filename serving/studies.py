"""Whatever holds a CT study to a `Volume`: the door that the page and the command line come in by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pydicom

from serving.archives import ZIP_MAGICS
from serving.dicom import MODALITY_OF_TAG
from serving.dicom_headers import DICOM_MAGIC, PREAMBLE_BYTES, inflated, read_dicom
from serving.dicom_volumes import series_volume
from serving.errors import RequestError, ScanError
from serving.limits import fence
from serving.nifti import HEAD_BYTES, is_nifti, read_nifti
from serving.series import read_study
from serving.volumes import Volume


def open_volume(source: Path | bytes | Iterable[Path], series: int | None = None) -> Volume:
    """Open a CT study.

    Args:
        source: A NIfTI or DICOM file, or a zip of DICOM files (a path or the bytes); a folder of DICOM files; or
            several DICOM files.
        series: Which of several series, from 0, in the order of `serving.series.read_study`.

    Returns:
        The volume. Slices are read when they are asked for, so the files must stay as they are.

    Raises:
        AmbiguousStudy: If it holds several series and `series` does not say which; it lists them.
        RequestError: If there is no such series.
        ScanError: If it can not be read.
    """
    if isinstance(source, (bytes, Path)) and _is_nifti(source):
        if series not in (None, 0):
            raise RequestError(f"expected series 0 of a NIfTI file, got {series}")
        return read_nifti(source)
    study = read_study(source)
    volume = series_volume(study.choose(series))
    # First: a slice may be among them, and at an end of the series no gap shows it.
    return replace(volume, problems=(*(left.words for left in study.left_out), *volume.problems))


def is_study_file(path: Path) -> bool:
    """Whether a file by itself holds a study: a NIfTI file, a zip, or a CT in DICOM of several frames.

    Of a DICOM file the header is read, within its limits. What can not be read is no study.
    """
    try:
        with fence("a file that can be read"), path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
            if is_study_head(head):
                return True
            if not head.startswith(DICOM_MAGIC, PREAMBLE_BYTES):
                return False
            return (ct_frames(read_dicom(inflated(stream), stop_before_pixels=True)) or 0) > 1
    except ScanError:
        return False


def is_study_head(head: bytes) -> bool:
    """Whether a file is NIfTI or a zip, by its first `HEAD_BYTES` bytes or more."""
    return is_nifti(head) or head.startswith(ZIP_MAGICS)


def ct_frames(header: pydicom.Dataset) -> int | None:
    """How many frames a CT in DICOM says that it has; None of what is no CT. To be called inside of a fence."""
    if MODALITY_OF_TAG.get(str(header.get("Modality"))) != "ct":
        return None
    return int(header.get("NumberOfFrames") or 1)


def _is_nifti(source: Path | bytes) -> bool:
    if isinstance(source, bytes):
        return is_nifti(source[:HEAD_BYTES])
    if not source.is_file():
        return False
    with fence("a file that can be read"), source.open("rb") as stream:
        return is_nifti(stream.read(HEAD_BYTES))
