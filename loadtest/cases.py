"""What is asked of the server under load, and how fast it must answer.

Three cases by name, since they cost the server very different work: an X-ray runs stage 1 alone, a CT slice runs
what its findings call for, and a CT slice with its gates open runs all seven models. A mean over the three would
hide the dear one behind the cheap ones, so each is judged against its own budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Final

from serving.errors import RequestError
from serving.labels import Modality
from serving.phantom import chest_xray, ct_slice, png_bytes
from serving.pipeline import THRESHOLDS

PAPER_CASE_S: Final = 5.33
"""The paper's own time for one case on a GTX 1080 Ti, in seconds."""

SCANS_PER_CASE: Final = 4
"""Distinct scans a case cycles through, so that no answer can come out of a cache."""

ALL_OPEN: Final[Mapping[str, float]] = MappingProxyType(dict.fromkeys(THRESHOLDS, 0.0))


@dataclass(frozen=True)
class LoadCase:
    """One kind of request.

    Attributes:
        name: What it is called in reports and on the command line.
        title: What it is, for people.
        modality: What the request says that the scan is.
        thresholds: The request's thresholds by name, each in `[0, 1]`.
        weight: Its share of the requests, relative to the others' weights.
        p95_budget_s: The 95th percentile of its latency may not be above this, in seconds.
    """

    name: str
    title: str
    modality: Modality
    thresholds: Mapping[str, float]
    weight: int
    p95_budget_s: float = PAPER_CASE_S

    def __post_init__(self) -> None:
        if tuple(self.thresholds) != tuple(THRESHOLDS):
            raise RequestError(f"expected thresholds {', '.join(THRESHOLDS)}, got {', '.join(self.thresholds)}")
        if self.weight < 1:
            raise RequestError(f"expected a weight of 1 or more for {self.name}, got {self.weight}")
        if not self.p95_budget_s > 0:
            raise RequestError(f"expected a budget above 0 s for {self.name}, got {self.p95_budget_s}")

    def scans(self) -> tuple[bytes, ...]:
        """Draws its scans: `SCANS_PER_CASE` distinct PNG files, the same ones each time."""
        return tuple(draw(self.modality, seed) for seed in range(SCANS_PER_CASE))


# A phantom takes about half a second to draw, and the CT cases use the same ones.
@cache
def draw(modality: Modality, seed: int) -> bytes:
    """A phantom of a modality as a PNG file."""
    pixels = chest_xray(seed) if modality == "xray" else ct_slice(seed).pixels
    return png_bytes(pixels)


CASES: Final[Mapping[str, LoadCase]] = MappingProxyType(
    {
        case.name: case
        for case in (
            LoadCase("xray", "X-ray: stage 1 alone", "xray", THRESHOLDS, weight=1),
            LoadCase("ct_gated", "CT slice, gates by probability", "ct", THRESHOLDS, weight=2),
            LoadCase("ct_open", "CT slice, every gate open", "ct", ALL_OPEN, weight=1),
        )
    }
)


def select(names: Sequence[str] = (), budget_s: float | None = None) -> tuple[LoadCase, ...]:
    """The cases of these names, or all of them.

    Args:
        names: Names out of `CASES`; empty means all. A name that is there twice counts once.
        budget_s: Replaces the budget of each, in seconds.

    Returns:
        The cases, in the order of `CASES`.

    Raises:
        RequestError: If a name is none of `CASES`, or the budget is not above 0.
    """
    unknown = [name for name in names if name not in CASES]
    if unknown:
        raise RequestError(f"expected cases out of {', '.join(CASES)}, got {', '.join(unknown)}")
    chosen = (case for case in CASES.values() if not names or case.name in names)
    return tuple(case if budget_s is None else replace(case, p95_budget_s=budget_s) for case in chosen)


def schedule(cases: Sequence[LoadCase]) -> tuple[LoadCase, ...]:
    """One round of requests in which each case comes as often as its weight, spread evenly.

    A fixed round instead of a draw by chance: a short run then still holds every case, and two runs ask the same.
    """
    slots = [((turn + 0.5) / case.weight, case.name, case) for case in cases for turn in range(case.weight)]
    return tuple(case for _, _, case in sorted(slots, key=lambda slot: slot[:2]))
