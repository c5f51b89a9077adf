"""A client that is not ours takes CT requests back in bulk, which can bring Triton 24.10 down: ours are answered.

See `serving.calls` for why it can, and why ours takes nothing back unless asked to.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import wire
from serving.client import PipelineClient
from tests.faults.asking import ALL_OPEN, SCANS, ask, asked, triton_of
from tests.reliability import Tally, record
from tests.test_cli import ANY_PORTS, Serving
from tests.waiting import eventually

PATIENCE_S = 90.0
BULK = 32
MOST_BULKS = 40
"""Measured: Triton 24.10 is down after one to some tens of them."""


@pytest.fixture
def serving(toy_repository: Path) -> Iterator[Serving]:
    """A server of its own: what it says of its Triton differs from run to run."""
    running = Serving("serve", "--repository", toy_repository, *ANY_PORTS, "--threads=1")
    yield running
    running.kill()


def take_back(url: str) -> int:
    """Send CT requests at once and cancel all of them, as any gRPC client may; returns how many were unanswered."""
    connection, ended, unanswered = wire.connect(url), threading.Semaphore(0), []

    def end(result: object, error: Exception | None) -> None:
        if error is not None:
            unanswered.append(error)
        ended.release()

    try:
        calls = [
            connection.async_infer(callback=end, **wire.request(SCANS[i % len(SCANS)], "ct", ALL_OPEN))
            for i in range(BULK)
        ]
        for call in calls:
            call.cancel()
        for _ in calls:
            assert ended.acquire(timeout=PATIENCE_S)
    finally:
        connection.close()
    return len(unanswered)


@pytest.mark.long
@pytest.mark.reliability
@pytest.mark.triton
def test_a_foreign_client_that_cancels_in_bulk_costs_ours_a_wait_and_no_answer(serving: Serving) -> None:
    url, tally = serving.first_line.removeprefix("ready grpc=").strip(), Tally()
    first, taken_back = Path(f"/proc/{triton_of(serving)}"), 0
    with PipelineClient(url, timeout_s=PATIENCE_S) as client:
        with asked(client, tally) as futures:
            for _ in range(MOST_BULKS):
                # Once is enough: a request that was under way in three that fell is given up, and rightly.
                if not first.exists() or futures[-1].done():
                    break
                taken_back += take_back(url)
        assert [future.result() for future in futures if future.result()] == []
        # The same Triton, or the next one.
        assert eventually(client.is_ready, PATIENCE_S)
        assert ask(client, 0, tally) == ""
    row = record(tally.row(f"four callers beside a foreign client that cancels {BULK} CT cases a time", group="Faults"))
    assert taken_back >= BULK
    assert (row.answered, row.lost, row.wrong) == (len(futures) + 1, 0, 0)
    status, _, said = serving.stop(signal.SIGTERM)
    assert status == 0
    # Whatever became of it, nobody had to start it.
    assert said.count("starting it again") == said.count("Triton is back at")
