"""What a CT volume costs: through the embedded Triton, several requests at a time, beside raw ONNX Runtime."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from loadtest.cases import PAPER_CASE_S
from loadtest.fit import Line, fit_line
from loadtest.layout import BLUE, GREEN, GREY, MIB, ORANGE, mib, new_axes, new_figure, number, table
from loadtest.memory import Sampler, of_group, pss_bytes
from loadtest.raw import RawPipeline, served_parameters
from loadtest.slices import SliceResult, through_raw, through_server, write_volume
from loadtest.wire import connect
from serving.errors import RequestError
from serving.pipeline import MAX_BATCH_SIZE
from serving.tritonserver import TritonServer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CASE_SLICES: Final = 40
RATIO_AIM: Final = 0.9
"""Least share of the raw throughput for a volume of `CASE_SLICES`."""

SIZES: Final = (1, 10, CASE_SLICES, 160)
WAYS: Final = ((1, 2), (1, 4), (4, 2), (8, 2))
"""Slices a request, and requests in flight, that are tried."""

RAW_BATCHES: Final = (1, 4, 8)

Take = Callable[[Sequence[Path]], list[SliceResult]]


@dataclass(frozen=True)
class Trial:
    """One way of taking slices, tried on a few.

    Attributes:
        batch: Slices a request, or a run.
        in_flight: Requests at a time; 1 for raw, which waits for each run.
        slices_per_s: Throughput.
    """

    batch: int
    in_flight: int
    slices_per_s: float


@dataclass(frozen=True)
class Growth:
    """What a volume of some size cost.

    Attributes:
        slices: Its size.
        ours_s: Seconds through the server, in each turn.
        raw_s: Seconds of raw ONNX Runtime, in each turn.
        server_before_bytes: PSS of the server's processes before it, see `loadtest.memory`.
        server_peak_bytes: The highest while it ran.
        client_growth_bytes: How far this process's RSS rose meanwhile.
        largest_difference: Between the two ways, of any number of `SliceResult`.
    """

    slices: int
    ours_s: tuple[float, ...]
    raw_s: tuple[float, ...]
    server_before_bytes: int
    server_peak_bytes: int
    client_growth_bytes: int
    largest_difference: float

    @property
    def ratio(self) -> float:
        """Median throughput as a share of the raw one's."""
        return statistics.median(self.raw_s) / statistics.median(self.ours_s)


@dataclass(frozen=True)
class Volumes:
    """A measurement.

    Attributes:
        fresh_bytes: PSS of the server's processes before anything was asked of it here.
        ways: What was tried through the server.
        raw_ways: What was tried of raw.
        way: The best of `ways`, which `growth` was taken with.
        raw_way: The best of `raw_ways`, likewise.
        growth: By size, ascending.
        ours: The line of its median seconds by slices.
        raw: That of the raw ones.
    """

    fresh_bytes: int
    ways: tuple[Trial, ...]
    raw_ways: tuple[Trial, ...]
    way: Trial
    raw_way: Trial
    growth: tuple[Growth, ...]
    ours: Line
    raw: Line


