from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.labels import MANIFESTATION_NAMES
from train import data, evaluate
from train.batches import Arrays
from train.data import Example
from train.experiments import Experiment
from train.failures import CASES
from train.report import read_others
from train.report_tta import augmented_section, weights_of
from train.targets import Code

_SIDE = 64
_DIAGNOSES = [(1.0, 0, 0, 0), (0, 1.0, 0, 0), (0, 0, 1.0, 0), (0, 0, 0, 1.0)]
_CODES = ((0, Code.ANNOTATED_BACKGROUND), (1, Code.GROUND_GLASS), (2, Code.CONSOLIDATION), (3, Code.PLEURAL_EFFUSION))


def _scans(n: int) -> np.ndarray:
    """Bright discs; the bright part says what a scan is."""
    y, x = np.mgrid[:_SIDE, :_SIDE]
    radii = np.linspace(6, 24, n)
    return np.stack([np.where((y - 30) ** 2 + (x - 33) ** 2 < r**2, 220, 30).astype(np.uint8) for r in radii])


def _split(task: str) -> Arrays:
    n = 16
    images = _scans(n)
    if task == "segmentation":
        codes = np.full(images.shape, Code.ANNOTATED_BACKGROUND, np.uint8)
        for i in range(n):
            codes[i][images[i] > 127] = (Code.GROUND_GLASS, Code.CONSOLIDATION, Code.PLEURAL_EFFUSION)[i % 3]
        examples = [Example(f"s{i}", "ct", f"g{i}", "medseg100", "test", mask="m", codes=_CODES) for i in range(n)]
        return Arrays(examples, images, codes)
    if task == "manifestations":
        targets = [(float(i % 2), float(i % 3 == 0), float(i % 4 == 0)) for i in range(n)]
        return Arrays([Example(f"m{i}", "ct", f"g{i}", "s", "test", t) for i, t in enumerate(targets)], images, None)
    kinds = ("xray", "ct")
    examples = [Example(f"r{i}", kinds[i // 8], f"g{i}", "s", "test", _DIAGNOSES[i % 4]) for i in range(n)]  # type: ignore[arg-type]
    return Arrays(examples, images, None)


def _fake(path: Path, model: str) -> Callable[[np.ndarray], np.ndarray]:
    def predict(images: np.ndarray) -> np.ndarray:
        bright = images[..., 0] > 127
        if model.startswith("segment"):
            # It sees the left side only: a moved copy shows it another part.
            return (bright & (np.arange(_SIDE) < _SIDE // 2)).astype(np.uint8)
        share = bright.mean(axis=(1, 2))[:, None]
        if model == "manifestations":
            return np.repeat(share, 3, axis=1)
        return np.concatenate([share, 1 - share, 0 * share, 0 * share], axis=1)

    return predict


@pytest.fixture
def _published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Everything that is published answers by a fake, on drawn scans; the working folder is empty."""
    monkeypatch.setattr(evaluate, "onnx_predictor", _fake)
    monkeypatch.setattr(evaluate, "clean_split", lambda arrays, split, root: (arrays, []))

    def load(experiment: Experiment, root: Path, cache: Path) -> Arrays:
        return _split(experiment.task)

    monkeypatch.setattr("train.fit.load", load)
    monkeypatch.setattr(data, "data_root", lambda folder: tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("_published")
def test_what_is_published_is_measured_drawn_and_written_down(tmp_path: Path) -> None:
    results = evaluate.main([], None, tmp_path / "docs" / "results.md")
    assert json.loads((tmp_path / "docs" / "results.json").read_text()) == results
    entry = results["streams_compared"]["classes"]["ground_glass"]
    # The all-class fake calls everything ground-glass, and so does its specialised twin.
    assert entry["difference"] == 0
    assert len(results["worst_cases"]["recognition"]) == CASES
    page = (tmp_path / "docs" / "results.md").read_text()
    assert "## Failures" in page
    assert "Test-time augmentation" not in page
    linked = sorted(path.name for path in (tmp_path / "docs" / "images" / "results").iterdir())
    drawn = sorted(path.name for path in (tmp_path / "reports" / "figures").iterdir())
    assert drawn == sorted(
        [*(name.replace(".svg", ".png") for name in linked), *(f"panels-{name}.png" for name in MANIFESTATION_NAMES)]
    )
    assert read_others(tmp_path / "docs") == {}


@pytest.mark.usefixtures("_published")
@pytest.mark.long
def test_means_over_copies_go_to_a_file_of_their_own_and_beside_the_others(tmp_path: Path) -> None:
    page = tmp_path / "docs" / "results.md"
    plain = evaluate.main([], None, page, figures=tmp_path / "figures", copies=2)
    report = json.loads((tmp_path / "docs" / "results_tta.json").read_text())
    assert report["copies"] == 2
    assert plain == json.loads((tmp_path / "docs" / "results.json").read_text())
    dice = [r["segment_ground_glass"]["ground_glass"]["dice"] for r in (plain, report["results"])]
    assert dice[0] != dice[1]
    line = f"| stream ground-glass opacity, ground-glass opacity: Dice | {dice[0]:.3f} | {dice[1]:.3f} |"
    assert line in page.read_text()
    assert "mean with 2 copies" in page.read_text()


def test_means_of_other_weights_are_not_shown() -> None:
    report = {"copies": 5, "weights": {"recognition": ["earlier", "2020-01-01", "v0"]}, "results": {}}
    assert "earlier weights" in augmented_section(report, {}, {})
    assert weights_of({}) == {}
