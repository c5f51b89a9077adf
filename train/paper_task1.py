"""Task 1 as the paper did it: ImageNet's Inception-v3 frozen, its last layer retrained (Tables 2 to 4).

Frozen features are computed once and kept on disk. The last layer is then a softmax regression: gradient descent at
0.01, batches of 100, 2,800 steps. Two protocols are scored side by side:

- **paper**: every scan and its augmented copies in one bag, of which a random 955 / (9,618 + 955) are the test set and
  as many the validation set, whose size the paper does not give. A patient, and even one scan's copies, are on both
  sides.
- **patients**: `train.data`'s splits by patient or group; the copies augment the training scans alone.

Nothing is chosen on the validation set: Table 2 reports it, so it is kept apart.

The features are those of `train.frozen`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float, Float32, Int

from serving.labels import DIAGNOSIS_NAMES, Modality
from train import data, frozen, paper
from train.data import Example, Split
from train.metrics import BinaryCounts, balanced_accuracy, confusion_matrix
from train.paper import TABLE_3
from train.scoring import clean, grouped_interval

Protocol = Literal["paper", "patients"]

NAME: Final = "paper_task1"
REPORT_FILE: Final = Path("docs/paper_task1.json")
_LEAST: Final = 1e-12
"""Of a probability in a cross-entropy: the logarithm of 0 has no mean."""


@dataclass(frozen=True)
class Recipe:
    """One of the paper's runs of Task 1.

    Attributes:
        name: How it is called.
        classes: Diagnoses told apart, of `DIAGNOSIS_NAMES`.
        modalities: Whose scans. With two, each gives as many: the larger is under-sampled at random.
        runs: Random draws (of the under-sampling and of the order of the batches) whose mean is reported.
        copies: Augmented copies of a scan beside itself; the paper makes 34.
        steps: Of gradient descent.
        batch_size: Scans a step.
        learning_rate: Constant.
        paper: The paper's figures of the same run (Table 3), in `[0, 1]`.
    """

    name: str
    classes: tuple[str, ...]
    modalities: tuple[Modality, ...]
    paper: dict[str, float]
    runs: int = 5
    copies: int = 2
    steps: int = 2800
    batch_size: int = 100
    learning_rate: float = 0.01


_TWO: Final = ("covid19", "normal")
RECIPES: Final = (
    Recipe("task1_4_xray", DIAGNOSIS_NAMES, ("xray",), dict(TABLE_3["task1_4_xray"])),
    Recipe("task1_2_xray", _TWO, ("xray",), dict(TABLE_3["task1_2_xray"])),
    Recipe("task1_2_both", _TWO, ("xray", "ct"), dict(TABLE_3["task1_2_both"])),
)


def retrain_last_layer(
    features: Float32[np.ndarray, "n d"], truth: Int[np.ndarray, " n"], n_classes: int, recipe: Recipe, seed: int
) -> tuple[Float[np.ndarray, "d classes"], Float[np.ndarray, " classes"]]:
    """Softmax regression by plain gradient descent on the cross-entropy.

    Args:
        features: Of the training scans and copies.
        truth: Class of each.
        n_classes: Of the layer.
        recipe: Steps, batch and learning rate.
        seed: Of the batches.

    Returns:
        Kernel and bias. The kernel starts at normal noise of 0.001, as TensorFlow's ``retrain.py`` has it.
    """
    rng = np.random.default_rng(seed)
    kernel, bias = rng.normal(0, 1e-3, (features.shape[1], n_classes)), np.zeros(n_classes)
    for _ in range(recipe.steps):
        rows = rng.integers(len(features), size=recipe.batch_size)
        x = features[rows]
        error = _softmax(x @ kernel + bias)
        error[np.arange(len(rows)), truth[rows]] -= 1
        kernel -= recipe.learning_rate * x.T @ error / len(rows)
        bias -= recipe.learning_rate * error.mean(axis=0)
    return kernel, bias


def _softmax(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def balanced_rows(
    examples: Sequence[Example], modalities: Sequence[Modality], rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Rows of the modalities, each with as many scans as the rarest: the others are drawn at random."""
    rows = [np.array([i for i, e in enumerate(examples) if e.modality == m], dtype=int) for m in modalities]
    smallest = min(map(len, rows))
    return np.sort(np.concatenate([rng.choice(r, smallest, replace=False) for r in rows]))


def split(
    examples: Sequence[Example], views: int, protocol: Protocol, rng: np.random.Generator
) -> dict[Split, Int[np.ndarray, "n 2"]]:
    """Pairs of scan and view for training, validation and testing.

    Args:
        examples: The scans.
        views: Of each, 0 being the scan itself.
        protocol: See the module's head.
        rng: Draws the paper's validation and test sets.
    """
    if protocol == "paper":
        pairs = np.stack(np.meshgrid(np.arange(len(examples)), np.arange(views), indexing="ij"), -1).reshape(-1, 2)
        order = rng.permutation(len(pairs))
        n = round(paper.TEST_SHARE * len(pairs))
        return {"train": pairs[order[2 * n :]], "val": pairs[order[n : 2 * n]], "test": pairs[order[:n]]}
    parts: dict[Split, Int[np.ndarray, "n 2"]] = {}
    for name in ("train", "val", "test"):
        used = range(views if name == "train" else 1)
        rows = [(i, k) for i, e in enumerate(examples) if e.split == name for k in used]
        parts[name] = np.array(rows, dtype=int).reshape(-1, 2)
    return parts


def _diagnosis(example: Example) -> str:
    return DIAGNOSIS_NAMES[int(np.argmax(example.target))]