def measure(
    server: TritonServer,
    sizes: Sequence[int] = SIZES,
    ways: Sequence[tuple[int, int]] = WAYS,
    raw_batches: Sequence[int] = RAW_BATCHES,
    probe: int = 16,
    turns: int = 2,
) -> Volumes:
    """Finds the best way on a few slices, and measures with it how time and memory grow.

    The server and raw take turns. Memory is looked at in a pass of its own, which is not timed.

    Args:
        server: A started one.
        sizes: Slices of the volumes, at least two different ones.
        ways: Slices a request and requests in flight, to choose from.
        raw_batches: Slices a run of raw, to choose from.
        probe: Slices on which the choice is made.
        turns: How often each volume is timed; one of under ten slices as often as makes ten.

    Raises:
        RequestError: If there is too little to measure, or a batch is not one that the pipeline takes.
        InferenceFailed: If the server fails, or an answer can not be right.
    """
    _check(sizes, [*ways, *((batch, 1) for batch in raw_batches)], probe, turns)
    fresh = pss_bytes(of_group(server.pid))
    client = connect(server.grpc_url)
    try:
        raw = RawPipeline(server.config.repository, served_parameters(client))
        with tempfile.TemporaryDirectory(prefix="lungstreams-volume-") as folder:
            paths = write_volume(Path(folder), max(*sizes, probe))
            takes = {(b, k): partial(through_server, client, batch=b, in_flight=k) for b, k in ways}
            raw_takes = {(b, 1): partial(through_raw, raw, batch=b) for b in raw_batches}
            tried, raw_tried = _try(takes, paths[:probe]), _try(raw_takes, paths[:probe])
            way, raw_way = _best(tried), _best(raw_tried)
            pair = takes[way.batch, way.in_flight], raw_takes[raw_way.batch, 1]
            growth = tuple(_grow(server.pid, paths[:size], *pair, turns) for size in sorted(set(sizes)))
    finally:
        client.close()
    fits = (fit_line([(g.slices, statistics.median(times(g))) for g in growth]) for times in (_ours, _raw))
    return Volumes(fresh, tried, raw_tried, way, raw_way, growth, *fits)


def _check(sizes: Sequence[int], ways: Sequence[tuple[int, int]], probe: int, turns: int) -> None:
    if len(set(sizes)) < 2 or min(*sizes, probe, turns) < 1:
        raise RequestError(f"expected two sizes, a probe and turns of 1 or more, got {(*sizes,)}, {probe} and {turns}")
    for batch, in_flight in ways:
        if not 1 <= batch <= MAX_BATCH_SIZE or in_flight < 1:
            raise RequestError(
                f"expected batches of 1 to {MAX_BATCH_SIZE}, 1 or more in flight, got {batch, in_flight}"
            )


def _try(takes: Mapping[tuple[int, int], Take], paths: Sequence[Path]) -> tuple[Trial, ...]:
    for take in takes.values():
        take(paths)  # Not counted: larger batches allocate more.
    return tuple(
        Trial(batch, in_flight, len(paths) / _timed(take, paths)[0]) for (batch, in_flight), take in takes.items()
    )


def _best(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.slices_per_s)


def _timed(take: Take, paths: Sequence[Path]) -> tuple[float, list[SliceResult]]:
    started = time.perf_counter()
    results = take(paths)
    return time.perf_counter() - started, results


