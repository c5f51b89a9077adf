"""What a linear layer on frozen features tells of a scan: its source, or its diagnosis where that should be hard.

The features are those of `train.frozen`: ImageNet's Inception-v3, never trained on a scan. So what they tell is
in the pictures, not learned by a network of ours.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serving.labels import DIAGNOSIS_NAMES, Modality
from train import frozen, scoring
from train.data import Example
from train.leaks import Leak
from train.metrics import balanced_accuracy, confusion_matrix
from train.scoring import grouped_interval

BORDER_SHARE: Final = 0.1
"""Of a side: the frame that is left when the lungs are blanked out."""
REGULARISATION: Final = 0.01
"""Scikit-learn's C, on standardised features. Set beforehand and not tuned: there are as many features as scans."""
FOLDS: Final = 5
MIN_SCANS: Final = 20
"""A source with fewer scans is not left out by itself."""
NOT_COVID: Final = "not_covid19"
_COVID: Final = DIAGNOSIS_NAMES.index("covid19")

Json = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """What is asked of a scan.

    Attributes:
        name: How it is called.
        modality: Whose scans it is asked of.
        classes: The answers; of two the first, COVID-19, is the positive one.
    """

    name: str
    modality: Modality
    classes: tuple[str, ...]

    def truth(self, example: Example) -> int | None:
        """Index of the right answer; None for a scan that is not asked."""
        if example.modality != self.modality:
            return None
        certain = sum(example.target) == 1
        if NOT_COVID in self.classes:
            return 0 if certain and example.target[_COVID] == 1 else 1
        name = DIAGNOSIS_NAMES[int(np.argmax(example.target))]
        return self.classes.index(name) if certain and name in self.classes else None


FOUR: Final = Question("four_classes", "xray", DIAGNOSIS_NAMES)
PAIR: Final = Question("covid19_against_normal", "xray", ("covid19", "normal"))
CT: Final = Question("covid19_or_not", "ct", ("covid19", NOT_COVID))
QUESTIONS: Final = (FOUR, PAIR, CT)


def origin(example: Example) -> str:
    """Whose scans they first were: collections that were copied by several repositories count once."""
    return example.source.partition(" via ")[0]


def auc(truth: Int[np.ndarray, " n"], score: Float[np.ndarray, " n"]) -> float:
    """Area under the ROC curve of class 0 of `truth` against the others; NaN where one of the two is missing."""
    return scoring.auc((truth == 0).astype(int), score)


def score(
    truth: Int[np.ndarray, " n"],
    probabilities: Float[np.ndarray, "n k"],
    groups: Sequence[str],
    classes: Sequence[str],
) -> Json:
    """How good answers are.

    Args:
        truth: Index of the right class.
        probabilities: Of each class; the largest is the answer.
        groups: Of each scan, for the intervals.
        classes: Names of the `k` classes.

    Returns:
        Counts by class, accuracy with its interval, balanced accuracy, what naming the most frequent class would get,
        and for two classes the AUC of the first one with its interval. NaN where undefined.
    """
    right = probabilities.argmax(axis=1) == truth
    matrix = confusion_matrix(truth, probabilities.argmax(axis=1), len(classes))
    counts = matrix.sum(axis=1)
    result: Json = {
        "n_scans": len(truth),
        "n_groups": len(set(groups)),
        "n_by_class": {name: int(n) for name, n in zip(classes, counts, strict=True) if n},
        "accuracy": float(right.mean()) if right.size else math.nan,
        "accuracy_95": grouped_interval(groups, lambda i: float(right[i].mean())),
        "balanced_accuracy": balanced_accuracy(matrix),
        "majority_class_accuracy": float(counts.max() / counts.sum()) if right.size else math.nan,
    }
    if len(classes) == 2:
        positive = probabilities[:, 0]
        result["auc"] = auc(truth, positive)
        # Resampling costs seconds, and where a class is missing it says nothing.
        undefined = math.isnan(result["auc"])
        result["auc_95"] = (
            [math.nan] * 2 if undefined else grouped_interval(groups, lambda i: auc(truth[i], positive[i]))
        )
    return result


def difference(
    truth: Int[np.ndarray, " n"],
    a: Float[np.ndarray, "n k"],
    b: Float[np.ndarray, "n k"],
    groups: Sequence[str],
) -> Json:
    """Accuracy of `a` minus that of `b` on the same scans, with the interval of the paired difference."""
    gain = (a.argmax(axis=1) == truth).astype(float) - (b.argmax(axis=1) == truth)
    return {
        "difference": float(gain.mean()),
        "difference_95": grouped_interval(groups, lambda i: float(gain[i].mean())),
    }