def run(recipe: Recipe, examples: Sequence[Example], features: Float32[np.ndarray, "n views d"]) -> dict[str, Any]:
    """Train and score a recipe under both protocols.

    Args:
        recipe: Which.
        examples: Scans with one diagnosis of `recipe.classes` each.
        features: Of all of them, from `bottleneck`.

    Returns:
        By protocol: the mean over the runs of accuracy, sensitivity, specificity, precision, F1, MCC and FPR (for more
        than two classes the unweighted mean over the classes), and of accuracy and cross-entropy on the training and
        the validation set (None where that is empty); the same of each run; the interval by group of the first run;
        the confusion matrix summed over the runs.
    """
    truth = np.array([recipe.classes.index(_diagnosis(e)) for e in examples])
    result: dict[str, Any] = {"paper_reports": recipe.paper, "copies": features.shape[1] - 1}
    for protocol in ("paper", "patients"):
        runs = [_one_run(recipe, examples, features, truth, protocol, seed) for seed in range(recipe.runs)]
        first = runs[0]
        right = first.predicted == truth[first.tested]
        confusion = np.sum([confusion_matrix(truth[r.tested], r.predicted, len(recipe.classes)) for r in runs], axis=0)
        result[protocol] = {
            **first.sizes,
            **{name: float(np.mean([r.scores[name] for r in runs])) for name in first.scores},
            "accuracy_of_runs": [r.scores["accuracy"] for r in runs],
            "runs": [r.scores for r in runs],
            "accuracy_95_of_first_run": grouped_interval(
                [examples[i].group for i in first.tested],
                lambda i, r=right: float(r[i].mean()),  # type: ignore[misc]
            ),
            "balanced_accuracy": balanced_accuracy(confusion),
            "confusion_true_by_predicted": confusion,
        }
    return dict(clean(result))


@dataclass(frozen=True)
class _Run:
    """What one draw gave: metrics by name, how many pairs each set has, and the test set's scans and answers."""

    scores: dict[str, float]
    sizes: dict[str, int]
    tested: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]


def _one_run(
    recipe: Recipe,
    examples: Sequence[Example],
    features: Float32[np.ndarray, "n views d"],
    truth: Int[np.ndarray, " n"],
    protocol: Protocol,
    seed: int,
) -> _Run:
    rng = np.random.default_rng(seed)
    rows = balanced_rows(examples, recipe.modalities, rng)
    parts = split([examples[i] for i in rows], features.shape[1], protocol, rng)
    scans = {name: rows[pairs[:, 0]] for name, pairs in parts.items()}
    inputs = {name: features[scans[name], pairs[:, 1]] for name, pairs in parts.items()}
    kernel, bias = retrain_last_layer(inputs["train"], truth[scans["train"]], len(recipe.classes), recipe, seed)
    predicted = (inputs["test"] @ kernel + bias).argmax(axis=1)
    scores = {
        "accuracy": float((predicted == truth[scans["test"]]).mean()),
        **_class_means(truth[scans["test"]], predicted, recipe),
    }
    titles: dict[Split, str] = {"train": "train", "val": "validation"}
    for name, title in titles.items():
        right, loss = _fit_of(inputs[name] @ kernel + bias, truth[scans[name]])
        scores |= {f"{title}_accuracy": right, f"{title}_cross_entropy": loss}
    sizes = {"n_train": len(parts["train"]), "n_validation": len(parts["val"]), "n_test": len(parts["test"])}
    return _Run(scores, sizes, scans["test"], predicted)


def _fit_of(logits: Float[np.ndarray, "n k"], truth: Int[np.ndarray, " n"]) -> tuple[float, float]:
    """Accuracy and cross-entropy in nats; NaN of nothing."""
    if not len(truth):
        return math.nan, math.nan
    likelihood = _softmax(logits)[np.arange(len(truth)), truth]
    return float((logits.argmax(axis=1) == truth).mean()), float(-np.log(np.maximum(likelihood, _LEAST)).mean())


def _class_means(truth: Int[np.ndarray, " n"], predicted: Int[np.ndarray, " n"], recipe: Recipe) -> dict[str, float]:
    # Of two classes the first, COVID-19, is the positive one.
    positives = range(len(recipe.classes)) if len(recipe.classes) > 2 else (0,)
    counts = [BinaryCounts.of(truth == c, predicted == c) for c in positives]
    names = ("sensitivity", "specificity", "precision", "f1", "mcc", "false_positive_rate")
    return {name: float(np.mean([getattr(c, name) for c in counts])) for name in names}


def main(data_folder: Path | None, out: Path, report: Path = REPORT_FILE) -> dict[str, Any]:
    """Run every recipe.

    Args:
        data_folder: Root of the scans; None for the default.
        out: Where runs live; features are kept in `out/cache`.
        report: Where the figures go, as JSON; ``lungstreams evaluate`` makes a table of them.

    Returns:
        Figures by recipe, as `run` gives them.

    Raises:
        DatasetError: If the scans or the ImageNet weights are missing.
    """
    root = data.data_root(data_folder)
    examples = [e for e in data.recognition(root) if sum(e.target) == 1]
    n = max(recipe.copies for recipe in RECIPES)
    features = frozen.kept(
        "bottleneck",
        examples,
        root,
        out / "cache",
        lambda: data.load_all(examples, root, out / "cache", masks=False)[0],
        n,
    )
    results = {}
    for recipe in RECIPES:
        rows = [
            i for i, e in enumerate(examples) if e.modality in recipe.modalities and _diagnosis(e) in recipe.classes
        ]
        results[recipe.name] = run(recipe, [examples[i] for i in rows], features[rows, : 1 + recipe.copies])
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return results
