"""The paper's metrics (Eqs. 3-10), from counts.

Everything that is undefined (0 / 0) is NaN, never 0 and never 1: who averages decides what to do with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

CALIBRATION_BINS: Final = 15


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else float("nan")


@dataclass(frozen=True)
class BinaryCounts:
    """True and false positives and negatives of one class."""

    tp: int
    fp: int
    fn: int
    tn: int

    @classmethod
    def of(cls, truth: Bool[np.ndarray, "n ..."], predicted: Bool[np.ndarray, "n ..."]) -> BinaryCounts:
        """Count over arrays of the same shape.

        Raises:
            ValueError: If the shapes differ.
        """
        if truth.shape != predicted.shape:
            raise ValueError(f"expected arrays of one shape, got {truth.shape} and {predicted.shape}")
        return cls(
            tp=int((truth & predicted).sum()),
            fp=int((~truth & predicted).sum()),
            fn=int((truth & ~predicted).sum()),
            tn=int((~truth & ~predicted).sum()),
        )

    def __add__(self, other: BinaryCounts) -> BinaryCounts:
        return BinaryCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def accuracy(self) -> float:
        """Eq. 3."""
        return _ratio(self.tp + self.tn, self.tp + self.tn + self.fp + self.fn)

    @property
    def sensitivity(self) -> float:
        """Eq. 4."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Eq. 5."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def precision(self) -> float:
        """Eq. 6."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def mcc(self) -> float:
        """Eq. 7."""
        product = float(self.tp + self.fn) * (self.tn + self.fp) * (self.tp + self.fp) * (self.tn + self.fn)
        return _ratio(float(self.tp) * self.tn - float(self.fn) * self.fp, product**0.5)

    @property
    def f1(self) -> float:
        """Eq. 8. The same number as the Dice coefficient (Eq. 9) of two masks."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    dice = f1

    @property
    def iou(self) -> float:
        """Eq. 10."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def false_positive_rate(self) -> float:
        """One minus specificity."""
        return _ratio(self.fp, self.fp + self.tn)


def confusion_matrix(
    truth: Shaped[np.ndarray, " n"], predicted: Shaped[np.ndarray, " n"], n_classes: int
) -> Int[np.ndarray, "truth predicted"]:
    """Counts by true class (row) and predicted class (column)."""
    matrix = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def balanced_accuracy(matrix: Int[np.ndarray, "truth predicted"]) -> float:
    """Mean sensitivity over the classes that occur."""
    totals = matrix.sum(axis=1)
    occur = totals > 0
    return float(np.mean(np.diag(matrix)[occur] / totals[occur])) if occur.any() else float("nan")


def expected_calibration_error(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], n_bins: int = CALIBRATION_BINS
) -> float:
    """Guo et al. 2017, Eq. 3: gap between confidence and accuracy in bins of equal width, weighted by their counts.

    Args:
        confidence: Probability of the answer that was given, in `[0, 1]`.
        right: Whether it was right.
        n_bins: Bins over `[0, 1]`; a confidence on an edge belongs to the lower one.
    """
    if not confidence.size:
        return float("nan")
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gaps = [abs(float(confidence[bins == b].sum()) - float(right[bins == b].sum())) for b in np.unique(bins)]
    return sum(gaps) / confidence.size
