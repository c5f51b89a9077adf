"""The COVID-19 image data collection of ieee8023: ``metadata.csv`` beside ``images/``.

A row is a picture with a finding such as ``Pneumonia/Viral/COVID-19``, or ``COVID-19`` in the first releases, which had
no column for the modality either and called a CT slice a view.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Final

from serving.errors import DatasetError
from serving.labels import Modality
from train.data import Example
from train.listing import IMAGE_SUFFIXES, Listing, abridged, read_table, with_splits
from train.targets import admissible

TABLE: Final = "metadata.csv"
IMAGES: Final = "images"
COLUMNS: Final = ("patientid", "finding", "view", "filename")
VIEWS: Final[dict[str, Modality]] = {
    "pa": "xray",
    "ap": "xray",
    "ap supine": "xray",
    "ap erect": "xray",
    "axial": "ct",
    "ct": "ct",
}
"""Frontal radiographs and axial slices. Lateral and coronal views are left out."""
_VIRUSES: Final = frozenset({"viral", "sars", "mers", "mers-cov", "influenza", "h1n1", "varicella", "herpes"})
_BACTERIA: Final = frozenset(
    {"bacterial", "streptococcus", "klebsiella", "legionella", "mycoplasma", "chlamydophila", "e.coli", "nocardia"}
)


def read(root: Path) -> Listing:
    """Radiographs and CT slices with a diagnosis. Targets are admissible weights, `(4,)`.

    Raises:
        DatasetError: If the table is missing or lacks a column, or none of its pictures is there.
    """
    rows = read_table(root / TABLE, COLUMNS)
    examples: list[Example] = []
    missing: list[str] = []
    left_out: Counter[str] = Counter()
    for number, row in enumerate(rows):
        path = _path(row)
        target = target_of(row["finding"])
        modality = VIEWS.get(row["view"].strip().lower())
        if PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES:
            left_out["no picture (a volume, or another format)"] += 1
        elif modality is None:
            left_out["neither a frontal nor an axial view"] += 1
        elif target is None:
            left_out["no finding of the four diagnoses"] += 1
        elif not (root / path).is_file():
            missing.append(path)
        else:
            patient = row["patientid"].strip() or f"row {number}"
            examples.append(
                Example(
                    path=path,
                    modality=modality,
                    group=f"ieee8023/{patient}",
                    source="ieee8023",
                    split="train",
                    target=target,
                )
            )
    if not examples:
        got = f"none of {len(missing)} ({abridged(missing)})" if missing else "none of the four diagnoses"
        raise DatasetError(f"expected the pictures that {root / TABLE} names in {root / IMAGES}, got {got}")
    notes = ["split by patient", *(f"left out: {n} of {why}" for why, n in sorted(left_out.items()))]
    return Listing(with_splits(examples), tuple(missing), (*notes, _licences(rows)))


def target_of(finding: str) -> tuple[float, ...] | None:
    """The diagnoses that a finding leaves open, `(4,)`; None for a finding that is none of them.

    "Pneumonia" alone leaves the viral, the bacterial and COVID-19's open.
    """
    parts = {part.strip().lower() for part in finding.replace(",", "/").split("/")} - {""}
    if "covid-19" in parts:
        return admissible(["covid19"])
    if "no finding" in parts:
        return admissible(["normal"])
    virus, bacteria = bool(parts & _VIRUSES), bool(parts & _BACTERIA)
    if virus or bacteria:
        return admissible([name for name, so in (("viral_pneumonia", virus), ("bacterial_pneumonia", bacteria)) if so])
    if parts == {"pneumonia"}:
        return admissible(["covid19", "viral_pneumonia", "bacterial_pneumonia"])
    return None


def _path(row: dict[str, str]) -> str:
    return f"{row.get('folder', '').strip() or IMAGES}/{row['filename'].strip()}"


def _licences(rows: list[dict[str, str]]) -> str:
    counts = Counter(row.get("license", "").strip() or "not stated" for row in rows)
    return "licences in the table: " + "; ".join(f"{name} ({n})" for name, n in counts.most_common())
