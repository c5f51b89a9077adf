"""Whether a load test passed: each case by its name, on exact samples.

Locust rounds response times (147 ms becomes 150, 3432 becomes 3400) before it takes percentiles, and its total mixes
the cases. So the gate keeps each request's own latency and takes nearest-rank percentiles of them: the smallest
sample that at least `q` of the samples do not exceed. Under twenty samples p95 is therefore the slowest one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from loadtest.cases import LoadCase

FAILURE_LIMIT: Final = 0.01
"""The share of failed requests at which a run fails, per case and over all."""


def percentile(samples: Sequence[float], q: float) -> float | None:
    """Nearest-rank percentile.

    Args:
        samples: In any order and unit.
        q: In `(0, 1]`.

    Returns:
        One of the samples, or None if there are none.
    """
    if not samples:
        return None
    # Without the rounding 0.07 * 100 comes out above 7 and takes the eighth.
    return sorted(samples)[math.ceil(round(q * len(samples), 9)) - 1]


@dataclass
class Samples:
    """What a case's requests came to.

    Attributes:
        latencies_ms: Of the requests that were answered rightly, in the order that they ended.
        failures: How many others there were.
    """

    latencies_ms: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def requests(self) -> int:
        """How many there were in all."""
        return len(self.latencies_ms) + self.failures


@dataclass(frozen=True)
class Verdict:
    """What the gate says about one case.

    Percentiles are in milliseconds and over the requests that were answered rightly: a server that refuses at once is
    not fast. They are None where there were none.

    Attributes:
        name: The case's.
        requests: How many there were.
        failures: How many of them failed or were answered wrongly.
        rps: Requests per second, failed ones included.
        p50_ms: Median.
        p95_ms: The one that is held against the budget.
        p99_ms: 99th percentile.
        max_ms: The slowest.
        budget_ms: What p95 may be at most.
        reasons: Why it fails; empty if it passes.
    """

    name: str
    requests: int
    failures: int
    rps: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    budget_ms: float
    reasons: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.reasons

    def line(self) -> str:
        """The verdict on one line, for people."""
        times = " ".join(
            f"{label} {'-' if value is None else format(value, '.0f')} ms"
            for label, value in (
                ("p50", self.p50_ms),
                ("p95", self.p95_ms),
                ("p99", self.p99_ms),
                ("max", self.max_ms),
            )
        )
        verdict = "PASS" if self.passed else f"FAIL: {'; '.join(self.reasons)}"
        return f"{self.name}: {times}, {self.rps:.2f} requests/s, {self.failures}/{self.requests} failed, {verdict}"


def judge_case(case: LoadCase, samples: Samples, seconds: float) -> Verdict:
    """Holds one case's samples against its budget.

    Args:
        case: With the budget.
        samples: What came of its requests.
        seconds: How long the run took.
    """
    p95_ms = percentile(samples.latencies_ms, 0.95)
    budget_ms = case.p95_budget_s * 1000
    reasons = []
    if samples.requests == 0:
        reasons.append("no request was made")
    if too_many_failures(samples.failures, samples.requests):
        reasons.append(f"{samples.failures / samples.requests:.1%} failed, the limit is {FAILURE_LIMIT:.0%}")
    if p95_ms is not None and p95_ms > budget_ms:
        reasons.append(f"p95 is over the budget of {budget_ms:.0f} ms")
    return Verdict(
        name=case.name,
        requests=samples.requests,
        failures=samples.failures,
        rps=samples.requests / seconds if seconds > 0 else 0.0,
        p50_ms=percentile(samples.latencies_ms, 0.5),
        p95_ms=p95_ms,
        p99_ms=percentile(samples.latencies_ms, 0.99),
        max_ms=percentile(samples.latencies_ms, 1.0),
        budget_ms=budget_ms,
        reasons=tuple(reasons),
    )


def too_many_failures(failures: int, requests: int) -> bool:
    """Whether the failures reach `FAILURE_LIMIT`. None of none do not."""
    return requests > 0 and failures / requests >= FAILURE_LIMIT


@dataclass(frozen=True)
class Judgement:
    """What the gate says about a run.

    Attributes:
        cases: The verdict on each case that was asked for.
        reasons: Why the run fails as a whole; empty if it does not.
        notes: What a reader must know of how it was run.
    """

    cases: tuple[Verdict, ...]
    reasons: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against any case nor against the whole."""
        return not self.reasons and all(case.passed for case in self.cases)

    def lines(self) -> tuple[str, ...]:
        """One line a case, then notes, then the whole."""
        whole = "PASS" if self.passed else f"FAIL{': ' if self.reasons else ''}{'; '.join(self.reasons)}"
        return (*(case.line() for case in self.cases), *self.notes, f"load test: {whole}")

    def write(self, path: Path) -> None:
        """Writes it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        document = {"passed": self.passed, "lines": self.lines(), **asdict(self)}
        path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def judge(cases: Sequence[LoadCase], samples: dict[str, Samples], seconds: float, notes: Sequence[str]) -> Judgement:
    """Judges a run.

    Args:
        cases: Those that were asked for; each must have run.
        samples: By the case's name.
        seconds: How long the run took.
        notes: Carried into the judgement.
    """
    verdicts = tuple(judge_case(case, samples.get(case.name, Samples()), seconds) for case in cases)
    requests = sum(verdict.requests for verdict in verdicts)
    failures = sum(verdict.failures for verdict in verdicts)
    reasons = []
    if requests == 0:
        reasons.append("nothing ran")
    if too_many_failures(failures, requests):
        reasons.append(f"{failures / requests:.1%} of all requests failed, the limit is {FAILURE_LIMIT:.0%}")
    return Judgement(verdicts, tuple(reasons), tuple(notes))
