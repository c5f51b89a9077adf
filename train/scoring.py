"""How good answers are, on what is labelled, with intervals by patient. Plain dicts, ready for JSON.

Every function takes the examples and a model's answers for them, whichever form of the model gave them: Keras, the
published ONNX, or Triton.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from sklearn.metrics import roc_auc_score

from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES
from train.batches import Arrays
from train.data import UNKNOWN, Example
from train.metrics import BinaryCounts, balanced_accuracy, confusion_matrix, expected_calibration_error
from train.surface import TOLERANCE_PX, SurfaceScores, surface_scores
from train.targets import Code, admissible_table, certain_and_known, class_names

BOOTSTRAP_ROUNDS: Final = 1000
INTERVAL_PERCENTILES: Final = (2.5, 97.5)
DECISION_THRESHOLD: Final = 0.5
Json = Any


def clean(value: Json) -> Json:
    """Plain JSON: NumPy numbers to Python's, rounded to four places; NaN, which JSON has not, to None."""
    if isinstance(value, Mapping):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(item) for item in value]
    if isinstance(value, np.ndarray):
        return clean(value.tolist())
    if isinstance(value, (float, np.floating)):
        return round(float(value), 4) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def grouped_interval(
    groups: Sequence[str] | Shaped[np.ndarray, " n"], statistic: Callable[[Int[np.ndarray, " m"]], float], seed: int = 0
) -> list[float]:
    """95 % percentile bootstrap, drawing groups (patients) and not scans.

    Args:
        groups: Of each scan.
        statistic: Its value on the scans of these row numbers; NaN where undefined.
        seed: Of the draws.
    """
    if not len(groups):
        return [math.nan, math.nan]
    rng = np.random.default_rng(seed)
    names = np.asarray(groups)
    rows = [np.flatnonzero(names == name) for name in np.unique(names)]
    values = []
    for _ in range(BOOTSTRAP_ROUNDS):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        values.append(statistic(drawn))
    finite = np.array([v for v in values if math.isfinite(v)])
    return [float(v) for v in np.percentile(finite, INTERVAL_PERCENTILES)] if finite.size else [math.nan] * 2


