"""What is promised of any file: a result or a clear error, within bounds."""

from __future__ import annotations

from tests.hostile.probe import Outcome
from tests.reliability import Row, Tally

MAX_CPU_S = 5.0
"""Seconds of processor time that a file may take. Time on the clock would measure who else is on the machine."""

MAX_PEAK_BYTES = 10**9
"""How far the memory of the process may rise for it."""


class Judge:
    """Holds outcomes against what is promised.

    Args:
        max_cpu_s: Seconds of processor time that a file may take.

    Attributes:
        faults: A line about each file that broke it.
    """

    def __init__(self, max_cpu_s: float = MAX_CPU_S) -> None:
        self._max_cpu_s = max_cpu_s
        self.faults: list[str] = []
        self._tally = Tally()
        self._peak_bytes = 0

    def take(self, name: str, outcome: Outcome) -> None:
        """One more file."""
        self._peak_bytes = max(self._peak_bytes, outcome.peak_bytes)
        count = {
            "answered": self._tally.answer,
            "refused": self._tally.refuse,
            "wrong": self._tally.mistake,
            "lost": self._tally.lose,
        }[outcome.verdict]
        count(outcome.cpu_s)
        problems = []
        if outcome.verdict in ("wrong", "lost"):
            problems.append(f"{outcome.verdict}: {outcome.says}")
        if outcome.cpu_s > self._max_cpu_s:
            problems.append(f"took {outcome.cpu_s:.1f} s of processor time")
        if outcome.peak_bytes > MAX_PEAK_BYTES:
            problems.append(f"took {outcome.peak_bytes / 2**20:,.0f} MiB")
        if problems:
            self.faults.append(f"{name}: {'; '.join(problems)}")

    def row(self, what: str) -> Row:
        """The counts so far, for docs/reliability.md."""
        return self._tally.row(what, group="Hostile input", peak_bytes=self._peak_bytes)
