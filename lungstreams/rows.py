"""A case as a row of ``cases.csv``: what a spreadsheet wants of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from lungstreams.cases import burden_of
from serving.burden import BOTH, FINDING_NAMES, SIDE_NAMES, SLICE_FINDING_NAMES
from serving.exports.tables import Cell, harmless
from serving.labels import ALL_STREAM, DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.results import STATUS_NAMES

_BURDEN: Final = tuple(f"{name}_{side}_percent" for name in FINDING_NAMES for side in SIDE_NAMES)
COLUMNS: Final = (
    *("file", "error", "message", "modality"),
    *(f"p_{name}" for name in (*DIAGNOSIS_NAMES, *MANIFESTATION_NAMES)),
    *(f"status_{name}" for name in STATUS_NAMES),
    *(f"area_fraction_{name}" for name in STREAM_NAMES),
    *("series", "slices", "complete", "problems", "lung_ml"),
    *(f"{name}_ml" for name in FINDING_NAMES),
    *_BURDEN,
    *(f"mask_{name}" for name in STREAM_NAMES),
    "latency_ms",
    "doubts",
    "lung_px",
    *(f"{name}_px" for name in SLICE_FINDING_NAMES),
    *(f"{ALL_STREAM.name}_{side}_percent" for side in SIDE_NAMES),
    "burden_note",
)
"""In their order. Empty is what was not said: a stage that did not run, a volume that is not known."""


def row_of(data: Mapping[str, Any]) -> dict[str, Cell]:
    """The row of a case, in which no text is a formula: names of files are anybody's.

    Args:
        data: As ``--json`` writes it.

    Returns:
        By column; what is left out is empty.
    """
    return {column: harmless(value) for column, value in _row_of(data).items()}


def _row_of(data: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"file": data["file"]}
    if "error" in data:
        return {**row, "error": data["error"]["type"], "message": " ".join(data["error"]["message"].split())}
    row |= {"modality": data["modality"], "latency_ms": data["latency_ms"]}
    row |= {f"p_{name}": p for part in ("diagnosis", "manifestations") for name, p in data[part].items()}
    for column, part in (("status", "status"), ("area_fraction", "area_fraction"), ("mask", "masks")):
        row |= {f"{column}_{name}": value for name, value in data[part].items()}
    row["doubts"] = " ".join(data.get("doubts", ()))
    if "study" in data:
        row |= dict(_study(data["study"]))
    if (burden := burden_of(data)) is not None:
        row |= dict(_burden(burden))
    return row


def _study(study: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from (("series", study["series"]), ("slices", study["shape"][0]), ("complete", study["complete"]))
    yield "problems", "; ".join(study["problems"])


def _burden(burden: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    parts = (("lung", burden["lung"]), *burden["found"].items())
    for name, sides in parts:
        if (both := sides[BOTH]) is not None:
            yield f"{name}_px", both["pixels"]
            if "ml" in both:
                yield f"{name}_ml", both["ml"]
    for name, sides in burden["found"].items():
        known = {side: amount for side, amount in sides.items() if amount is not None}
        yield from ((f"{name}_{side}_percent", amount["percent"]) for side, amount in known.items())
    yield "burden_note", burden.get("note")
