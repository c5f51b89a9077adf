"""Whoever is given a file of a doubtful case reads the doubt in it, whatever kind of file it is."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pydicom
import pypdfium2
import pytest

from serving.exports import Case, write
from tests.serving.export_cases import study_case
from tests.serving.test_exports_dicom import one_slice, volume_of

DOUBT = "This does not look like a chest."


def of_json(path: Path) -> list[str]:
    return list(json.loads(path.read_text("utf-8"))["doubts"])


def of_csv(path: Path) -> list[str]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [row["doubts"] for row in csv.DictReader(stream)]


def of_sr(path: Path) -> list[str]:
    comments = [item for item in pydicom.dcmread(path).ContentSequence if item.ValueType == "TEXT"]
    return [str(item.TextValue) for item in comments if item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"]


def of_pdf(path: Path) -> list[str]:
    """What stands above the diagnosis."""
    said = " ".join(pypdfium2.PdfDocument(path)[0].get_textpage().get_text_range().split())
    above, _, _ = said.partition("Diagnosis")
    return [f"{part.strip()}." for part in above.replace("Doubtful: ", ".").split(".")]


READ: dict[str, Callable[[Path], list[str]]] = {"json": of_json, "csv": of_csv, "sr": of_sr, "pdf": of_pdf}


@pytest.mark.parametrize("kind", READ)
@pytest.mark.parametrize("case", [one_slice(), study_case(volume_of("series"))], ids=["scan", "study"])
def test_a_doubtful_case_says_so_in_every_kind_of_file(case: Case, kind: str, tmp_path: Path) -> None:
    doubtful = replace(case, report=replace(case.report, doubts=(DOUBT,)))
    for name, one, times in (("doubtful", doubtful, 1), ("plausible", case, 0)):
        said = READ[kind](write(one, [kind], tmp_path, name)[kind][0])
        assert said.count(DOUBT) == times
