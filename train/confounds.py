"""How much of recognition is telling sources apart: the confound tests that ``shared/data/SOURCES.md`` asks for.

Pneumonias are children of one hospital, COVID-19 mostly adults of others, so a model can be right about the diagnosis
for knowing the hospital. Four tests, on the splits and the scans of `docs/results.md`:

1. **source only**: the most frequent diagnosis of a scan's source, without looking at it, beside the shipped model;
2. **probes**: the source told from frozen features; the diagnosis told from the border of an X-ray, without the lungs;
3. **a source left out**: the diagnosis in a source that was not trained on, beside the same scans when it was;
4. **within**: the shipped model inside one source and among adults, where the source tells less.

``lungstreams evaluate --confounds`` writes ``docs/confounds.json``; `train.report_confounds` puts it into words.
"""

from __future__ import annotations

import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from serving.errors import DatasetError
from serving.labels import DIAGNOSIS_NAMES
from train.data import Example
from train.leaks import Leak
from train.probes import (
    BORDER_SHARE,
    CT,
    FOLDS,
    FOUR,
    MIN_SCANS,
    NOT_COVID,
    PAIR,
    QUESTIONS,
    REGULARISATION,
    Question,
    asked,
    auc,
    difference,
    features_of,
    leave_one_source_out,
    origin,
    probe,
    score,
    without_centre,
)
from train.scoring import clean

FILE_NAME: Final = "confounds.json"
ADULTS: Final = "adult"
"""How the population of adults begins in the manifest of the X-rays."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Evidence:
    """What the tests are made on.

    Attributes:
        examples: Scans of all splits, as `train.data.recognition` lists them.
        images: Of the same, `(n, 512, 512)`.
        test: Rows of the test scans that count, look-alikes left out.
        answers: The shipped model's probabilities of the rows of `test`.
        leaks: Look-alikes across splits.
        populations: Of the X-rays, by path.
    """

    examples: Sequence[Example]
    images: UInt8[np.ndarray, "n h w"]
    test: Sequence[int]
    answers: Float[np.ndarray, "t 4"]
    leaks: Sequence[Leak]
    populations: Mapping[str, str]

    @property
    def tested(self) -> list[Example]:
        """The test scans."""
        return [self.examples[i] for i in self.test]


def populations(root: Path) -> dict[str, str]:
    """Population of each X-ray by its path, as the manifest has it.

    Raises:
        DatasetError: If the folder has no such manifest.
    """
    manifest = root / "xray" / "manifest.csv"
    if not manifest.is_file():
        raise DatasetError(f"the confound tests are about our own scans: expected {manifest}, found none")
    with manifest.open(newline="", encoding="utf-8") as stream:
        return {f"xray/{row['file']}": row["population"] for row in csv.DictReader(stream)}


def measure(evidence: Evidence, root: Path, cache: Path) -> Json:
    """All four tests.

    Args:
        evidence: The scans and the shipped model's answers.
        root: Of the data.
        cache: Where the features are kept; without them there, two passes of Inception-v3 over the scans.

    Returns:
        Plain JSON; parts by the names of the tests, `QUESTIONS` or modality, and source.

    Raises:
        DatasetError: If the ImageNet weights are missing.
    """
    examples, images = evidence.examples, evidence.images
    xrays = [i for i, e in enumerate(examples) if e.modality == "xray"]
    whole = features_of("whole", examples, lambda i: np.asarray(images[i]), root, cache)
    border = np.zeros_like(whole)
    border[xrays] = features_of(
        "border", [examples[i] for i in xrays], lambda i: without_centre(images[xrays[i]]), root, cache
    )
    return dict(
        clean(
            {
                "settings": {"border_share": BORDER_SHARE, "regularisation": REGULARISATION, "folds": FOLDS},
                "source_only": {f"{q.modality}_{q.name}": source_only(q, evidence) for q in QUESTIONS},
                "source_probe": source_probes(evidence, whole),
                "border_probe": {q.name: border_probe(q, evidence, whole, border) for q in (FOUR, PAIR)},
                "leave_one_source_out": {
                    f"{q.modality}_{q.name}": leave_one_source_out(q, examples, whole, evidence.leaks)
                    for q in QUESTIONS
                },
                "within": within(evidence),
            }
        )
    )


def model_probabilities(question: Question, answers: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n k"]:
    """The shipped model's answers to a question: as `train.scoring.score_recognition` takes them."""
    covid = answers[:, DIAGNOSIS_NAMES.index("covid19")]
    if NOT_COVID in question.classes:
        return np.stack([covid, 1 - covid], axis=1)
    chosen = answers[:, [DIAGNOSIS_NAMES.index(name) for name in question.classes]]
    return np.asarray(chosen / np.maximum(chosen.sum(axis=1, keepdims=True), 1e-12))


