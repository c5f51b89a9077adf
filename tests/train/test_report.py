from __future__ import annotations

import json
from pathlib import Path

from serving.repository import DEFAULT_REPOSITORY
from train.evaluate import published, read_others
from train.provenance import FILE_NAME, Provenance
from train.report import results_markdown

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _committed() -> tuple[dict[str, dict[str, object]], dict[str, Provenance]]:
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    provenances = {
        model: Provenance.from_json((folder / FILE_NAME).read_text(encoding="utf-8"))
        for model, folder in published(DEFAULT_REPOSITORY).items()
    }
    return results, provenances


def test_the_results_page_is_that_of_its_json_and_of_what_is_published() -> None:
    expected = results_markdown(*_committed(), **read_others(DOCS))
    assert (DOCS / "results.md").read_text(encoding="utf-8") == expected


def test_the_papers_figures_stand_beside_ours() -> None:
    ours = {"accuracy": 0.8, "sensitivity": 0.7, "f1": 0.75, "mcc": 0.5}
    figures = {"paper_reports": {"accuracy": 0.981}, "copies": 2, "paper": {**ours, "accuracy": 0.9}, "patients": ours}
    page = results_markdown(*_committed(), {"task1_4_xray": figures})
    assert "| task1_4_xray | accuracy | 0.981 | 0.900 | 0.800 |" in page
    assert "| task1_4_xray | MCC | n/a | 0.500 | 0.500 |" in page
    assert "The paper's Task 1" not in results_markdown(*_committed())
