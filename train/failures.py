"""The worst cases of each stage, in words: no picture of a scan may leave the place where the scans are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from serving.labels import DIAGNOSES, DIAGNOSIS_NAMES, MANIFESTATION_NAMES, MANIFESTATIONS
from train.batches import Arrays
from train.data import UNKNOWN, Example
from train.markdown import table
from train.metrics import BinaryCounts
from train.scoring import DECISION_THRESHOLD, clean, mask_pairs
from train.targets import class_names

Json = Any
WORST_CASES: Final = "worst_cases"
"""Of the results: rows of this module by model, beside the figures."""
CASES: Final = 5
"""Of each stage's model."""
_TITLES: Final = {label.name: label.title for label in (*DIAGNOSES, *MANIFESTATIONS)}


def worst_diagnoses(examples: Sequence[Example], answers: Float[np.ndarray, "n 4"], n: int = CASES) -> list[Json]:
    """Wrong answers, the surest first.

    Args:
        examples: With admissible diagnoses as targets.
        answers: Probabilities.
        n: How many at most.
    """
    found = []
    for example, answer in zip(examples, answers, strict=True):
        said = int(answer.argmax())
        if not example.target[said]:
            truth = [_TITLES[name] for name, weight in zip(DIAGNOSIS_NAMES, example.target, strict=True) if weight]
            found.append(_case(example, " or ".join(truth), _TITLES[DIAGNOSIS_NAMES[said]], float(answer[said])))
    return _worst(found, n, reverse=True)


def worst_manifestations(examples: Sequence[Example], answers: Float[np.ndarray, "n 3"], n: int = CASES) -> list[Json]:
    """Labels on the wrong side of the threshold, the surest first; the score is the probability of what was said."""
    found = []
    for example, answer in zip(examples, answers, strict=True):
        for name, present, p in zip(MANIFESTATION_NAMES, example.target, answer, strict=True):
            said = bool(p >= DECISION_THRESHOLD)
            if present != UNKNOWN and said != bool(present):
                title = _TITLES[name]
                truth, answered = ((title if here else f"no {title.lower()}") for here in (present, said))
                found.append(_case(example, truth, answered, float(p if said else 1 - p)))
    return _worst(found, n, reverse=True)


def worst_masks(arrays: Arrays, masks: np.ndarray, stream: str, n: int = CASES) -> list[Json]:
    """Slices with the lowest Dice of a class that is annotated in them; the score is that Dice."""
    found = []
    for class_id, name in enumerate(class_names(stream)[1:], start=1):
        for i, (truth, answered) in mask_pairs(arrays, masks == class_id, stream, class_id).items():
            if truth.any():
                counts = BinaryCounts.of(truth, answered)
                share, said = (f"{100 * mask.mean():.2f} % of the slice" for mask in (truth, answered))
                found.append(_case(arrays.examples[i], f"{_TITLES[name]}, {share}", said, counts.dice))
    return _worst(found, n, reverse=False)


def _case(example: Example, truth: str, answer: str, score: float) -> dict[str, Json]:
    return {
        "scan": example.name,
        "source": example.source,
        "modality": example.modality,
        "truth": truth,
        "answer": answer,
        "score": score,
    }


def _worst(found: list[dict[str, Json]], n: int, *, reverse: bool) -> list[Json]:
    # Of equals the first by name, so that a report is the same twice.
    found.sort(key=lambda case: (-case["score"] if reverse else case["score"], case["scan"], case["truth"]))
    return list(clean(found[:n]))


def failures_markdown(cases: Mapping[str, Sequence[Mapping[str, Json]]]) -> str:
    """The section of ``docs/results.md``.

    Args:
        cases: Rows by model.
    """
    parts = [
        f"## Failures\n\nThe {CASES} worst test cases of each model, by description: wrong answers of stages 1 and 2,"
        " the surest first (*score*: the probability of what was said), and slices of stage 3 with the lowest Dice of a"
        " class that is annotated in them (*score*: that Dice). `lungstreams evaluate` draws some of the slices, into a"
        " folder that is not committed.\n"
    ]
    for model, rows in cases.items():
        cells = [
            [row["scan"], row["source"], row["modality"], row["truth"], row["answer"], f"{row['score']:.3f}"]
            for row in rows
        ]
        parts.append(f"### {model}\n")
        parts.append(table(["scan", "source", "modality", "truth", "answer", "score"], cells) if cells else "None.\n")
    return "\n".join(parts)
