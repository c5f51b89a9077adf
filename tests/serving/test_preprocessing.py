"""What the networks see: held against golden files, and against what must hold for any scan."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from serving.errors import RequestError, ScanError, UnreadableScan
from serving.labels import MODALITIES, Modality
from serving.phantom import chest_xray, ct_slice, dicom_bytes, png_bytes
from serving.pipeline import MODEL_HW, NEVER, THRESHOLDS
from serving.preprocessing import prepare, preprocess, resize
from serving.scans import Scan, decode

GOLDEN = Path(__file__).parents[1] / "golden"
ASKED = [0.1, 0.2, 0.3, 0.4]

sides = st.integers(48, 700)


def noise(height: int, width: int, seed: int = 0) -> Scan:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    return Scan(pixels, "ct", "png")


@pytest.mark.parametrize("modality", MODALITIES)
def test_golden_phantoms_are_prepared_as_ever(modality: Modality) -> None:
    got = preprocess(decode((GOLDEN / f"{modality}_input.png").read_bytes(), modality))
    expected = np.asarray(Image.open(io.BytesIO((GOLDEN / f"{modality}_preprocessed.png").read_bytes())))
    for channel in range(3):
        assert np.abs(got[..., channel].astype(int) - expected).max() <= 1


@given(height=sides, width=sides, clahe=st.booleans())
@settings(max_examples=25, deadline=None)
def test_any_size_becomes_model_space_and_the_scan_stays_as_it_was(height: int, width: int, clahe: bool) -> None:
    scan = noise(height, width)
    before = scan.pixels.copy()
    image = preprocess(scan, clahe=clahe)
    assert image.shape == (*MODEL_HW, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image[..., 0], image[..., 1])
    np.testing.assert_array_equal(image[..., 0], image[..., 2])
    np.testing.assert_array_equal(scan.pixels, before)
    assert not np.shares_memory(image, scan.pixels)


def test_a_read_only_scan_is_enough() -> None:
    scan = noise(*MODEL_HW)
    scan.pixels.flags.writeable = False
    assert preprocess(scan).flags.writeable


def test_without_clahe_it_is_the_resized_scan() -> None:
    scan = noise(300, 700)
    np.testing.assert_array_equal(preprocess(scan, clahe=False)[..., 0], resize(scan.pixels, MODEL_HW))
    same = noise(*MODEL_HW)
    np.testing.assert_array_equal(preprocess(same, clahe=False)[..., 0], same.pixels)


def test_clahe_raises_the_contrast_of_a_flat_scan() -> None:
    flat = Scan(100 + ct_slice(1).pixels // 16, "ct", "png")
    assert preprocess(flat).std() > 1.5 * preprocess(flat, clahe=False).std()


@pytest.mark.parametrize("size_hw", [(1024, 1024), (256, 1024), (1024, 256), (256, 256)])
def test_both_axes_are_stretched_each_in_its_own_way(size_hw: tuple[int, int]) -> None:
    """Shrinking takes means: a fine pattern of black and white turns grey and does not alias."""
    height, width = size_hw
    columns = Scan(np.tile(np.array([0, 255], np.uint8), (height, width // 2)), "ct", "png")
    image = preprocess(columns, clahe=False)[..., 0]
    if width > MODEL_HW[1]:
        assert set(np.unique(image)) <= {127, 128}
    else:
        assert (image.min(), image.max()) == (0, 255)
    rows = Scan(np.tile(np.array([[0], [255]], np.uint8), (height // 2, width)), "ct", "png")
    image = preprocess(rows, clahe=False)[..., 0]
    assert (set(np.unique(image)) <= {127, 128}) == (height > MODEL_HW[0])


@given(height=sides, width=sides)
@settings(max_examples=15, deadline=None)
def test_stretching_keeps_places(height: int, width: int) -> None:
    pixels = np.zeros((height, width), np.uint8)
    pixels[: height // 2, width // 2 :] = 255
    image = resize(pixels, MODEL_HW)
    assert image[10, -10] == 255
    assert max(image[10, 10], image[-10, 10], image[-10, -10]) == 0
    assert abs(image.mean() - pixels.mean()) < 3


def test_threads_do_not_mix_their_images() -> None:
    scans = [noise(400, 400, seed) for seed in range(12)]
    alone = [preprocess(scan) for scan in scans]
    with ThreadPoolExecutor(4) as pool:
        for together, expected in zip(pool.map(preprocess, scans), alone, strict=True):
            np.testing.assert_array_equal(together, expected)


def test_a_ct_slice_passes_the_thresholds_on_as_gates() -> None:
    data = dicom_bytes(ct_slice(0, 128).pixels)
    image, gates = prepare(data, "auto", ASKED)
    assert gates.dtype == np.float32
    np.testing.assert_array_equal(gates, np.float32(ASKED))
    np.testing.assert_array_equal(image, preprocess(decode(data)))


@pytest.mark.parametrize("modality", ["auto", "xray"])
def test_an_xray_closes_every_gate_whatever_was_asked(modality: str) -> None:
    data = png_bytes(chest_xray(0))
    for thresholds in (ASKED, [0.0] * 4):
        assert prepare(data, modality, thresholds)[1].tolist() == [NEVER] * len(THRESHOLDS)


def test_gates_are_no_view_of_the_request() -> None:
    asked = np.float32(ASKED)
    _, gates = prepare(dicom_bytes(ct_slice(0, 128).pixels), "ct", asked)
    assert not np.shares_memory(gates, asked)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf"), NEVER])
def test_thresholds_that_are_no_probabilities_are_refused_by_name(value: float) -> None:
    with pytest.raises(RequestError, match=r"expected a threshold of consolidation in \[0, 1\], got "):
        prepare(dicom_bytes(ct_slice(0, 128).pixels), "ct", [0.5, 0.5, value, 0.5])


@pytest.mark.parametrize("thresholds", [[], [0.5] * 3, [0.5] * 5, [[0.5] * 4]])
def test_another_number_of_thresholds_is_refused(thresholds: list[float]) -> None:
    with pytest.raises(RequestError, match="expected 4 thresholds, got an array of shape"):
        prepare(dicom_bytes(ct_slice(0, 128).pixels), "ct", thresholds)


def test_bad_requests_are_told_from_bad_files() -> None:
    with pytest.raises(RequestError, match="expected a modality"):
        prepare(png_bytes(ct_slice(0, 128).pixels), "mri", ASKED)
    with pytest.raises(UnreadableScan) as refused:
        prepare(b"no image", "ct", ASKED)
    assert isinstance(refused.value, ScanError)
