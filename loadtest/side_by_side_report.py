"""A comparison as Markdown. Every figure is of the run, but for the paper's time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from loadtest.cases import CASES, PAPER_CASE_S
from loadtest.difference import Difference
from loadtest.layout import table
from loadtest.quiet import QUIET_CORES
from loadtest.side_by_side import LIMITS, REFERENCE_WAY, WARM_UP_ROUNDS, Contender, Outcome, SideBySide

PAPER_CASE: Final = "ct_open"
"""The case that the paper's time is of: all three stages and all streams."""


def sections(result: SideBySide) -> list[str]:
    """Paragraphs and tables, to be joined with blank lines."""
    return [
        _introduction(result),
        *([result.note] if result.note else []),
        *(part for case in result.cases for part in _case_sections(result, case)),
        *agreement(result),
        "### How each was set up",
        "\n".join(f"- {way}: {how}." for way, how in _setups(result).items()),
    ]


def agreement(result: SideBySide) -> list[str]:
    """Whether all said the same: a heading, an explanation and a table."""
    return [
        "### Agreement",
        f"Largest differences from {REFERENCE_WAY} in process, over all rounds and cases: of a probability, and of a "
        "mask the share of pixels.",
        table(
            ("way", "same networks: probability", "mask", "fp32 networks: probability", "mask", "verdict"),
            [_agreement_row(result, contender) for contender in result.contenders],
        ),
    ]


def _introduction(result: SideBySide) -> str:
    machine = result.machine
    packages = ", ".join(f"{name} {number}" for name, number in (machine.packages | dict(result.packages)).items())
    return (
        f"Taken {result.taken_at} on {machine.cpu} ({machine.usable_cores} of {machine.cores} cores, load average "
        f"{machine.load_average} at the start), {packages}. {result.rounds} rounds after {WARM_UP_ROUNDS} of warm-up; "
        "from the scan's bytes to the decoded answer, one scan at a time, all ways in turn on the same scans. Before "
        f"{result.turns - result.restless} of {result.turns} turns all processes together used less than "
        f"{QUIET_CORES:g} cores{'; before the others the wait ran out' if result.restless else ''}."
    )


def _case_sections(result: SideBySide, case: str) -> Iterator[str]:
    ours_ms = result.ours(case).percentile_ms(0.5)
    head = ["way", "where", "p50, ms", "p95, ms", "p50 / ours"]
    rows = [_case_row(result, outcome, ours_ms) for outcome in result.of(case)]
    if case == PAPER_CASE:
        head.append(f"paper's {PAPER_CASE_S:g} s / p50")
        for row, outcome in zip(rows, result.of(case), strict=True):
            row.append(f"{PAPER_CASE_S * 1000 / outcome.percentile_ms(0.5):.1f}")
    title = CASES[case].title if case in CASES else case
    yield f"### {title} (`{case}`)"
    yield table(head, rows)
    yield _standing(result, case)


def _case_row(result: SideBySide, outcome: Outcome, ours_ms: float) -> list[str]:
    contender = result.contender(outcome.contender)
    mark = "**" if contender.ours else ""
    p50, p95 = (outcome.percentile_ms(q) for q in (0.5, 0.95))
    return [
        f"{mark}{contender.name}{mark}",
        "served" if contender.served else "in process",
        f"{p50:.1f}",
        f"{p95:.1f}",
        f"{p50 / ours_ms:.2f}",
    ]


def _standing(result: SideBySide, case: str) -> str:
    """In words: of the ways that are served at the same precision, which ours is ahead of."""
    medians = {outcome.contender: outcome.percentile_ms(0.5) for outcome in result.of(case)}
    sentences = []
    for ours in (contender for contender in result.contenders if contender.ours):
        for other in result.contenders:
            if other.served and not other.ours and other.precision == ours.precision:
                ratio = medians[other.name] / medians[ours.name]
                ahead = "ahead of" if ratio > 1 else "**not** ahead of"
                sentences.append(f"{ours.name} is {ahead} {other.name}, whose median is {ratio:.2f} times as long.")
    return " ".join(sentences) or "No other served way took part."


def _agreement_row(result: SideBySide, contender: Contender) -> list[str]:
    outcomes = [outcome for outcome in result.outcomes if outcome.contender == contender.name]
    same = _largest([outcome.against_same for outcome in outcomes])
    fp32 = [outcome.against_fp32 for outcome in outcomes if outcome.against_fp32 is not None]
    widest = _largest(fp32)
    complaints = [f"{outcome.case}: {outcome.complaint}" for outcome in outcomes if outcome.complaint is not None]
    limit = LIMITS[contender.precision]
    verdict = "agrees" if same.within(limit) else f"**differs** (over {limit.probability:g} or {limit.mask:.1%})"
    return [
        contender.name,
        *_difference_cells(same),
        *(_difference_cells(widest) if fp32 else ("-", "-")),
        "; ".join(complaints) or verdict,
    ]


def _largest(differences: Sequence[Difference]) -> Difference:
    return Difference(
        max((difference.probability for difference in differences), default=0.0),
        max((difference.mask for difference in differences), default=0.0),
    )


def _difference_cells(difference: Difference) -> tuple[str, str]:
    return f"{difference.probability:.2g}", f"{difference.mask:.3%}"


def _setups(result: SideBySide) -> dict[str, str]:
    """By way, without the precision."""
    return {contender.name.removesuffix(f" {contender.precision}"): contender.how for contender in result.contenders}
