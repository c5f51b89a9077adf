"""A case as a table for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lungstreams.cases import DOUBTED, EXPLANATION, CaseResult, burden_words
from lungstreams.console import RESEARCH_ONLY
from serving.labels import DIAGNOSES, MANIFESTATION_NAMES, MANIFESTATIONS, STREAMS

_STATUS_TEXT: Final = {"ran": "", "not_run": "not run", "not_applicable": "not applicable"}


def table_of(case: CaseResult) -> Table:
    """The table of a case that was read."""
    data = case.data
    words = [f"{sentence[0].upper()}{sentence[1:]}." for sentence in _words(data)]
    table = Table(
        title=escape(case.title),
        caption=escape(" ".join([*words, case.caption, RESEARCH_ONLY])),
        title_justify="left",
        caption_justify="left",
    )
    headings = ("ml", "of lung", "right", "left") if "study" in data else ("area",)
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
    """What a reader must see before the table of a case that may be no chest scan."""
    return Text(f"{' '.join(case.doubts)} {DOUBTED}", style="bold red")


def _words(data: Mapping[str, Any]) -> Iterable[str]:
    return burden_words(data["study"]["burden"]) if "study" in data else ()


def _score(data: Mapping[str, Any], name: str) -> str:
    if name not in data["manifestations"]:
        return ""
    score = data["manifestations"][name]
    return _STATUS_TEXT[data["status"]["manifestations"]] if score is None else f"{score:.1%}"


def _amounts(data: Mapping[str, Any], name: str) -> Iterable[str]:
    area = data["area_fraction"][name]
    if area is None:
        text = _STATUS_TEXT[data["status"][name]]
        return (text, "", "", "") if "study" in data else (text,)
    if "study" not in data:
        return (f"{area:.2%}",)
    sides = data["study"]["burden"]["found"].get(name)
    if sides is None:
        return ("", "", "", "")
    ml = sides["both"]["ml"]
    return ("" if ml is None else f"{ml:,.0f}", *(_percent(sides[side]) for side in ("both", "right", "left")))


def _percent(amount: Mapping[str, Any]) -> str:
    return "" if amount["percent"] is None else f"{amount['percent']:.1f} %"


def _mask(data: Mapping[str, Any], name: str) -> str:
    return _path(data["masks"][name])


def _path(path: str | None) -> str:
    return escape((path or "").encode(errors="backslashreplace").decode())
