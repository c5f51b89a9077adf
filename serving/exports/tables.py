"""A case as rows of CSV (RFC 4180, UTF-8): one a case, and for a study one a slice in a second file.

Columns are always there and always in the same order, so that files of many cases can be put below each other; a
cell is empty where something was not asked or is not known. Probabilities and parts of an area are in `[0, 1]`,
volumes in ml, per cents of the lung of that side; `px` are pixels of a scan, or voxels of a study.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from serving.burden import FINDING_NAMES, SIDE_NAMES, SLICE_FINDING_NAMES, SliceBurden
from serving.exports.about import SOFTWARE, software_version
from serving.exports.case import Case
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.pipeline import THRESHOLD_NAMES
from serving.results import STATUS_NAMES
from serving.study_report import SliceReading, StudyReport

Cell = str | int | float | None

_SCORES: Final = (
    *(f"p_{name}" for name in DIAGNOSIS_NAMES),
    *(f"p_{name}" for name in MANIFESTATION_NAMES),
    *(f"area_fraction_{name}" for name in STREAM_NAMES),
)
CASE_COLUMNS: Final = (
    "case",
    "kind",
    "modality",
    "slices",
    "slices_read",
    "height_px",
    "width_px",
    "slice_spacing_mm",
    "row_spacing_mm",
    "column_spacing_mm",
    *_SCORES,
    *(f"status_{name}" for name in STATUS_NAMES),
    *(f"threshold_{name}" for name in THRESHOLD_NAMES),
    *(f"lung_ml_{side}" for side in SIDE_NAMES),
    *(f"{name}_ml_{side}" for name in FINDING_NAMES for side in SIDE_NAMES),
    *(f"{name}_percent_{side}" for name in SLICE_FINDING_NAMES for side in SIDE_NAMES),
    *(f"lung_px_{side}" for side in SIDE_NAMES),
    *(f"{name}_px_{side}" for name in SLICE_FINDING_NAMES for side in SIDE_NAMES),
    "burden_note",
    "doubts",
    "problems",
    "models",
    "software",
)
"""Of ``<prefix>.csv``. `case` is the prefix."""

SLICE_COLUMNS: Final = ("case", "slice", "counted", *_SCORES, *(f"status_{name}" for name in STATUS_NAMES), "lung_px")
"""Of ``<prefix>.slices.csv``. `slice` counts from 0 at the feet; `counted`: whether the study's summary is of it."""

# What a spreadsheet takes for the beginning of a formula.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def case_row(case: Case, name: str) -> dict[str, Cell]:
    """The row of a case, by `CASE_COLUMNS`.

    Args:
        case: The case.
        name: What to call it in the column `case`.
    """
    report = case.report
    row: dict[str, Cell] = dict.fromkeys(CASE_COLUMNS)
    row |= {"case": name, "software": f"{SOFTWARE} {software_version()}"}
    row |= _scores(report.diagnosis, report.manifestations, report.area_fraction)
    row |= {f"status_{key}": value for key, value in report.status.items()}
    row |= {f"threshold_{key}": value for key, value in report.thresholds.items()}
    row["models"] = "; ".join(f"{model}={version}" for model, version in sorted(report.models.items()))
    row["doubts"] = "; ".join(doubts_of(case))
    row["problems"] = "; ".join(problems_of(case))
    row |= _study_cells(report) if isinstance(report, StudyReport) else _scan_cells(case)
    return row


def slice_row(one: SliceReading, name: str, *, counted: bool) -> dict[str, Cell]:
    """The row of a slice, by `SLICE_COLUMNS`.

    Args:
        one: The slice.
        name: What to call the case.
        counted: Whether the study's summary is of it, too.
    """
    return {
        "case": name,
        "slice": one.index,
        "counted": int(counted),
        **_scores(one.diagnosis, one.manifestations, one.area_fraction),
        **{f"status_{key}": value for key, value in one.status.items()},
        "lung_px": one.lung_px,
    }


def problems_of(case: Case) -> tuple[str, ...]:
    """What whoever reads a study should know of it, in words that name nobody, what matters most first."""
    if case.study is None:
        return ()
    read, of = len(case.study.slices), case.study.shape[0]
    return (*(() if case.study.complete else (f"only {read:,} of {of:,} slices were read",)), *case.study.problems)


def doubts_of(case: Case) -> tuple[str, ...]:
    """Why it may be no plausible chest scan, or no study of the chest, in words; none if nothing speaks against it."""
    return case.report.doubts


def write_csv(case: Case, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write ``<prefix>.csv``, and for a study ``<prefix>.slices.csv``."""
    paths = [_write(folder / f"{prefix}.csv", CASE_COLUMNS, [case_row(case, prefix)])]
    if case.study is not None:
        counted = {one.index for one in case.study.counted}
        rows = [slice_row(one, prefix, counted=one.index in counted) for one in case.study.slices]
        paths.append(_write(folder / f"{prefix}.slices.csv", SLICE_COLUMNS, rows))
    return tuple(paths)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Cell]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="")
        writer.writeheader()
        writer.writerows({key: harmless(value) for key, value in row.items()} for row in rows)
    return path


def harmless(value: Cell) -> Cell:
    """A text that no spreadsheet takes for a formula (OWASP, "CSV Injection"): such a one gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _scores(
    diagnosis: Mapping[str, float],
    manifestations: Mapping[str, float | None],
    area_fraction: Mapping[str, float | None],
) -> dict[str, Cell]:
    return {
        **{f"p_{name}": diagnosis[name] for name in DIAGNOSIS_NAMES},
        **{f"p_{name}": manifestations[name] for name in MANIFESTATION_NAMES},
        **{f"area_fraction_{name}": area_fraction[name] for name in STREAM_NAMES},
    }


def _scan_cells(case: Case) -> dict[str, Cell]:
    assert case.single is not None
    assert case.scan is not None
    height, width = case.single.size_hw
    spacing = case.scan.pixel_spacing_mm or (None, None)
    return {
        **({} if case.single.burden is None else _slice_burden_cells(case.single.burden)),
        "kind": "scan",
        "modality": case.single.modality,
        "slices": 1,
        "slices_read": 1,
        "height_px": height,
        "width_px": width,
        "row_spacing_mm": spacing[0],
        "column_spacing_mm": spacing[1],
    }


def _slice_burden_cells(burden: SliceBurden) -> dict[str, Cell]:
    cells: dict[str, Cell] = {"burden_note": burden.note}
    for name, sides in {"lung": burden.lung, **burden.found}.items():
        for side, area in sides.items():
            if area is not None:
                cells[f"{name}_px_{side}"] = area.pixels
                if name in burden.found:
                    cells[f"{name}_percent_{side}"] = area.percent
    return cells


def _study_cells(study: StudyReport) -> dict[str, Cell]:
    (slices, height, width), spacing = study.shape, study.spacing_mm or (None, None, None)
    cells: dict[str, Cell] = {"kind": "study", "modality": "ct"}
    cells |= {"slices": slices, "slices_read": len(study.slices), "height_px": height, "width_px": width}
    cells |= dict(zip(("slice_spacing_mm", "row_spacing_mm", "column_spacing_mm"), spacing, strict=True))
    for side in SIDE_NAMES:
        cells[f"lung_ml_{side}"] = study.burden.lung[side].ml
        cells[f"lung_px_{side}"] = study.burden.lung[side].pixels
        for name, sides in study.burden.found.items():
            cells[f"{name}_px_{side}"] = sides[side].pixels
            cells[f"{name}_ml_{side}"] = sides[side].ml
            cells[f"{name}_percent_{side}"] = sides[side].percent
    return cells
