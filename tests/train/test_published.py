"""What ``lungstreams evaluate`` writes about the published models, with the measuring itself replaced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.errors import DatasetError, ParityError
from serving.repository import DEFAULT_REPOSITORY
from train import evaluate, scoring, through_triton
from train.batches import Arrays
from train.data import Example
from train.evaluate import Answered, confounds_of
from train.experiments import EXPERIMENTS
from train.probes import PAIR

EXAMPLES = [
    Example(
        f"xray/{i}", "xray", f"g{i}", "s", "test" if i % 2 else "train", (1.0, 0, 0, 0) if i < 4 else (0, 1.0, 0, 0)
    )
    for i in range(8)
]
EXAMPLES.append(Example("ct/8", "ct", "g8", "s", "test", (1.0, 0, 0, 0)))


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Answered:
    """Right answers for the test scans but one, which looks like a training scan and is left out."""
    monkeypatch.setattr(scoring, "BOOTSTRAP_ROUNDS", 20)
    test = [e for e in EXAMPLES if e.split == "test"][1:]
    arrays = Arrays(test, np.zeros((len(test), 8, 8), np.uint8), None)
    return Answered(EXPERIMENTS["recognition_first"], arrays, np.array([e.target for e in test]), [])


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch, answered: Answered, tmp_path: Path) -> Path:
    recognition = evaluate.published(DEFAULT_REPOSITORY)["recognition"]
    monkeypatch.setattr(evaluate, "published", lambda _: {"recognition": recognition})
    monkeypatch.setattr(evaluate, "ask", lambda *_: answered)
    monkeypatch.setattr(evaluate, "results_of", lambda models: {name: m.figures() for name, m in models.items()})
    monkeypatch.setattr(evaluate, "draw_panels", lambda *_: None)
    monkeypatch.setattr(evaluate, "results_markdown", lambda _, __, others: json.dumps(others))
    monkeypatch.setattr(evaluate, "confounds_of", lambda *_: {"told": 0.5})
    return tmp_path / "docs"


def _compared(*, agrees: bool) -> Any:
    entry = {"max_probability_difference": 0.5, "differing_figures": {"a/b": [1, 2]}, "agrees": agrees}
    return lambda *_: {"recognition": entry}


def test_further_tests_are_made_when_asked_for(docs: Path, tmp_path: Path) -> None:
    figures = evaluate.main([], tmp_path, docs / "results.md", figures=tmp_path / "figures")
    assert json.loads((docs / "results.json").read_text()) == figures
    assert figures["recognition"]["xray"]["four_classes"]["accuracy"] == 1
    assert json.loads((docs / "results.md").read_text()) == {}
    evaluate.main([], tmp_path, docs / "results.md", figures=tmp_path / "figures", confounds=True)
    assert json.loads((docs / "results.md").read_text()) == {"confounds": {"told": 0.5}}
    # A page that is written anew keeps what was measured before.
    evaluate.main([], tmp_path, docs / "results.md", figures=tmp_path / "figures")
    assert json.loads((docs / "results.md").read_text()) == {"confounds": {"told": 0.5}}


def test_a_triton_that_disagrees_fails_after_everything_is_written(
    docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(through_triton, "compare", _compared(agrees=True))
    evaluate.main([], tmp_path, docs / "results.md", figures=tmp_path / "figures", triton=True)
    monkeypatch.setattr(through_triton, "compare", _compared(agrees=False))
    with pytest.raises(ParityError, match="a/b 1 and 2"):
        evaluate.main([], tmp_path, docs / "results.md", figures=tmp_path / "figures", triton=True)
    assert not json.loads((docs / "triton_parity.json").read_text())["recognition"]["agrees"]
    assert "triton_parity" in json.loads((docs / "results.md").read_text())
    assert (docs / "leaks.md").is_file()


def test_runs_are_not_asked_about_what_is_published(tmp_path: Path) -> None:
    for further in ({"confounds": True}, {"triton": True}):
        with pytest.raises(DatasetError, match="what is published"):
            evaluate.main([tmp_path], tmp_path, **further)


def test_the_confound_tests_get_the_test_scans_that_count(
    answered: Answered, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "xray").mkdir()
    rows = "".join(f"{e.path.removeprefix('xray/')},adult\n" for e in EXAMPLES)
    (tmp_path / "xray" / "manifest.csv").write_text("file,population\n" + rows, encoding="utf-8")
    monkeypatch.setattr(
        evaluate.fit, "load", lambda *_: Arrays(EXAMPLES, np.zeros((len(EXAMPLES), 8, 8), np.uint8), None)
    )
    monkeypatch.setattr(evaluate, "measure_confounds", lambda evidence, *_: {"evidence": evidence})
    evidence = confounds_of(answered, tmp_path)["evidence"]
    assert [e.name for e in evidence.tested] == ["xray/3", "xray/5", "xray/7", "ct/8"]
    assert [PAIR.truth(e) for e in evidence.tested[:3]] == evidence.answers[:3].argmax(axis=1).tolist()
    assert evidence.populations["xray/0"] == "adult"
