"""The paper's metrics (Eqs. 3-10), from counts.

Everything that is undefined (0 / 0) is NaN, never 0 and never 1: who averages decides what to do with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

CALIBRATION_BINS: Final = 15
CLASSIFICATION_METRICS: Final = (
    "accuracy",
    "sensitivity",
    "specificity",
    "precision",
    "f1",
    "mcc",
    "false_positive_rate",
)
"""What the paper reports of a classifier, as attributes of `BinaryCounts`: Eqs. 3-8 and Tables 3 to 5."""


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

    def classification(self) -> dict[str, float]:
        """`CLASSIFICATION_METRICS` by name."""
        return {name: getattr(self, name) for name in CLASSIFICATION_METRICS}


def confusion_matrix(
    truth: Shaped[np.ndarray, " n"], predicted: Shaped[np.ndarray, " n"], n_classes: int
) -> Int[np.ndarray, "truth predicted"]:
    """Counts by true class (row) and predicted class (column)."""
    matrix = np.zeros((n_classes, n_classes), dtype=np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def one_against_rest(matrix: Int[np.ndarray, "truth predicted"]) -> list[BinaryCounts]:
    """Each class of a confusion matrix as the positive one, the others together as the negative one."""
    total = int(matrix.sum())
    counts = []
    for c in range(len(matrix)):
        tp, positives, answered = int(matrix[c, c]), int(matrix[c].sum()), int(matrix[:, c].sum())
        counts.append(BinaryCounts(tp, answered - tp, positives - tp, total - positives - answered + tp))
    return counts


def mean_of_classes(counts: Sequence[BinaryCounts]) -> dict[str, float]:
    """Unweighted mean of `CLASSIFICATION_METRICS` over the classes that occur.

    A class that occurs but was never answered has no precision: then the mean has none either (NaN).
    """
    occurring = [c.classification() for c in counts if c.tp + c.fn]
    if not occurring:
        return dict.fromkeys(CLASSIFICATION_METRICS, float("nan"))
    return {name: float(np.mean([figures[name] for figures in occurring])) for name in CLASSIFICATION_METRICS}


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
    bins = calibration_bins(confidence, right, n_bins)
    if not bins:
        return float("nan")
    return sum(n * abs(mean - share) for n, mean, share in bins) / confidence.size


def calibration_bins(
    confidence: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], n_bins: int = CALIBRATION_BINS
) -> list[tuple[int, float, float]]:
    """What a reliability plot shows: count, mean confidence and share that was right of each bin that is not empty.

    Args:
        confidence: As for `expected_calibration_error`.
        right: Whether it was right, or whether what it is the probability of was there.
        n_bins: Bins of equal width over `[0, 1]`; a confidence on an edge belongs to the lower one.
    """
    rows = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    members = [rows == b for b in np.unique(rows)]
    return [(int(m.sum()), float(confidence[m].mean()), float(right[m].mean())) for m in members]
