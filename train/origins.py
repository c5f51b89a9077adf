"""What a folder of scans is, whichever way it is laid out, and what of it fits a task.

`LAYOUTS` are the datasets as their origins give them. A folder may hold several at once. Our own folder, with a
``manifest.csv`` in each of its folders, is listed by `train.data`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from serving.errors import DatasetError
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES
from train import class_folders, data, ieee8023, medicalsegmentation, rsna
from train.data import Example, Split, Task
from train.downloads import DIAGNOSIS_TASKS, MASK_TASKS, ORIGINS
from train.listing import Listing, abridged

CURATED: Final = "our own folder"
SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How an origin lays out its dataset.

    Attributes:
        name: For people.
        expects: What belongs in the folder, for people.
        marks: One of these is enough to take a folder for this layout; the reader then says what else is missing.
        tasks: What its labels can train.
        read: Lists a folder.
        licence: As known; nobody checked it at the origin.
    """

    name: str
    expects: str
    marks: tuple[str, ...]
    tasks: tuple[Task, ...]
    read: Callable[[Path], Listing]
    licence: str


LAYOUTS: Final = (
    Layout(
        "medicalsegmentation.com",
        f"{' and '.join(medicalsegmentation.SLICES)}, or {'/ and '.join(medicalsegmentation.SCANS)}/",
        (*medicalsegmentation.SLICES, *medicalsegmentation.SCANS),
        MASK_TASKS,
        medicalsegmentation.read,
        ORIGINS["medseg9"].licence,
    ),
    Layout(
        "ieee8023",
        f"{ieee8023.TABLE} and {ieee8023.IMAGES}/",
        (ieee8023.TABLE,),
        DIAGNOSIS_TASKS,
        ieee8023.read,
        ORIGINS["ieee8023"].licence,
    ),
    Layout(
        "RSNA Pneumonia Detection Challenge",
        f"{rsna.IMAGES}/, {rsna.LABELS} and {rsna.CLASSES}",
        (rsna.IMAGES, rsna.LABELS, rsna.CLASSES),
        DIAGNOSIS_TASKS,
        rsna.read,
        ORIGINS["rsna"].licence,
    ),
)
CLASS_FOLDERS: Final = Layout(
    "a folder per class",
    "folders named covid, normal, viral_pneumonia, bacterial_pneumonia, ...",
    (),
    DIAGNOSIS_TASKS,
    class_folders.read,
    "not known: that of wherever the folders came from",
)
"""Tried last: its names may occur in any folder."""

_CURATED_LISTINGS: Final[Mapping[Task, Callable[[Path], list[Example]]]] = MappingProxyType(
    {
        "recognition": data.recognition,
        "manifestations": data.manifestations,
        "segmentation": data.segmentation,
        "nodules": data.nodules,
    }
)


def is_curated(root: Path) -> bool:
    """Whether a folder is laid out as ours."""
    return any(root.glob("*/manifest.csv"))


def recognise(root: Path) -> tuple[Layout, ...]:
    """The layouts that a folder shows marks of, at least one.

    Raises:
        DatasetError: If there is none; it names every layout that is known.
    """
    found = tuple(layout for layout in LAYOUTS if any((root / mark).exists() for mark in layout.marks))
    if found:
        return found
    if class_folders.is_one(root):
        return (CLASS_FOLDERS,)
    known = "; ".join(f"{layout.name} ({layout.expects})" for layout in (*LAYOUTS, CLASS_FOLDERS))
    here = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    raise DatasetError(
        f"expected scans in {root} laid out as one of: {CURATED} (a manifest.csv in each of its folders, see "
        f"SOURCES.md); {known}; got {abridged(here) or 'an empty folder'}"
    )


