"""A study of 512 x 512 x 800 in bounded memory. Memory is counted, not time."""

from __future__ import annotations

import gzip
import threading
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from serving.burden import Tally
from serving.lungs import find_lungs
from serving.studies import open_volume
from serving.volumes import Volume
from tests.serving.volume_files import affine_ras, dicom_slice, file_of

pytestmark = [pytest.mark.slow]

SLICES, SIDE = 800, 512
WHOLE_BYTES = SLICES * SIDE * SIDE * 2
SLICE_BYTES = SIDE * SIDE * 2
PEAK_BYTES = 32 * SLICE_BYTES
"""Some float copies of a slice, not a study: 16 MiB where the study has 400 as it is stored."""


def chest_slice() -> np.ndarray:
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    hu = np.where(((x - 256) / 230) ** 2 + ((y - 256) / 160) ** 2 <= 1, 40, -1000)
    for centre in (150, 362):
        hu[((x - centre) / 80) ** 2 + ((y - 256) / 120) ** 2 <= 1] = -850
    return hu.astype(np.int16)


def peak_of(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def anonymous_bytes() -> int:
    """Memory of this process that no file stands behind (mapped files are the kernel's to drop)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def peak_anonymous_of(work: Callable[[], object]) -> int:
    before, seen, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            seen.append(anonymous_bytes() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(seen)


def read_some(volume: Volume) -> None:
    assert volume.shape == (SLICES, SIDE, SIDE)
    expected = chest_slice()
    for index in range(0, SLICES, 100):
        np.testing.assert_array_equal(volume.slice_hu(index), expected)
        assert volume.slice_scan(index).size_hw == (SIDE, SIDE)


@pytest.fixture(scope="module")
def packed_nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((SIDE, SIDE, SLICES))
    header.set_sform(affine_ras((0, 1, 2), (-1, -1, 1), (0.7, 0.7, 0.5)), 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path_factory.mktemp("nifti") / "ct.nii.gz"
    stored = chest_slice().tobytes()
    with gzip.open(path, "wb", 1) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(SLICES):
            file.write(stored)
    return path


@pytest.fixture(scope="module")
def zipped_series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dicom") / "study.zip"
    dataset = dicom_slice(chest_slice(), (0, 0, 0))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for k in range(SLICES):
            dataset.ImagePositionPatient = [0, 0, k * 0.5]
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.{k}"
            archive.writestr(f"{(k * 7919) % SLICES}", file_of(dataset))
    return path


def test_a_packed_nifti_study_is_read_in_the_memory_of_some_slices(packed_nifti: Path) -> None:
    def work() -> None:
        read_some(open_volume(packed_nifti))

    assert peak_anonymous_of(work) < WHOLE_BYTES // 4
    assert peak_of(work) < PEAK_BYTES


def test_a_zipped_series_is_read_in_the_memory_of_some_slices(zipped_series: Path) -> None:
    def work() -> None:
        read_some(open_volume(zipped_series))

    # Of each of the 800 slices a header is kept.
    assert peak_of(work) < PEAK_BYTES + SLICES * 16 * 1024


def test_the_burden_of_a_study_takes_a_coarse_grid_and_some_slices(packed_nifti: Path) -> None:
    volume = open_volume(packed_nifti)
    tally = Tally(["ground_glass"])

    def work() -> None:
        lungs = find_lungs(volume)
        for index in range(0, SLICES, 16):
            labels = lungs.slice(index)
            tally.add(labels, {"ground_glass": labels == 1}, volume.voxel_ml(index))

    assert peak_of(work) < 256 * 2**20
    assert tally.burden().found["ground_glass"]["right"].percent == pytest.approx(100)
