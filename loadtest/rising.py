"""A server under load: at saturation beside raw ONNX Runtime, then with arrivals at rising rates.

A step at a rate above what the server can do never settles: its queue, and with it the latency, grows for as long as
the step lasts. So a step's percentiles belong to its length, and beside them stands how long until the budget breaks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final

from loadtest.cases import CASES, PAPER_CASE_S, SCANS_PER_CASE, LoadCase, schedule
from loadtest.fit import fit_line
from loadtest.loops import Loop, closed_loop, open_loop, poisson_arrivals
from loadtest.raw import RawPipeline
from serving.errors import InferenceFailed, RequestError

IN_FLIGHT: Final = (1, 2, 4, 8)
FRACTIONS: Final = (0.25, 0.5, 0.7, 0.85, 1.0, 1.2, 1.7)
"""Rates of the open loop, as parts of what one instance answers of the mix in the closed loop."""

INSTANCES: Final = (1, 2)
MIX: Final = "mix"
"""All cases by their weights."""

_EASY: Final = 2.0
_TREND_R2: Final = 0.5
_LEAST_FOR_TREND: Final = 10
_FURTHER: Final = 1.4
_FURTHER_STEPS: Final = 3


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        in_flight: Requests at a time in the closed loops.
        saturation_s: Seconds of each closed loop, and of raw for each case in all.
        fractions: Rates of the open loop, see `FRACTIONS`. Where the highest breaks nothing, a few more follow.
        step_s: Seconds of arrivals at each rate.
        seed: Of the arrivals.
        instances: Of every model, in the order that they are measured; the first is what the server has.
    """

    in_flight: tuple[int, ...] = IN_FLIGHT
    saturation_s: float = 1.5
    fractions: tuple[float, ...] = FRACTIONS
    step_s: float = 10.0
    seed: int = 0
    instances: tuple[int, ...] = INSTANCES

    def __post_init__(self) -> None:
        if not self.in_flight or not self.fractions or not self.instances:
            raise RequestError("expected numbers in flight, fractions and instances, got none of one of them")
        if list(self.fractions) != sorted(self.fractions) or self.fractions[0] <= 0:
            raise RequestError(f"expected rising fractions above 0, got {self.fractions}")


@dataclass(frozen=True)
class Saturation:
    """What a workload reaches in a closed loop.

    Attributes:
        workload: A case's name, or `MIX`.
        by_in_flight: Requests answered a second, by how many were in flight.
        raw_per_s: Scans a second of raw, one after the other; None where it was not measured.
        alone_p95_s: 95th percentile of the latency with the fewest in flight.
    """

    workload: str
    by_in_flight: Mapping[int, float]
    raw_per_s: float | None
    alone_p95_s: float | None

    @property
    def best_per_s(self) -> float:
        """The highest throughput."""
        return max(self.by_in_flight.values())

    @property
    def ratio(self) -> float | None:
        """The highest throughput as a share of raw's."""
        return None if self.raw_per_s is None else self.best_per_s / self.raw_per_s


@dataclass(frozen=True)
class Step:
    """One rate of the open loop.

    Attributes:
        rate_per_s: Arrivals a second.
        answered: Requests that were answered rightly.
        refused: Those that the server refused since too many were waiting.
        failed: Those that failed in another way.
        served_per_s: Answers a second, from the first arrival to the last answer.
        late_s: See `Loop.late_s`.
        p50_s: Median latency from when a request was due, in seconds; None without answers.
        p95_s: 95th percentile.
        case_p95_s: 95th percentile by case.
        growth_s_per_s: How fast latency grew with time; None where a line explains under half of it.
        breaks_after_s: By that line, how long the rate can be kept up until the budget breaks.
    """

    rate_per_s: float
    answered: int
    refused: int
    failed: int
    served_per_s: float
    late_s: float
    p50_s: float | None
    p95_s: float | None
    case_p95_s: Mapping[str, float | None]
    growth_s_per_s: float | None
    breaks_after_s: float | None

    @property
    def holds(self) -> bool:
        """Whether everything was answered, each case that came within the budget at p95."""
        p95s = [p95 for p95 in (self.p95_s, *self.case_p95_s.values()) if p95 is not None]
        return bool(p95s) and max(p95s) <= PAPER_CASE_S and not (self.refused or self.failed)


@dataclass(frozen=True)
class Server:
    """A server under a rising load.

    Attributes:
        instances: Of every model.
        mix: What the mix of cases reaches in the closed loop.
        steps: By rate, ascending; the last one is the first that broke the budget, or none did.
        knee_per_s: The highest rate that held the budget for the length of a step.
        steady_per_s: The highest of those at which latency did not grow with time either.
        easy_per_s: The highest whose p95 is at most twice that of one request at a time.
    """

    instances: int
    mix: Saturation
    steps: tuple[Step, ...]
    knee_per_s: float | None
    steady_per_s: float | None
    easy_per_s: float | None


