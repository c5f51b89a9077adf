"""Lungs by the classical method: on phantoms, and against masks that people drew."""

from __future__ import annotations

import csv

import cv2
import numpy as np
import pytest

from serving.errors import GeometryError, UnsupportedScan
from serving.lungs import LEFT, RIGHT, body_of, find_lungs, lungs_of_grey
from serving.phantom import ct_slice
from serving.studies import open_volume
from serving.volumes import Layout, Volume
from serving.voxels import Memory
from tests.real_data import DATA
from tests.serving.volume_files import dicom_slice, file_of


def dice(one: np.ndarray, other: np.ndarray) -> float:
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def chest(slices: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """HU (n, h, w) of a chest of cylinders that narrow upwards, and its lungs."""
    z, y, x = np.mgrid[:slices, :120, :160].astype(np.float32)
    narrow = 0.3 + 0.7 * np.sqrt(np.clip(1 - ((z - slices / 3) / slices) ** 2 * 1.5, 0.05, 1))
    hu = np.where(((x - 80) / 72) ** 2 + ((y - 60) / 50) ** 2 <= 1, 40, -1000).astype(np.float32)
    right = ((x - 46) / (26 * narrow)) ** 2 + ((y - 60) / (38 * narrow)) ** 2 <= 1
    left = ((x - 114) / (26 * narrow)) ** 2 + ((y - 60) / (38 * narrow)) ** 2 <= 1
    hu[right | left] = -850
    return hu, (right * RIGHT + left * LEFT).astype(np.uint8)


def volume(hu: np.ndarray) -> Volume:
    affine = np.array([[0, 0, 2.0, 0], [0, 2.0, 0, 0], [3.0, 0, 0, 0], [0, 0, 0, 1]])
    return Volume(Memory(hu), affine, Layout.of(affine))


def found(hu: np.ndarray) -> np.ndarray:
    return np.stack(list(find_lungs(volume(hu)).slices()))


def test_lungs_are_found_to_the_voxel_and_told_apart() -> None:
    hu, lungs = chest()
    labels = found(hu)
    assert dice(labels == RIGHT, lungs == RIGHT) > 0.99
    assert dice(labels == LEFT, lungs == LEFT) > 0.99
    assert not ((labels == RIGHT) & (lungs == LEFT)).any()


def test_lungs_that_touch_are_parted() -> None:
    hu, lungs = chest()
    hu[5:25, 58:61, 60:100] = -850
    labels = found(hu)
    right, left = lungs == RIGHT, lungs == LEFT
    assert np.count_nonzero(labels[right] == RIGHT) > 0.98 * np.count_nonzero(right)
    assert np.count_nonzero(labels[left] == LEFT) > 0.98 * np.count_nonzero(left)


def test_dense_lung_that_air_encloses_is_lung_and_air_outside_of_the_body_is_not() -> None:
    hu, lungs = chest()
    z, y, x = np.mgrid[: len(hu), :120, :160]
    hu[((x - 46) / 14) ** 2 + ((y - 60) / 20) ** 2 + ((z - 13) / 6) ** 2 <= 1] = 30
    # Air between the body and the table.
    hu[:, 114:, 20:140] = 200
    labels = found(hu)
    assert labels[13, 60, 46] == RIGHT
    assert dice(labels == RIGHT, lungs == RIGHT) > 0.98
    assert not labels[:, 112:].any()


def test_a_dome_of_the_diaphragm_is_no_lung() -> None:
    hu, lungs = chest()
    z, y, x = np.mgrid[: len(hu), :120, :160]
    dome = ((x - 46) / 20) ** 2 + ((y - 60) / 28) ** 2 + (z / 12) ** 2 <= 1
    hu[dome] = 60
    labels = found(hu)
    assert np.count_nonzero(labels[dome]) < 0.1 * np.count_nonzero(dome)
    assert dice(labels == RIGHT, (lungs == RIGHT) & ~dome) > 0.95


def test_where_there_is_no_air_in_a_body_there_are_no_lungs() -> None:
    assert not found(np.full((5, 60, 70), 40, np.float32)).any()
    assert not found(np.full((5, 60, 70), -1000, np.float32)).any()
    assert not lungs_of_grey(np.zeros((64, 64), np.uint8)).any()


def test_one_slice_is_enough() -> None:
    hu, lungs = chest()
    labels = found(hu[10:11])
    assert dice(labels[0] == LEFT, lungs[10] == LEFT) > 0.99


def test_a_volume_without_spacing_has_lungs() -> None:
    hu, lungs = chest()
    labels = np.stack(list(find_lungs(Volume(Memory(hu), None, Layout())).slices()))
    assert dice(labels > 0, lungs > 0) > 0.99


def test_a_capture_has_no_values_to_find_lungs_by() -> None:
    dataset = dicom_slice(np.zeros((64, 64), np.int16), RescaleType="OD")
    with pytest.raises(UnsupportedScan, match="expected Hounsfield units"):
        find_lungs(open_volume(file_of(dataset)))


def test_the_grey_variant_refuses_what_is_no_slice() -> None:
    with pytest.raises(GeometryError, match=r"expected pixels of uint8\[h, w\], got float64\[2, 64\]"):
        lungs_of_grey(np.zeros((2, 64)))


@pytest.mark.parametrize("seed", range(8))
def test_a_drawn_slice_has_a_right_and_a_left_lung(seed: int) -> None:
    drawn = ct_slice(seed, 256, consolidation=False, pleural_effusion=False)
    labels = lungs_of_grey(drawn.pixels)
    for side, columns in ((RIGHT, slice(0, 128)), (LEFT, slice(128, 256))):
        assert np.count_nonzero(labels == side) > 3000
        assert np.count_nonzero(labels[:, columns] == side) > 0.9 * np.count_nonzero(labels == side)


INFECTION = DATA / "ct_infection_binary"


@pytest.mark.skipif(not INFECTION.is_dir(), reason="needs ct_infection_binary under LUNGSTREAMS_DATA")
def test_lungs_of_grey_slices_agree_with_those_that_people_drew() -> None:
    scores: dict[str, list[float]] = {}
    with (INFECTION / "manifest.csv").open() as file:
        rows = list(csv.DictReader(file))
    # A fifth of them, of each volume; all 326 give a mean Dice of 0.912 (lowest volume 0.874), median 0.931.
    for row in rows[::5]:
        pixels, drawn = (
            cv2.imread(str(INFECTION / row[name]), cv2.IMREAD_GRAYSCALE) for name in ("image", "lung_mask")
        )
        scores.setdefault(row["volume_group"], []).append(dice(lungs_of_grey(pixels) > 0, drawn > 0))
    every = [score for of_volume in scores.values() for score in of_volume]
    assert np.mean(every) > 0.88
    assert np.median(every) > 0.90
    assert min(np.mean(of_volume) for of_volume in scores.values()) > 0.75


THORAX = DATA / "volumes" / "LUNG1-016_ct.nii.gz"


@pytest.mark.skipif(not THORAX.is_file(), reason="needs the thorax CT under LUNGSTREAMS_DATA")
def test_the_lungs_of_a_real_thorax_have_the_size_of_lungs() -> None:
    thorax = open_volume(THORAX)
    lungs = find_lungs(thorax)
    ml = thorax.voxel_ml(0)
    assert ml is not None
    labels = np.stack(list(lungs.slices()))
    for side in (RIGHT, LEFT):
        assert 1000 < np.count_nonzero(labels == side) * ml.item() < 3500
    columns = [np.nonzero(labels == side)[2].mean() for side in (RIGHT, LEFT)]
    assert columns[0] < 128 < columns[1]


def test_the_body_is_what_encloses_the_lungs_and_not_the_table() -> None:
    pixels = np.full((200, 256), 20, np.uint8)
    rows, columns = np.mgrid[:200, :256]
    body = ((rows - 90) / 70) ** 2 + ((columns - 128) / 100) ** 2 <= 1
    pixels[body] = 230
    pixels[((rows - 90) / 40) ** 2 + ((columns - 85) / 25) ** 2 <= 1] = 40
    pixels[180:184, 40:216] = 200
    found = body_of(pixels)
    assert (found ^ body).sum() <= 0.01 * body.sum()
    assert not found[175:].any()
    assert not body_of(np.zeros((64, 64), np.uint8)).any()
    with pytest.raises(GeometryError, match="expected pixels of uint8"):
        body_of(pixels.astype(np.float32))  # type: ignore[arg-type]
