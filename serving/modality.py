"""Tells a CT slice from an X-ray, for files that do not say.

A logistic regression on histograms of oriented gradients (Dalal and Triggs, CVPR 2005): the outlines of a slice run
around its middle, those of a radiograph along the spine and the ribs. Thumbnails of grey values did worse (98.8 %
against 99.9 %, five folds by patient), because windows and exposures differ more than outlines do. `train.modality`
fits it and writes what it was measured at beside the coefficients.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from serving.errors import RepositoryError
from serving.labels import Modality

COEFFICIENTS: Final = Path(__file__).with_name("modality.npz")
THUMBNAIL_PX: Final = 64
CELLS: Final = 8
ORIENTATIONS: Final = 6
FEATURES: Final = CELLS * CELLS * ORIENTATIONS + 1


@dataclass(frozen=True)
class ModalityClassifier:
    """The coefficients: `weights @ features + bias > 0` is an X-ray.

    Attributes:
        weights: One for each feature.
        bias: The constant.
        provenance: What it was fitted on and measured at.

    Raises:
        RepositoryError: If the weights are not those of these features.
    """

    weights: Float32[np.ndarray, " features"]
    bias: float
    provenance: dict[str, Any]

    def __post_init__(self) -> None:
        if self.weights.shape != (FEATURES,):
            raise RepositoryError(f"expected {FEATURES} modality weights, got an array of {self.weights.shape}")

    def xray_probability(self, pixels: UInt8[np.ndarray, "h w"]) -> float:
        """How sure it is that this is an X-ray and no CT slice, in `[0, 1]`."""
        logit = float(self.weights @ features(pixels)) + self.bias
        return float(1 / (1 + np.exp(-np.clip(logit, -50, 50))))


def features(pixels: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, " features"]:
    """Strength of edges by place and direction, and the aspect ratio.

    Args:
        pixels: Grey, of any size.

    Returns:
        `CELLS` x `CELLS` cells x `ORIENTATIONS` directions of the gradient in `[0, pi)`, divided by their norm so that
        contrast does not matter; then the logarithm of width over height.
    """
    height, width = pixels.shape
    thumbnail = cv2.resize(pixels, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    dx, dy = np.zeros_like(thumbnail), np.zeros_like(thumbnail)
    dx[:, 1:-1] = thumbnail[:, 2:] - thumbnail[:, :-2]
    dy[1:-1] = thumbnail[2:] - thumbnail[:-2]
    strength = np.hypot(dx, dy)
    direction = np.minimum(np.arctan2(dy, dx) % np.pi / np.pi * ORIENTATIONS, ORIENTATIONS - 1).astype(np.intp)
    side = THUMBNAIL_PX // CELLS
    rows, columns = np.indices(thumbnail.shape) // side
    bins = (rows * CELLS + columns) * ORIENTATIONS + direction
    histogram = np.bincount(bins.ravel(), strength.ravel(), FEATURES - 1).astype(np.float32)
    histogram /= np.linalg.norm(histogram) + 1e-3
    return np.append(histogram, np.float32(np.log(width / height)))


@cache
def classifier() -> ModalityClassifier:
    """The published classifier.

    Raises:
        RepositoryError: If its file is missing or not one of ours.
    """
    try:
        with np.load(COEFFICIENTS) as stored:
            return ModalityClassifier(
                weights=stored["weights"], bias=float(stored["bias"]), provenance=json.loads(str(stored["provenance"]))
            )
    except (OSError, KeyError, ValueError) as error:
        raise RepositoryError(f"expected modality coefficients at {COEFFICIENTS.name}, got {error}") from error


def guess_modality(pixels: UInt8[np.ndarray, "h w"]) -> Modality:
    """What kind of scan a picture most likely is."""
    return "xray" if classifier().xray_probability(pixels) > 0.5 else "ct"
