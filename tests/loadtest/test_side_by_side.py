from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest.cases import CASES, PAPER_CASE_S, LoadCase
from loadtest.competitors import OnnxRuntimeInProcess
from loadtest.difference import Difference
from loadtest.networks import unpack
from loadtest.side_by_side import LIMITS, WARM_UP_ROUNDS, SideBySide, compare, measure
from loadtest.side_by_side_plot import draw
from loadtest.side_by_side_report import agreement, sections
from loadtest.turns import order_of_turns
from loadtest.wire import Answer
from serving.errors import RequestError
from train.figures import save

ROUNDS = 2
NAMES = {
    *(f"{way} {precision}" for way in ("ONNX Runtime", "OpenVINO", "FastAPI + ONNX Runtime", "lungstreams")
      for precision in ("fp32", "int8")),
    "OpenVINO bf16",
    "lungstreams by OpenVINO int8",
}  # fmt: skip


@pytest.fixture(scope="module")
def result(toy_repository: Path) -> SideBySide:
    return measure({"fp32": toy_repository, "int8": toy_repository}, ROUNDS, title="Toys of two", note="They are toys.")


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_everybody_is_measured_as_often_on_each_case(result: SideBySide) -> None:
    assert result.cases == ("ct_open", "xray")
    assert {(o.contender, o.case) for o in result.outcomes} == {(name, case) for name in NAMES for case in result.cases}
    for outcome in result.outcomes:
        assert len(outcome.samples_ms) == ROUNDS
        assert all(milliseconds > 0 for milliseconds in outcome.samples_ms)
    assert result.turns == (ROUNDS + WARM_UP_ROUNDS) * len(NAMES) * 2


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_everybody_gives_the_same_answers(result: SideBySide) -> None:
    for outcome in result.outcomes:
        assert outcome.complaint is None
        assert outcome.against_fp32 == outcome.against_same  # the toys of both precisions are the same
        assert outcome.against_same.within(Difference(1e-4, 0)), outcome


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_the_report_names_every_way_and_the_paper(result: SideBySide) -> None:
    text = "\n\n".join(sections(result))
    rows = Counter(line.split("|")[1].strip(" *") for line in text.splitlines() if line.startswith("|"))
    for name in NAMES:
        assert rows[name] == 3, name  # two cases and the agreement
    assert f"{PAPER_CASE_S:g} s / p50" in text
    assert "**differs**" not in text
    assert "They are toys." in text
    assert "openvino 20" in text
    for precision, n_ours in (("fp32", 1), ("int8", 2)):
        assert text.count(f"ahead of FastAPI + ONNX Runtime {precision}, whose median is") == n_ours * 2  # cases


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_there_is_a_plot_for_each_case(result: SideBySide, tmp_path: Path) -> None:
    figures = draw(result)
    assert list(figures) == ["side-by-side-toys-of-two-ct_open", "side-by-side-toys-of-two-xray"]
    for name, figure in figures.items():
        save(figure, tmp_path / f"{name}.png")
        (axes,) = figure.axes
        labels = [label.get_text().removesuffix(" (served)") for label in axes.get_yticklabels()]
        assert set(labels) == NAMES
        # The bars, not their whiskers' caps.
        widths = [patch.get_width() for patch in axes.patches]
        assert widths == sorted(widths)
        assert len(widths) == len(NAMES)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_the_result_is_json(result: SideBySide) -> None:
    document = json.loads(json.dumps(asdict(result)))
    assert len(document["outcomes"]) == len(NAMES) * 2
    assert document["machine"]["cpu"]


@pytest.mark.parametrize("n", [4, 10])
def test_an_even_number_takes_every_place_and_follows_every_other_once(n: int) -> None:
    rounds = [order_of_turns(list(range(n)), index) for index in range(n)]
    for place in range(n):
        assert sorted(order[place] for order in rounds) == list(range(n))
    pairs = Counter(pair for order in rounds for pair in pairwise(order))
    assert set(pairs.values()) == {1}
    assert len(pairs) == n * (n - 1)


@pytest.mark.parametrize("n", [3, 9])
def test_an_odd_number_follows_every_other_twice_in_twice_the_rounds(n: int) -> None:
    rounds = [order_of_turns(list(range(n)), index) for index in range(2 * n)]
    for place in range(n):
        assert sorted(order[place] for order in rounds) == sorted([*range(n), *range(n)])
    pairs = Counter(pair for order in rounds for pair in pairwise(order))
    assert set(pairs.values()) == {2}
    assert len(pairs) == n * (n - 1)


class Liar(OnnxRuntimeInProcess):
    """Says that all is well."""

    way = "Liar"

    def answer(self, scan: bytes, case: LoadCase) -> Answer:
        answer = dict(super().answer(scan, case))
        return answer | {"diagnosis": np.full_like(answer["diagnosis"], 1.5)}


def test_a_wrong_answer_is_reported_and_not_hidden(toy_repository: Path, tmp_path: Path) -> None:
    networks = unpack(toy_repository, tmp_path)
    with OnnxRuntimeInProcess("int8", networks) as honest, Liar("int8", networks) as liar:
        result = compare([honest, liar], 1, title="Lies", cases=[CASES["xray"]])
    outcome = next(outcome for outcome in result.outcomes if outcome.contender == "Liar int8")
    assert not outcome.against_same.within(LIMITS["int8"])
    assert "expected probabilities in [0, 1]" in (outcome.complaint or "")
    rows = [line for line in "\n".join(agreement(result)).splitlines() if line.startswith("| Liar int8")]
    assert "expected probabilities" in rows[-1]


def test_a_difference_that_is_not_a_number_is_in_no_limit() -> None:
    answers: list[dict[str, Any]] = [{"diagnosis": np.full((1, 4), value, np.float32)} for value in (np.nan, 0.5)]
    assert not Difference().widened(*answers).within(LIMITS["int8"])


def test_differences_only_grow() -> None:
    mask = np.zeros((1, 4, 4), np.uint8)
    other = mask.copy()
    other[0, 0] = 1
    difference = Difference().widened({"mask_all": mask}, {"mask_all": other})
    assert difference == Difference(0, 0.25)
    assert difference.widened({"mask_all": mask}, {"mask_all": mask}) == difference


def test_no_round_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected 1 round or more, got 0"):
        measure({"int8": tmp_path}, 0)


@pytest.mark.parametrize("names", [(), ("fp32",), ("int8", "int4")])
def test_repositories_of_other_precisions_are_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected repositories of int8 and perhaps fp32"):
        measure(dict.fromkeys(names, tmp_path), 1)
