"""A folder for each diagnosis, as many collections come: ``covid/``, ``normal/``, ``viral_pneumonia/``, ...

Scans may lie in a folder for each patient inside of it, which is then what the split goes by; ``images/`` is no
patient, and what lies beside it (masks, for one) is left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from serving.errors import DatasetError, ScanError
from serving.labels import Modality
from serving.scans import decode
from train.data import Example
from train.listing import IMAGE_SUFFIXES, Listing, abridged, with_splits
from train.targets import admissible

CLASSES: Final[dict[str, tuple[str, ...]]] = {
    "covid": ("covid19",),
    "covid19": ("covid19",),
    "sarscov2": ("covid19",),
    "normal": ("normal",),
    "healthy": ("normal",),
    "viral": ("viral_pneumonia",),
    "viralpneumonia": ("viral_pneumonia",),
    "pneumoniaviral": ("viral_pneumonia",),
    "bacterial": ("bacterial_pneumonia",),
    "bacterialpneumonia": ("bacterial_pneumonia",),
    "pneumoniabacterial": ("bacterial_pneumonia",),
    "pneumonia": ("viral_pneumonia", "bacterial_pneumonia"),
    "noncovid": ("normal", "viral_pneumonia", "bacterial_pneumonia"),
    "noncovid19": ("normal", "viral_pneumonia", "bacterial_pneumonia"),
}
"""Name of a folder in small letters and digits -> the diagnoses that it leaves open."""
IMAGES: Final = "images"
_LOOKED_AT: Final = 25


def class_of(name: str) -> tuple[str, ...] | None:
    """The diagnoses that a folder of this name leaves open; None if it names none."""
    return CLASSES.get(re.sub(r"[^a-z0-9]", "", name.lower()))


def is_one(root: Path) -> bool:
    """Whether a folder holds folders named by diagnoses."""
    return any(path.is_dir() and class_of(path.name) for path in root.iterdir())


def read(root: Path) -> Listing:
    """Scans of one modality with a diagnosis. Targets are admissible weights, `(4,)`.

    Whether they are radiographs or CT slices is told from their pixels, by the majority of some of them.

    Raises:
        DatasetError: If there are fewer than two classes with scans, or none of those looked at can be read.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {folder: _scans(folder) for folder in folders if class_of(folder.name)}
    filled = {class_of(folder.name) for folder, paths in files.items() if paths}
    if len(filled) < 2:
        raise DatasetError(
            f"expected scans of two diagnoses or more in the folders of {root}, got "
            + ", ".join(f"{len(paths)} in {folder.name}/" for folder, paths in files.items())
        )
    modality = _modality([path for paths in files.values() for path in paths])
    examples = [
        Example(
            path=path.relative_to(root).as_posix(),
            modality=modality,
            group=f"class_folders/{_patient(path, folder) or path.relative_to(root).as_posix()}",
            source="class_folders",
            split="train",
            target=admissible(class_of(folder.name) or ()),
        )
        for folder, paths in files.items()
        for path in paths
    ]
    notes = [f"taken for {'CT slices' if modality == 'ct' else 'radiographs'}, by their pixels"]
    alone = sum(_patient(path, folder) is None for folder, paths in files.items() for path in paths)
    if alone:
        notes.append(f"{alone} scans lie in no folder of a patient: split by file, so a patient may be on two sides")
    others = [f"{folder.name}/" for folder in folders if not class_of(folder.name)]
    if others:
        notes.append(f"left out: {abridged(others)}, which name none of the four diagnoses")
    return Listing(with_splits(examples), notes=tuple(notes))


def _scans(folder: Path) -> list[Path]:
    inside = folder / IMAGES
    start = inside if inside.is_dir() else folder
    return sorted(path for path in start.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _patient(path: Path, folder: Path) -> str | None:
    between = [part for part in path.relative_to(folder).parts[:-1] if part.lower() != IMAGES]
    return between[0] if between else None


def _modality(paths: list[Path]) -> Modality:
    votes: list[Modality] = []
    for path in paths[:: -(-len(paths) // _LOOKED_AT)]:
        try:
            votes.append(decode(path.read_bytes()).modality)
        except ScanError:
            continue
    if not votes:
        raise DatasetError(f"expected PNG, JPEG or DICOM files, got none that can be read, as {paths[0].name}")
    return "ct" if votes.count("ct") * 2 > len(votes) else "xray"
