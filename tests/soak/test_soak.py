"""The soak for some seconds on toy networks, and its judges, which can fail."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from serving.client import PipelineClient
from serving.errors import InferenceFailed, ServerBusy, ServerUnreachable
from serving.tritonserver import TritonServer
from tests.reliability import ROOT, SHORT_ROWS, Tally, record
from tests.soak import callers
from tests.soak.answers import KINDS, LEAST_DISTANCE, TOLERANCE, Case, distance, of_report, of_tensors, prepare
from tests.soak.callers import MUTATION, Books, settle
from tests.soak.faults import BREAKING, FIRST_PART, HARMLESS, KILL_TRITON, LAST_PART, schedule
from tests.soak.growth import LEAST_S, MAX_GROWTH_BYTES, Growth, Sample, growths, largest
from tests.soak.run import Outcome, Plan, run

MB = 10**6
PATIENCE_S = 240
FEW_S = 6.0


@pytest.fixture(scope="module")
def cases(toy_triton: TritonServer) -> tuple[Case, ...]:
    with PipelineClient(toy_triton.grpc_url, timeout_s=PATIENCE_S) as client:
        return prepare(client, scans=2)


def samples(sizes: Sequence[float], *, pids: Callable[[int], int] = lambda second: 1) -> list[Sample]:
    """One a second."""
    return [Sample(second, frozenset({pids(second)}), int(size)) for second, size in enumerate(sizes)]


class TestGrowth:
    def test_a_leak_is_found_and_noise_is_not(self) -> None:
        noise = np.random.default_rng(0).normal(0, 20 * MB, 400)
        (flat,) = growths(samples(1000 * MB + noise))
        (leak,) = growths(samples(1000 * MB + noise + np.linspace(0, 200 * MB, 400)))
        assert flat.is_borne
        assert not leak.is_borne
        # From the middle of one quarter to that of the other: three quarters of four fifths.
        assert leak.grown_bytes == pytest.approx(0.6 * 200 * MB, rel=0.1)

    def test_warming_up_and_a_single_peak_are_no_growth(self) -> None:
        sizes = np.full(400, 1000.0 * MB)
        sizes[:60] = 400 * MB
        sizes[-20] = 3000 * MB
        (growth,) = growths(samples(sizes))
        assert growth.grown_bytes == 0

    def test_a_restart_begins_anew_and_the_largest_growth_counts(self) -> None:
        sizes = [*np.linspace(500 * MB, 800 * MB, 300), *np.full(300, 1500 * MB)]
        lives = growths(samples(sizes, pids=lambda second: second // 300))
        assert len(lives) == 2
        most = largest(lives)
        assert most is not None
        assert 100 * MB < most.grown_bytes < 300 * MB

    def test_short_lives_are_not_judged(self) -> None:
        assert growths(samples(np.ones(int(LEAST_S) - 1))) == []
        assert growths(samples(np.ones(1000), pids=lambda second: second // 150)) == []
        assert growths([]) == []
        assert largest([]) is None


class TestOutcome:
    @pytest.fixture
    def good(self) -> Outcome:
        tally = Tally()
        tally.answer(1.0)
        life = Growth(400, 1000 * MB, 1000 * MB + MAX_GROWTH_BYTES)
        return Outcome(600, tallies={"X-ray": tally}, server=[life], keeper=[life], exit_status=0)

    def test_what_is_as_promised_passes(self, good: Outcome) -> None:
        assert good.problems() == []
        assert good.table().endswith("soak: PASS")

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"server": [Growth(400, 1000 * MB, 1101 * MB)]}, "Triton with its stubs grew by more than 100 MB"),
            ({"keeper": [Growth(400, 100 * MB, 201 * MB)]}, "lungstreams serve grew by more than 100 MB"),
            ({"server": []}, "expected a life that is long enough"),
            ({"pending": 3}, "3 requests wait"),
            ({"exit_status": 1}, "exits with 0, got 1"),
            ({"tallies": {}}, "nothing was answered"),
        ],
    )
    def test_what_is_not_fails(self, good: Outcome, change: dict[str, object], says: str) -> None:
        worse = replace(good, **change)  # type: ignore[arg-type]
        (problem,) = worse.problems()
        assert says in problem
        assert worse.table().endswith("soak: FAIL")

    @pytest.mark.parametrize(("name", "count"), [("lost", Tally.lose), ("wrong", Tally.mistake)])
    def test_one_that_is_lost_or_wrong_fails(self, good: Outcome, name: str, count: Callable[[Tally], None]) -> None:
        count(good.tallies["X-ray"])
        assert good.problems() == [f"1 {name}"]

    def test_one_that_was_stopped_early_need_not_have_a_long_life(self, good: Outcome) -> None:
        assert replace(good, server=[], keeper=[], is_whole=False).problems() == []


@pytest.mark.triton
class TestAnswers:
    def test_answers_are_told_apart(self, toy_triton: TritonServer, cases: tuple[Case, ...]) -> None:
        with PipelineClient(toy_triton.grpc_url, timeout_s=PATIENCE_S) as client:
            for case in cases:
                report = client.submit(
                    case.scan, case.kind.modality, case.kind.thresholds, explain=True, measure=False
                ).result()
                answer = of_report(report)
                assert case.is_answered_by(answer)
                assert not any(
                    other.is_answered_by(answer) for other in cases if other.scan != case.scan and other is not case
                )

    def test_what_triton_says_itself_has_the_same_content(
        self, toy_triton: TritonServer, cases: tuple[Case, ...]
    ) -> None:
        with callers.Raw(toy_triton.grpc_url) as raw:
            for case in cases:
                answers = raw.send(case.request(), of_tensors).result(PATIENCE_S)
                assert distance(case.answer, answers) <= TOLERANCE

    def test_nan_is_no_answer(self, cases: tuple[Case, ...]) -> None:
        assert not cases[0].is_answered_by(np.full_like(cases[0].answer, np.nan))

    def test_each_kind_asks_something_else(self, cases: tuple[Case, ...]) -> None:
        assert [case.kind for case in cases[::2]] == list(KINDS)
        gated, opened = cases[2], cases[4]
        assert gated.scan == opened.scan
        assert distance(gated.answer, opened.answer) > LEAST_DISTANCE

    def test_the_largest_batches_are_asked_with_every_gate_open(
        self, toy_triton: TritonServer, cases: tuple[Case, ...]
    ) -> None:
        assert cases[-1].kind == KINDS[-1]
        books = Books(is_explained=lambda: False)
        callers.fill(books, toy_triton.grpc_url, cases[-1], 2)
        assert books.remarks == []
        assert books.tallies[callers.BATCH].answered == 2

    def test_an_answer_to_another_case_is_counted_as_wrong(
        self, toy_triton: TritonServer, cases: tuple[Case, ...]
    ) -> None:
        swapped = [replace(cases[0], scan=cases[1].scan), replace(cases[1], scan=cases[0].scan)]
        books = Books(is_explained=lambda: False)
        callers.burst(books, toy_triton.grpc_url, swapped, 4)
        (tally,) = books.tallies.values()
        assert (tally.wrong, tally.answered) == (4, 0)
        assert len(books.remarks) == 4


class TestSettling:
    """What one request comes to, by what its tries come to."""

    @pytest.mark.parametrize(
        ("tries", "kind", "explained", "outcome"),
        [
            ([True], "X-ray", False, "answered"),
            ([False], "X-ray", False, "wrong"),
            ([ServerBusy("busy")], "X-ray", False, "refused"),
            ([InferenceFailed("expected a PNG, got 3 bytes")], MUTATION, False, "refused"),
            ([InferenceFailed("expected a PNG, got 3 bytes")], "X-ray", False, "lost"),
            ([InferenceFailed("expected an answer of h:1 within 9 s, got none")], MUTATION, False, "lost"),
            ([InferenceFailed("Stub process is not healthy")], "X-ray", False, "lost"),
            ([InferenceFailed("Stub process is not healthy"), True], "X-ray", True, "answered"),
            ([ServerUnreachable("gone"), ServerUnreachable("gone"), True], "X-ray", False, "answered"),
            ([MemoryError()], MUTATION, True, "wrong"),
        ],
    )
    def test_counts(
        self,
        tries: Sequence[bool | Exception],
        kind: str,
        explained: bool,
        outcome: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(callers, "PAUSE_S", 0)
        books, left = Books(is_explained=lambda: explained), iter(tries)

        def ask() -> bool:
            result = next(left)
            if isinstance(result, Exception):
                raise result
            return result

        settle(books, kind, ask)
        assert next(left, None) is None
        assert getattr(books.tallies[kind], outcome) == 1
        assert books.tries_again == len(tries) - 1

    def test_who_is_never_answered_is_lost_in_the_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(callers, "PAUSE_S", 0.01)
        monkeypatch.setattr(callers, "DEADLINE_S", 0.1)

        def ask() -> bool:
            raise ServerUnreachable("nothing answers")

        books = Books(is_explained=lambda: True)
        settle(books, "X-ray", ask)
        assert books.tallies["X-ray"].lost == 1


class TestSchedule:
    def test_nothing_is_killed_in_between_and_everything_is_done(self) -> None:
        seconds = 1200.0
        faults = schedule(seconds, seed=3)
        assert faults == schedule(seconds, seed=3)
        assert faults != schedule(seconds, seed=4)
        assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)
        between = [f.kind for f in faults if FIRST_PART * seconds < f.at_s - 20 and f.at_s < LAST_PART * seconds]
        assert set(between) == set(HARMLESS)
        outside = [f.kind for f in faults if f.at_s < FIRST_PART * seconds or f.at_s - 20 > LAST_PART * seconds]
        assert set(outside) == {*HARMLESS, *BREAKING}


@pytest.mark.triton
class TestRun:
    @pytest.mark.slow
    @pytest.mark.reliability
    def test_seconds_of_it_with_a_killed_triton(self, toy_repository: Path) -> None:
        plan = Plan(FEW_S, serve=("--repository", str(toy_repository), "--threads=1"), readers=2, bombs=False, scans=2)
        outcome = run(plan)
        # Too short for the document, which has the row of `make soak`.
        row = record(outcome.row(), SHORT_ROWS)
        assert outcome.problems() == []
        assert outcome.is_whole
        assert outcome.faults[KILL_TRITON] == 1
        assert outcome.ends >= 1
        assert (row.lost, row.wrong) == (0, 0)
        assert outcome.peak_bytes > 100 * MB

    @pytest.mark.slow
    @pytest.mark.long
    def test_ctrl_c_ends_it_with_its_table(self, toy_repository: Path) -> None:
        command = [
            sys.executable,
            "-m",
            "tests.soak.run",
            "--repository",
            str(toy_repository),
            "--no-bombs",
            "--scans=2",
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            watchdog = threading.Timer(PATIENCE_S, process.kill)
            watchdog.start()
            assert process.stderr is not None
            assert process.stdout is not None
            assert "ready at 127.0.0.1:" in process.stderr.readline()
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            said = process.stdout.read()
            assert process.wait() == 0
            watchdog.cancel()
        assert re.search(r"stopped early; 0 requests left waiting\nsoak: PASS\n$", said), said
