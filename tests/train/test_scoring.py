from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn import metrics as reference

from train.batches import Arrays
from train.data import UNKNOWN, Example
from train.scoring import clean, grouped_interval, score_manifestations, score_recognition, score_segmentation
from train.targets import Code


def _example(i: int, modality: str, target: tuple[float, ...], source: str = "s", codes=()) -> Example:
    return Example(
        path=str(i), modality=modality, group=f"g{i}", source=source, split="test", target=target, codes=codes
    )


def test_json_has_no_nan():
    text = json.dumps(clean({"a": math.nan, "b": np.float32(0.5), "c": [np.int64(3)]}), allow_nan=False)
    assert json.loads(text) == {"a": None, "b": 0.5, "c": [3]}


def test_an_interval_draws_patients_and_not_scans():
    # Two patients, one always right with a hundred scans: by scan the interval would be narrow.
    groups = ["a"] * 100 + ["b"] * 100
    right = np.array([1.0] * 100 + [0.0] * 100)
    assert grouped_interval(groups, lambda i: float(right[i].mean())) == [0.0, 1.0]


def test_recognition_keeps_modalities_apart_and_not_covid_out_of_four_classes():
    examples = [
        _example(0, "xray", (1, 0, 0, 0)),
        _example(1, "xray", (0, 1, 0, 0)),
        _example(2, "ct", (1, 0, 0, 0)),
        _example(3, "ct", (0, 1, 1, 1)),
    ]
    answers = np.array([[0.9, 0.1, 0, 0], [0.8, 0.2, 0, 0], [0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.3, 0.3]])
    figures = score_recognition(examples, answers)
    assert figures["xray"]["four_classes"]["accuracy"] == 0.5
    assert figures["ct"]["four_classes"]["n_scans"] == 1
    assert figures["ct"]["covid19_or_not"]["n_scans"] == 2
    assert figures["ct"]["covid19_or_not"]["auc"] == 1.0


def test_two_classes_are_told_apart_by_the_likelier_of_the_two_over_both_kinds_of_scan():
    rng = np.random.default_rng(3)
    targets = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 1, 1, 1)]
    examples = [_example(i, "ct" if i % 3 else "xray", targets[i % 4]) for i in range(240)]
    answers = rng.dirichlet(np.ones(4), 240) + 0.3 * np.array([e.target for e in examples])
    figures = score_recognition(examples, answers)
    chosen = [i for i in range(240) if i % 4 < 2]
    truth = np.array([i % 4 == 0 for i in chosen])
    predicted = answers[chosen, 0] > answers[chosen, 1]
    two = figures["both"]["covid19_against_normal"]
    assert two["n_scans"] == 120
    assert two["n_scans"] == sum(figures[m]["covid19_against_normal"]["n_scans"] for m in ("xray", "ct"))
    assert two["accuracy"] == pytest.approx(reference.accuracy_score(truth, predicted), abs=1e-4)
    assert two["sensitivity"] == pytest.approx(reference.recall_score(truth, predicted), abs=1e-4)
    assert two["precision"] == pytest.approx(reference.precision_score(truth, predicted), abs=1e-4)
    assert two["f1"] == pytest.approx(reference.f1_score(truth, predicted), abs=1e-4)
    assert two["mcc"] == pytest.approx(reference.matthews_corrcoef(truth, predicted), abs=1e-4)
    order = reference.confusion_matrix(truth, predicted, labels=[True, False])
    assert two["confusion_true_by_predicted"] == order.tolist()


def test_four_classes_have_figures_each_and_in_the_mean():
    examples = [_example(i, "xray", tuple(float(i % 4 == c) for c in range(4))) for i in range(40)]
    answers = np.array([e.target for e in examples])
    answers[0] = (0, 1, 0, 0)
    figures = score_recognition(examples, answers)["xray"]["four_classes"]
    assert figures["by_class"]["covid19"]["sensitivity"] == 0.9
    assert figures["by_class"]["normal"]["precision"] == pytest.approx(10 / 11, abs=1e-4)
    assert figures["mean_of_classes"]["sensitivity"] == pytest.approx((0.9 + 3) / 4, abs=1e-4)
    assert sum(n for n, _, _ in figures["reliability"]) == 40


def test_manifestations_are_judged_where_they_are_labelled():
    examples = [
        _example(0, "ct", (1, 0, UNKNOWN)),
        _example(1, "ct", (0, 0, UNKNOWN)),
        _example(2, "ct", (UNKNOWN, UNKNOWN, 1)),
        _example(3, "ct", (0, 0, 0), source="healthy: x"),
    ]
    answers = np.array([[0.9, 0.1, 1.0], [0.2, 0.1, 1.0], [1.0, 1.0, 0.8], [0.1, 0.1, 0.9]])
    figures = score_manifestations(examples, answers)
    assert figures["ground_glass"]["n_scans"] == 3
    assert figures["ground_glass"]["auc"] == 1.0
    assert figures["pleural_effusion"]["n_scans"] == 2
    assert figures["pleural_effusion"]["auc"] == 0.0
    assert figures["pleural_effusion"]["confusion_true_by_predicted"] == [[1, 0], [1, 0]]
    # Consolidation was never present: the mean is over the other two.
    assert figures["overall"]["sensitivity"] == 1.0
    assert figures["overall"]["accuracy"] == 0.75


