"""Figures about the maps of what ships, on a few real scans."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.pipeline import RECOGNITION
from serving.repository import DEFAULT_REPOSITORY, versions
from tests.real_data import DATA
from train.explanations import main


@pytest.mark.skipif(not (DATA / "xray").is_dir(), reason="needs ../shared/data")
def test_shuffled_weights_and_the_place_of_the_evidence_are_measured(tmp_path: Path) -> None:
    figures = main(DATA, out=tmp_path / "explanations.json", n_scans=3, depths=(0, 1), seeds=(0,))
    assert json.loads((tmp_path / "explanations.json").read_text(encoding="utf-8")) == figures
    assert figures["recognition_version"] == versions(DEFAULT_REPOSITORY / RECOGNITION.model)[-1]
    same, other = figures["shuffled_weights"]["spearman_by_layers_from_the_top"].values()
    assert same == {"mean": 1, "mean_abs": 1, "constant_maps": 0}
    assert other["mean_abs"] < 0.6
    frame = figures["xray"]["by_answer"]["any"]
    assert frame["area_share"] == pytest.approx(1 - 0.75**2)
    for modality in ("ct", "xray"):
        found = figures[modality]["by_answer"]["any"]
        assert 0 < found["n"] <= 3
        assert 0 < found["evidence_share"] < 1
