from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from train.metrics import BinaryCounts, balanced_accuracy, confusion_matrix, expected_calibration_error


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    truth = rng.random(500) < 0.3
    return truth, truth ^ (rng.random(500) < 0.2)


def test_the_papers_metrics_are_those_of_scikit_learn(pair):
    truth, predicted = pair
    counts = BinaryCounts.of(truth, predicted)
    assert counts.accuracy == pytest.approx(reference.accuracy_score(truth, predicted))
    assert counts.sensitivity == pytest.approx(reference.recall_score(truth, predicted))
    assert counts.specificity == pytest.approx(reference.recall_score(~truth, ~predicted))
    assert counts.precision == pytest.approx(reference.precision_score(truth, predicted))
    assert counts.f1 == pytest.approx(reference.f1_score(truth, predicted))
    assert counts.dice == counts.f1
    assert counts.iou == pytest.approx(reference.jaccard_score(truth, predicted))
    assert counts.mcc == pytest.approx(reference.matthews_corrcoef(truth, predicted))
    assert counts.false_positive_rate == pytest.approx(1 - counts.specificity)


def test_nothing_divided_by_nothing_is_nan_not_a_grade():
    empty = BinaryCounts.of(np.zeros(4, bool), np.zeros(4, bool))
    assert all(math.isnan(v) for v in (empty.dice, empty.iou, empty.sensitivity, empty.precision, empty.mcc))
    assert empty.specificity == 1


def test_counts_add_up(pair):
    truth, predicted = pair
    halves = BinaryCounts.of(truth[:200], predicted[:200]) + BinaryCounts.of(truth[200:], predicted[200:])
    assert halves == BinaryCounts.of(truth, predicted)


def test_arrays_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        BinaryCounts.of(np.zeros(4, bool), np.zeros(5, bool))


def test_confusion_has_truth_in_rows():
    truth, predicted = np.array([0, 0, 1, 3]), np.array([0, 2, 1, 3])
    matrix = confusion_matrix(truth, predicted, 4)
    assert np.array_equal(matrix, reference.confusion_matrix(truth, predicted, labels=range(4)))
    # Class 2 does not occur, so its row is left out of the mean.
    assert balanced_accuracy(matrix) == pytest.approx((0.5 + 1 + 1) / 3)


def test_calibration_error_is_the_gap_weighted_by_the_counts_of_its_bins():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    # Four answers at 0.95 of which 0.75 are right; two at 0.55 of which half are.
    assert expected_calibration_error(confidence, right, 10) == pytest.approx((4 * 0.20 + 2 * 0.05) / 6)


def test_a_calibrated_answer_has_no_error_and_none_has_no_number():
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert math.isnan(expected_calibration_error(np.array([]), np.array([], bool)))