def _grow(group: int, paths: Sequence[Path], ours: Take, raw: Take, turns: int) -> Growth:
    with Sampler(group) as sampler:
        ours(paths)
    times: dict[Take, list[float]] = {ours: [], raw: []}
    difference = 0.0
    for turn in range(max(turns, 10 // len(paths))):
        answers = []
        for take in (ours, raw) if turn % 2 == 0 else (raw, ours):
            seconds, results = _timed(take, paths)
            times[take].append(seconds)
            answers.append(results)
        difference = max(difference, float(np.abs(np.array(answers[0]) - np.array(answers[1])).max()))
    return Growth(
        slices=len(paths),
        ours_s=tuple(times[ours]),
        raw_s=tuple(times[raw]),
        server_before_bytes=sampler.first_pss_bytes,
        server_peak_bytes=sampler.peak_pss_bytes,
        client_growth_bytes=sampler.own_growth_bytes,
        largest_difference=difference,
    )


def _ours(growth: Growth) -> tuple[float, ...]:
    return growth.ours_s


def _raw(growth: Growth) -> tuple[float, ...]:
    return growth.raw_s


def sections(result: Volumes) -> list[str]:
    """The measurement as Markdown."""
    rows = [
        (
            str(g.slices),
            *(number(statistics.median(times(g))) for times in (_ours, _raw)),
            *(number(g.slices / statistics.median(times(g)), 1) for times in (_ours, _raw)),
            number(g.ratio),
            mib(g.server_before_bytes),
            mib(g.server_peak_bytes),
            mib(g.client_growth_bytes),
        )
        for g in result.growth
    ]
    return [
        _ways("Through the server", result.ways, result.way) + " " + _ways("Raw", result.raw_ways, result.raw_way),
        table(
            (
                *("slices", "server, s", "raw, s", "server, slices/s", "raw, slices/s", "throughput / raw"),
                *("server before, MiB", "server at most, MiB", "client grew, MiB"),
            ),
            rows,
        ),
        f"Medians of {', '.join(str(len(g.ours_s)) for g in result.growth)} turns, the two ways in turn. Memory: the "
        "sum of the server's processes' PSS, looked at in a pass of its own. It was "
        f"{mib(result.fresh_bytes)} MiB before any of the batches above was tried, and what those needed is kept for "
        "the next. The two ways' probabilities and areas differ by "
        f"{max(g.largest_difference for g in result.growth):.2g} at most.",
        f"Time of the server is {_formula(result.ours)}; of raw {_formula(result.raw)}.",
        *(_case(result, g) for g in result.growth if g.slices == CASE_SLICES),
    ]


def _ways(whose: str, trials: Sequence[Trial], best: Trial) -> str:
    tried = ", ".join(f"{t.batch} x {t.in_flight}: {number(t.slices_per_s, 1)}" for t in trials)
    return f"{whose}, slices a request x requests at a time: slices/s: {tried}; taken: {best.batch} x {best.in_flight}."


def _formula(line: Line) -> str:
    return f"{line.start:.3f} s + {line.slope:.4f} s a slice (R2 {line.r2:.4f})"


def _case(result: Volumes, growth: Growth) -> str:
    seconds = statistics.median(growth.ours_s)
    aim = "met" if growth.ratio >= RATIO_AIM else "missed"
    said = f"A volume of {growth.slices} slices runs at {growth.ratio:.2f} of raw (aim {RATIO_AIM}: {aim}) and takes "
    if seconds <= PAPER_CASE_S:
        return f"{said}{seconds:.2f} s, within the paper's {PAPER_CASE_S} s a case."
    fit = max(0, math.floor((PAPER_CASE_S - result.ours.start) / result.ours.slope))
    return (
        f"{said}{seconds:.2f} s. The paper's {PAPER_CASE_S} s a case would take {growth.slices / PAPER_CASE_S:.1f} "
        f"slices/s, {seconds / PAPER_CASE_S:.2f} times what this machine gives; by the line, {fit} slices fit in."
    )


def draw(result: Volumes) -> dict[str, Figure]:
    """Time and memory against slices."""
    slices = [g.slices for g in result.growth]
    clock = new_figure()
    axes = new_axes(clock, "A CT volume, every gate open: time by slices", "slices", "seconds")
    for label, colour, marker, times in (("server", BLUE, "o", _ours), ("raw ONNX Runtime", ORANGE, "s", _raw)):
        medians = [statistics.median(times(g)) for g in result.growth]
        axes.plot(slices, medians, color=colour, marker=marker, linestyle="-" if marker == "o" else "--", label=label)
    axes.axhline(PAPER_CASE_S, color=GREY, linestyle=":", label=f"the paper's {PAPER_CASE_S} s a case")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.legend()
    memory = new_figure()
    axes = new_axes(memory, "Memory by slices", "slices", "MiB")
    peaks = [g.server_peak_bytes / MIB for g in result.growth]
    grown = [g.client_growth_bytes / MIB for g in result.growth]
    axes.plot(slices, peaks, color=BLUE, marker="o", label="server at most (PSS)")
    axes.axhline(result.fresh_bytes / MIB, color=GREY, linestyle=":", label="server before any batch was tried (PSS)")
    axes.plot(slices, grown, color=GREEN, marker="^", linestyle="--", label="growth of the client (RSS)")
    axes.set(xlim=(0, None), ylim=(0, None))
    axes.legend()
    return {"volume-time": clock, "volume-memory": memory}
