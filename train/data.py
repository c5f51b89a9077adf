"""The datasets of `../shared/data` as lists of examples, split by patient or group.

`shared/data/SOURCES.md` says what each folder is, where its labels come from and where they mislead. Nothing here
splits by file: an example's split follows from its group, so that no patient is on both sides. Datasets as their
origins give them are listed by `train.origins`.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import cv2
import numpy as np
from jaxtyping import UInt8

from serving.errors import DatasetError, ScanError
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, Modality
from serving.pipeline import MODEL_HW
from serving.preprocessing import preprocess
from serving.scans import decode, from_hu
from train import nifti
from train.digest import sha256_of
from train.targets import Code, admissible

Split = Literal["train", "val", "test"]
Task = Literal["recognition", "manifestations", "segmentation", "nodules"]
DATA_ENV: Final = "LUNGSTREAMS_DATA"
HU_OFFSET: Final = 1024
"""16-bit slices of `ct_segmentation` store HU + 1024."""
VAL_PERCENT, TEST_PERCENT = 10, 20
UNKNOWN: Final = -1.0
"""Target of a label that nobody annotated."""

# Eight patients: too few for a hash to split well.
EFFUSION_SPLIT: Final[dict[str, Split]] = {"LUNG1-018": "val", "LUNG1-016": "test", "LUNG1-024": "test"}
INFECTION_SPLIT: Final[dict[str, Split]] = {"coarse_07": "val", "coarse_09": "test"}
# No patient ids here: neighbours in the source's order stay together. 043 is a near twin of 010.
MEDSEG_VAL_HINTS: Final = ("medseg_idx_03", "medseg_idx_07")
MEDSEG_TWINS: Final = {"images/medseg_043.png": "medseg_idx_02"}
# Looks like 067 of the other side of the published split.
MEDSEG_DROPPED: Final = ("images/medseg_035.png",)
MIN_PRESENT_PX: Final = 50
"""A manifestation is present in a slice from this many annotated pixels on; fewer are specks of the brush."""


@dataclass(frozen=True)
class Example:
    """One scan with what is known of it.

    Attributes:
        path: The image, relative to the data root.
        modality: CT or X-ray.
        group: Patient, or the smallest group known to hold one.
        source: Where it came from, for results per source.
        split: Follows from the group.
        target: Classification target in the order of the labels, or empty.
        mask: The mask, relative to the data root, if any.
        codes: Value on disk -> `Code`, for the mask; without a mask, `codes[0]` fills the slice.
        stored_hu: The image is 16 bit, HU + `HU_OFFSET`.
        clahe: Off where the source has already applied it.
        slice_index: `path` and `mask` are NIfTI volumes in Hounsfield units and class ids, and this is their slice.
    """

    path: str
    modality: Modality
    group: str
    source: str
    split: Split
    target: tuple[float, ...] = ()
    mask: str | None = None
    codes: tuple[tuple[int, Code], ...] = ()
    stored_hu: bool = False
    clahe: bool = True
    # Not in the representation: fingerprints of datasets without volumes stay as they were published.
    slice_index: int | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What tells it from the other scans of a listing: its path, and of a volume the slice too."""
        return self.path if self.slice_index is None else f"{self.path}[{self.slice_index}]"


def data_root(root: Path | None = None) -> Path:
    """The folder of real scans: the argument, ``LUNGSTREAMS_DATA``, or ``../shared/data`` beside the repository.

    Raises:
        DatasetError: If it is not there.
    """
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = root or Path(os.environ.get(DATA_ENV) or default)
    if not folder.is_dir():
        raise DatasetError(f"expected a folder of scans at {folder} (set {DATA_ENV}), found none")
    return folder


def split_of(group: str) -> Split:
    """A split that depends on nothing but the group's name: the same in every run and for every subset."""
    bucket = int(hashlib.sha256(group.encode()).hexdigest(), 16) % 100
    if bucket < TEST_PERCENT:
        return "test"
    return "val" if bucket < TEST_PERCENT + VAL_PERCENT else "train"


