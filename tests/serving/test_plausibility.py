"""Chest scans pass, drawn and real; everything else is flagged, and in the words that fit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pydicom.data
import pytest
from jaxtyping import UInt8

from serving import phantom, plausibility
from serving.client import PipelineClient
from serving.errors import RepositoryError
from serving.labels import MODALITIES, Modality
from serving.phantom import chest_xray, ct_slice
from serving.plausibility import examine, published
from serving.plausibility_features import FEATURES, features
from serving.scans import Scan, decode
from serving.tritonserver import TritonServer
from tests.real_data import DATA

Picture = UInt8[np.ndarray, "h w"]

CHANGES = {
    "as it is": lambda pixels: pixels,
    "small": lambda pixels: cv2.resize(pixels, (128, 128), interpolation=cv2.INTER_AREA),
    "large": lambda pixels: cv2.resize(pixels, (1500, 1500)),
    "wide": lambda pixels: cv2.resize(pixels, (640, 512)),
    "cropped": lambda pixels: pixels[30:-30, 25:-25],
    "turned a little": lambda pixels: cv2.warpAffine(pixels, cv2.getRotationMatrix2D((256, 256), 7, 1), (512, 512)),
    "framed": lambda pixels: np.pad(pixels, 60),
    "dark": lambda pixels: pixels // 2,
}
RNG = np.random.default_rng(0)
NO_SCANS: dict[str, Picture] = {
    "black": np.zeros((256, 256), np.uint8),
    "grey": np.full((64, 400), 127, np.uint8),
    "noise": RNG.integers(0, 256, (256, 256), dtype=np.uint8),
    "smooth noise": cv2.GaussianBlur(RNG.integers(0, 256, (256, 256), dtype=np.uint8), (0, 0), 9) // 2 + 60,
    "a ramp": np.tile(np.arange(256, dtype=np.uint8), (200, 1)),
    "stripes": np.tile(np.uint8([0] * 8 + [255] * 8), (256, 16)),
    "a chessboard": np.kron(np.indices((8, 8)).sum(axis=0) % 2, np.ones((32, 32))).astype(np.uint8) * 255,
    "a disc": cv2.circle(np.zeros((256, 256), np.uint8), (128, 128), 80, 200, -1),
    "text": cv2.putText(np.full((256, 400), 255, np.uint8), "no patient", (20, 140), 0, 2, 0, 3),
}


def scan(pixels: Picture, modality: Modality) -> Scan:
    return Scan(np.ascontiguousarray(pixels), modality, "png")


def kinds(pixels: Picture, modality: Modality) -> list[str]:
    return [doubt.kind for doubt in examine(scan(pixels, modality)).doubts]


@pytest.mark.parametrize("change", CHANGES)
def test_phantoms_are_plausible_however_they_are_shown(change: str) -> None:
    for seed in range(20, 26):
        assert kinds(CHANGES[change](ct_slice(seed).pixels), "ct") == []
        assert kinds(CHANGES[change](chest_xray(seed)), "xray") == []


def test_healthy_slices_are_plausible_too() -> None:
    for seed in range(6):
        healthy = ct_slice(seed, ground_glass=False, consolidation=False, pleural_effusion=False)
        assert kinds(healthy.pixels, "ct") == []


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("what", NO_SCANS)
def test_what_is_no_scan_is_flagged(what: str, modality: Modality) -> None:
    verdict = examine(scan(NO_SCANS[what], modality))
    assert not verdict.is_plausible
    assert verdict.margin < 0
    assert verdict.words == tuple(doubt.words for doubt in verdict.doubts)


def test_the_other_modality_is_named() -> None:
    for seed in range(4):
        (said,) = examine(scan(chest_xray(seed), "ct")).doubts
        assert (said.kind, said.words) == (
            "other_modality",
            "This looks like a chest X-ray, but was read as a CT slice.",
        )
        (said,) = examine(scan(ct_slice(seed).pixels, "xray")).doubts
        assert (said.kind, said.words) == (
            "other_modality",
            "This looks like a chest CT slice, but was read as an X-ray.",
        )


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (lambda pixels: np.rot90(pixels, -1), "turned by 90 degrees clockwise"),
        (lambda pixels: np.rot90(pixels), "turned by 90 degrees anticlockwise"),
        (lambda pixels: 255 - pixels, "inverted, with air bright and bone dark"),
    ],
)
def test_an_xray_says_how_it_is_turned(turn: object, words: str) -> None:
    for seed in range(4):
        (said,) = examine(scan(turn(chest_xray(seed)), "xray")).doubts  # type: ignore[operator]
        assert (said.kind, said.words) == ("turned", f"This looks like a chest X-ray that is {words}.")


def test_a_turned_xray_that_was_taken_for_a_slice_is_still_one() -> None:
    (said,) = examine(scan(np.rot90(chest_xray(2), -1), "ct")).doubts
    assert said.words == (
        "This looks like a chest X-ray that is turned by 90 degrees clockwise, and was read as a CT slice."
    )


def test_real_pictures_of_other_parts_of_the_body_are_flagged() -> None:
    folder = Path(pydicom.data.__file__).parent / "test_files"
    head = decode((folder / "693_J2KI.dcm").read_bytes())
    assert head.modality == "ct"
    assert examine(head).doubts[0].kind in ("not_chest", "no_lung")
    # An ultrasound, as somebody might save it.
    (frame, *_) = np.atleast_3d(pydicom.dcmread(folder / "examples_palette.dcm").pixel_array).T
    assert all(kinds(frame.T.astype(np.uint8), modality) for modality in MODALITIES)


@pytest.mark.skipif(not (DATA / "xray" / "manifest.csv").is_file(), reason=f"needs the real scans in {DATA}")
@pytest.mark.parametrize(("folder", "modality"), [("xray", "xray"), ("ct_classification", "ct")])
def test_real_chest_scans_are_plausible(folder: str, modality: Modality) -> None:
    with (DATA / folder / "manifest.csv").open(newline="") as stream:
        files = [row["file"] for row in csv.DictReader(stream)][::16]
    flagged = [not examine(decode((DATA / folder / file).read_bytes(), modality)).is_plausible for file in files]
    assert len(flagged) > 80
    assert np.mean(flagged) <= 0.03


def test_the_figures_are_beside_the_coefficients_and_in_the_docs() -> None:
    provenance = published().provenance
    assert provenance["false_alarms"]["share"] <= 0.01
    assert provenance["false_alarms"]["of"] > 700
    assert provenance["false_alarms_of_phantoms"]["flagged"] == 0
    docs = Path(plausibility.__file__).parents[1] / "docs" / "plausibility.json"
    assert json.loads(docs.read_text("utf-8")) == provenance
    assert plausibility.COEFFICIENTS.stat().st_size < 400_000


def test_the_same_scan_has_the_same_verdict_and_is_left_alone() -> None:
    one = scan(chest_xray(1, 300), "xray")
    before = one.pixels.copy()
    assert examine(one) == examine(one)
    np.testing.assert_array_equal(one.pixels, before)


def test_features_are_finite_and_do_not_see_an_even_frame() -> None:
    for pixels in (*NO_SCANS.values(), np.zeros((1, 9000), np.uint8)):
        values = features(pixels)
        assert values.shape == (FEATURES,)
        assert np.isfinite(values).all()
    plain = chest_xray(2, 256)[:200]
    np.testing.assert_allclose(features(np.pad(plain, ((28, 28), (0, 0)))), features(plain), atol=1e-4)


def test_coefficients_of_other_features_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "plausibility.npz", ct_mean=np.zeros(3, np.float32))
    for path, says in (
        (tmp_path / "plausibility.npz", r"expected coefficients at plausibility\.npz, got .*ct_scale"),
        (tmp_path / "absent.npz", r"expected coefficients at absent\.npz"),
    ):
        monkeypatch.setattr(plausibility, "COEFFICIENTS", path)
        published.cache_clear()
        with pytest.raises(RepositoryError, match=says):
            examine(scan(chest_xray(0, 64), "xray"))
    monkeypatch.undo()
    published.cache_clear()
    detector = published().detectors["ct"]
    with pytest.raises(RepositoryError, match="expected coefficients of shapes"):
        plausibility.ChestDetector(**{**vars(detector), "mean": detector.mean[:-1]})


@pytest.mark.triton
def test_the_client_says_the_doubts(toy_triton: TritonServer) -> None:
    with PipelineClient(toy_triton.grpc_url) as client:
        fine = client.predict(phantom.png_bytes(chest_xray(3, 300)))
        noise = client.predict(phantom.png_bytes(NO_SCANS["noise"]), "xray")
    assert fine.doubts == ()
    assert fine.to_json()["doubts"] == []
    assert noise.doubts == ("This does not look like a chest X-ray.",)
    assert noise.to_json()["doubts"] == list(noise.doubts)
    assert noise.diagnosis
