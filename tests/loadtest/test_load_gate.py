from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.cases import CASES, LoadCase, select
from loadtest.gate import Samples, judge, judge_case, percentile, too_many_failures

XRAY = CASES["xray"]
BUDGET_MS = XRAY.p95_budget_s * 1000


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.floats(0.001, 1))
def test_percentile_is_the_smallest_sample_that_the_share_does_not_exceed(samples: list[float], q: float) -> None:
    value = percentile(samples, q)
    assert value in samples
    at_most = sum(sample <= value for sample in samples)
    below = sum(sample < value for sample in samples)
    assert at_most >= q * len(samples) - 1e-6
    assert below < q * len(samples)


def test_percentile_counts_ranks_exactly() -> None:
    hundred = [float(i) for i in range(1, 101)]
    assert [percentile(hundred, q) for q in (0.07, 0.5, 0.95, 0.99, 1.0)] == [7, 50, 95, 99, 100]
    assert percentile([3.0], 0.5) == 3
    assert percentile([], 0.5) is None


def test_p95_at_the_budget_passes_and_above_it_fails() -> None:
    # Locust would round both to 5300.
    assert judge_case(XRAY, Samples([BUDGET_MS]), 1).passed
    verdict = judge_case(XRAY, Samples([BUDGET_MS + 0.5]), 1)
    assert verdict.reasons == ("p95 is over the budget of 5330 ms",)


def test_one_slow_request_in_twenty_is_forgiven_and_two_are_not() -> None:
    fast, slow = 10.0, BUDGET_MS * 2
    assert judge_case(XRAY, Samples([fast] * 19 + [slow]), 1).passed
    assert not judge_case(XRAY, Samples([fast] * 18 + [slow] * 2), 1).passed


@pytest.mark.parametrize(("failures", "requests", "too_many"), [(0, 0, False), (1, 101, False), (1, 100, True)])
def test_failures_count_from_one_percent_on(failures: int, requests: int, too_many: bool) -> None:
    assert too_many_failures(failures, requests) is too_many


def test_a_server_that_refuses_at_once_is_not_fast() -> None:
    verdict = judge_case(XRAY, Samples([], failures=1000), 10)
    assert not verdict.passed
    assert verdict.p95_ms is None
    assert verdict.rps == 100


def full(case: LoadCase, milliseconds: float, failures: int = 0) -> dict[str, Samples]:
    return {other.name: Samples([10.0] * 200) for other in select()} | {
        case.name: Samples([milliseconds] * 200, failures)
    }


def test_a_slow_case_is_not_hidden_by_fast_ones() -> None:
    judgement = judge(select(), full(CASES["ct_open"], BUDGET_MS * 2), 60, ())
    assert not judgement.passed
    assert {case.name: case.passed for case in judgement.cases} == {"xray": True, "ct_gated": True, "ct_open": False}


def test_failures_of_one_case_fail_the_run_even_when_few_over_all() -> None:
    judgement = judge(select(), full(CASES["xray"], 10, failures=3), 60, ())
    assert not judgement.reasons
    assert [case.name for case in judgement.cases if not case.passed] == ["xray"]


def test_failures_over_all_fail_the_run() -> None:
    samples = {case.name: Samples([10.0] * 95, failures=5) for case in select()}
    assert "5.0% of all requests failed" in judge(select(), samples, 60, ()).reasons[0]


def test_nothing_ran_fails() -> None:
    judgement = judge(select(), {}, 0, ())
    assert not judgement.passed
    assert judgement.reasons == ("nothing ran",)


def test_a_selected_case_without_a_request_fails() -> None:
    judgement = judge(select(), {"xray": Samples([10.0]), "ct_open": Samples([10.0])}, 1, ())
    assert [case.name for case in judgement.cases if not case.passed] == ["ct_gated"]
    assert "no request was made" in judgement.lines()[1]


def test_a_case_that_was_not_selected_is_not_missed() -> None:
    assert judge(select(["xray"]), {"xray": Samples([10.0])}, 1, ()).passed


def test_the_verdict_is_written_as_json_with_notes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "verdict.json"
    judge(select(["xray"]), {"xray": Samples([10.0, 20.0])}, 2, ("a note",)).write(path)
    document = json.loads(path.read_text())
    assert document["passed"] is True
    assert document["cases"][0] | {"p50_ms": 10.0, "max_ms": 20.0, "rps": 1.0} == document["cases"][0]
    assert document["lines"][-2:] == ["a note", "load test: PASS"]