def without_centre(image: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The image's frame of `BORDER_SHARE` of each side; the rest, with the lungs, is black. A new array."""
    frame = np.array(image, dtype=np.uint8)
    height, width = (round(side * BORDER_SHARE) for side in frame.shape)
    frame[height:-height, width:-width] = 0
    return frame


def features_of(
    name: str,
    examples: Sequence[Example],
    picture: Callable[[int], UInt8[np.ndarray, "h w"]],
    root: Path,
    cache: Path,
) -> Float32[np.ndarray, "n d"]:
    """Frozen features of one view of each scan; see `train.frozen.kept`.

    Args:
        name: Of this way of looking at the scans, for the file's name.
        examples: The scans.
        picture: Gives the image of a row of `examples`, as the features are to see it.
        root: Of the data.
        cache: Folder of what is kept.

    Raises:
        DatasetError: If the ImageNet weights are missing.
    """

    def pictures() -> UInt8[np.ndarray, "n h w"]:
        return np.stack([picture(i) for i in range(len(examples))])

    return frozen.kept(name, examples, root, cache, pictures)[:, 0]


def probe(
    features: Float32[np.ndarray, "n d"],
    truth: Int[np.ndarray, " n"],
    train: Sequence[int],
    test: Sequence[int],
    n_classes: int,
) -> Float[np.ndarray, "m k"]:
    """Probabilities that a logistic regression on the rows `train` gives the rows `test`; 0 for unseen classes."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION, max_iter=2000))
    model.fit(features[list(train)], truth[list(train)])
    probabilities = np.zeros((len(test), n_classes))
    probabilities[:, model.classes_] = model.predict_proba(features[list(test)])
    return probabilities


def asked(question: Question, examples: Sequence[Example]) -> tuple[list[int], Int[np.ndarray, " n"]]:
    """Rows of the scans that are asked a question, and the right answers."""
    truths = {i: truth for i, e in enumerate(examples) if (truth := question.truth(e)) is not None}
    return list(truths), np.array(list(truths.values()), dtype=int)


def cross_validated(
    features: Float32[np.ndarray, "n d"], truth: Int[np.ndarray, " n"], groups: Sequence[str], n_classes: int
) -> Float[np.ndarray, "n k"]:
    """Probabilities for every scan by a regression that saw no scan of its group."""
    probabilities = np.zeros((len(truth), n_classes))
    for train, test in GroupKFold(FOLDS).split(features, groups=groups):
        probabilities[test] = probe(features, truth, train.tolist(), test.tolist(), n_classes)
    return probabilities


def leave_one_source_out(
    question: Question, examples: Sequence[Example], features: Float32[np.ndarray, "n d"], leaks: Sequence[Leak]
) -> dict[str, Json]:
    """A question asked of each source's scans by a regression that never saw that source.

    A scan of the other sources is not trained on if it is of a group that the source has too, or a known look-alike.

    Args:
        question: Which.
        examples: Scans of all splits, one a row of `features`.
        features: Of the scans.
        leaks: Known look-alikes.

    Returns:
        By origin with `MIN_SCANS` scans or more: ``left_out`` and, on the same scans, ``in_distribution`` (`FOLDS`
        folds by group over all sources), and the difference of their accuracies. Where no other source has a class
        of this one, ``only_here`` names such classes instead.
    """
    rows, truth = asked(question, examples)
    scans, x = [examples[i] for i in rows], features[rows]
    groups, origins = [e.group for e in scans], [origin(e) for e in scans]
    usual = cross_validated(x, truth, groups, len(question.classes))
    result: dict[str, Json] = {}
    for name, n in sorted(Counter(origins).items()):
        if n < MIN_SCANS:
            continue
        test = [i for i, o in enumerate(origins) if o == name]
        train = _strangers(scans, test, leaks)
        only_here = sorted({int(t) for t in truth[test]} - {int(t) for t in truth[train]})
        if only_here:
            result[name] = {"n_scans": n, "only_here": [question.classes[c] for c in only_here]}
            continue
        probabilities = probe(x, truth, train, test, len(question.classes))
        of_groups = [groups[i] for i in test]
        result[name] = {
            "left_out": score(truth[test], probabilities, of_groups, question.classes),
            "in_distribution": score(truth[test], usual[test], of_groups, question.classes),
            **difference(truth[test], probabilities, usual[test], of_groups),
        }
    return result


def _strangers(scans: Sequence[Example], test: Sequence[int], leaks: Sequence[Leak]) -> list[int]:
    groups, names = {scans[i].group for i in test}, {scans[i].name for i in test}
    pairs = [(k.a.name, k.b.name) for k in leaks]
    alike = {b for a, b in pairs if a in names} | {a for a, b in pairs if b in names}
    return [i for i, e in enumerate(scans) if e.group not in groups and e.name not in names and e.name not in alike]
