"""A comparison as plots, in the style of `loadtest.layout`. Needs Matplotlib, which the extras bring."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from loadtest.cases import CASES, PAPER_CASE_S
from loadtest.layout import BLUE, GREY, ORANGE, new_figure
from loadtest.side_by_side import Contender, SideBySide
from loadtest.side_by_side_report import PAPER_CASE

_PALE = "#a9b4bc"
_KINDS = {"ours, served": ORANGE, "others, served": BLUE, "in process, no server": _PALE}


def draw(result: SideBySide) -> dict[str, Figure]:
    """A plot for each case: bars up to the median, whiskers to the 95th percentile, the fastest on top.

    Returns:
        Figures by the stem of a file name, as in ``side-by-side-full-width-ct_open``.
    """
    stem = "-".join(result.title.lower().split())
    return {f"side-by-side-{stem}-{case}": _draw_case(result, case) for case in result.cases}


def _draw_case(result: SideBySide, case: str) -> Figure:
    outcomes = result.of(case)
    contenders = [result.contender(outcome.contender) for outcome in outcomes]
    medians = [outcome.percentile_ms(0.5) for outcome in outcomes]
    ends = [outcome.percentile_ms(0.95) for outcome in outcomes]
    figure = new_figure(9, 1.6 + 0.4 * len(outcomes))
    axes = figure.add_subplot()
    axes.set_title(f"{result.title}: {CASES[case].title if case in CASES else case}", fontsize=11)
    _draw_bars(axes, contenders, medians, ends)
    highest_ms = max(ends)
    if case == PAPER_CASE:
        highest_ms = max(highest_ms, PAPER_CASE_S * 1000)
        _draw_paper(axes)
    axes.set(xlim=(0, 1.08 * highest_ms), xlabel="ms: median, whisker to the 95th percentile; less is better")
    patches = [Patch(color=colour, label=label) for label, colour in _KINDS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), fontsize=8, frameon=False)
    return figure


def _draw_bars(axes: Axes, contenders: Sequence[Contender], medians: Sequence[float], ends: Sequence[float]) -> None:
    places = range(len(contenders))
    axes.barh(
        places,
        medians,
        color=[_KINDS[_kind(contender)] for contender in contenders],
        height=0.68,
        xerr=[[0.0] * len(medians), [end - median for median, end in zip(medians, ends, strict=True)]],
        error_kw={"ecolor": "black", "elinewidth": 1, "capsize": 3},
    )
    for place, median, end in zip(places, medians, ends, strict=True):
        axes.annotate(f"{median:.0f}", (end, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
    # Colour alone would not tell a server from a library.
    axes.set_yticks(places, [f"{c.name}{' (served)' if c.served else ''}" for c in contenders], fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_paper(axes: Axes) -> None:
    paper_ms = PAPER_CASE_S * 1000
    axes.axvline(paper_ms, color=GREY, linestyle="--", linewidth=1.2)
    # Beside the fastest, whose bar is the shortest.
    axes.annotate(
        f"the paper, on a GTX 1080 Ti: {paper_ms:.0f}",
        (paper_ms, 0),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9,
        color=GREY,
    )


def _kind(contender: Contender) -> str:
    if contender.ours:
        return "ours, served"
    return "others, served" if contender.served else "in process, no server"
