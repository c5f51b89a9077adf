"""Sixteen clients at once, each with scans of its own, on the shipped server: nobody gets another's answer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from serving import phantom, pipeline, wire
from serving.modality import Modality
from serving.phantom_xray import chest_xray
from serving.tritonserver import TritonServer
from tests.reliability import IS_LONG, Tally, record

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

REQUESTS: Final = 2000 if IS_LONG else 64
CLIENTS: Final = 16
CT_EVERY: Final = 10
"""One request of so many is a CT slice with masks; it takes as long as some X-rays."""

TOLERANCE: Final = 2e-5
"""Of a probability. A batch may round otherwise than a scan alone; none was seen to."""
APART: Final = 20 * TOLERANCE
"""What the answers of any two cases differ by at least, in a probability; or else by this many pixels of a mask."""
PIXELS: Final = 20
"""Pixels of a mask that rounding may move."""
PIXELS_APART: Final = 20 * PIXELS

THRESHOLDS: Final = (
    pipeline.THRESHOLDS,
    dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0),
    dict.fromkeys(pipeline.THRESHOLD_NAMES, 1.0),
    {"covid19": 0.0, "ground_glass": 1.0, "consolidation": 0.0, "pleural_effusion": 1.0},
)
"""Of a client's CT slices: as shipped, all gates open, all closed, one stream."""

Answer = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A scan that one client alone asks about."""

    client: int
    modality: Modality
    seed: int

    @cached_property
    def data(self) -> bytes:
        if self.modality == "xray":
            return phantom.png_bytes(chest_xray(self.seed, 128))
        return phantom.png_bytes(phantom.ct_slice(self.seed, 128).pixels)

    def request(self) -> dict[str, Any]:
        return wire.request(self.data, self.modality, THRESHOLDS[self.client % len(THRESHOLDS)])


XRAYS = [[Case(client, "xray", client + CLIENTS * turn) for turn in range(2)] for client in range(CLIENTS)]
SLICES = [Case(client, "ct", client) for client in range(CLIENTS)]
CASES = [case for xrays, ct in zip(XRAYS, SLICES, strict=True) for case in (*xrays, ct)]


@pytest.fixture(scope="module")
def alone(triton: TritonServer) -> dict[Case, Answer]:
    """What each case is answered when nothing else is under way."""
    connection = wire.connect(triton.grpc_url)
    answers = {case: ask(connection, case) for case in CASES}
    connection.close()
    return answers


def ask(connection: Any, case: Case) -> Answer:
    answer = connection.infer(**case.request())
    return {tensor.name: answer.as_numpy(tensor.name)[0] for tensor in wire.wanted_outputs(case.modality)}


def distance(a: Answer, b: Answer) -> tuple[float, int]:
    """How far two answers are apart: a probability, and pixels of a mask, over the outputs that both have."""
    both = a.keys() & b.keys()
    scores = [float(np.abs(a[name] - b[name]).max()) for name in both if a[name].dtype.kind == "f"]
    pixels = [int((a[name] != b[name]).sum()) for name in both if a[name].dtype.kind == "u"]
    return max(scores), max(pixels, default=0)


def belongs(answer: Answer, to: Answer) -> bool:
    if answer.keys() != to.keys() or not all(np.isfinite(array).all() for array in answer.values()):
        return False
    score, pixels = distance(answer, to)
    return score <= TOLERANCE and pixels <= PIXELS


def executions(connection: Any) -> tuple[int, int]:
    """Scans that stage 1 has seen, and batches that they came in."""
    (model,) = connection.get_inference_statistics(pipeline.RECOGNITION.model).model_stats
    return int(model.inference_count), int(model.execution_count)


def cases_of(client: int) -> Iterator[Case]:
    """A client's requests: its X-rays in turn, now and then its CT slice; not all clients at once."""
    for number in range(REQUESTS // CLIENTS):
        is_ct = (number + client) % CT_EVERY == 0
        yield SLICES[client] if is_ct else XRAYS[client][number % 2]


def test_any_two_cases_are_told_apart_by_their_answers(alone: dict[Case, Answer]) -> None:
    for i, one in enumerate(CASES):
        for other in CASES[:i]:
            score, pixels = distance(alone[one], alone[other])
            assert score > APART or pixels > PIXELS_APART, (one, other, score, pixels)
    # And there is something to tell: gates that are open, and gates that are not.
    masks = [any(array.any() for array in alone[case].values() if array.dtype.kind == "u") for case in SLICES]
    assert any(masks)
    assert not all(masks)


def test_nothing_is_answered_from_a_cache(triton: TritonServer) -> None:
    connection = wire.connect(triton.grpc_url)
    for model in pipeline.MODEL_NAMES:
        assert not connection.get_model_config(model).config.response_cache.enable
        (statistics,) = connection.get_inference_statistics(model).model_stats
        assert statistics.inference_stats.cache_hit.count == statistics.inference_stats.cache_miss.count == 0
    connection.close()
    (row,) = [line for line in triton.log_path.read_text().splitlines() if line.startswith("| cache_enabled ")]
    assert row.split("|")[2].strip() == "0"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_each_of_sixteen_clients_gets_the_answers_of_its_own_scans(
    triton: TritonServer, alone: dict[Case, Answer]
) -> None:
    tally, complaints, together = Tally(), list[str](), threading.Barrier(CLIENTS)

    def call(client: int) -> None:
        connection = wire.connect(triton.grpc_url)
        together.wait(60)
        for case in cases_of(client):
            started_s = time.perf_counter()
            try:
                answer = ask(connection, case)
            except InferenceServerException as fault:
                complaints.append(f"{case}: {fault}")
                tally.lose(time.perf_counter() - started_s)
                continue
            seconds = time.perf_counter() - started_s
            if belongs(answer, alone[case]):
                tally.answer(seconds)
                continue
            tally.mistake(seconds)
            owners = [other for other in CASES if belongs(answer, alone[other])]
            complaints.append(f"{case} was answered as {owners or 'nobody'}")
        connection.close()

    connection = wire.connect(triton.grpc_url)
    before = executions(connection)
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(call, range(CLIENTS)))
    scans, batches = (after - start for after, start in zip(executions(connection), before, strict=True))
    connection.close()
    kinds = f"X-rays and one CT slice with gates in {CT_EVERY}"
    row = record(tally.row(f"{CLIENTS} clients at once, {kinds}, the shipped networks", group="Isolation"))
    assert complaints == []
    assert row.answered == row.requests == REQUESTS
    # They did share batches: otherwise there was nothing to mix up.
    assert scans == REQUESTS
    assert batches < 0.8 * scans
