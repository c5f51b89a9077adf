"""Latency per case beside the raw ONNX Runtime sessions, in one run.

The embedded ensemble and `loadtest.raw` take turns on the same scans, so that whatever else the machine does hits
both. One request at a time: this measures latency; `loadtest.knee` and `loadtest.run` measure load.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track

from loadtest.cases import CASES, LoadCase
from loadtest.difference import Difference
from loadtest.gate import percentile
from loadtest.layout import number, table
from loadtest.networks import closed_answer
from loadtest.raw import RawPipeline, served_parameters, served_version, session_options
from loadtest.wire import REQUEST_TIMEOUT_S, Answer, check_answer, connect, infer
from serving import statistics
from serving.errors import RequestError
from serving.pipeline import REPORT_OUTPUTS, STEPS, Tensor
from serving.tritonserver import TritonServer
from serving.wire import models_behind, wanted_outputs

WARM_UP_ROUNDS: Final = 2
"""Not counted: first calls allocate arenas and fault weights in."""

_SETTLE_S: Final = 0.02
"""Triton counts a request a moment after it has answered it."""


@dataclass(frozen=True)
class Asked:
    """What is asked of both ways.

    Attributes:
        name: In the tables.
        case: Whose scans, modality and gates.
        outputs: Of the ensemble. What none of them needs does not run.
    """

    name: str
    case: LoadCase
    outputs: tuple[Tensor, ...]


ASKED: Final = (
    *(Asked(case.name, case, wanted_outputs(case.modality)) for case in CASES.values()),
    Asked("xray_all", CASES["xray"], REPORT_OUTPUTS),
)
"""What `serving.client` asks of each case, and of an X-ray all that there is, as who knows nothing of scans does."""


@dataclass
class Measured:
    """One case's times, in milliseconds and in the order of the rounds.

    Attributes:
        ensemble_ms: From the call to the decoded reply, through the embedded Triton.
        raw_ms: Local preprocessing and the sum of the sessions.
        ensemble_steps_ms: By model, the server's own count of its computation.
        raw_steps_ms: By model.
        around_steps_ms: By model, the server's count of the queue and of the tensors' way in and out.
        probability_difference: The largest between the two ways' probabilities.
        mask_difference: The largest share of a mask's pixels that differ between the two ways.
    """

    ensemble_ms: list[float] = field(default_factory=list)
    raw_ms: list[float] = field(default_factory=list)
    ensemble_steps_ms: dict[str, list[float]] = field(default_factory=dict)
    raw_steps_ms: dict[str, list[float]] = field(default_factory=dict)
    around_steps_ms: dict[str, list[float]] = field(default_factory=dict)
    probability_difference: float = 0.0
    mask_difference: float = 0.0

    def compare(self, ensemble: Answer, raw: Answer) -> None:
        """Notes how far two answers to the same scan are apart."""
        both = Difference(self.probability_difference, self.mask_difference).widened(ensemble, raw)
        self.probability_difference, self.mask_difference = both.probability, both.mask


@dataclass(frozen=True)
class Latency:
    """What `measure` found.

    Attributes:
        rounds: Requests per case and way.
        server: Triton's name and version.
        threads: By model, the threads within an operator of a raw session: all cores, where the config does not say.
        versions: By model, the version that ran.
        cases: By the case's name.
    """

    rounds: int
    server: str
    threads: Mapping[str, int]
    versions: Mapping[str, int]
    cases: Mapping[str, Measured]


def measure(server: TritonServer, rounds: int) -> Latency:
    """Takes the rounds.

    Args:
        server: A started one, which nobody else asks.
        rounds: Requests per case and way that are counted.

    Raises:
        RequestError: If `rounds` is below 1.
        InferenceFailed: If an answer can not be right.
    """
    if rounds < 1:
        raise RequestError(f"expected 1 round or more, got {rounds}")
    client = connect(server.grpc_url)
    try:
        return _measure(client, server.config.repository, rounds)
    finally:
        client.close()


def _measure(client: Any, repository: Path, rounds: int) -> Latency:
    parameters = served_parameters(client)
    raw = RawPipeline(repository, parameters)
    cases = {asked.name: Measured() for asked in ASKED}
    scans = {asked.name: asked.case.scans() for asked in ASKED}
    turns = list(_turns(rounds))
    for round_index, asked, ensemble_first in track(turns, "Latency", console=Console(stderr=True)):
        scan = scans[asked.name][round_index % len(scans[asked.name])]
        into = cases[asked.name] if round_index >= 0 else Measured()
        if ensemble_first:
            served = _take_ensemble(client, asked, scan, into)
            local = _take_raw(raw, asked, scan, into)
        else:
            local = _take_raw(raw, asked, scan, into)
            served = _take_ensemble(client, asked, scan, into)
        into.compare(served, local)
    metadata = client.get_server_metadata()
    return Latency(
        rounds=rounds,
        server=f"{metadata.name} {metadata.version}",
        threads={model: session_options(values).intra_op_num_threads for model, values in parameters.items()},
        versions={step.model: served_version(repository, step.model) for step in STEPS},
        cases=cases,
    )


def _turns(rounds: int) -> Iterator[tuple[int, Asked, bool]]:
    """Round (below 0 while warming up), case, and whether the ensemble goes first: each way as often as the other."""
    for index in range(-WARM_UP_ROUNDS, rounds):
        for asked in ASKED:
            yield index, asked, index % 2 == 0


def _take_ensemble(client: Any, asked: Asked, scan: bytes, into: Measured) -> Answer:
    before = statistics.read(client, REQUEST_TIMEOUT_S)
    started = time.perf_counter()
    answer = infer(client, asked.case, scan, asked.outputs)
    into.ensemble_ms.append((time.perf_counter() - started) * 1000)
    time.sleep(_SETTLE_S)
    after = statistics.read(client, REQUEST_TIMEOUT_S)
    models = models_behind(asked.outputs)
    for spent, times in (
        (statistics.stage_ms(before, after, models), into.ensemble_steps_ms),
        (statistics.around_ms(before, after, models), into.around_steps_ms),
    ):
        for model, milliseconds in spent.items():
            times.setdefault(model, []).append(milliseconds)
    check_answer(asked.case, {**closed_answer(), **answer})
    return answer


def _take_raw(raw: RawPipeline, asked: Asked, scan: bytes, into: Measured) -> Answer:
    answer, steps_ms = raw.run(asked.case, scan, asked.outputs)
    into.raw_ms.append(sum(steps_ms.values()))
    for model, milliseconds in steps_ms.items():
        into.raw_steps_ms.setdefault(model, []).append(milliseconds)
    check_answer(asked.case, {**closed_answer(), **answer})
    return answer


def sections(result: Latency) -> list[str]:
    """A result as Markdown; medians where a cell holds one number."""
    return [
        f"{result.rounds} rounds after {WARM_UP_ROUNDS} of warm-up, one request at a time, the two ways in turn; "
        f"{result.server}.",
        "Versions: " + ", ".join(f"{model} {number}" for model, number in result.versions.items()) + ".",
        "Threads of a raw session: "
        + ", ".join(f"{model} {number}" for model, number in result.threads.items())
        + ". In the ensemble each stream of stage 3 has half of the cores.",
        "### Per case, ms",
        table(
            ("case", "ensemble p50", "ensemble p95", "raw p50", "raw p95", "ensemble / raw, p50", "more than raw, ms"),
            [(name, *_case_cells(measured)) for name, measured in result.cases.items()],
        ),
        "Raw: local preprocessing and the sum of the ONNX Runtime sessions, same graphs, in one process. Both make "
        "what `serving.client` asks for, of an X-ray the diagnosis alone; xray_all is an X-ray of which every output "
        "is asked, so that five networks run for closed gates.",
        "### Per step, ms, median: ensemble (the server's own count) | raw",
        table(
            ("step", *result.cases),
            [(step.model, *(_step_cell(measured, step.model) for measured in result.cases.values())) for step in STEPS],
        ),
        "The streams of stage 3 run side by side in the ensemble and one after the other in raw.",
        "### Where the rest goes: ms around the computation of each step, median",
        table(
            ("step", *result.cases),
            [
                (step.model, *(_around_cell(measured, step.model) for measured in result.cases.values()))
                for step in STEPS
            ],
        ),
        "Queueing, and the tensors' way into and out of the step, as Triton counts them. What is left of an ensemble's "
        "time is gRPC and the way of the file and the masks.",
        "### Agreement of the two ways",
        table(
            ("case", "largest difference of a probability", "largest share of mask pixels"),
            [
                (name, f"{measured.probability_difference:.2g}", f"{measured.mask_difference:.2g}")
                for name, measured in result.cases.items()
            ],
        ),
    ]


def _case_cells(measured: Measured) -> tuple[str, ...]:
    times = [percentile(samples, q) for samples in (measured.ensemble_ms, measured.raw_ms) for q in (0.5, 0.95)]
    ensemble, _, raw, _ = times
    if ensemble is None or not raw:
        return (*(_number(value) for value in times), "-", "-")
    return (*(_number(value) for value in times), f"{ensemble / raw:.2f}", _number(ensemble - raw))


def _step_cell(measured: Measured, model: str) -> str:
    ways = (measured.ensemble_steps_ms, measured.raw_steps_ms)
    # A plain bar would end the table's cell.
    return " \\| ".join(_number(percentile(steps.get(model, []), 0.5)) for steps in ways)


def _around_cell(measured: Measured, model: str) -> str:
    return _number(percentile(measured.around_steps_ms.get(model, []), 0.5))


def _number(milliseconds: float | None) -> str:
    return number(milliseconds, 1)
