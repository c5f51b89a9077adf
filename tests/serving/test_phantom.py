"""The drawings: the same for the same seed, with what was asked for where the mask says it is."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from PIL import Image

from serving.dicom_pixels import lung_window
from serving.labels import BACKGROUND_CLASS, MANIFESTATION_NAMES
from serving.phantom import chest_xray, ct_slice, dicom_bytes, png_bytes

NONE = dict.fromkeys(MANIFESTATION_NAMES, False)


def grey_of(hu: float) -> int:
    return int(lung_window(np.full((1, 1), hu))[0, 0])


@pytest.mark.parametrize("size_px", [64, 200, 512])
def test_the_same_seed_draws_the_same(size_px: int) -> None:
    first, second = ct_slice(5, size_px), ct_slice(5, size_px)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_array_equal(chest_xray(5, size_px), chest_xray(5, size_px))
    assert first.pixels.shape == first.mask.shape == chest_xray(5, size_px).shape == (size_px, size_px)
    assert first.pixels.dtype == first.mask.dtype == chest_xray(5, size_px).dtype == np.uint8


def test_another_seed_draws_another() -> None:
    assert np.abs(ct_slice(1).pixels.astype(int) - ct_slice(2).pixels).mean() > 5
    assert np.abs(chest_xray(1).astype(int) - chest_xray(2)).mean() > 2


@pytest.mark.parametrize("seed", range(12))
def test_every_lesion_is_there(seed: int) -> None:
    mask = ct_slice(seed, 256).mask
    for class_id in range(1, len(MANIFESTATION_NAMES) + 1):
        assert 30 < np.count_nonzero(mask == class_id) < 0.15 * mask.size


@pytest.mark.parametrize("name", MANIFESTATION_NAMES)
def test_a_lesion_is_drawn_only_if_asked_for(name: str) -> None:
    alone = ct_slice(3, 256, **{**NONE, name: True})
    class_id = MANIFESTATION_NAMES.index(name) + 1
    assert set(np.unique(alone.mask)) == {BACKGROUND_CLASS, class_id}
    healthy = ct_slice(3, 256, **NONE)
    assert not healthy.mask.any()
    inside = alone.mask == class_id
    assert alone.pixels[inside].mean() > healthy.pixels[inside].mean() + 20
    # Nothing else moves: the noise of the scanner and the edge of the lesion alone.
    far = np.ones_like(inside)
    rows, columns = np.nonzero(inside)
    far[max(rows.min() - 12, 0) : rows.max() + 12, max(columns.min() - 12, 0) : columns.max() + 12] = False
    if name != "ground_glass":
        assert np.abs(alone.pixels[far].astype(int) - healthy.pixels[far]).max() <= 1


def test_densities_are_those_of_the_lung_window() -> None:
    phantom = ct_slice(0)
    assert phantom.pixels[0, 0] == 0
    mean = {i: phantom.pixels[phantom.mask == i].mean() for i in range(1, 4)}
    assert grey_of(-850) < mean[1] < grey_of(-250) < mean[2] <= 255
    assert abs(mean[3] - grey_of(10)) < 25


def test_an_effusion_lies_at_the_back() -> None:
    rows, _ = np.nonzero(ct_slice(0).mask == 3)
    assert rows.mean() > 512 * 0.55


def test_lungs_are_darker_than_the_heart_in_an_xray() -> None:
    pixels = chest_xray(0)
    lung, heart, spine = (
        pixels[200:300, 110:170].mean(),
        pixels[300:340, 270:310].mean(),
        pixels[200:400, 246:266].mean(),
    )
    assert lung + 25 < heart < spine + 40
    assert pixels[480:, 4:20].mean() < 30


def test_files_hold_the_pixels() -> None:
    pixels = ct_slice(0, 128).pixels
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png_bytes(pixels)))), pixels)
    assert dicom_bytes(pixels) == dicom_bytes(pixels)


@pytest.mark.parametrize("shape", [(128, 128), (63, 65)])
@pytest.mark.parametrize("modality", ["ct", "xray"])
def test_dicom_files_are_valid_and_name_nobody(modality: str, shape: tuple[int, int]) -> None:
    # Warnings are errors here; pydicom warns of what breaks the standard.
    pixels = ct_slice(0, 128).pixels[: shape[0], : shape[1]]
    dataset = pydicom.dcmread(io.BytesIO(dicom_bytes(pixels, modality, "MONOCHROME1", (0.6, 0.7))))
    assert dataset.pixel_array.shape == pixels.shape
    assert dataset.PixelSpacing == [0.6, 0.7]
    assert dataset.PhotometricInterpretation == "MONOCHROME1"
    assert not dataset.PatientName
    for element in dataset:
        assert element.value is not None
