from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from demo import caution
from serving.labels import MODALITIES, Modality
from tests.demo.study_reports import reading
from tests.demo.study_reports import report_of as study_of
from tests.demo.test_app import report_of

RESULTS = json.loads((Path(__file__).parents[2] / "docs" / "results.json").read_text("utf-8"))


def test_a_plausible_scan_has_nothing_above_its_diagnosis() -> None:
    assert caution.doubts(report_of()) == ""


def test_doubts_alert_say_why_and_what_follows() -> None:
    html = caution.doubts(replace(report_of(), doubts=("No lung is seen.", "1 < 2.")))
    assert 'role="alert"' in html
    assert "This may not be a chest scan" in html
    assert "<p>No lung is seen.</p><p>1 &lt; 2.</p>" in html
    assert html.index("1 &lt; 2.") < html.index("What follows is not to be trusted")


def test_a_slice_explains_gates_and_an_xray_has_none() -> None:
    of_slice, of_xray = caution.meaning(report_of()), caution.meaning(report_of("xray"))
    assert "It does not mean that nothing is there." in of_slice
    assert "Threshold" not in of_xray
    assert "Not run" not in of_xray
    for html in (of_slice, of_xray):
        assert "<summary>What do these numbers mean?</summary>" in html
        assert "tell hospitals and ages apart" in html


def test_a_study_has_its_own_doubts_and_its_own_meaning() -> None:
    study = study_of([reading(0, 0.5)])
    assert caution.doubts(study) == ""
    assert "<p>No lung was found.</p>" in caution.doubts(replace(study, doubts=("No lung was found.",)))
    html = caution.meaning(study)
    for said in ("mean over the slices with enough lung", "highest of any slice", "the tick on a bar", "Burden"):
        assert said in html
    # A slice's area is no part of a study's result, and a mean of slices is no chance.
    assert "<dt>Area</dt>" not in html
    assert "about 70 in 100 should be" not in html
    measured = RESULTS["recognition"]["ct"]["four_classes"]
    assert f"is {round(100 * measured['ece'])} points off" in html
    assert f"right in {round(100 * measured['accuracy'])} of 100" in html


@pytest.mark.parametrize("modality", MODALITIES)
def test_its_figures_are_those_that_were_measured(modality: Modality) -> None:
    measured = RESULTS["recognition"][modality]
    assert round(100 * measured["four_classes"]["accuracy"]) == caution.ACCURACY[modality]
    assert round(100 * measured["four_classes"]["ece"]) == caution.CALIBRATION_ERROR[modality]
    assert round(100 * measured["four_classes"]["majority_class_accuracy"]) == caution.COMMONEST_ANSWER[modality]
    assert f"{caution.CALIBRATION_ERROR[modality]} points off" in caution.meaning(report_of(modality))


def test_the_worst_manifestation_is_the_one_that_is_named() -> None:
    errors = [one["ece"] for one in RESULTS["manifestations"].values() if "ece" in one]
    assert len(errors) == 3
    assert round(100 * max(errors)) == caution.WORST_MANIFESTATION_CALIBRATION_ERROR
