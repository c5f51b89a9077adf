"""What is done to the server, and when: drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from serving import pipeline
from serving.client import PipelineClient
from tests.soak.answers import Case
from tests.soak.callers import PAUSE_S, Books, burst, fill, go_away
from tests.soak.service import Service

KILL_TRITON: Final = "kill Triton"
KILL_STUB: Final = "kill a stub"
FREEZE: Final = "stop it for a moment"
GO_AWAY: Final = "clients go away"
BURST: Final = "burst"
# Triton 24.10 may find a backend that was stopped with it unhealthy when it goes on, and break over that.
BREAKING: Final = (KILL_TRITON, KILL_STUB, FREEZE)
HARMLESS: Final = (BURST, GO_AWAY)

EVERY_S: Final = 20.0
BURST_OF: Final = 200
GONE_AT_ONCE: Final = 6
FILLINGS: Final = 4
"""Batches of the largest size before the first burst of a life: each of the instances of a model gets one or two."""

FROZEN_S: Final = (0.5, 3.0)
"""Far below the 30 s after which a server counts as hung."""

FIRST_PART, LAST_PART = 0.3, 0.85
"""Between these shares of a run nothing is done that ends a process: in one long life memory can be seen to grow."""

EXPLAINS_S: Final = 60.0
"""For how long after one of `BREAKING`, or after Triton was back, a failed try comes from that."""


@dataclass(frozen=True)
class Fault:
    """One of them.

    Attributes:
        at_s: When, in seconds since the beginning.
        kind: One of `BREAKING` and `HARMLESS`.
    """

    at_s: float
    kind: str


def schedule(seconds: float, seed: int) -> list[Fault]:
    """The faults of a run, in their order: all kinds at its beginning and end, none of `BREAKING` in between.

    Args:
        seconds: How long it is.
        seed: Other seeds give other moments and another order.
    """
    rng = random.Random(seed)
    every_s = min(EVERY_S, seconds / 5)
    anything, harmless = _turns(rng, (*BREAKING, *HARMLESS)), _turns(rng, HARMLESS)
    found = []
    for slot in range(int(seconds / every_s)):
        at_s = (slot + rng.uniform(0.2, 0.8)) * every_s
        is_quiet = FIRST_PART <= slot * every_s / seconds < LAST_PART
        found.append(Fault(at_s, next(harmless if is_quiet else anything)))
    return found


def _turns(rng: random.Random, kinds: Sequence[str]) -> Iterator[str]:
    """The kinds as they stand, and then all of them again and again, each time in another order."""
    yield from kinds
    while True:
        yield from rng.sample(kinds, len(kinds))


class Faults:
    """Does what a schedule says.

    Args:
        service: To whom.
        cases: What bursts consist of.
        seed: Of all that is drawn.

    Attributes:
        done: How often each kind was done.
        sent_by_gone: How many requests were sent by clients that went away.
    """

    def __init__(self, service: Service, cases: Sequence[Case], seed: int) -> None:
        self.done: dict[str, int] = {}
        self.sent_by_gone = 0
        self._service = service
        self._cases = cases
        self._rng = random.Random(seed)
        self._broken_at_s = float("-inf")
        self._filled: int | None = None
        self._ways: Mapping[str, Callable[[Books], None]] = {
            KILL_TRITON: self._kill_triton,
            KILL_STUB: self._kill_stub,
            FREEZE: self._freeze,
            GO_AWAY: self._go_away,
            BURST: self._burst,
        }

    def is_explained(self) -> bool:
        """Whether a try that fails now can come from what was done, or from an end of Triton that was told."""
        return min(time.monotonic() - self._broken_at_s, self._service.up_for_s) < EXPLAINS_S

    def follow(self, books: Books, faults: Sequence[Fault], since_s: float) -> None:
        """Do each at its time, until all are done or the run is over.

        One whose time comes while the server is down waits until it is back: nothing more can happen to what is gone.
        """
        for fault in faults:
            if books.over.wait(max(0.0, since_s + fault.at_s - time.monotonic())) or not self._is_back(books):
                return
            sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {fault.kind}\n")
            self._ways[fault.kind](books)
            self.done[fault.kind] = self.done.get(fault.kind, 0) + 1

    def _is_back(self, books: Books) -> bool:
        with PipelineClient(self._service.url) as client:
            while not client.is_ready():
                if books.over.wait(PAUSE_S):
                    return False
        return True

    def _kill_triton(self, books: Books) -> None:
        self._broken_at_s = time.monotonic()
        pid = self._service.triton_pid
        if pid is not None:
            _signal(pid, signal.SIGKILL)

    def _kill_stub(self, books: Books) -> None:
        self._broken_at_s = time.monotonic()
        stubs = [process for process in self._service.processes() if process.name in _MODELS]
        if stubs:
            chosen = self._rng.choice(stubs)
            sys.stderr.write(f"          which is that of {chosen.name}\n")
            _signal(chosen.pid, signal.SIGKILL)

    def _freeze(self, books: Books) -> None:
        self._broken_at_s = time.monotonic()
        pid = self._service.triton_pid
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGSTOP)
            try:
                books.over.wait(self._rng.uniform(*FROZEN_S))
            finally:
                os.killpg(pid, signal.SIGCONT)

    def _go_away(self, books: Books) -> None:
        xrays = [case for case in self._cases if case.kind.modality == "xray"]
        for _ in range(GONE_AT_ONCE):
            go_away(self._service.url, self._rng.choice(xrays), GONE_AT_ONCE, self._rng.uniform(0, 0.1))
            self.sent_by_gone += GONE_AT_ONCE

    def _burst(self, books: Books) -> None:
        if self._filled != self._service.triton_pid:
            self._filled = self._service.triton_pid
            (*_, dearest) = self._cases
            fill(books, self._service.url, dearest, FILLINGS)
        burst(books, self._service.url, self._cases, BURST_OF)


_MODELS: Final = frozenset(step.model for step in pipeline.STEPS)


def _signal(pid: int, number: int) -> None:
    # It may have gone between the look and the kill.
    with suppress(ProcessLookupError):
        os.kill(pid, number)
