"""How good answers are, on what is labelled, with intervals by patient. Plain dicts, ready for JSON.

Every function takes the examples and a model's answers for them, whichever form of the model gave them: Keras, the
published ONNX, or Triton.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from sklearn.metrics import roc_auc_score

from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES
from train.batches import Arrays
from train.data import UNKNOWN, Example
from train.metrics import (
    BinaryCounts,
    balanced_accuracy,
    calibration_bins,
    confusion_matrix,
    expected_calibration_error,
    mean_of_classes,
    one_against_rest,
)
from train.surface import TOLERANCE_PX, SurfaceScores, surface_scores
from train.targets import Code, admissible_table, certain_and_known, class_names

BOOTSTRAP_ROUNDS: Final = 1000
INTERVAL_PERCENTILES: Final = (2.5, 97.5)
DECISION_THRESHOLD: Final = 0.5
OVERALL: Final = "overall"
"""Beside the labels or classes: the mean over them."""
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


def _share(right: Bool[np.ndarray, " n"]) -> float:
    return float(right.mean()) if right.size else math.nan


def auc(truth: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    """Area under the ROC curve of truths of 0 and 1; NaN where one of the two is missing."""
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
                "accuracy": _share(right),
                "accuracy_95": grouped_interval(groups[rows], lambda i, r=right: float(r[i].mean())),  # type: ignore[misc]
                "balanced_accuracy": balanced_accuracy(matrix),
                "ece": expected_calibration_error(answers[rows].max(axis=1), right),
                "majority_class_accuracy": _share(truth == matrix.sum(axis=1).argmax()),
                "confusion_true_by_predicted": matrix,
                "by_class": _by_class(matrix),
                "mean_of_classes": mean_of_classes(one_against_rest(matrix)),
                "reliability": calibration_bins(answers[rows].max(axis=1), right),
                "by_source": _by_source([examples[i] for i in rows], right),
            },
            "covid19_or_not": _covid_or_not(examples, targets, answers, np.flatnonzero(modality == name), covid),
        }
    pair = covid, DIAGNOSIS_NAMES.index("normal")
    either = one_answer & (targets[:, pair].sum(axis=1) == 1)
    for name, rows in (("xray", either & (modality == "xray")), ("ct", either & (modality == "ct")), ("both", either)):
        result.setdefault(name, {})["covid19_against_normal"] = _against(targets, answers, groups, rows, *pair)
    return dict(clean(result))


def _by_class(matrix: Int[np.ndarray, "truth predicted"]) -> dict[str, Json]:
    """Of the classes that occur."""
    counts = zip(DIAGNOSIS_NAMES, one_against_rest(matrix), strict=True)
    return {name: {"n": c.tp + c.fn, **c.classification()} for name, c in counts if c.tp + c.fn}


def _against(
    targets: np.ndarray, answers: np.ndarray, groups: np.ndarray, chosen: np.ndarray, positive: int, negative: int
) -> dict[str, Json]:
    """The paper's two classes: which of the two is likelier, whatever the others are."""
    rows = np.flatnonzero(chosen)
    truth, predicted = targets[rows, positive] == 1, answers[rows, positive] > answers[rows, negative]
    right = truth == predicted
    counts = BinaryCounts.of(truth, predicted)
    return {
        "n_scans": len(rows),
        "n_groups": len(set(groups[rows])),
        **counts.classification(),
        "accuracy_95": grouped_interval(groups[rows], lambda i: float(right[i].mean())),
        "confusion_true_by_predicted": [[counts.tp, counts.fn], [counts.fp, counts.tn]],
    }


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
        "auc": auc(truth, score),
        "auc_95": grouped_interval(groups, lambda i: auc(truth[i], score[i])),
        **counts.classification(),
        "by_source": _by_source([examples[i] for i in rows], right),
    }


