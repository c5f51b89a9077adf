"""A case as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lungstreams.cases import DOUBTED, EXPLANATION, CaseResult, burden_of, burden_words, percent_of
from lungstreams.console import RESEARCH_ONLY
from serving.burden import SIDE_NAMES
from serving.labels import DIAGNOSES, MANIFESTATION_NAMES, MANIFESTATIONS, STREAMS

_STATUS_TEXT: Final = {"ran": "", "not_run": "not run", "not_applicable": "not applicable"}


def table_of(case: CaseResult) -> Table:
    """The table of a case that was read."""
    data = case.data
    words = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in burden_words(burden_of(data))]
    table = Table(
        title=escape(case.title),
        caption=escape(" ".join([*words, case.caption, RESEARCH_ONLY])),
        title_justify="left",
        caption_justify="left",
    )
    headings = _headings(data)
    for heading in ("", "probability", *headings, "mask"):
        table.add_column(heading, justify="left" if heading in ("", "mask") else "right", overflow="fold")
    empty = [""] * (len(headings) + 1)
    likeliest = max(DIAGNOSES, key=lambda label: data["diagnosis"][label.name])
    for label in DIAGNOSES:
        picture = _path(data.get(EXPLANATION)) if label is likeliest else ""
        table.add_row(label.title, f"{data['diagnosis'][label.name]:.1%}", *empty[1:], picture)
    table.add_section()
    for label in (*MANIFESTATIONS, *(stream for stream in STREAMS if stream.name not in MANIFESTATION_NAMES)):
        table.add_row(label.title, _score(data, label.name), *_amounts(data, label.name), _mask(data, label.name))
    return table


def warning_of(case: CaseResult) -> Text:
    """What a reader must see before the table of a case that may be no chest scan, or no study of the chest."""
    return Text(f"{' '.join(case.doubts)} {DOUBTED}", style="bold red")


def _headings(data: Mapping[str, Any]) -> tuple[str, ...]:
    burden = burden_of(data)
    if burden is None:
        return ("area",)
    # Columns that stay empty only make the table wider.
    per_cents = ("of lung", "right", "left") if not burden.get("note") else ()
    return ("ml" if "study" in data else "area", *per_cents)


def _score(data: Mapping[str, Any], name: str) -> str:
    if name not in data["manifestations"]:
        return ""
    score = data["manifestations"][name]
    return _STATUS_TEXT[data["status"]["manifestations"]] if score is None else f"{score:.1%}"


def _amounts(data: Mapping[str, Any], name: str) -> Iterable[str]:
    area, empty = data["area_fraction"][name], [""] * (len(_headings(data)) - 1)
    if area is None:
        return (_STATUS_TEXT[data["status"][name]], *empty)
    sides = (burden_of(data) or {"found": {}})["found"].get(name)
    first = f"{area:.2%}"
    if "study" in data:
        ml = None if sides is None else sides["both"]["ml"]
        first = "" if ml is None else f"{ml:,.0f}"
    if sides is None or not empty:
        return (first, *empty)
    return (first, *(percent_of(sides[side]) for side in SIDE_NAMES))


def _mask(data: Mapping[str, Any], name: str) -> str:
    return _path(data["masks"][name])


def _path(path: str | None) -> str:
    return escape((path or "").encode(errors="backslashreplace").decode())
