"""Asking a server in a closed loop (so many at a time) and in an open one (at times of their own).

A closed loop finds what a server can do at most. It can not find how long people wait: where the server is slow, it
asks less often. In the open loop requests come whether or not others were answered, and each is timed from when it
was due, so that one which is sent late counts as one that waited.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Literal

import numpy as np

from loadtest.cases import SCANS_PER_CASE, LoadCase
from loadtest.flight import DRAIN_S, Flight, Landed
from loadtest.gate import percentile
from loadtest.wire import Answer, check_answer, is_refusal
from serving.errors import InferenceFailed, RequestError

Ending = Literal["answered", "refused", "failed"]

_LEAD_S: Final = 0.05


@dataclass(frozen=True)
class Ended:
    """How a request ended.

    Attributes:
        case: The case's name.
        due_s: When it was due, in seconds after the loop began.
        latency_s: From then to the answer; None where there was none.
        ending: Whether it was answered rightly, refused since too many wait, or failed in another way.
    """

    case: str
    due_s: float
    latency_s: float | None
    ending: Ending


@dataclass(frozen=True)
class Loop:
    """What came of a loop.

    Attributes:
        seconds: From its begin to the last answer.
        late_s: The longest that a request was sent after it was due: what the client itself could not keep up with.
        requests: In the order that they were due.
    """

    seconds: float
    late_s: float
    requests: tuple[Ended, ...]

    def count(self, ending: Ending) -> int:
        """How many ended so."""
        return sum(request.ending == ending for request in self.requests)

    def latencies_s(self, case: str | None = None) -> list[float]:
        """Of the requests that were answered, or of those of one case."""
        return [r.latency_s for r in self.requests if r.latency_s is not None and case in (None, r.case)]

    def quantile_s(self, q: float, case: str | None = None) -> float | None:
        """A percentile of these, see `loadtest.gate.percentile`."""
        return percentile(self.latencies_s(case), q)

    @property
    def answered_per_s(self) -> float:
        """Throughput."""
        return self.count("answered") / self.seconds if self.seconds > 0 else 0.0


def poisson_arrivals(rate_per_s: float, seconds: float, seed: int) -> tuple[float, ...]:
    """Times of a Poisson process, given how many there are: independent and uniform.

    With the number left to chance as well, ten seconds at ten a second would come out at nine or eleven a second as
    often as not, and that is the very thing that is varied.

    Args:
        rate_per_s: Arrivals a second.
        seconds: For how long.
        seed: The same seed gives the same times.

    Returns:
        Ascending, in `[0, seconds)`; `rate_per_s * seconds` of them, rounded.

    Raises:
        RequestError: If either is not above 0.
    """
    if not (rate_per_s > 0 and seconds > 0):
        raise RequestError(f"expected a rate and a time above 0, got {rate_per_s}/s and {seconds} s")
    times = np.random.default_rng(seed).uniform(0, seconds, round(rate_per_s * seconds))
    return tuple(float(time_s) for time_s in np.sort(times))


def closed_loop(
    client: Any, cases: Sequence[LoadCase], in_flight: int, seconds: float, drain_s: float = DRAIN_S
) -> Loop:
    """Asks for the cases in turn, one as soon as another ends, and waits for all of them at its end.

    Args:
        client: From `loadtest.wire.connect`.
        cases: One round; repeated.
        in_flight: Requests at a time.
        seconds: After this no more are sent.
        drain_s: Longest wait for an answer.

    Raises:
        RequestError: If there is no case, or `in_flight` is below 1.
        InferenceFailed: If an answer does not come within `drain_s`.
    """
    if not cases or in_flight < 1:
        raise RequestError(f"expected cases and 1 or more in flight, got {len(cases)} and {in_flight}")
    free = threading.Semaphore(in_flight)
    asked = _asked(cases)
    sent = []
    with Flight(client, drain_s) as flight:
        began_s = time.perf_counter()
        for case, scan in asked:
            if not free.acquire(timeout=drain_s):
                raise InferenceFailed(f"expected an answer within {drain_s:g} s, got none")
            due_s = time.perf_counter() - began_s
            if due_s >= seconds:
                break
            future = flight.send(case, [scan], _checked(case))
            future.add_done_callback(lambda _: free.release())
            sent.append((case, due_s, future))
        return _loop(flight, began_s, sent, late_s=0.0)


def open_loop(client: Any, cases: Sequence[LoadCase], due_s: Sequence[float], drain_s: float = DRAIN_S) -> Loop:
    """Asks for the cases in turn, each when it is due, and waits for all of them at its end.

    Args:
        client: From `loadtest.wire.connect`.
        cases: One round; repeated.
        due_s: Ascending, in seconds after the loop began, as `poisson_arrivals` gives them.
        drain_s: Longest wait for an answer.

    Raises:
        RequestError: If there is no case.
        InferenceFailed: If an answer does not come within `drain_s`.
    """
    if not cases:
        raise RequestError("expected at least one case, got none")
    asked = _asked(cases)
    sent = []
    late_s = 0.0
    with Flight(client, drain_s) as flight:
        began_s = time.perf_counter() + _LEAD_S
        for due, (case, scan) in zip(due_s, asked, strict=False):
            time.sleep(max(0.0, began_s + due - time.perf_counter()))
            sent.append((case, due, flight.send(case, [scan], _checked(case))))
            late_s = max(late_s, time.perf_counter() - began_s - due)
        return _loop(flight, began_s, sent, late_s)


def _asked(cases: Sequence[LoadCase]) -> Iterable[tuple[LoadCase, bytes]]:
    # Drawn before anything is timed, so not inside the generator.
    scans = {case.name: case.scans() for case in cases}
    return ((case, scans[case.name][turn // len(cases) % SCANS_PER_CASE]) for turn, case in enumerate(cycle(cases)))


def _checked(case: LoadCase) -> Callable[[Answer], None]:
    return lambda answer: check_answer(case, answer)


def _loop(
    flight: Flight, began_s: float, sent: Sequence[tuple[LoadCase, float, Future[Landed[None]]]], late_s: float
) -> Loop:
    flight.wait()
    ended = []
    last_s = began_s
    for case, due_s, future in sent:
        try:
            done_s = flight.result(future).done_s
        except InferenceFailed as error:
            ended.append(Ended(case.name, due_s, None, "refused" if is_refusal(error) else "failed"))
        else:
            last_s = max(last_s, done_s)
            ended.append(Ended(case.name, due_s, done_s - began_s - due_s, "answered"))
    return Loop(seconds=last_s - began_s, late_s=late_s, requests=tuple(ended))
