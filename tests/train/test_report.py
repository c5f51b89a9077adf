from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from serving.labels import MANIFESTATION_NAMES
from serving.repository import DEFAULT_REPOSITORY
from train.evaluate import published
from train.experiments import EXPERIMENTS
from train.paper import INF_NET_TEST_SLICES, TABLE_4, TABLE_4_MEAN, TABLE_6, TABLE_7, TABLE_8
from train.provenance import FILE_NAME, Provenance
from train.report import read_others, results_markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _committed() -> tuple[dict[str, dict[str, Any]], dict[str, Provenance]]:
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    provenances = {
        model: Provenance.from_json((folder / FILE_NAME).read_text(encoding="utf-8"))
        for model, folder in published(DEFAULT_REPOSITORY).items()
    }
    return results, provenances


def test_the_results_page_is_that_of_its_json_and_of_what_is_published() -> None:
    assert (DOCS / "results.md").read_text(encoding="utf-8") == results_markdown(*_committed(), read_others(DOCS))


def _section(page: str, title: str) -> str:
    return next(part for part in re.split("^#+ ", page, flags=re.MULTILINE) if part.startswith(title))


def test_the_papers_figures_of_task_1_stand_beside_ours() -> None:
    ours = {"accuracy": 0.8, "sensitivity": 0.7, "f1": 0.75, "mcc": 0.5, "train_accuracy": 0.95}
    figures = {"copies": 2, "paper": {**ours, "accuracy": 0.9}, "patients": ours}
    page = results_markdown(*_committed(), {"paper_task1": {"task1_4_xray": figures}})
    table_2 = _section(page, "Table 2")
    assert "| 4 classes, X-ray | paper | 0.986 | 0.977 | 0.981 | 0.077 | 0.094 |" in table_2
    assert "| 4 classes, X-ray | ours, paper's protocol | 0.950 | n/a | 0.900 | n/a | n/a |" in table_2
    assert "| 2 classes, X-ray | ours, patient-level | n/a | n/a | n/a | n/a | n/a |" in table_2
    table_3 = _section(page, "Table 3")
    assert "| 4 classes, X-ray | paper | 0.981 | 0.980 | 0.980 | 0.982 | 0.982 | n/a | 0.020 |" in table_3
    line = (
        "| 4 classes, X-ray | ours, patient-level, paper's recipe | 0.800 | 0.700 | n/a | n/a | 0.750 | 0.500 | n/a |"
    )
    assert line in table_3
    without = results_markdown(*_committed())
    assert "| 4 classes, X-ray | ours, patient-level, paper's recipe | n/a |" in without
    assert "was not run" in without


def test_runs_are_listed_one_by_one_also_of_reports_that_kept_only_their_accuracies() -> None:
    old = {"accuracy": 0.85, "accuracy_of_runs": [0.8, 0.9]}
    new = {"accuracy": 0.7, "mcc": 0.4, "accuracy_of_runs": [0.7], "runs": [{"accuracy": 0.7, "mcc": 0.4}]}
    figures = {"copies": 2, "paper": old, "patients": new}
    table_4 = _section(results_markdown(*_committed(), {"paper_task1": {"task1_2_both": figures}}), "Table 4")
    assert "| 5 | paper | 0.991 | 0.994 | 0.989 | 0.988 | 0.991 | 0.982 | 0.012 |" in table_4
    assert "| 2 | ours, paper's protocol | 0.900 | n/a |" in table_4
    assert "| mean | ours, paper's protocol | 0.850 | n/a |" in table_4
    assert "| 1 | ours, patient-level | 0.700 | n/a | n/a | n/a | n/a | 0.400 | n/a |" in table_4


def test_every_table_of_the_paper_has_ours_beside_it() -> None:
    results, provenances = _committed()
    page = results_markdown(results, provenances)
    for number in range(2, 11):
        assert "ours" in _section(page, f"Table {number}:")
    assert "| paper | 0.860 | 0.902 | 0.915 | 0.913 | 0.910 |" in _section(page, "Table 6")
    inf_net = _section(page, "Table 7")
    assert "Semi-Inf-Net and FCN8s (Fan et al. 2020) | 0.646 | 0.477" in inf_net
    here = results["segment_ground_glass"]["ground_glass"]["slices_by_source"]["medseg100"]
    assert f"on {INF_NET_TEST_SLICES} slices" in inf_net
    assert f"ground-glass opacity: {here} " in inf_net
    assert "5.33 s" in _section(page, "Table 9")
    assert "(loadtest.md)" in _section(page, "Table 9")
    hyper = _section(page, "Table 10")
    assert "| Task 3 | paper | 50,000 steps | 0.0001 | SGD | 0.9 | - | 4e-05 | 8 |" in hyper
    for provenance in provenances.values():
        run = EXPERIMENTS[provenance.experiment]
        assert f"| {run.name} | {run.epochs} epochs of {run.steps_per_epoch} steps | {run.learning_rate:g} |" in hyper


def test_the_papers_own_tables_agree_with_themselves() -> None:
    for name in TABLE_4_MEAN:
        mean = sum(run[name] for run in TABLE_4) / len(TABLE_4)
        assert mean == pytest.approx(TABLE_4_MEAN[name], abs=1e-3)
    streams = [TABLE_6[name]["dice"] for name in MANIFESTATION_NAMES]
    assert sum(streams) / 3 == pytest.approx(TABLE_6["specialised"]["dice"], abs=1e-4)
    for name in ("ground_glass", "consolidation"):
        assert TABLE_7[name]["the paper"] == pytest.approx(dict(TABLE_6[name]))
    assert dict(TABLE_8["the paper"]) == dict(TABLE_6["all_class"])
