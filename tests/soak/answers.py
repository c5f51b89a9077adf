"""Cases whose right answers are known beforehand, so that one which belongs to another case is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtest.cases import ALL_OPEN, draw
from serving import pipeline, wire
from serving.client import PipelineClient
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES, Modality
from serving.pipeline import THRESHOLDS
from serving.results import CaseReport

TOLERANCE = 1e-3
"""What an answer may differ by from the one beforehand. Neighbours in a batch have not changed a bit of it so far."""

LEAST_DISTANCE = 5 * TOLERANCE
"""What the answers to two cases differ by at least, or they would not be told apart."""

CELLS = 8
"""Masks are compared by the share that is marked in each of so many times so many fields."""


@dataclass(frozen=True)
class Kind:
    """A kind of request.

    Attributes:
        name: What it is called in the table.
        modality: Of its scans.
        thresholds: What it asks.
        weight: Its share.
    """

    name: str
    modality: Modality
    thresholds: Mapping[str, float]
    weight: int


KINDS = (
    Kind("X-ray", "xray", THRESHOLDS, 5),
    # Of the streams, those of ground-glass and of all run.
    Kind("CT, two gates closed", "ct", {**THRESHOLDS, "consolidation": 1.0, "pleural_effusion": 1.0}, 3),
    Kind("CT, every gate open", "ct", ALL_OPEN, 1),
)


@dataclass(frozen=True)
class Case:
    """A scan, what is asked of it, and the answer.

    Attributes:
        kind: What is asked.
        scan: The file.
        answer: As `of_report` has it.
    """

    kind: Kind
    scan: bytes
    answer: np.ndarray[Any, Any]

    def is_answered_by(self, answer: np.ndarray[Any, Any]) -> bool:
        """Whether an answer is the one to this case."""
        return distance(self.answer, answer) <= TOLERANCE

    def request(self) -> dict[str, Any]:
        """The same question for tritonclient, whose answer `of_tensors` takes."""
        return wire.request(self.scan, self.kind.modality, self.kind.thresholds, explain=True)


def distance(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """How far two answers are apart, in the number that differs most; NaN is infinitely far from anything."""
    return float(np.nan_to_num(np.abs(one - other), nan=np.inf).max())


def of_report(report: CaseReport) -> np.ndarray[Any, Any]:
    """The content of a report as numbers: diagnosis and what speaks for it, manifestations, and where the masks are.

    What did not run counts as zeros, as the ensemble has it.
    """
    assert report.activation is not None
    activation = [report.activation.cells(name) for name in report.diagnosis]
    scores = [report.manifestations[name] or 0.0 for name in MANIFESTATION_NAMES]
    masks = [report.masks.get(name) for name in STREAM_NAMES]
    return _numbers([*report.diagnosis.values()], np.array(activation), scores, masks)


def of_tensors(answer: Any) -> np.ndarray[Any, Any]:
    """The same of what Triton answers itself to a scan in the size of the model."""

    def tensor(name: str) -> Any:
        values = answer.as_numpy(name)
        return None if values is None else values[0]

    scores = tensor(pipeline.FINDINGS.name)
    return _numbers(
        tensor(pipeline.DIAGNOSIS.name),
        tensor(pipeline.ACTIVATION.name),
        np.zeros(len(MANIFESTATION_NAMES)) if scores is None else scores,
        [tensor(pipeline.mask_output(name)) for name in STREAM_NAMES],
    )


def prepare(client: PipelineClient, scans: int) -> tuple[Case, ...]:
    """Ask a server that is left in peace for the answers, one after the other.

    Args:
        client: Of the server.
        scans: How many of each modality.

    Raises:
        ValueError: If two scans can not be told apart by their answers.
    """
    cases = []
    for kind in KINDS:
        for seed in range(scans):
            scan = draw(kind.modality, seed)
            report = client.submit(scan, kind.modality, kind.thresholds, explain=True, measure=False).result()
            cases.append(Case(kind, scan, of_report(report)))
    _check_distances(cases)
    return tuple(cases)


def _check_distances(cases: Sequence[Case]) -> None:
    for number, one in enumerate(cases):
        for other in cases[:number]:
            # The same scan with other gates may have the same answer.
            if one.scan != other.scan and distance(one.answer, other.answer) < LEAST_DISTANCE:
                apart = distance(one.answer, other.answer)
                raise ValueError(f"expected answers that are {LEAST_DISTANCE:g} apart, got {apart:g} ({one.kind.name})")


def _numbers(
    diagnosis: Sequence[float], activation: np.ndarray[Any, Any], scores: Sequence[float], masks: Sequence[Any]
) -> np.ndarray[Any, Any]:
    fields = [np.zeros((CELLS, CELLS)) if mask is None else _fields(mask) for mask in masks]
    return np.concatenate([np.ravel(part) for part in (diagnosis, activation, scores, *fields)])


def _fields(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    height, width = mask.shape
    shares: np.ndarray[Any, Any] = (mask > 0).reshape(CELLS, height // CELLS, CELLS, width // CELLS).mean(axis=(1, 3))
    return shares
