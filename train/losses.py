"""Losses that take only what is labelled.

No scan of ours carries every label: some slices are annotated for ground-glass and consolidation, some for
effusion, some only for "infection"; some CT scans are only known not to be COVID-19. One idea serves all of
them: a target says *which answers are admissible*, as a weight in `[0, 1]` per class, and the loss is

    -log(sum over classes of weight * probability)

With one class at weight 1 this is the ordinary cross-entropy; with every class at weight 1 it is zero, and the
sample or pixel is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float32
from keras import ops

from train.targets import certain_and_known

EPSILON = 1e-6
Tensor = Any


def admissible_crossentropy(admissible: Tensor, probabilities: Tensor) -> Tensor:
    """Negative log of the probability that falls on admissible classes.

    Args:
        admissible: `(..., classes)`, weights in `[0, 1]`.
        probabilities: `(..., classes)`, a softmax.

    Returns:
        `(...)`, non-negative.
    """
    mass = ops.sum(admissible * probabilities, axis=-1)
    return -ops.log(ops.clip(mass, EPSILON, 1.0))


def masked_binary_crossentropy(target: Tensor, probabilities: Tensor) -> Tensor:
    """Paper's Eq. 1, summed over the labels, with both terms of the cross-entropy, over known labels only.

    Args:
        target: `(n, labels)`: 1 present, 0 absent, -1 not labelled.
        probabilities: `(n, labels)`, sigmoids.

    Returns:
        `(n,)`.
    """
    known = ops.cast(target >= 0, probabilities.dtype)
    p = ops.clip(probabilities, EPSILON, 1 - EPSILON)
    entropy = -(target * ops.log(p) + (1 - target) * ops.log(1 - p))
    return ops.sum(known * entropy, axis=-1)


def admissible_accuracy(admissible: Tensor, probabilities: Tensor) -> Tensor:
    """Whether the likeliest class is an admissible one.

    Args:
        admissible: `(..., classes)`, weights in `[0, 1]`.
        probabilities: `(..., classes)`, a softmax.

    Returns:
        `(...)`, 0 or 1.
    """
    chosen = ops.one_hot(ops.argmax(probabilities, axis=-1), admissible.shape[-1])
    return ops.cast(ops.sum(chosen * ops.cast(admissible > 0, chosen.dtype), axis=-1), "float32")


def masked_binary_accuracy(target: Tensor, probabilities: Tensor) -> Tensor:
    """Share of the known labels of each scan that are right at 0.5; 1 where none is known.

    Args:
        target: `(n, labels)`: 1 present, 0 absent, -1 not labelled.
        probabilities: `(n, labels)`, sigmoids.

    Returns:
        `(n,)`.
    """
    known = ops.cast(target >= 0, "float32")
    right = ops.cast(ops.equal(target > 0, probabilities >= 0.5), "float32")
    n_known = ops.sum(known, axis=-1)
    return ops.where(n_known > 0, ops.sum(known * right, axis=-1) / ops.maximum(n_known, 1.0), 1.0)


def segmentation_loss(
    table: Float32[np.ndarray, "codes classes"], foreground_weight: float, dice_weight: float = 1.0, stride_px: int = 1
) -> Callable[[Tensor, Tensor], Tensor]:
    """Admissible cross-entropy plus a soft Dice over what is certainly labelled.

    Args:
        table: For every annotation code, the admissible weight of each class (`train.targets`).
        foreground_weight: Weight of a pixel whose class is certain and not background; background is 1.
        dice_weight: Weight of the soft Dice; the paper's loss has none.
        stride_px: Every how many pixels the loss looks, in both directions. The logits are enlarged by bilinear
            interpolation, so between its pixels there is little that it misses.

    Returns:
        `loss(codes (n, h, w) , logits (n, h, w, classes)) -> scalar`.
    """
    certain, sure = certain_and_known(table)
    known = sure.astype(np.float32)
    ignored = (table == 1).all(axis=1)
    pixel_weight = np.where(certain[:, 1:].any(axis=1), foreground_weight, 1.0).astype(np.float32)
    pixel_weight[ignored] = 0

    def loss(codes: Tensor, logits: Tensor) -> Tensor:
        codes = ops.cast(codes[:, ::stride_px, ::stride_px], "int32")
        probabilities = ops.softmax(ops.cast(logits[:, ::stride_px, ::stride_px], "float32"), axis=-1)
        weight = ops.take(pixel_weight, codes)
        entropy = admissible_crossentropy(ops.take(table, codes, axis=0), probabilities)
        entropy = ops.sum(weight * entropy) / (ops.sum(weight) + 1.0)

        truth = ops.take(certain.astype(np.float32), codes, axis=0)[..., 1:]
        valid = ops.take(known, codes, axis=0)[..., 1:]
        predicted = probabilities[..., 1:]
        axes = (0, 1, 2)
        overlap = ops.sum(truth * predicted * valid, axis=axes)
        size = ops.sum((truth + predicted) * valid, axis=axes)
        # A class without a labelled pixel in the batch says nothing: it neither helps nor hurts.
        present = ops.cast(ops.sum(truth, axis=axes) > 0, "float32")
        dice = present * (1 - (2 * overlap + 1) / (size + 1))
        return entropy + dice_weight * ops.sum(dice) / (ops.sum(present) + EPSILON)

    return loss
