from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loadtest.cases import CASES
from loadtest.flight import Flight
from loadtest.raw import RawPipeline, served_parameters
from loadtest.slices import reduce
from loadtest.wire import Answer, connect, parse_address
from serving.errors import InferenceFailed
from serving.tritonserver import TritonServer
from tests.loadtest.counting_client import CountingClient
from tests.loadtest.delay_line import DelayLine

pytestmark = pytest.mark.triton

CASE = CASES["ct_open"]


@pytest.fixture
def client(toy_triton: TritonServer) -> Iterator[Any]:
    client = connect(toy_triton.grpc_url)
    yield client
    client.close()


def as_batches(size: int) -> list[list[bytes]]:
    scans = [*CASE.scans(), *CASES["xray"].scans()]
    return [scans[start : start + size] for start in range(0, len(scans), size)]


@pytest.mark.parametrize("batch", [1, 3])
def test_results_keep_the_order_of_the_scans_when_answers_do_not(
    client: Any, toy_triton: TritonServer, batch: int
) -> None:
    counting = CountingClient(client, first_held=True)
    with Flight(counting) as flight:
        rows = [row for rows in flight.in_order(CASE, as_batches(batch), 3, reduce) for row in rows]
    assert counting.order[0] != 0
    raw = RawPipeline(toy_triton.config.repository, served_parameters(client))
    expected = [reduce(raw.run_batch(CASE, [scan])[0])[0] for [scan] in as_batches(1)]
    assert len(set(expected)) == 8
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)


def test_no_more_are_under_way_than_was_asked_for_and_no_fewer(toy_triton: TritonServer) -> None:
    read = []

    def lazily() -> Iterator[list[bytes]]:
        for batch in as_batches(1):
            read.append(len(read))
            yield batch

    # Behind a slow line, all that may be sent is sent before the first answer comes.
    with DelayLine(parse_address(toy_triton.grpc_url), 0.5) as line:
        client = connect(line.url)
        counting = CountingClient(client)
        taken = 0
        with Flight(counting) as flight:
            for _ in flight.in_order(CASE, lazily(), 3, reduce):
                assert len(read) - taken <= 3
                taken += 1
        client.close()
    assert counting.most == 3
    assert taken == counting.sent == 8


def test_leaving_waits_for_what_was_sent_and_an_error_comes_out(client: Any) -> None:
    counting = CountingClient(client, first_held=True)
    batches = [[CASE.scans()[0]], [b"no scan"], [CASE.scans()[1]], [CASE.scans()[2]]]

    def all_of_them() -> None:
        with Flight(counting) as flight:
            list(flight.in_order(CASE, batches, 3, reduce))

    with pytest.raises(InferenceFailed, match="expected PNG, JPEG or DICOM"):
        all_of_them()
    assert counting.now == 0
    assert counting.sent == len(batches)


def test_what_is_made_of_an_answer_may_fail(client: Any) -> None:
    def refuse(answer: Answer) -> None:
        raise InferenceFailed(f"expected nothing, got {len(answer)} outputs")

    with Flight(client) as flight, pytest.raises(InferenceFailed, match="expected nothing, got 6 outputs"):
        flight.result(flight.send(CASE, [CASE.scans()[0]], refuse))


def test_a_server_that_does_not_answer_is_reported_and_nothing_is_taken_back(toy_triton: TritonServer) -> None:
    with DelayLine(parse_address(toy_triton.grpc_url), 1.0) as line:
        client = connect(line.url)
        counting = CountingClient(client)
        flight = Flight(counting, drain_s=0.1)

        def leave() -> None:
            with flight:
                flight.send(CASE, [CASE.scans()[0]], reduce)

        with pytest.raises(InferenceFailed, match=r"expected all answers within 0\.1 s, got none to 1 request"):
            leave()
        assert counting.now == 1
        patient = threading.Event()
        while counting.now:
            patient.wait(0.05)
        client.close()
