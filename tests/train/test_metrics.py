from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from train.metrics import (
    CLASSIFICATION_METRICS,
    BinaryCounts,
    balanced_accuracy,
    calibration_bins,
    confusion_matrix,
    expected_calibration_error,
    mean_of_classes,
    one_against_rest,
)


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


def test_means_over_the_classes_are_the_macro_averages_of_scikit_learn():
    rng = np.random.default_rng(6)
    truth = rng.integers(0, 4, 400)
    predicted = np.where(rng.random(400) < 0.7, truth, rng.integers(0, 4, 400))
    figures = mean_of_classes(one_against_rest(confusion_matrix(truth, predicted, 4)))
    assert set(figures) == set(CLASSIFICATION_METRICS)
    for name, score in (
        ("sensitivity", reference.recall_score),
        ("precision", reference.precision_score),
        ("f1", reference.f1_score),
    ):
        assert figures[name] == pytest.approx(score(truth, predicted, average="macro"))
    for name, score in (("mcc", reference.matthews_corrcoef), ("accuracy", reference.accuracy_score)):
        assert figures[name] == pytest.approx(np.mean([score(truth == c, predicted == c) for c in range(4)]))
    specificity = np.mean([reference.recall_score(truth != c, predicted != c) for c in range(4)])
    assert figures["specificity"] == pytest.approx(specificity)
    assert figures["false_positive_rate"] == pytest.approx(1 - specificity)


def test_a_class_that_does_not_occur_is_in_no_mean_and_one_never_answered_has_no_precision():
    absent = mean_of_classes(one_against_rest(np.array([[3, 1, 0], [1, 3, 0], [0, 0, 0]])))
    assert absent["sensitivity"] == absent["precision"] == 0.75
    unanswered = mean_of_classes(one_against_rest(np.array([[4, 0], [2, 0]])))
    assert math.isnan(unanswered["precision"])
    assert unanswered["sensitivity"] == 0.5
    assert all(math.isnan(v) for v in mean_of_classes([]).values())


def test_bins_hold_every_answer_once():
    rng = np.random.default_rng(7)
    confidence = rng.random(300)
    right = rng.random(300) < confidence
    bins = calibration_bins(confidence, right, 10)
    assert sum(n for n, _, _ in bins) == 300
    assert sum(n * share for n, _, share in bins) == pytest.approx(right.sum())
    assert all((i / 10) <= mean <= (i + 1) / 10 for i, (_, mean, _) in enumerate(bins))
    assert calibration_bins(np.array([]), np.array([], bool)) == []


def test_calibration_error_is_the_gap_weighted_by_the_counts_of_its_bins():
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False, True, False])
    # Four answers at 0.95 of which 0.75 are right; two at 0.55 of which half are.
    assert expected_calibration_error(confidence, right, 10) == pytest.approx((4 * 0.20 + 2 * 0.05) / 6)


def test_a_calibrated_answer_has_no_error_and_none_has_no_number():
    assert expected_calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0
    assert math.isnan(expected_calibration_error(np.array([]), np.array([], bool)))
