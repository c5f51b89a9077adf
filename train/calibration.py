"""Probabilities that mean what they say: fitted on the validation split, folded into the network's last layer.

Recognition gets one temperature (Guo et al. 2017), the manifestations a slope and an intercept for each label (Platt
1999). Neither changes which scan ranks above which, so areas under the curve stay as they are.
"""

from __future__ import annotations

from typing import Final

import keras
import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, softmax

from train.batches import Arrays, in_batches
from train.data import UNKNOWN

LOGITS_LAYER: Final = "logits"
_LOG_TEMPERATURES: Final = (-2.0, 2.0)
_EPSILON: Final = 1e-7
_BATCH: Final = 8


def fit_temperature(logits: Float[np.ndarray, "n classes"], admissible: Float[np.ndarray, "n classes"]) -> float:
    """The temperature that makes the admissible answers likeliest: probabilities are ``softmax(logits / T)``.

    Args:
        logits: Of the network.
        admissible: Weights of the classes, as for `train.losses.admissible_crossentropy`.
    """

    def loss(log_temperature: float) -> float:
        probabilities = softmax(logits / np.exp(log_temperature), axis=1)
        return float(-np.log(np.maximum((admissible * probabilities).sum(axis=1), _EPSILON)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=_LOG_TEMPERATURES, method="bounded").x))


def fit_platt(logits: Float[np.ndarray, " n"], present: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope and intercept that make ``sigmoid(slope * logit + intercept)`` a probability.

    Platt's own targets, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), keep the answer finite where the classes separate.

    Args:
        logits: Of one label.
        present: 1 or 0.

    Returns:
        (1, 0) where one of the two does not occur.
    """
    positives = int(present.sum())
    negatives = present.size - positives
    if not positives or not negatives:
        return 1.0, 0.0
    target = np.where(present == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: Float[np.ndarray, " 2"]) -> float:
        p = np.clip(expit(parameters[0] * logits + parameters[1]), _EPSILON, 1 - _EPSILON)
        return float(-(target * np.log(p) + (1 - target) * np.log(1 - p)).mean())

    slope, intercept = minimize(loss, np.array([1.0, 0.0]), method="Nelder-Mead", options={"maxiter": 2000}).x
    # A negative slope would turn the ranking round: such a label has nothing to calibrate.
    return (float(slope), float(intercept)) if slope > 0 else (1.0, 0.0)


def _logits(model: keras.Model, arrays: Arrays) -> Float[np.ndarray, "n outputs"]:
    head = keras.Model(model.input, model.get_layer(LOGITS_LAYER).output)
    return in_batches(head.predict_on_batch, arrays.images, _BATCH).astype(np.float64)


def _rescale(model: keras.Model, slopes: Float[np.ndarray, " k"], intercepts: Float[np.ndarray, " k"]) -> None:
    layer = model.get_layer(LOGITS_LAYER)
    kernel, bias = layer.get_weights()
    layer.set_weights([(kernel * slopes).astype(kernel.dtype), (bias * slopes + intercepts).astype(bias.dtype)])


def fold_temperature(model: keras.Model, validation: Arrays) -> float:
    """Fit the temperature on the validation split and divide the last layer by it.

    Returns:
        The temperature.
    """
    targets = np.array([e.target for e in validation.examples])
    temperature = fit_temperature(_logits(model, validation), targets)
    n = targets.shape[1]
    _rescale(model, np.full(n, 1 / temperature), np.zeros(n))
    return temperature


def fold_platt(model: keras.Model, validation: Arrays) -> list[tuple[float, float]]:
    """Fit slope and intercept of each label on the validation split and put them into the last layer.

    Returns:
        Slope and intercept by label.
    """
    targets = np.array([e.target for e in validation.examples])
    logits = _logits(model, validation)
    fitted = []
    for i in range(targets.shape[1]):
        known = targets[:, i] != UNKNOWN
        fitted.append(fit_platt(logits[known, i], targets[known, i]))
    slopes, intercepts = np.array(fitted).T
    _rescale(model, slopes, intercepts)
    return fitted