def _rows(root: Path, folder: str) -> list[dict[str, str]]:
    manifest = root / folder / "manifest.csv"
    if not manifest.is_file():
        raise DatasetError(f"expected {manifest}, found none: see SOURCES.md for what belongs there")
    with manifest.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def _diagnosis_target(label: str) -> tuple[float, ...]:
    if label == "non_covid19":
        # Only known not to be COVID-19: the other three are admissible (`train.losses`).
        return admissible(set(DIAGNOSIS_NAMES) - {"covid19"})
    return admissible([label])


def recognition(root: Path) -> list[Example]:
    """X-rays and CT slices with a diagnosis. Targets are admissible weights, `(4,)`."""
    sources: tuple[tuple[str, Modality], ...] = (("xray", "xray"), ("ct_classification", "ct"))
    examples = []
    for folder, modality in sources:
        for row in _rows(root, folder):
            group = f"{folder}/{row['group_id'] or row['patient_id'] or row['file']}"
            examples.append(
                Example(
                    path=f"{folder}/{row['file']}",
                    modality=modality,
                    group=group,
                    source=f"{folder}: {row['source_dataset']}",
                    split=split_of(group),
                    target=_diagnosis_target(row["label"]),
                )
            )
    return examples


def _medseg(root: Path) -> list[Example]:
    examples = []
    for row in _rows(root, "ct_segmentation"):
        if row["subset"] != "medseg100_infnet" or row["image"] in MEDSEG_DROPPED:
            continue
        group = MEDSEG_TWINS.get(row["image"], row["group_hint"])
        split: Split = "test" if row["source_split"] == "test" else "train"
        if split == "train" and group in MEDSEG_VAL_HINTS:
            split = "val"
        present = [float(float(row[key]) >= MIN_PRESENT_PX) for key in ("px_ggo", "px_consolidation")]
        examples.append(
            Example(
                path=f"ct_segmentation/{row['image']}",
                modality="ct",
                # Hints group neighbours, and the published split cuts through them: the split is part of the group.
                group=f"medseg/{group}/{row['source_split']}",
                source="medseg100",
                split=split,
                target=(*present, UNKNOWN),
                mask=f"ct_segmentation/{row['mask']}",
                codes=((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS), (2, Code.CONSOLIDATION)),
            )
        )
    return examples


def _effusion(root: Path) -> list[Example]:
    return [
        Example(
            path=f"ct_segmentation/{row['image']}",
            modality="ct",
            group=f"nsclc/{row['patient_id']}",
            source="nsclc_plethora",
            split=EFFUSION_SPLIT.get(row["patient_id"], "train"),
            target=(UNKNOWN, UNKNOWN, float(float(row["px_effusion"] or 0) >= MIN_PRESENT_PX)),
            mask=f"ct_segmentation/{row['mask']}",
            codes=((0, Code.EFFUSION_BACKGROUND), (3, Code.PLEURAL_EFFUSION)),
            stored_hu=True,
        )
        for row in _rows(root, "ct_segmentation")
        if row["subset"] == "nsclc_plethora_effusion"
    ]


def _healthy_ct(root: Path) -> list[Example]:
    """CT slices reported normal: no manifestation is there, so they are negatives for each."""
    return [
        Example(
            path=example.path,
            modality="ct",
            group=example.group,
            source="healthy: " + example.source,
            split=example.split,
            target=(0.0,) * len(MANIFESTATION_NAMES),
            codes=((0, Code.HEALTHY),),
        )
        for example in recognition(root)
        if example.modality == "ct" and example.target == _diagnosis_target("normal")
    ]


def _infection(root: Path) -> list[Example]:
    return [
        Example(
            path=f"ct_infection_binary/{row['image']}",
            modality="ct",
            group=f"infection/{row['volume_group']}",
            source="covid19_ct_seg",
            split=INFECTION_SPLIT.get(row["volume_group"], "train"),
            mask=f"ct_infection_binary/{row['infection_mask']}",
            codes=((0, Code.INFECTION_BACKGROUND), (255, Code.INFECTION)),
            clahe=False,
        )
        for row in _rows(root, "ct_infection_binary")
    ]


def nodules(root: Path) -> list[Example]:
    """LIDC-IDRI nodule crops, one a patient: the paper's transfer source."""
    return [
        Example(
            path=f"nodule_segmentation/{row['image']}",
            modality="ct",
            group=f"lidc/{row['patient_id']}",
            source="lidc",
            split=split_of(f"lidc/{row['patient_id']}"),
            mask=f"nodule_segmentation/{row['mask']}",
            codes=((0, Code.NODULE_BACKGROUND), (1, Code.NODULE)),
        )
        for row in _rows(root, "nodule_segmentation")
    ]


