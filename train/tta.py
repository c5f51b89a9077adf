"""Test-time augmentation: the mean answer for a scan and augmented copies of it.

The paper augments each validation and test sample 51 times ("Preprocessing and data augmentation"), after Perez et al.
2018. Copies are moved as training copies are; grey values stay, since the paper names geometric changes alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Num, UInt8

from train.augmentation import Augmentation, random_affine, warp
from train.batches import Predictor, in_batches

SEED: Final = 51
_BATCH: Final = 8


def geometric(augmentation: Augmentation) -> Augmentation:
    """The part of an augmentation that moves a whole scan: copies of a test scan are neither recoloured nor cropped."""
    return dataclasses.replace(augmentation, gain=0, gamma=0, base_scale=1)


def mean_answers(
    predict: Predictor,
    images: Sequence[UInt8[np.ndarray, "size size"]] | UInt8[np.ndarray, "n size size"],
    copies: int,
    augmentation: Augmentation,
    *,
    n_classes: int | None = None,
    seed: int = SEED,
) -> Num[np.ndarray, "n ..."]:
    """Answers for scans, each averaged over the scan itself and its copies.

    Args:
        predict: The model: probabilities, or class ids of masks.
        images: Preprocessed, grey, square.
        copies: Of each scan beside itself; 0 gives the model's own answers.
        augmentation: How far copies are moved; see `geometric`.
        n_classes: Of the masks, background included. None where the answers are probabilities.
        seed: Of the copies; copy `k` of row `i` depends on nothing else.

    Returns:
        Mean probabilities; or class ids, uint8, by the votes of the copies, each warped back onto the scan. A copy has
        no vote where it does not show the scan; of equal votes the lower class id wins.

    Raises:
        ValueError: If `copies` is negative.
    """
    if copies < 0:
        raise ValueError(f"copies: expected 0 or more, got {copies}")
    answers = []
    for i, image in enumerate(images):
        scan = np.asarray(image)
        size_px = scan.shape[0]
        rngs = [np.random.default_rng([seed, i, k]) for k in range(copies)]
        matrices = [random_affine(rng, augmentation, size_px, size_px) for rng in rngs]
        views = [scan, *(warp(scan, matrix, size_px) for matrix in matrices)]
        said = in_batches(predict, views, _BATCH)
        answers.append(said.mean(axis=0) if n_classes is None else _vote(said, matrices, n_classes))
    return np.stack(answers)


def _vote(
    masks: UInt8[np.ndarray, "views h w"], matrices: Sequence[Float64[np.ndarray, "2 3"]], n_classes: int
) -> UInt8[np.ndarray, "h w"]:
    votes = one_hot(masks[0], n_classes)
    size_wh = masks.shape[2], masks.shape[1]
    for mask, matrix in zip(masks[1:], matrices, strict=True):
        # The matrix leads from the scan to the copy, and so tells where each pixel of the scan is in the copy. What
        # lies outside the copy reads 0 in every class: no vote.
        back = cv2.warpAffine(
            one_hot(mask, n_classes),
            matrix,
            size_wh,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(0.0,) * 4,
        )
        votes += back
    return np.asarray(votes.argmax(axis=-1), dtype=np.uint8)


def one_hot(mask: UInt8[np.ndarray, "h w"], n_classes: int) -> Float32[np.ndarray, "h w classes"]:
    """1 for the class of each pixel, 0 for the others."""
    return np.asarray(np.eye(n_classes, dtype=np.float32)[mask])
