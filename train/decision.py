"""How much evidence a stream asks for before it marks a pixel: chosen on the validation split, folded into the network.

A network that was trained briefly, or on classes as rare as lesions, ranks pixels better than its argmax tells. A bias
on each class's logit moves where the argmax switches; the one with the best Dice on validation is added to the
classifier's own bias, so the published graph stays a plain argmax.
"""

from __future__ import annotations

from typing import Final

import keras
import numpy as np
from jaxtyping import Float, UInt8

from train.batches import Arrays, in_batches
from train.deeplab import CLASSIFIER_LAYER
from train.metrics import BinaryCounts
from train.targets import admissible_table, certain_and_known

CANDIDATES: Final = np.round(np.arange(-1.0, 6.01, 0.25), 2)
_STRIDE_PX: Final = 4
_ROUNDS: Final = 2


def choose_biases(
    logits: Float[np.ndarray, "n h w classes"], codes: UInt8[np.ndarray, "n h w"], stream: str
) -> Float[np.ndarray, " classes"]:
    """The bias of each class with the best Dice over the pixels where the class is labelled, one class at a time.

    Args:
        logits: Of the stream.
        codes: Annotation, `train.targets.Code`.
        stream: Gives the meaning of the codes.

    Returns:
        Biases; that of the background is 0, and so is that of a class which is nowhere annotated.
    """
    certain, known = (rows[codes] for rows in certain_and_known(admissible_table(stream)))
    biases = np.zeros(logits.shape[-1])
    for _ in range(_ROUNDS):
        for class_id in range(1, logits.shape[-1]):
            valid = known[..., class_id]
            truth = certain[..., class_id][valid]
            if not truth.any():
                continue
            scores = []
            for candidate in CANDIDATES:
                trial = biases.copy()
                trial[class_id] = candidate
                marked = (logits + trial).argmax(axis=-1) == class_id
                scores.append(BinaryCounts.of(truth, marked[valid]).dice)
            biases[class_id] = CANDIDATES[int(np.argmax(scores))]
    return biases


def fold_decision(model: keras.Model, validation: Arrays, stream: str) -> list[float]:
    """Choose the biases on the validation split and add them to the classifier.

    Returns:
        What was added, by class.
    """
    if validation.codes is None:
        raise ValueError("expected arrays with codes, got none")
    logits = in_batches(
        lambda image: np.asarray(model.predict_on_batch(image))[:, ::_STRIDE_PX, ::_STRIDE_PX], validation.images, 1
    )
    biases = choose_biases(logits, validation.codes[:, ::_STRIDE_PX, ::_STRIDE_PX], stream)
    classifier = model.get_layer(CLASSIFIER_LAYER)
    kernel, bias = classifier.get_weights()
    classifier.set_weights([kernel, bias + biases.astype(bias.dtype)])
    return [float(value) for value in biases]