def score_manifestations(examples: Sequence[Example], answers: Float[np.ndarray, "n 3"]) -> dict[str, Json]:
    """Each label on the slices where it is labelled, and without the healthy slices, which come from elsewhere.

    `OVERALL` is the mean over the labels.
    """
    targets = np.array([e.target for e in examples])
    groups = np.array([e.group for e in examples])
    healthy = np.array([e.source.startswith("healthy") for e in examples])
    result: dict[str, Json] = {}
    labels = []
    for i, name in enumerate(MANIFESTATION_NAMES):
        rows = np.flatnonzero(targets[:, i] != UNKNOWN)
        inside = np.flatnonzero((targets[:, i] != UNKNOWN) & ~healthy)
        truth, score = targets[rows, i].astype(int), answers[rows, i]
        counts = BinaryCounts.of(truth == 1, score >= DECISION_THRESHOLD)
        result[name] = {
            "n_scans": len(rows),
            "n_present": int(truth.sum()),
            "n_groups": len(set(groups[rows])),
            "auc": auc(truth, score),
            "auc_95": grouped_interval(groups[rows], lambda j, t=truth, s=score: auc(t[j], s[j])),  # type: ignore[misc]
            "auc_without_healthy_scans": auc(targets[inside, i].astype(int), answers[inside, i]),
            "n_absent_without_healthy_scans": int((targets[inside, i] == 0).sum()),
            "ece": expected_calibration_error(score, truth == 1),
            **counts.classification(),
            "confusion_true_by_predicted": [[counts.tp, counts.fn], [counts.fp, counts.tn]],
            "reliability": calibration_bins(score, truth == 1),
        }
        labels.append(counts)
    result[OVERALL] = mean_of_classes(labels)
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
        of healthy slices, where nothing should be. `OVERALL` holds the mean Dice and IoU over the classes.

    Raises:
        ValueError: If the arrays have no codes.
    """
    healthy = np.array([e.codes[0][1] == Code.HEALTHY for e in arrays.examples])
    result: dict[str, Json] = {}
    for class_id, name in enumerate(class_names(stream)[1:], start=1):
        pairs = mask_pairs(arrays, masks == class_id, stream, class_id)
        groups = [arrays.examples[i].group for i in pairs]
        result[name] = {
            **_class_scores([BinaryCounts.of(*pair) for pair in pairs.values()], groups),
            "slices_by_source": dict(sorted(Counter(arrays.examples[i].source for i in pairs).items())),
            **_outline_scores([surface_scores(*pair) for pair in pairs.values()], groups),
        }
        if healthy.any():
            result[name]["marked_fraction_of_healthy_slices"] = float((masks[healthy] == class_id).mean())
    result[OVERALL] = {key: float(np.mean([entry[key] for entry in result.values()])) for key in ("dice", "iou")}
    return dict(clean(result))


def mask_pairs(
    arrays: Arrays, answered: Bool[np.ndarray, "n h w"], stream: str, class_id: int
) -> dict[int, tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]]:
    """What was annotated and what was answered of one class, by row of the slices whose source annotates it.

    Args:
        arrays: Slices with codes.
        answered: Where the class was answered.
        stream: Whose meaning of the codes.
        class_id: The class in that stream.

    Returns:
        Truth and answer, both without the pixels that are not labelled for the class.

    Raises:
        ValueError: If the arrays have no codes.
    """
    if arrays.codes is None:
        raise ValueError("expected arrays with codes, got none")
    certain, sure = (table[:, class_id] for table in certain_and_known(admissible_table(stream)))
    pairs = [(certain[c] & sure[c], a & sure[c]) for c, a in zip(arrays.codes, answered, strict=True)]
    # Slices of other sources have no certain pixel of the class.
    sources = {e.source for e, (truth, _) in zip(arrays.examples, pairs, strict=True) if truth.any()}
    return {i: pairs[i] for i, e in enumerate(arrays.examples) if e.source in sources}


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
        **{key: value for key, value in total.classification().items() if key != "f1"},
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