def test_segmentation_counts_annotated_pixels_only():
    medseg = _example(0, "ct", (), "medseg", ((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS)))
    effusion = _example(1, "ct", (), "nsclc", ((0, Code.EFFUSION_BACKGROUND), (3, Code.PLEURAL_EFFUSION)))
    codes = np.zeros((2, 8, 8), np.uint8)
    codes[0, :4] = Code.GROUND_GLASS
    codes[1] = Code.EFFUSION_BACKGROUND
    codes[1, :2] = Code.PLEURAL_EFFUSION
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[0, :2] = 1
    masks[0, 6:] = 3  # effusion where nobody looked for it: no fault
    masks[1, :2] = 3
    masks[1, 4:] = 1  # ground-glass where nobody looked for it: no fault
    figures = score_segmentation(Arrays([medseg, effusion], np.zeros_like(codes), codes), masks, "all")
    assert figures["ground_glass"]["dice"] == pytest.approx(2 * 16 / (2 * 16 + 16), abs=1e-4)
    assert figures["ground_glass"]["n_slices"] == 1
    assert figures["pleural_effusion"]["dice"] == 1.0
    assert figures["pleural_effusion"]["slices_by_source"] == {"nsclc": 1}
    # Nobody annotated consolidation, so there is no mean over the three.
    assert figures["overall"] == {"dice": None, "iou": None}


def test_pixels_are_counted_as_scikit_learn_counts_them():
    rng = np.random.default_rng(4)
    codes = np.where(rng.random((3, 20, 20)) < 0.3, Code.GROUND_GLASS, Code.MEDSEG_BACKGROUND).astype(np.uint8)
    masks = ((codes == Code.GROUND_GLASS) ^ (rng.random(codes.shape) < 0.2)).astype(np.uint8)
    examples = [_example(i, "ct", (), "s", ((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS))) for i in range(3)]
    figures = score_segmentation(Arrays(examples, np.zeros_like(codes), codes), masks, "ground_glass")["ground_glass"]
    truth, predicted = (codes == Code.GROUND_GLASS).ravel(), masks.ravel() == 1
    for name, expected in (
        ("dice", reference.f1_score(truth, predicted)),
        ("iou", reference.jaccard_score(truth, predicted)),
        ("accuracy", reference.accuracy_score(truth, predicted)),
        ("specificity", reference.recall_score(~truth, ~predicted)),
        ("mcc", reference.matthews_corrcoef(truth, predicted)),
        ("false_positive_rate", 1 - reference.recall_score(~truth, ~predicted)),
    ):
        assert figures[name] == pytest.approx(expected, abs=1e-4)


def test_outlines_are_compared_where_the_class_is_annotated_only():
    medseg = [_example(i, "ct", (), "medseg", ((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS))) for i in range(3)]
    effusion = _example(3, "ct", (), "nsclc", ((0, Code.EFFUSION_BACKGROUND), (3, Code.PLEURAL_EFFUSION)))
    codes = np.zeros((4, 30, 40), np.uint8)
    codes[:2, 5:15, 5:15] = Code.GROUND_GLASS
    codes[3] = Code.EFFUSION_BACKGROUND
    masks = np.zeros((4, 30, 40), np.uint8)
    masks[0, 5:15, 5:15] = 1  # right; slice 1 is missed, slice 2 has no outline on either side
    masks[3, 20:] = 1  # ground-glass where nobody looked for it
    figures = score_segmentation(Arrays([*medseg, effusion], np.zeros_like(codes), codes), masks, "all")["ground_glass"]
    assert figures["n_slices"] == 3
    assert figures["n_slices_with_outline"] == 2
    assert figures["hd95_px"] == (0 + 50) / 2
    assert figures["nsd"] == 0.5
    assert figures["nsd_95"] == [0, 1]


def test_pixels_without_an_annotation_are_in_neither_outline():
    infection = ((0, Code.INFECTION_BACKGROUND), (255, Code.INFECTION))
    examples = [_example(0, "ct", (), "s", ((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS), *infection))]
    codes = np.zeros((1, 40, 40), np.uint8)
    codes[0, 10:20, 10:20] = Code.GROUND_GLASS
    codes[0, 20:30, 10:20] = Code.INFECTION
    masks = np.zeros((1, 40, 40), np.uint8)
    masks[0, 10:30, 10:20] = 1
    figures = score_segmentation(Arrays(examples, np.zeros_like(codes), codes), masks, "ground_glass")["ground_glass"]
    assert (figures["hd95_px"], figures["nsd"]) == (0, 1)