def warm_up(client: Any, plan: Plan) -> None:
    """Lets every model see its largest batch, so that no step pays for a first one."""
    closed_loop(client, schedule(tuple(CASES.values())), max(plan.in_flight), plan.saturation_s)


def saturate(client: Any, name: str, cases: Sequence[LoadCase], plan: Plan, raw: RawPipeline | None) -> Saturation:
    """Takes a workload's closed loops, with a part of raw after each, so that both see the same machine.

    Args:
        client: From `loadtest.wire.connect`.
        name: The workload's.
        cases: One round of it.
        plan: What is measured.
        raw: What to compare with, if anything.

    Raises:
        InferenceFailed: If a request is not answered rightly.
    """
    rates, p95s = {}, []
    raw_runs, raw_s = 0, 0.0
    turns = _raw_turns(raw, cases) if raw else None
    if turns:
        next(turns)  # Not counted: the first run allocates.
    for in_flight in plan.in_flight:
        loop = closed_loop(client, cases, in_flight, plan.saturation_s)
        answered = loop.count("answered")
        if answered < len(loop.requests):
            raise InferenceFailed(f"expected answers to {len(loop.requests)} requests of {name}, got {answered}")
        rates[in_flight] = loop.answered_per_s
        p95s.append(loop.quantile_s(0.95))
        if turns:
            until_s = raw_s + plan.saturation_s / len(plan.in_flight)
            while raw_s < until_s:
                raw_s += next(turns)
                raw_runs += 1
    return Saturation(name, rates, raw_runs / raw_s if turns else None, p95s[0])


def _raw_turns(raw: RawPipeline, cases: Sequence[LoadCase]) -> Iterator[float]:
    """Runs the cases in turn, and yields the seconds of each run."""
    scans = {case.name: case.scans() for case in cases}
    for turn, case in enumerate(cycle(cases)):
        scan = scans[case.name][turn // len(cases) % SCANS_PER_CASE]
        started = time.perf_counter()
        raw.run(case, scan)
        yield time.perf_counter() - started


def rise(client: Any, instances: int, mix: Saturation, rates: Sequence[float], plan: Plan) -> Server:
    """Takes open loops at rising rates until one breaks the budget.

    Args:
        client: From `loadtest.wire.connect`.
        instances: Of every model, for the record.
        mix: What this server reaches in the closed loop.
        rates: Arrivals a second, ascending. Where the highest holds, a few more follow, each 1.4 times the last.
        plan: What is measured.

    Raises:
        InferenceFailed: If requests are left without any answer.
    """
    further = [rates[-1] * _FURTHER ** (1 + extra) for extra in range(_FURTHER_STEPS)]
    steps: list[Step] = []
    for index, rate in enumerate([*rates, *further]):
        due_s = poisson_arrivals(rate, plan.step_s, plan.seed + index)
        steps.append(summarise(rate, open_loop(client, schedule(tuple(CASES.values())), due_s)))
        if not steps[-1].holds:
            break
    held = [step for step in steps if step.holds]
    easy_s = _EASY * (mix.alone_p95_s or 0.0)
    return Server(
        instances=instances,
        mix=mix,
        steps=tuple(steps),
        knee_per_s=_highest(held),
        steady_per_s=_highest([step for step in held if step.breaks_after_s is None]),
        easy_per_s=_highest([step for step in held if step.p95_s is not None and step.p95_s <= easy_s]),
    )


def summarise(rate_per_s: float, loop: Loop) -> Step:
    """What a step came to.

    Args:
        rate_per_s: Arrivals a second that were asked for.
        loop: What came of them.
    """
    points = [(r.due_s, r.latency_s) for r in loop.requests if r.latency_s is not None]
    line = fit_line(points) if len({due_s for due_s, _ in points}) >= _LEAST_FOR_TREND else None
    grows = line is not None and line.r2 >= _TREND_R2 and line.slope > 0
    return Step(
        rate_per_s=rate_per_s,
        answered=loop.count("answered"),
        refused=loop.count("refused"),
        failed=loop.count("failed"),
        served_per_s=loop.answered_per_s,
        late_s=loop.late_s,
        p50_s=loop.quantile_s(0.5),
        p95_s=loop.quantile_s(0.95),
        case_p95_s={case: loop.quantile_s(0.95, case) for case in CASES},
        growth_s_per_s=line.slope if line and grows else None,
        breaks_after_s=max(0.0, (PAPER_CASE_S - line.start) / line.slope) if line and grows else None,
    )


def _highest(steps: Sequence[Step]) -> float | None:
    return max((step.rate_per_s for step in steps), default=None)
