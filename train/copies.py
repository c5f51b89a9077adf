"""The paper's protocol: augmented copies made first, and split afterwards ("Preprocessing and data augmentation").

Every scan and its copies lie in one bag, of which random parts are validation and test. So the same patient, and
copies of the same scan, are on all sides: what it measures is remembering. `train.data` splits patients instead.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from train import paper
from train.augmentation import NONE, Augmentation
from train.batches import Arrays, copy_of, moved

TRAIN, VAL, TEST = 0, 1, 2


def bag(n: int, copies: int, seed: int) -> Int[np.ndarray, "n views"]:
    """Which side each view of each scan is on: `TRAIN`, `VAL` or `TEST`.

    Args:
        n: Scans.
        copies: Of each, beside itself.
        seed: Of the draw.
    """
    sides = np.zeros(n * (1 + copies), dtype=np.int64)
    share = round(paper.TEST_SHARE * sides.size)
    order = np.random.default_rng(seed).permutation(sides.size)
    sides[order[:share]] = TEST
    sides[order[share : 2 * share]] = VAL
    return sides.reshape(n, 1 + copies)


def materialise(
    arrays: Arrays, chosen: Bool[np.ndarray, "n views"], augmentation: Augmentation, seed: int, limit: int | None = None
) -> Arrays:
    """Views as scans of their own, under the examples that they are copies of.

    Args:
        arrays: The scans.
        chosen: Which views.
        augmentation: The ranges.
        seed: Of the copies, as in training.
        limit: At most so many, drawn at random; None for all.
    """
    pairs = np.argwhere(chosen)
    if limit is not None and len(pairs) > limit:
        pairs = pairs[np.sort(np.random.default_rng(seed).choice(len(pairs), limit, replace=False))]
    size_px = arrays.images.shape[1]
    views = [copy_of(arrays, int(row), int(view), augmentation, seed, size_px) for row, view in pairs]
    codes = None if arrays.codes is None else np.stack([c for _, c in views if c is not None])
    examples = [dataclasses.replace(arrays.examples[row], split="test") for row, _ in pairs]
    return Arrays(examples, np.stack([image for image, _ in views]), codes)


def rescaled(arrays: Arrays, scale: float, crop_px: int) -> Arrays:
    """Scans brought to the scale at which they are trained, the middle of each."""
    same = dataclasses.replace(NONE, base_scale=scale)
    rng = np.random.default_rng(0)
    views = [moved(arrays, row, rng, same, crop_px) for row in range(len(arrays.examples))]
    codes = None if arrays.codes is None else np.stack([c for _, c in views if c is not None])
    return Arrays(arrays.examples, np.stack([image for image, _ in views]), codes)