def shares(
    keys: Sequence[str], truth: Int[np.ndarray, " n"], of: Sequence[str], n_classes: int
) -> Float[np.ndarray, "m k"]:
    """What a key alone says: the share of each class among the scans of that key.

    Args:
        keys: Of the training scans.
        truth: Their classes.
        of: Keys of the scans to answer for. One that was never seen gets the shares of all scans.
        n_classes: How many there are.
    """
    everything = np.bincount(truth, minlength=n_classes)
    counts: dict[str, Int[np.ndarray, " k"]] = defaultdict(lambda: np.zeros(n_classes, dtype=int))
    for key, label in zip(keys, truth, strict=True):
        counts[key][label] += 1
    table = np.array([counts[key] if key in counts else everything for key in of], dtype=float)
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def source_only(question: Question, evidence: Evidence) -> Json:
    """The most frequent diagnosis of a scan's source, and of its population, beside the shipped model's answer.

    Returns:
        ``model``, ``source`` and, for X-rays, ``population``: each a `train.probes.score`; ``gain`` of the model over
        the source, paired.
    """
    known = [e for e in evidence.examples if e.split == "train"]
    rows, seen = asked(question, known)
    tests, truth = asked(question, evidence.tested)
    training, tested = [known[i] for i in rows], [evidence.tested[i] for i in tests]
    groups = [e.group for e in tested]
    model = model_probabilities(question, evidence.answers[tests])
    keys: dict[str, Callable[[Example], str]] = {"source": lambda e: e.source}
    if question.modality == "xray":
        keys["population"] = lambda e: evidence.populations[e.path]
    result: Json = {"model": score(truth, model, groups, question.classes)}
    for name, key in keys.items():
        guess = shares([key(e) for e in training], seen, [key(e) for e in tested], len(question.classes))
        result[name] = score(truth, guess, groups, question.classes)
        if name == "source":
            result["gain"] = difference(truth, model, guess, groups)
    return result


def source_probes(evidence: Evidence, features: Float32[np.ndarray, "n d"]) -> Json:
    """How well the source can be told, among all scans and among those of one diagnosis that several sources have."""
    result: Json = {}
    for modality, diagnosis in (("xray", "normal"), ("ct", "covid19")):
        one = DIAGNOSIS_NAMES.index(diagnosis)
        every = [i for i, e in enumerate(evidence.examples) if e.modality == modality]
        of_one = [i for i in every if sum(evidence.examples[i].target) == evidence.examples[i].target[one] == 1]
        told = {
            name: _source_probe(evidence, features, rows)
            for name, rows in (("all", every), (f"{diagnosis}_alone", of_one))
        }
        result[modality] = {name: entry for name, entry in told.items() if entry is not None}
    return result


def _source_probe(evidence: Evidence, features: Float32[np.ndarray, "n d"], rows: Sequence[int]) -> Json | None:
    counts = Counter(origin(evidence.examples[i]) for i in rows)
    names = sorted(name for name, n in counts.items() if n >= MIN_SCANS)
    if len(names) < 2:
        return None
    rows = [i for i in rows if origin(evidence.examples[i]) in names]
    truth = np.full(len(evidence.examples), -1)
    truth[rows] = [names.index(origin(evidence.examples[i])) for i in rows]
    chosen = set(rows)
    train = [i for i in rows if evidence.examples[i].split != "test"]
    test = [i for i in evidence.test if i in chosen]
    probabilities = probe(features, truth, train, test, len(names))
    return score(truth[test], probabilities, [evidence.examples[i].group for i in test], names)


def border_probe(
    question: Question,
    evidence: Evidence,
    whole: Float32[np.ndarray, "n d"],
    border: Float32[np.ndarray, "n d"],
) -> Json:
    """The diagnosis told from the border of the X-ray alone, beside the same probe on whole X-rays."""
    truth = np.array([-1 if (t := question.truth(e)) is None else t for e in evidence.examples])
    train = [i for i, e in enumerate(evidence.examples) if truth[i] >= 0 and e.split != "test"]
    test = [i for i in evidence.test if truth[i] >= 0]
    groups = [evidence.examples[i].group for i in test]
    return {
        name: score(truth[test], probe(features, truth, train, test, len(question.classes)), groups, question.classes)
        for name, features in (("whole", whole), ("border", border))
    }


def within(evidence: Evidence) -> Json:
    """The shipped model where the source tells less: among adults, and inside each source that has both classes.

    Returns:
        By modality: ``all``, for X-rays ``adults``, ``by_source``, and ``auc_within_sources``: how likely a scan of
        COVID-19 gets a higher score than another scan *of the same source*, the mean of the sources' AUCs weighted by
        their numbers of such pairs.
    """
    result: Json = {}
    for question in (PAIR, CT):
        rows, truth = asked(question, evidence.tested)
        tested = [evidence.tested[i] for i in rows]
        model = model_probabilities(question, evidence.answers[rows])

        sources = {e.source: [i for i, o in enumerate(tested) if o.source == e.source] for e in tested}
        both = {name: keep for name, keep in sorted(sources.items()) if len(set(truth[keep].tolist())) == 2}
        pairs = {name: int((truth[keep] == 0).sum() * (truth[keep] == 1).sum()) for name, keep in both.items()}
        weighted = sum(pairs[name] * auc(truth[keep], model[keep, 0]) for name, keep in both.items())
        result[question.modality] = {
            "all": _part(question, tested, truth, model, range(len(tested))),
            "auc_within_sources": weighted / sum(pairs.values()) if pairs else math.nan,
            "by_source": {name: _part(question, tested, truth, model, keep) for name, keep in both.items()},
        }
        if question.modality == "xray":
            grown_up = [i for i, e in enumerate(tested) if evidence.populations[e.path].startswith(ADULTS)]
            result["xray"]["adults"] = _part(question, tested, truth, model, grown_up)
    return result


def _part(
    question: Question,
    tested: Sequence[Example],
    truth: Int[np.ndarray, " n"],
    model: Float[np.ndarray, "n k"],
    rows: Sequence[int],
) -> Json:
    keep = list(rows)
    return score(truth[keep], model[keep], [tested[i].group for i in keep], question.classes)
