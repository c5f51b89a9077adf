"""Pieces of HTML that the panels share: cards, and rows with a bar."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from serving.burden import INFECTED
from serving.labels import ALL_STREAM, STREAMS, Label

_SIDE_TITLES: Final = {"both": "Both lungs", "right": "Right", "left": "Left"}


def card(title: str, aside: str) -> str:
    """The beginning of a card, which ends with ``</section>``.

    Args:
        title: Its heading, of ours.
        aside: What stands beside it; escaped.
    """
    return (
        f'<section class="ls-card" aria-label="{title}">'
        f'<div class="ls-heading"><h2>{title}</h2><span>{escape(aside)}</span></div>'
    )


def scrolled(label: str, table: str) -> str:
    """A table that scrolls sideways where it is wider than its place, by the keyboard too."""
    return f'<div class="ls-scroll" tabindex="0" role="region" aria-label="Table: {label}">{table}</div>'


def burden_table(sides: Sequence[str], found: Sequence[tuple[str, Sequence[str]]], lung: Sequence[str]) -> str:
    """A table of how much of the lungs is marked.

    Args:
        sides: Of `serving.burden.SIDE_NAMES`, the columns.
        found: Names of findings in their order, with a cell of HTML for each side.
        lung: Likewise, how large the lung is.
    """
    titles = {INFECTED: "Any of them", **{label.name: f"{swatch(label)}{label.title}" for label in STREAMS}}
    titles[ALL_STREAM.name] += ", by one network"
    rows = "".join(
        f'<tr><th scope="row">{title}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for title, cells in [*((titles[name], cells) for name, cells in found), ("Lung", lung)]
    )
    head = "".join(f'<th scope="col">{_SIDE_TITLES[side]}</th>' for side in sides)
    table = f'<table class="ls-burden"><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return scrolled("burden", table)


def sentence(text: str) -> str:
    """A message as a sentence: escaped, with a capital."""
    return escape(text[:1].upper() + text[1:])


def swatch(label: Label) -> str:
    """A square in a label's colour."""
    return f'<i class="ls-swatch" style="--c:rgb{label.colour_rgb}" aria-hidden="true"></i>'


def row(
    label: Label, p: float | None, *, threshold: float | None = None, verdict: str = "", is_top: bool = False
) -> str:
    """A list item with a probability as a number and as a bar.

    Args:
        label: What it is of.
        p: In `[0, 1]`; None where it was not computed.
        threshold: Where a tick stands.
        verdict: HTML below the bar.
        is_top: Whether it is the highest of its list.
    """
    value = "—" if p is None else f"{100 * p:.1f} %"
    number = "" if p is None else f' aria-valuenow="{100 * p:.1f}"'
    fill = "" if p is None else f'<b style="width:{100 * p:.2f}%"></b>'
    tick = "" if threshold is None else f'<s style="left:{100 * threshold:.2f}%" title="threshold {threshold:.2f}"></s>'
    kind = "ls-row ls-top" if is_top else "ls-row" if p is not None else "ls-row ls-unknown"
    # A meter without a number is none.
    role = "meter" if p is not None else "img"
    scale = ' aria-valuemin="0" aria-valuemax="100"' if p is not None else ""
    said = f' aria-valuetext="{value}"' if p is not None else ""
    name = label.title if p is not None else f"{label.title}: no probability"
    return (
        f'<li class="{kind}" style="--c:rgb{label.colour_rgb}">'
        f'<span class="ls-name">{swatch(label)}{label.title}</span>'
        f'<span class="ls-value">{value}</span><span class="ls-track" role="{role}" aria-label="{name}"'
        f"{scale}{number}{said}>{fill}{tick}</span>{verdict}</li>"
    )