def examples_for(task: Task, root: Path) -> list[Example]:
    """Every example in a folder that fits a task. What is missing or left out is logged.

    Raises:
        DatasetError: If the folder is laid out in no known way, does not fit the task, or leaves a split empty.
    """
    if is_curated(root):
        return _CURATED_LISTINGS[task](root)
    found = recognise(root)
    fitting = [layout for layout in found if task in layout.tasks]
    if not fitting:
        could = [layout.name for layout in (*LAYOUTS, CLASS_FOLDERS) if task in layout.tasks]
        got = "; ".join(f"{layout.name}, which is for {' and '.join(layout.tasks)}" for layout in found)
        raise DatasetError(f"expected scans for {task} in {root}: {', '.join([CURATED, *could])}; got {got}")
    examples: list[Example] = []
    for layout in fitting:
        listing = layout.read(root)
        examples += listing.examples
        for line in (*_of_missing(listing), *listing.notes):
            _log.warning("%s: %s", layout.name, line)
    empty = [split for split in SPLITS if not any(example.split == split for example in examples)]
    if empty:
        groups = len({example.group for example in examples})
        raise DatasetError(
            f"expected scans of three patients or more in {root}, for train, val and test; got {len(examples)} scans "
            f"of {groups}, and none for {' and '.join(empty)}"
        )
    return examples


def licences(root: Path) -> dict[str, str]:
    """Licence as known of each source of a folder that is not ours, by `Example.source`."""
    return {
        example.source: f"{layout.name}: {layout.licence}"
        for layout in recognise(root)
        for example in layout.read(root).examples
    }


@dataclass(frozen=True)
class Report:
    """What a folder holds, for `lungstreams data check`.

    Attributes:
        name: What it was recognised as.
        tasks: What it can train.
        counts: Label -> scans of train, val and test. A scan with several manifestations counts for each.
        missing: A line for each thing that should be there.
        notes: What else to know.
        examples: What was counted.
    """

    name: str
    tasks: tuple[Task, ...]
    counts: Mapping[str, tuple[int, ...]]
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    examples: tuple[Example, ...] = ()


def check(root: Path) -> list[Report]:
    """What a folder holds, layout by layout; for ours, task by task.

    Raises:
        DatasetError: If it is laid out in no known way, or what it was taken for has a part missing or broken.
    """
    if is_curated(root):
        return [_curated_report(task, root) for task in _CURATED_LISTINGS]
    reports = []
    for layout in recognise(root):
        listing = layout.read(root)
        counts = label_counts(listing.examples)
        notes = (*listing.notes, f"licence: {layout.licence}")
        reports.append(Report(layout.name, layout.tasks, counts, tuple(_of_missing(listing)), notes, listing.examples))
    return reports


def label_counts(examples: list[Example] | tuple[Example, ...]) -> dict[str, tuple[int, ...]]:
    """How many scans of each label there are in train, val and test. Examples without a target count by source."""
    counted = Counter((label, example.split) for example in examples for label in _labels(example))
    names = dict.fromkeys(label for label, _ in counted)
    return {name: tuple(counted[name, split] for split in SPLITS) for name in names}


def _labels(example: Example) -> list[str]:
    if len(example.target) == len(DIAGNOSIS_NAMES):
        return [" or ".join(n for n, weight in zip(DIAGNOSIS_NAMES, example.target, strict=True) if weight)]
    if not example.target:
        return [example.source]
    present = [name for name, value in zip(MANIFESTATION_NAMES, example.target, strict=True) if value == 1]
    return present or ["none of what was looked for"]


def _curated_report(task: Task, root: Path) -> Report:
    try:
        examples = _CURATED_LISTINGS[task](root)
    except DatasetError as error:
        return Report(CURATED, (task,), {}, (str(error),), ())
    files = dict.fromkeys(name for e in examples for name in (e.path, e.mask) if name)
    gone = [name for name in files if not (root / name).is_file()]
    missing = tuple(_of_missing(Listing(tuple(examples), tuple(gone))))
    return Report(CURATED, (task,), label_counts(examples), missing, (), tuple(examples))


def _of_missing(listing: Listing) -> list[str]:
    if not listing.missing:
        return []
    return [f"{len(listing.missing)} files are missing: {abridged(listing.missing)}"]
