"""How far the memory of a server grew while it lived.

A process that is started again begins anew, so growth is judged within a life: a stretch in which the server's
processes were the same ones. Resident sets are summed: what several processes map counts in each, which is more than
the server takes, but does not change when another program on the machine comes or goes, as proportional sets do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Final

MAX_GROWTH_BYTES: Final = 100 * 10**6
"""What is promised of a life, however long."""

SETTLING: Final = 0.2
"""Share of a life that is left out at its beginning: until the largest batch and the dearest file have come."""

LEAST_SHARE: Final = 0.2
LEAST_S: Final = 120.0
"""What a life has to last to be judged, as a share of the run and in seconds: a shorter one has not settled yet."""

LEAST_SAMPLES: Final = 8


@dataclass(frozen=True)
class Sample:
    """One look at some processes.

    Attributes:
        at_s: When, in seconds.
        pids: Which processes there were.
        rss_bytes: The sum of their resident sets.
        pss_bytes: The sum of their proportional sets.
    """

    at_s: float
    pids: frozenset[int]
    rss_bytes: int
    pss_bytes: int = 0


@dataclass(frozen=True)
class Growth:
    """What became of the memory within a life: medians of the first and the last quarter after it had settled.

    Attributes:
        seconds: How long the life was.
        first_bytes: Of the first quarter.
        last_bytes: Of the last one.
    """

    seconds: float
    first_bytes: float
    last_bytes: float

    @property
    def grown_bytes(self) -> float:
        """How much more it was in the end; negative if less."""
        return self.last_bytes - self.first_bytes

    @property
    def is_borne(self) -> bool:
        """Whether it is as promised."""
        return self.grown_bytes <= MAX_GROWTH_BYTES

    def __str__(self) -> str:
        first, last, grown = (value / 1e6 for value in (self.first_bytes, self.last_bytes, self.grown_bytes))
        return f"{first:,.0f} MB -> {last:,.0f} MB ({grown:+.1f} MB) in a life of {self.seconds:.0f} s"


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """The growth of each life that is long enough to be judged, in their order."""
    if not samples:
        return []
    least_s = max(LEAST_S, LEAST_SHARE * (samples[-1].at_s - samples[0].at_s))
    found = (_growth(list(life)) for _, life in groupby(samples, key=lambda sample: sample.pids))
    return [growth for growth in found if growth is not None and growth.seconds >= least_s]


def largest(found: Iterable[Growth]) -> Growth | None:
    """The one that grew most; None if there is none."""
    return max(found, key=lambda growth: growth.grown_bytes, default=None)


def _growth(life: Sequence[Sample]) -> Growth | None:
    settled = life[int(len(life) * SETTLING) :]
    if len(settled) < LEAST_SAMPLES:
        return None
    quarter = len(settled) // 4
    first, last = settled[:quarter], settled[-quarter:]
    return Growth(
        life[-1].at_s - life[0].at_s,
        median(sample.rss_bytes for sample in first),
        median(sample.rss_bytes for sample in last),
    )
