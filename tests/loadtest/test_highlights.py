from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from loadtest.highlights import highlights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads((ROOT / "docs/benchmarks.json").read_text(encoding="utf-8"))


def test_the_readme_and_the_report_say_what_was_measured(document: dict[str, Any]) -> None:
    for name in ("README.md", "docs/benchmarks.md"):
        text = " ".join((ROOT / name).read_text(encoding="utf-8").split())
        for sentence in highlights(document):
            assert sentence in text, name


def test_sentences_follow_the_measurement(document: dict[str, Any]) -> None:
    slower = copy.deepcopy(document)
    for part in ("full_width", "shipped"):
        for outcome in slower[part]["outcomes"]:
            outcome["samples_ms"] = [2 * ms for ms in outcome["samples_ms"]]
    slower["footprint"]["starts_s"] = [31.0]
    for case in slower["latency"]["cases"].values():
        case["raw_ms"] = [2 * ms for ms in case["raw_ms"]]
    slower["volumes"]["growth"] = [{**row, "ours_s": [99.0]} for row in slower["volumes"]["growth"]]
    for step in slower["load"]["servers"][0]["steps"]:
        step["p95_s"] = 6.0
    before, after = highlights(document), highlights(slower)
    assert len(before) == len(after) == 6
    for old, new in zip(before, after, strict=True):
        assert re.findall(r"[\d.,]+", old) != re.findall(r"[\d.,]+", new)


def test_a_part_that_did_not_run_has_no_sentence(document: dict[str, Any]) -> None:
    assert len(highlights({"footprint": document["footprint"]})) == 1
    assert highlights({}) == []
