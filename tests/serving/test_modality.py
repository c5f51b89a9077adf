"""Telling CT slices from X-rays: right on drawings and on real scans, in any size, turned and cropped."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from jaxtyping import UInt8

from serving import modality
from serving.errors import RepositoryError
from serving.modality import FEATURES, classifier, features, guess_modality
from serving.phantom import chest_xray, ct_slice
from serving.scans import decode
from tests.real_data import DATA

CHANGES = {
    "as it is": lambda pixels: pixels,
    "small": lambda pixels: cv2.resize(pixels, (64, 64), interpolation=cv2.INTER_AREA),
    "large": lambda pixels: cv2.resize(pixels, (1500, 1500)),
    "wide": lambda pixels: cv2.resize(pixels, (640, 512)),
    "cropped": lambda pixels: pixels[30:-40, 25:-25],
    "turned": lambda pixels: cv2.warpAffine(pixels, cv2.getRotationMatrix2D((256, 256), 7, 1), (512, 512)),
    "framed": lambda pixels: np.pad(pixels, 40),
    "dark": lambda pixels: pixels // 2,
}


@pytest.mark.parametrize("change", CHANGES)
def test_phantoms_are_told_apart_however_they_are_shown(change: str) -> None:
    for seed in range(20, 26):
        assert guess_modality(np.ascontiguousarray(CHANGES[change](ct_slice(seed).pixels))) == "ct"
        assert guess_modality(np.ascontiguousarray(CHANGES[change](chest_xray(seed)))) == "xray"


def test_healthy_slices_are_slices_too() -> None:
    healthy = ct_slice(8, ground_glass=False, consolidation=False, pleural_effusion=False)
    assert guess_modality(healthy.pixels) == "ct"


@pytest.mark.skipif(not (DATA / "xray" / "manifest.csv").is_file(), reason=f"needs the real scans in {DATA}")
@pytest.mark.parametrize(("folder", "expected"), [("xray", "xray"), ("ct_classification", "ct")])
def test_real_scans_are_told_apart(folder: str, expected: str) -> None:
    with (DATA / folder / "manifest.csv").open(newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream)][::16]
    right = [decode((DATA / folder / file).read_bytes()).modality == expected for file in files]
    assert len(right) > 80
    assert np.mean(right) >= 0.99


def test_the_published_figures_are_beside_the_coefficients() -> None:
    provenance = classifier().provenance
    assert provenance["held_out"]["accuracy"] >= 0.995
    assert provenance["held_out_with_changed_copies"]["accuracy"] >= 0.99
    assert modality.COEFFICIENTS.stat().st_size < 16_000


def test_features_do_not_depend_on_contrast_and_leave_the_picture_alone() -> None:
    pixels: UInt8[np.ndarray, "h w"] = ct_slice(0, 256).pixels // 2
    before = pixels.copy()
    assert features(pixels).shape == (FEATURES,)
    np.testing.assert_allclose(features(pixels), features(pixels * 2), atol=0.03)
    np.testing.assert_array_equal(pixels, before)


def test_a_flat_picture_gets_an_answer() -> None:
    assert guess_modality(np.zeros((64, 64), np.uint8)) in ("ct", "xray")


def test_coefficients_of_other_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "modality.npz", weights=np.zeros(3, np.float32), bias=0.0, provenance="{}")
    for path, says in (
        (tmp_path / "modality.npz", f"expected {FEATURES} modality weights"),
        (tmp_path / "absent.npz", "expected modality coefficients at absent.npz"),
    ):
        monkeypatch.setattr(modality, "COEFFICIENTS", path)
        classifier.cache_clear()
        with pytest.raises(RepositoryError, match=says):
            guess_modality(np.zeros((64, 64), np.uint8))
    classifier.cache_clear()