def manifestations(root: Path) -> list[Example]:
    """CT slices with the presence of each manifestation, `(3,)`: 1 present, 0 absent, -1 not labelled."""
    return [*_medseg(root), *_effusion(root), *_healthy_ct(root)]


def segmentation(root: Path) -> list[Example]:
    """Every CT slice with a mask of something, and healthy slices."""
    return [*_medseg(root), *_effusion(root), *_infection(root), *_healthy_ct(root)]


def fingerprint(examples: Iterable[Example], root: Path) -> str:
    """SHA-256 over what was used: paths, targets, splits, and the bytes of each file."""
    digest = hashlib.sha256()
    volumes: dict[str, bytes] = {}
    for example in sorted(examples, key=lambda e: (e.path, e.slice_index or 0)):
        digest.update(repr(example).encode())
        for name in filter(None, (example.path, example.mask)):
            if example.slice_index is None:
                digest.update((root / name).read_bytes())
                continue
            if name not in volumes:
                volumes[name] = bytes.fromhex(sha256_of(root / name))
            digest.update(f"[{example.slice_index}]".encode() + volumes[name])
    return digest.hexdigest()


def load_image(example: Example, root: Path) -> UInt8[np.ndarray, "512 512"]:
    """The image as the models see it, one of its three equal channels. Decoded and prepared by `serving` alone.

    Raises:
        DatasetError: If it can not be read.
    """
    path = root / example.path
    try:
        if example.slice_index is not None:
            scan = from_hu(nifti.read_slice(path, example.slice_index))
        elif example.stored_hu:
            stored = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            scan = from_hu(stored.astype(np.int32) - HU_OFFSET)
        else:
            scan = decode(path.read_bytes(), example.modality)
    except ScanError as error:
        raise DatasetError(f"{example.path}: {error}") from error
    return preprocess(scan, clahe=example.clahe)[..., 0]


def load_codes(example: Example, root: Path) -> UInt8[np.ndarray, "512 512"]:
    """The annotation as codes in model space.

    Raises:
        DatasetError: If the mask holds a value that its source does not know.
    """
    if example.mask is None:
        return np.full(MODEL_HW, example.codes[0][1], np.uint8)
    if example.slice_index is not None:
        mask = nifti.read_slice(root / example.mask, example.slice_index)
    else:
        mask = cv2.imread(str(root / example.mask), cv2.IMREAD_UNCHANGED)
    found = set(np.unique(mask).tolist())
    known = dict(example.codes)
    if not found <= set(known):
        raise DatasetError(f"{example.mask}: expected values {sorted(known)}, got {sorted(found)}")
    table = np.zeros(256, np.uint8)
    for value, code in example.codes:
        table[value] = code
    codes = table[mask.astype(np.uint8)]
    return np.asarray(cv2.resize(codes, MODEL_HW[::-1], interpolation=cv2.INTER_NEAREST_EXACT), dtype=np.uint8)


def load_all(
    examples: Sequence[Example], root: Path, cache: Path, *, masks: bool
) -> tuple[UInt8[np.ndarray, "n 512 512"], UInt8[np.ndarray, "n 512 512"] | None]:
    """Images, and codes if asked for, kept on disk under the fingerprint of what went in."""
    folder = cache / fingerprint(examples, root)[:16]
    arrays = []
    for name, loader, wanted in (("images", load_image, True), ("codes", load_codes, masks)):
        path = folder / f"{name}.npy"
        if wanted and not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial.npy")
            # Row by row: fifteen thousand radiographs do not fit into memory twice.
            open_memmap: Any = np.lib.format.open_memmap
            rows = open_memmap(partial, mode="w+", dtype=np.uint8, shape=(len(examples), *MODEL_HW))
            for i, example in enumerate(examples):
                rows[i] = loader(example, root)
            rows.flush()
            del rows
            partial.rename(path)
        arrays.append(np.load(path, mmap_mode="r") if wanted else None)
    images, codes = arrays
    if images is None:
        raise DatasetError("no images were loaded")
    return images, codes
