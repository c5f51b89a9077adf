"""`lungstreams serve` whose Triton is killed, stopped, or loses a process at work: it is back, and callers know."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.client import PipelineClient
from serving.errors import ServerUnreachable
from tests.faults.asking import ALL_OPEN, SCANS, ask, asked, backend_of, triton_of
from tests.reliability import IS_LONG, Tally, record
from tests.test_cli import ANY_PORTS, Serving
from tests.waiting import eventually

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

GROUP = "Faults"
PATIENCE_S = 60.0
SHORT_S = 2.0


@pytest.fixture(scope="module")
def serving(toy_repository: Path) -> Iterator[Serving]:
    """One command for all: each test leaves it as it was, by no more than waiting."""
    running = Serving("serve", "--repository", toy_repository, *ANY_PORTS, "--threads=1")
    yield running
    assert running.stop(signal.SIGTERM)[0] == 0


@pytest.fixture
def url(serving: Serving) -> str:
    return serving.first_line.removeprefix("ready grpc=").strip()


def said(serving: Serving) -> str:
    """The command's next line of standard error."""
    assert serving.process.stderr is not None
    return serving.process.stderr.readline()


def test_killed_in_mid_request_it_is_back_and_every_request_is_answered(serving: Serving, url: str) -> None:
    tally, hasty = Tally(), Tally()
    with (
        PipelineClient(url, timeout_s=PATIENCE_S) as client,
        PipelineClient(url, retry_lost=False) as other,
        asked(other, hasty) as gave_up,
        asked(client, tally) as futures,
    ):
        killed = triton_of(serving)
        os.kill(killed, signal.SIGKILL)
        assert "Triton ended by itself (exit status -9" in said(serving)
        assert said(serving) == f"lungstreams: Triton is back at {url}\n"
    assert triton_of(serving) != killed
    row = record(tally.row("Triton killed (SIGKILL) under four callers", group=GROUP))
    assert [future.result() for future in futures if future.result()] == []
    assert (row.answered, row.lost, row.wrong) == (len(futures), 0, 0)
    # Whoever does not try again is told at once.
    row = record(hasty.row("the same, by callers that do not try again", group=GROUP))
    assert (row.lost, row.wrong) == (0, 0)
    assert row.refused
    assert all("nothing answers at" in text for future in gave_up if (text := future.result()))


def test_told_to_end_in_mid_request_it_is_back_and_every_request_is_answered(serving: Serving, url: str) -> None:
    tally = Tally()
    with PipelineClient(url, timeout_s=PATIENCE_S) as client, asked(client, tally) as futures:
        told = triton_of(serving)
        # As by an administrator who means Triton and not the command. How it goes differs: its backends go first, which
        # may be noticed before, and 24.10 does not always survive that requests come meanwhile (exit status -11).
        os.kill(told, signal.SIGTERM)
        assert said(serving).endswith("; starting it again\n")
        assert said(serving) == f"lungstreams: Triton is back at {url}\n"
    assert triton_of(serving) != told
    row = record(tally.row("Triton told to end (SIGTERM) under four callers", group=GROUP))
    assert [future.result() for future in futures if future.result()] == []
    assert (row.answered, row.lost, row.wrong) == (len(futures), 0, 0)


@pytest.mark.parametrize("model", ["segment_all", *(("preprocess", "recognition") if IS_LONG else ())])
def test_a_backend_that_is_killed_is_noticed_though_triton_says_that_it_is_ready(
    serving: Serving, url: str, model: str
) -> None:
    tally = Tally()
    with PipelineClient(url, timeout_s=PATIENCE_S) as client, asked(client, tally) as futures:
        os.kill(backend_of(serving, model), signal.SIGKILL)
        assert "Triton lost one of its backend processes" in said(serving)
        assert said(serving) == f"lungstreams: Triton is back at {url}\n"
    row = record(tally.row(f"the backend process of {model} killed under four callers", group=GROUP))
    assert [future.result() for future in futures if future.result()] == []
    assert (row.answered, row.lost, row.wrong) == (len(futures), 0, 0)


def test_a_backend_that_is_stopped_is_noticed_too(serving: Serving, url: str) -> None:
    tally = Tally()
    with PipelineClient(url, timeout_s=PATIENCE_S) as client, asked(client, tally) as futures:
        os.kill(backend_of(serving, "recognition"), signal.SIGSTOP)
        assert "Triton lost one of its backend processes" in said(serving)
        assert said(serving) == f"lungstreams: Triton is back at {url}\n"
    row = record(tally.row("the backend process of recognition stopped (SIGSTOP) under four callers", group=GROUP))
    assert [future.result() for future in futures if future.result()] == []
    assert (row.answered, row.lost, row.wrong) == (len(futures), 0, 0)


@pytest.mark.long
def test_stopped_for_good_it_is_replaced(serving: Serving, url: str) -> None:
    tally, triton = Tally(), triton_of(serving)
    with PipelineClient(url, timeout_s=120) as client, asked(client, tally) as futures:
        os.killpg(triton, signal.SIGSTOP)
        assert "Triton gave no sign of readiness for 30 s" in said(serving)
        assert said(serving) == f"lungstreams: Triton is back at {url}\n"
    row = record(tally.row("Triton stopped (SIGSTOP) for good under four callers", group=GROUP))
    assert (row.answered, row.lost, row.wrong) == (len(futures), 0, 0)


# The last one: it does not say whether the server was started again.
@pytest.mark.long
def test_stopped_it_costs_a_deadline_and_continued_it_serves_again(serving: Serving, url: str) -> None:
    tally, triton = Tally(), triton_of(serving)
    with PipelineClient(url, timeout_s=SHORT_S) as client:
        futures = [client.submit(SCANS[0], "ct", ALL_OPEN) for _ in range(16)]
        os.killpg(triton, signal.SIGSTOP)
        try:
            for future in futures:
                error = future.exception(PATIENCE_S)
                (tally.answer if error is None else tally.refuse)()
                assert error is None or f"expected an answer of {url} within 2 s, got none" in str(error)
            started_s = time.monotonic()
            with (
                PipelineClient(url) as newcomer,
                pytest.raises(ServerUnreachable, match=f"nothing answers at {url}"),
            ):
                newcomer.predict(SCANS[0])
            tally.refuse(time.monotonic() - started_s)
        finally:
            os.killpg(triton, signal.SIGCONT)
    # The same process, or the next one: Triton 24.10 now and then does not survive that callers have left meanwhile.
    with PipelineClient(url, timeout_s=PATIENCE_S) as client:
        assert eventually(client.is_ready, PATIENCE_S)
        assert ask(client, 1, tally) == ""
    row = record(tally.row("Triton stopped (SIGSTOP) and continued", group=GROUP))
    assert row.refused > 1
    assert (row.lost, row.wrong) == (0, 0)
