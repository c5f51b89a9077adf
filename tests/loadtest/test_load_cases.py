from __future__ import annotations

from collections import Counter

import pytest

from loadtest.cases import ALL_OPEN, CASES, PAPER_CASE_S, SCANS_PER_CASE, LoadCase, schedule, select
from serving.errors import RequestError
from serving.pipeline import THRESHOLDS
from serving.scans import decode


def test_each_case_is_held_to_the_papers_time() -> None:
    assert {case.p95_budget_s for case in CASES.values()} == {PAPER_CASE_S} == {5.33}


def test_the_open_case_opens_every_gate_and_the_gated_one_keeps_the_defaults() -> None:
    assert set(CASES["ct_open"].thresholds.values()) == {0.0}
    assert CASES["ct_gated"].thresholds == THRESHOLDS


@pytest.mark.parametrize("name", CASES)
def test_scans_of_a_case_are_distinct_and_of_its_modality(name: str) -> None:
    case = CASES[name]
    scans = case.scans()
    assert len(set(scans)) == SCANS_PER_CASE
    assert all(decode(scan, "auto").modality == case.modality for scan in scans)


def test_a_round_asks_each_case_as_often_as_it_weighs() -> None:
    cases = select()
    round_of_names = Counter(case.name for case in schedule(cases))
    assert round_of_names == {case.name: case.weight for case in cases}


def test_a_round_spreads_a_heavy_case_between_the_others() -> None:
    names = [case.name for case in schedule(select())]
    assert names.index("ct_gated") == 0
    assert names[1] != "ct_gated"


def test_selection_keeps_the_order_and_replaces_the_budget() -> None:
    chosen = select(["ct_open", "xray"], budget_s=1.5)
    assert [(case.name, case.p95_budget_s) for case in chosen] == [("xray", 1.5), ("ct_open", 1.5)]


def test_an_unknown_case_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RequestError, match=r"expected cases out of xray, ct_gated, ct_open, got mri"):
        select(["xray", "mri"])


@pytest.mark.parametrize("budget_s", [0.0, -1.0, float("nan")])
def test_a_budget_that_nothing_can_meet_is_refused(budget_s: float) -> None:
    with pytest.raises(RequestError, match="budget above 0 s"):
        select(budget_s=budget_s)


def test_a_case_without_all_thresholds_is_refused() -> None:
    with pytest.raises(RequestError, match="expected thresholds"):
        LoadCase("half", "Half", "ct", {"covid19": 0.0}, weight=1)


def test_a_case_that_never_comes_is_refused() -> None:
    with pytest.raises(RequestError, match="weight of 1 or more"):
        LoadCase("never", "Never", "ct", ALL_OPEN, weight=0)
