"""Latency per case beside the raw ONNX Runtime sessions, in one run.

The embedded ensemble and `loadtest.raw` take turns on the same scans, so that whatever else the machine does hits
both. One request at a time: this measures latency; `loadtest.run` measures load.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.progress import track

from loadtest.cases import CASES, LoadCase
from loadtest.gate import percentile
from loadtest.machine import Machine, describe
from loadtest.raw import NETWORKS, RawPipeline, served_version, session_options
from loadtest.wire import REQUEST_TIMEOUT_S, Answer, check_answer, connect, infer
from serving import statistics
from serving.errors import RequestError
from serving.pipeline import STEPS

WARM_UP_ROUNDS: Final = 2
"""Not counted: first calls allocate arenas and fault weights in."""

_SETTLE_S: Final = 0.02
"""Triton counts a request a moment after it has answered it."""


@dataclass
class Measured:
    """One case's times, in milliseconds and in the order of the rounds.

    Attributes:
        ensemble_ms: From the call to the decoded reply, through the embedded Triton.
        raw_ms: Local preprocessing and the sum of the sessions.
        ensemble_steps_ms: By model, the server's own count of its computation.
        raw_steps_ms: By model.
        probability_difference: The largest between the two ways' probabilities.
        mask_difference: The largest share of a mask's pixels that differ between the two ways.
    """

    ensemble_ms: list[float] = field(default_factory=list)
    raw_ms: list[float] = field(default_factory=list)
    ensemble_steps_ms: dict[str, list[float]] = field(default_factory=dict)
    raw_steps_ms: dict[str, list[float]] = field(default_factory=dict)
    probability_difference: float = 0.0
    mask_difference: float = 0.0

    def compare(self, ensemble: Answer, raw: Answer) -> None:
        """Notes how far two answers to the same scan are apart."""
        for name, array in ensemble.items():
            if array.dtype == np.uint8:
                self.mask_difference = max(self.mask_difference, float((array != raw[name]).mean()))
            else:
                self.probability_difference = max(self.probability_difference, float(np.abs(array - raw[name]).max()))


@dataclass(frozen=True)
class Benchmark:
    """A run's result.

    Attributes:
        taken_at: When it began, ISO 8601 in UTC.
        rounds: Requests per case and way.
        machine: What it ran on.
        server: Triton's name and version.
        threads: By model, the threads within an operator.
        versions: By model, the version that ran.
        cases: By the case's name.
    """

    taken_at: str
    rounds: int
    machine: Machine
    server: str
    threads: Mapping[str, int]
    versions: Mapping[str, int]
    cases: Mapping[str, Measured]


def main(repository: Path | None, rounds: int, out: Path = Path("reports/bench")) -> None:
    """Measures and writes `bench.json` (every sample) and `bench.md` (tables) into `out`.

    Args:
        repository: The model repository; None means `serving.repository.DEFAULT_REPOSITORY`.
        rounds: Requests per case and way that are counted.
        out: Made if it is not there.

    Raises:
        RequestError: If `rounds` is below 1.
        ServerStartError: If the embedded server does not start.
        InferenceFailed: If an answer can not be right.
    """
    from serving.repository import DEFAULT_REPOSITORY
    from serving.tritonserver import ServerConfig, TritonServer

    if rounds < 1:
        raise RequestError(f"expected 1 round or more, got {rounds}")
    repository = repository or DEFAULT_REPOSITORY
    with TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0)) as server:
        client = connect(server.grpc_url)
        try:
            result = measure(client, repository, rounds)
        finally:
            client.close()
    out.mkdir(parents=True, exist_ok=True)
    (out / "bench.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    (out / "bench.md").write_text(render(result), encoding="utf-8")
    Console(stderr=True).print(f"Wrote bench.md and bench.json into {out}", markup=False, soft_wrap=True)


def measure(client: Any, repository: Path, rounds: int) -> Benchmark:
    """Takes the rounds.

    Args:
        client: Of a server that serves `repository`, from `loadtest.wire.connect`.
        repository: The model repository.
        rounds: Requests per case and way that are counted.
    """
    taken_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    machine = describe()
    parameters = {step.model: _parameters(client, step.model) for step in NETWORKS}
    raw = RawPipeline(repository, parameters)
    cases = {name: Measured() for name in CASES}
    scans = {name: case.scans() for name, case in CASES.items()}
    turns = list(_turns(rounds))
    for round_index, case, ensemble_first in track(turns, "Measuring", console=Console(stderr=True)):
        scan = scans[case.name][round_index % len(scans[case.name])]
        into = cases[case.name] if round_index >= 0 else Measured()
        if ensemble_first:
            served = _take_ensemble(client, case, scan, into)
            local = _take_raw(raw, case, scan, into)
        else:
            local = _take_raw(raw, case, scan, into)
            served = _take_ensemble(client, case, scan, into)
        into.compare(served, local)
    metadata = client.get_server_metadata()
    return Benchmark(
        taken_at=taken_at,
        rounds=rounds,
        machine=machine,
        server=f"{metadata.name} {metadata.version}",
        threads={model: session_options(values).intra_op_num_threads for model, values in parameters.items()},
        versions={step.model: served_version(repository, step.model) for step in STEPS},
        cases=cases,
    )


def _turns(rounds: int) -> Iterator[tuple[int, LoadCase, bool]]:
    """Round (below 0 while warming up), case, and whether the ensemble goes first: each way as often as the other."""
    for index in range(-WARM_UP_ROUNDS, rounds):
        for case in CASES.values():
            yield index, case, index % 2 == 0


def _parameters(client: Any, model: str) -> dict[str, str]:
    config = client.get_model_config(model).config
    return {key: value.string_value for key, value in config.parameters.items()}


def _take_ensemble(client: Any, case: LoadCase, scan: bytes, into: Measured) -> Answer:
    before = statistics.read(client, REQUEST_TIMEOUT_S)
    started = time.perf_counter()
    answer = infer(client, case, scan)
    into.ensemble_ms.append((time.perf_counter() - started) * 1000)
    time.sleep(_SETTLE_S)
    spent = statistics.stage_ms(before, statistics.read(client, REQUEST_TIMEOUT_S), [step.model for step in STEPS])
    for model, milliseconds in spent.items():
        into.ensemble_steps_ms.setdefault(model, []).append(milliseconds)
    check_answer(case, answer)
    return answer


def _take_raw(raw: RawPipeline, case: LoadCase, scan: bytes, into: Measured) -> Answer:
    answer, steps_ms = raw.run(case, scan)
    into.raw_ms.append(sum(steps_ms.values()))
    for model, milliseconds in steps_ms.items():
        into.raw_steps_ms.setdefault(model, []).append(milliseconds)
    check_answer(case, answer)
    return answer


def render(result: Benchmark) -> str:
    """A result as Markdown tables; medians where a cell holds one number."""
    machine = result.machine
    sections = [
        "# Benchmark",
        f"Taken {result.taken_at} on {machine.cpu} ({machine.usable_cores} of {machine.cores} cores, "
        f"{machine.memory_gib} GiB, {', '.join(machine.flags) or 'no telling flags'}; load average "
        f"{machine.load_average} at the start), {machine.system}, Python {machine.python}, {result.server}, "
        + ", ".join(f"{name} {number}" for name, number in machine.packages.items())
        + f". {result.rounds} rounds after {WARM_UP_ROUNDS} of warm-up, one request at a time, the two ways in turn.",
        "Versions: " + ", ".join(f"{model} {number}" for model, number in result.versions.items()) + ".",
        "Threads: " + ", ".join(f"{model} {number}" for model, number in result.threads.items()) + ".",
        "## Per case, ms",
        _table(
            ("case", "ensemble p50", "ensemble p95", "raw p50", "raw p95", "ensemble / raw, p50"),
            [(name, *_case_cells(measured)) for name, measured in result.cases.items()],
        ),
        "Raw: local preprocessing and the sum of the ONNX Runtime sessions, same graphs, in one process.",
        "## Per step, ms, median: ensemble (the server's own count) | raw",
        _table(
            ("step", *result.cases),
            [(step.model, *(_step_cell(measured, step.model) for measured in result.cases.values())) for step in STEPS],
        ),
        "The streams of stage 3 run side by side in the ensemble and one after the other in raw.",
        "## Agreement of the two ways",
        _table(
            ("case", "largest difference of a probability", "largest share of mask pixels"),
            [
                (name, f"{measured.probability_difference:.2g}", f"{measured.mask_difference:.2g}")
                for name, measured in result.cases.items()
            ],
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _case_cells(measured: Measured) -> tuple[str, ...]:
    times = [percentile(samples, q) for samples in (measured.ensemble_ms, measured.raw_ms) for q in (0.5, 0.95)]
    ensemble, _, raw, _ = times
    ratio = f"{ensemble / raw:.2f}" if ensemble and raw else "-"
    return (*(_number(value) for value in times), ratio)


def _step_cell(measured: Measured, model: str) -> str:
    ways = (measured.ensemble_steps_ms, measured.raw_steps_ms)
    # A plain bar would end the table's cell.
    return " \\| ".join(_number(percentile(steps.get(model, []), 0.5)) for steps in ways)


def _number(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.1f}"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
