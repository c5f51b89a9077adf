"""Probabilities along the axis of a study, as a plot that is a slider: click it, or move in it by the arrow keys.

SVG and some lines of script (`demo.script`) and no plotting library: it works without a network, each slice has its
numbers for screen readers (``aria-valuetext``), and it looks like the rest of the page. The curves are stretched to the
room that there is; words around them are HTML and stay legible on a phone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Final

from demo.rows import card
from serving.labels import DIAGNOSES, MANIFESTATIONS, Label
from serving.study_report import SliceReading

_COVID: Final = DIAGNOSES[0]
CURVES: Final[tuple[Label, ...]] = (_COVID, *MANIFESTATIONS)
# Told apart without their colours, too.
_DASHES: Final = ("", "7 3", "2 3", "9 3 2 3")


def axis_plot(slices: Sequence[SliceReading], count: int, shown: int, counted: Sequence[int] = ()) -> str:
    """The plot.

    Args:
        slices: Those that were read.
        count: Slices of the study.
        shown: The slice that is looked at, from 0.
        counted: The slices that the summary is of, where that is known: others are shaded.
    """
    by_index = {one.index: one for one in slices}
    # Up to where it is read. A slice that could not be read has no numbers.
    reached = range(max(by_index, default=-1) + 1)
    values = [[_percent(by_index.get(i), label) for label in CURVES] for i in reached]
    curves = "".join(_curve(values, i) for i in range(len(CURVES)))
    shade = _shade(count, counted) if counted else ""
    data = escape(json.dumps({"names": [label.title for label in CURVES], "values": values}, separators=(",", ":")))
    return (
        f"{card('Along the axis', 'click, or use the arrow keys')}"
        f'<div class="ls-plot"><div class="ls-scale" aria-hidden="true"><span>100 %</span><span>50</span><span>0</span>'
        f'</div><div class="ls-field" role="slider" tabindex="0" aria-label="Slice of the study"'
        f' aria-valuemin="1" aria-valuemax="{count}" aria-valuenow="{shown + 1}"'
        f' aria-valuetext="{_said(values, count, shown)}" data-count="{count}" data-said="{data}">'
        f'<svg viewBox="0 0 {count} 100" preserveAspectRatio="none" aria-hidden="true">{shade}'
        f'<path class="ls-half" d="M0 50H{count}"/>{curves}</svg>'
        f'<i class="ls-cursor" style="left:{100 * (shown + 0.5) / count:.3f}%"></i></div></div>'
        f'<div class="ls-ends" aria-hidden="true"><span>1, feet</span><span>head, {count}</span></div>'
        f"{_legend(bool(shade))}</section>"
    )


def _percent(one: SliceReading | None, label: Label) -> float | None:
    if one is None:
        return None
    p = one.diagnosis[label.name] if label is _COVID else one.manifestations[label.name]
    return None if p is None else round(100 * p, 1)


def _curve(values: Sequence[Sequence[float | None]], which: int) -> str:
    """A line through the middles of the slices, broken where there is no probability."""
    path, on = "", False
    for i, at in enumerate(values):
        value = at[which]
        if value is not None:
            # A slice alone would be a line of no length.
            path += f"{'L' if on else 'M'}{i + 0.5:g} {100 - value:g}{'' if on else 'h.01'}"
        on = value is not None
    return (
        f'<path d="{path}" style="stroke:rgb{CURVES[which].colour_rgb}" stroke-dasharray="{_DASHES[which]}"/>'
        if path
        else ""
    )


def _shade(count: int, counted: Sequence[int]) -> str:
    inside = set(counted)
    return "".join(f'<rect x="{i}" width="1.02" height="100"/>' for i in range(count) if i not in inside)


def _said(values: Sequence[Sequence[float | None]], count: int, shown: int) -> str:
    """As `demo.script` says it of other slices."""
    parts = [f"slice {shown + 1} of {count}"]
    if shown < len(values):
        each = zip(CURVES, values[shown], strict=True)
        parts += [f"{label.title} {'not run' if p is None else f'{p:.1f} %'}" for label, p in each]
    return escape(", ".join(parts))


def _legend(is_shaded: bool) -> str:
    items = "".join(
        f'<li><svg viewBox="0 0 26 8" aria-hidden="true"><path d="M0 4H26" style="stroke:rgb{label.colour_rgb}"'
        f' stroke-dasharray="{dash}"/></svg>{label.title}</li>'
        for label, dash in zip(CURVES, _DASHES, strict=True)
    )
    shade = '<li><i class="ls-shade"></i>too little lung to count</li>' if is_shaded else ""
    return f'<ul class="ls-legend">{items}{shade}</ul>'