def _auc(truth: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    return float(roc_auc_score(truth, score)) if 0 < truth.sum() < truth.size else math.nan


def _by_source(examples: Sequence[Example], right: np.ndarray) -> dict[str, Json]:
    sources = sorted({e.source for e in examples})
    rows = {s: [i for i, e in enumerate(examples) if e.source == s] for s in sources}
    return {s: {"n": len(r), "accuracy": float(np.mean(right[r]))} for s, r in rows.items()}


def score_recognition(examples: Sequence[Example], answers: Float[np.ndarray, "n 4"]) -> dict[str, Json]:
    """Four classes and two, X-ray and CT apart, by source.

    A CT slice that is only known not to be COVID-19 counts in the two-class figures alone.
    """
    targets = np.array([e.target for e in examples])
    modality = np.array([e.modality for e in examples])
    groups = np.array([e.group for e in examples])
    one_answer = targets.sum(axis=1) == 1
    covid = DIAGNOSIS_NAMES.index("covid19")
    result: dict[str, Json] = {}
    for name in ("xray", "ct"):
        rows = np.flatnonzero((modality == name) & one_answer)
        truth, predicted = targets[rows].argmax(axis=1), answers[rows].argmax(axis=1)
        right = truth == predicted
        matrix = confusion_matrix(truth, predicted, len(DIAGNOSIS_NAMES))
        result[name] = {
            "four_classes": {
                "n_scans": len(rows),
                "n_groups": len(set(groups[rows])),
                "accuracy": right.mean(),
                "accuracy_95": grouped_interval(groups[rows], lambda i, r=right: float(r[i].mean())),  # type: ignore[misc]
                "balanced_accuracy": balanced_accuracy(matrix),
                "ece": expected_calibration_error(answers[rows].max(axis=1), right),
                "majority_class_accuracy": matrix.sum(axis=1).max() / matrix.sum(),
                "confusion_true_by_predicted": matrix,
                "by_source": _by_source([examples[i] for i in rows], right),
            },
            "covid19_or_not": _covid_or_not(examples, targets, answers, np.flatnonzero(modality == name), covid),
        }
    normal = DIAGNOSIS_NAMES.index("normal")
    rows = np.flatnonzero((modality == "xray") & ((targets[:, covid] == 1) | (targets[:, normal] == 1)) & one_answer)
    right = (answers[rows, covid] > answers[rows, normal]) == (targets[rows, covid] == 1)
    result["xray"]["covid19_against_normal"] = {
        "n_scans": len(rows),
        "accuracy": right.mean(),
        "accuracy_95": grouped_interval(groups[rows], lambda i: float(right[i].mean())),
    }
    return dict(clean(result))


def _covid_or_not(
    examples: Sequence[Example], targets: np.ndarray, answers: np.ndarray, rows: np.ndarray, covid: int
) -> dict[str, Json]:
    truth = (targets[rows, covid] == 1).astype(int)
    score = answers[rows, covid]
    groups = [examples[i].group for i in rows]
    counts = BinaryCounts.of(truth == 1, score >= DECISION_THRESHOLD)
    right = (truth == 1) == (score >= DECISION_THRESHOLD)
    return {
        "n_scans": len(rows),
        "n_groups": len(set(groups)),
        "auc": _auc(truth, score),
        "auc_95": grouped_interval(groups, lambda i: _auc(truth[i], score[i])),
        "accuracy": counts.accuracy,
        "sensitivity": counts.sensitivity,
        "specificity": counts.specificity,
        "mcc": counts.mcc,
        "by_source": _by_source([examples[i] for i in rows], right),
    }


def score_manifestations(examples: Sequence[Example], answers: Float[np.ndarray, "n 3"]) -> dict[str, Json]:
    """Each label on the slices where it is labelled, and without the healthy slices, which come from elsewhere."""
    targets = np.array([e.target for e in examples])
    groups = np.array([e.group for e in examples])
    healthy = np.array([e.source.startswith("healthy") for e in examples])
    result: dict[str, Json] = {}
    for i, name in enumerate(MANIFESTATION_NAMES):
        rows = np.flatnonzero(targets[:, i] != UNKNOWN)
        inside = np.flatnonzero((targets[:, i] != UNKNOWN) & ~healthy)
        truth, score = targets[rows, i].astype(int), answers[rows, i]
        counts = BinaryCounts.of(truth == 1, score >= DECISION_THRESHOLD)
        result[name] = {
            "n_scans": len(rows),
            "n_present": int(truth.sum()),
            "n_groups": len(set(groups[rows])),
            "auc": _auc(truth, score),
            "auc_95": grouped_interval(groups[rows], lambda j, t=truth, s=score: _auc(t[j], s[j])),  # type: ignore[misc]
            "auc_without_healthy_scans": _auc(targets[inside, i].astype(int), answers[inside, i]),
            "n_absent_without_healthy_scans": int((targets[inside, i] == 0).sum()),
            "ece": expected_calibration_error(score, truth == 1),
            "accuracy": counts.accuracy,
            "sensitivity": counts.sensitivity,
            "specificity": counts.specificity,
            "precision": counts.precision,
            "f1": counts.f1,
        }
    return dict(clean(result))


def score_segmentation(arrays: Arrays, masks: UInt8[np.ndarray, "n h w"], stream: str) -> dict[str, Json]:
    """Dice, IoU and distances of outlines of each class over the pixels where it is labelled, pooled and by slice.

    A pixel that is not labelled for a class is taken out of both masks, so an answer ends where the annotation does.

    Args:
        arrays: Images with codes.
        masks: Class ids of the stream.
        stream: Which; gives the classes.

    Returns:
        By class: figures, the Dice of calling every labelled pixel the class (what chance gets), and the marked part
        of healthy slices, where nothing should be.
    """
    if arrays.codes is None:
        raise ValueError("expected arrays with codes, got none")
    certain, sure = certain_and_known(admissible_table(stream))
    healthy = np.array([e.codes[0][1] == Code.HEALTHY for e in arrays.examples])
    result: dict[str, Json] = {}
    for class_id, name in enumerate(class_names(stream)[1:], start=1):
        known = sure[:, class_id]
        pairs = []
        for codes, mask in zip(arrays.codes, masks, strict=True):
            valid = known[codes]
            pairs.append((certain[codes, class_id] & valid, (mask == class_id) & valid))
        # Slices whose source annotates this class at all: those of other datasets have no certain pixel of it.
        sources = {e.source for e, (truth, _) in zip(arrays.examples, pairs, strict=True) if truth.any()}
        rows = [i for i, e in enumerate(arrays.examples) if e.source in sources]
        groups = [arrays.examples[i].group for i in rows]
        result[name] = {
            **_class_scores([BinaryCounts.of(*pairs[i]) for i in rows], groups),
            **_outline_scores([surface_scores(*pairs[i]) for i in rows], groups),
        }
        if healthy.any():
            result[name]["marked_fraction_of_healthy_slices"] = float((masks[healthy] == class_id).mean())
    return dict(clean(result))


def _class_scores(counts: Sequence[BinaryCounts], groups: Sequence[str]) -> dict[str, Json]:
    def pooled(rows: Sequence[int] | np.ndarray) -> BinaryCounts:
        return sum((counts[int(i)] for i in rows), BinaryCounts(0, 0, 0, 0))

    total = pooled(range(len(counts)))
    positives = total.tp + total.fn
    everything = BinaryCounts(positives, total.fp + total.tn, 0, 0)
    with_class = [c.dice for c in counts if c.tp + c.fn]
    return {
        "n_slices": len(counts),
        "n_slices_with_it": len(with_class),
        "n_groups": len(set(groups)),
        "dice": total.dice,
        "dice_95": grouped_interval(groups, lambda i: pooled(i).dice),
        "dice_mean_of_slices_with_it": float(np.mean(with_class)) if with_class else math.nan,
        "iou": total.iou,
        "sensitivity": total.sensitivity,
        "precision": total.precision,
        "dice_of_marking_everything": everything.dice,
    }


def _outline_scores(scores: Sequence[SurfaceScores], groups: Sequence[str]) -> dict[str, Json]:
    """Means over the slices in which the class is annotated or answered; the others have no outline to compare."""
    rows = [i for i, score in enumerate(scores) if math.isfinite(score.nsd)]
    names = [groups[i] for i in rows]
    result: dict[str, Json] = {"n_slices_with_outline": len(rows), "nsd_tolerance_px": TOLERANCE_PX}
    for key, values in (
        ("hd95_px", np.array([scores[i].hd95 for i in rows])),
        ("nsd", np.array([scores[i].nsd for i in rows])),
    ):
        result[key] = float(values.mean()) if rows else math.nan
        result[f"{key}_95"] = grouped_interval(names, lambda i, v=values: float(v[i].mean()))  # type: ignore[misc]
    return result
