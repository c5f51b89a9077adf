"""The CT volumes of medicalsegmentation.com: the paper's dataset 1, and the nine scans of Radiopaedia beside it.

Dataset 1 is ``tr_im.nii.gz`` and ``tr_mask.nii.gz``: 100 slices of 512 x 512 that were single pictures, brought to
Hounsfield units by the air and the fat in them. Dataset 2 is ``rp_im/1.nii.gz`` to ``9.nii.gz`` with masks of the same
names in ``rp_msk/``. Masks: 0 background, 1 ground-glass, 2 consolidation, 3 pleural effusion, and all three were
looked for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from serving.errors import DatasetError
from serving.labels import MANIFESTATION_NAMES
from train import nifti
from train.data import MIN_PRESENT_PX, Example
from train.listing import Listing, with_splits
from train.targets import Code

SLICES: Final = ("tr_im.nii.gz", "tr_mask.nii.gz")
UNLABELLED: Final = "val_im.nii.gz"
SCANS: Final = ("rp_im", "rp_msk")
BLOCK_SLICES: Final = 10
"""Neighbours of dataset 1 that stay together; it names no patients, and pictures of one often follow each other."""
_CODES: Final = (
    (0, Code.ANNOTATED_BACKGROUND),
    (1, Code.GROUND_GLASS),
    (2, Code.CONSOLIDATION),
    (3, Code.PLEURAL_EFFUSION),
)


def read(root: Path) -> Listing:
    """Slices with masks and with the presence of each manifestation, `(3,)`: 1 present, 0 absent.

    Raises:
        DatasetError: If an image has no mask or another size, or a mask another class.
    """
    found: list[Example] = []
    missing: list[str] = []
    notes: list[str] = []
    if any((root / name).exists() for name in SLICES):
        image, mask = (_volume(root / name) for name in SLICES)
        notes.append(
            f"dataset 1 names no patients: blocks of {BLOCK_SLICES} neighbouring slices stay together, and a patient "
            "at the edge of a block may be on two sides of the split"
        )
        found += _slices(root, image, mask, "medseg100", lambda i: f"medseg100/block {i // BLOCK_SLICES}")
    if (root / UNLABELLED).exists():
        notes.append(f"{UNLABELLED} has no masks and is not used")
    if any((root / name).exists() for name in SCANS):
        pairs, missing = _pairs(root)
        for image, mask in pairs:
            found += _slices(root, image, mask, "medseg9", partial(_scan_group, image))
        notes.append(
            "dataset 2 is split by scan, and taken to be stored as dataset 1: see --pictures that it is upright"
        )
    return Listing(with_splits(found), tuple(missing), tuple(notes))


def _pairs(root: Path) -> tuple[list[tuple[Path, Path]], list[str]]:
    images, masks = ({path.name: path for path in (root / name).glob("*.nii*")} for name in SCANS)
    missing = [f"{SCANS[1]}/{name}" for name in sorted(images.keys() - masks.keys())]
    missing += [f"{SCANS[0]}/{name}" for name in sorted(masks.keys() - images.keys())]
    both = sorted(images.keys() & masks.keys())
    if not both:
        raise DatasetError(
            f"expected NIfTI volumes of the same names in {SCANS[0]}/ and {SCANS[1]}/ of {root}, "
            f"got {len(images)} and {len(masks)} and no pair"
        )
    return [(images[name], masks[name]) for name in both], missing


def _volume(path: Path) -> Path:
    if not path.is_file():
        raise DatasetError(f"expected {' and '.join(SLICES)} in {path.parent}, found no {path.name}")
    return path


def _scan_group(image: Path, index: int) -> str:
    return f"medseg9/{image.name}"


def _slices(root: Path, image: Path, mask: Path, source: str, group_of: Callable[[int], str]) -> list[Example]:
    sizes = nifti.shape(image), nifti.shape(mask)
    if sizes[0] != sizes[1]:
        raise DatasetError(f"expected {mask.name} of the shape of {image.name}, {list(sizes[0])}, got {list(sizes[1])}")
    lowest = nifti.minimum(image)
    if lowest >= 0:
        raise DatasetError(f"{image.name}: expected Hounsfield units, below 0 in air, got {lowest:g} and above")
    counts = nifti.pixel_counts(mask, 1 + len(MANIFESTATION_NAMES))
    return [
        Example(
            path=image.relative_to(root).as_posix(),
            modality="ct",
            group=group_of(i),
            source=source,
            split="train",
            target=tuple(float(n >= MIN_PRESENT_PX) for n in of_slice[1:]),
            mask=mask.relative_to(root).as_posix(),
            codes=_CODES,
            slice_index=i,
        )
        for i, of_slice in enumerate(counts)
    ]
