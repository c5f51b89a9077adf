"""The RSNA Pneumonia Detection Challenge of 2018: DICOM radiographs with two tables.

``stage_2_train_labels.csv`` has a row for each box, with Target 1 where there is one;
``stage_2_detailed_class_info.csv`` has one of three classes for each image. The radiographs are of NIH's ChestX-ray14,
which is older than COVID-19. A ``patientId`` of these tables names an image. RSNA publishes which of NIH's patients it
is of, as ``pneumonia-challenge-dataset-mappings_2018.json``; with that file in the folder the split is by patient.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from serving.errors import DatasetError
from train.data import Example
from train.listing import Listing, abridged, read_table, with_splits
from train.targets import admissible

IMAGES: Final = "stage_2_train_images"
LABELS: Final = "stage_2_train_labels.csv"
CLASSES: Final = "stage_2_detailed_class_info.csv"
PATIENTS: Final = "pneumonia-challenge-dataset-mappings_2018.json"

OPACITY: Final = "Lung Opacity"
TARGETS: Final[dict[str, tuple[float, ...] | None]] = {
    "Normal": admissible(["normal"]),
    # Boxes were drawn around opacities that suggest pneumonia; what caused it was not asked.
    OPACITY: admissible(["viral_pneumonia", "bacterial_pneumonia"]),
    "No Lung Opacity / Not Normal": None,
}
"""Class -> admissible weights, `(4,)`; None is left out, since it is none of the four diagnoses."""


def read(root: Path) -> Listing:
    """Radiographs that are normal, or show a pneumonia of whichever kind. Targets are admissible weights, `(4,)`.

    Raises:
        DatasetError: If a table is missing, lacks a column or contradicts the other, or no image is there.
    """
    classes = _classes(root)
    patients = _patients(root)
    examples: list[Example] = []
    missing: list[str] = []
    left_out = 0
    for image_id, name in classes.items():
        path = f"{IMAGES}/{image_id}.dcm"
        target = TARGETS[name]
        if target is None:
            left_out += 1
        elif not (root / path).is_file():
            missing.append(path)
        else:
            group = f"rsna/{patients.get(image_id, image_id)}"
            examples.append(
                Example(path=path, modality="xray", group=group, source="rsna_2018", split="train", target=target)
            )
    if not examples:
        got = f"none of {len(missing)} ({abridged(missing)})" if missing else "none of the four diagnoses"
        raise DatasetError(f"expected the DICOM files that {CLASSES} names in {root / IMAGES}, got {got}")
    how = "split by patient of NIH" if patients else f"split by image: {PATIENTS}, which names patients, is not there"
    return Listing(with_splits(examples), tuple(missing), (how, f"left out: {left_out} neither normal nor an opacity"))


def _classes(root: Path) -> dict[str, str]:
    """The class of each image, held against the boxes."""
    boxed = {row["patientid"] for row in read_table(root / LABELS, ("patientid", "target")) if row["target"] == "1"}
    classes: dict[str, str] = {}
    for row in read_table(root / CLASSES, ("patientid", "class")):
        image_id, name = row["patientid"], row["class"]
        if name not in TARGETS:
            raise DatasetError(f"{CLASSES}: expected one of {', '.join(TARGETS)}, got {name!r} for {image_id}")
        if (name == OPACITY) != (image_id in boxed) or classes.setdefault(image_id, name) != name:
            raise DatasetError(
                f"{CLASSES}: expected {OPACITY!r} exactly where {LABELS} has Target 1, got {name!r} for {image_id}"
            )
    return classes


def _patients(root: Path) -> dict[str, str]:
    """NIH's patient of each image: the number before the underscore in its file name there."""
    path = root / PATIENTS
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["subset_img_id"]: row["img_id"].split("_")[0] for row in rows}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path}: expected a list of subset_img_id and img_id, got {error!r}") from error
