"""A network that may become a version: everything that can be known of it before a server sees it.

It is judged by its bytes, which are read once: what was checked is what gets published. In this order: ONNX Runtime
loads it; its inputs and outputs are the step's; its provenance is the step's; on drawn scans it answers with numbers
that are finite and in their range, its gates close; and it agrees

- with what comes with it, ``reference.npz``: what the same network answered where it was exported and held against
  Keras. A damaged file, a file of another network and a processor that computes something else are found;
- or, without one, with the version that is served: a network that was only written anew.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from jaxtyping import Bool, Num, UInt8

from serving.agreement import Bounds, check_agreement
from serving.arithmetic import exact
from serving.errors import ExportError, ParityError
from serving.pipeline import IMAGE, MASK, RECOGNITION, Step
from serving.repository import ONNX_NAME, PROVENANCE_NAME, REFERENCE_NAME
from serving.repository_checks import graph_problems, label_order, provenance_problems
from serving.trial_scans import drawn_scans, gate_inputs

_THREADS: Final = 2
_BATCH: Final = 2
_SUM_ROUNDING: Final = 1e-3
_ANSWERS: Final = "answers"

Answers = dict[str, np.ndarray]


@dataclass(frozen=True)
class Candidate:
    """What is to be published.

    Attributes:
        step: Whose network it is.
        network: The ONNX file.
        provenance: The JSON beside it, if there is one.
        reference: The ``reference.npz`` beside it, if there is one.
    """

    step: Step
    network: bytes
    provenance: bytes | None = None
    reference: bytes | None = None

    def files(self) -> dict[str, bytes]:
        """What its version folder holds, by name."""
        named = {ONNX_NAME: self.network, PROVENANCE_NAME: self.provenance, REFERENCE_NAME: self.reference}
        return {name: content for name, content in named.items() if content is not None}


def read_candidate(step: Step, source: Path) -> Candidate:
    """Read a candidate, once and for all.

    Args:
        step: Whose network it is.
        source: An ONNX file, by itself; or a folder as `train.export` writes it, whose other files count as well.

    Raises:
        ExportError: If there is no ONNX file, or one that can not be read.
    """
    if step.backend != "onnxruntime":
        raise ExportError(f"expected a model that ONNX Runtime serves, got {step.model!r} of backend {step.backend!r}")
    file = source / ONNX_NAME if source.is_dir() else source
    try:
        candidate = Candidate(step, file.read_bytes())
        if not source.is_dir():
            return candidate
        beside = {name: source / name for name in (PROVENANCE_NAME, REFERENCE_NAME)}
        there = {name: path.read_bytes() for name, path in beside.items() if path.is_file()}
    except OSError as error:
        raise ExportError(f"expected an ONNX file at {file}, got: {error.strerror or error}") from error
    return replace(candidate, provenance=there.get(PROVENANCE_NAME), reference=there.get(REFERENCE_NAME))


def examine(candidate: Candidate, served: Path | None, *, allow_change: bool = False) -> Candidate:
    """Check a candidate; nothing is written.

    Args:
        candidate: What is to be published.
        served: The folder of the version that is served, None if there is none.
        allow_change: Whether one without a reference may answer otherwise than what is served. It needs a provenance
            then: nothing else says what its numbers mean.

    Returns:
        The candidate; one without provenance has a short one then, that says what it was held against.

    Raises:
        ExportError: If it can not be a version of its step.
        ParityError: If it answers otherwise than it should.
    """
    step = candidate.step
    where = f"the new {step.model}"
    _refuse_first(graph_problems(where, candidate.network, step))
    if candidate.provenance is not None:
        _refuse_first(provenance_problems(where, candidate.provenance, step))
    images = drawn_scans(step)
    answers = answers_of(candidate.network, step, images, where)
    if candidate.reference is not None:
        _hold_against_reference(candidate.reference, answers, step, where)
    elif served is not None and not allow_change:
        _hold_against_served(served, answers, images, step, where)
    elif candidate.provenance is None:
        raise ExportError(
            f"{where}: expected a folder with {ONNX_NAME} and {PROVENANCE_NAME}, got a file alone: "
            "nothing says what its numbers mean"
        )
    if candidate.provenance is not None:
        return candidate
    described = {
        "model": step.model,
        "label_order": label_order(step),
        "held_against": f"version {served.name if served else ''}, on {len(images)} drawn scans",
    }
    return replace(candidate, provenance=json.dumps(described, indent=2).encode() + b"\n")


def reference_of(network: bytes, step: Step) -> bytes:
    """The ``reference.npz`` of a network that is known to be good.

    Raises:
        ExportError: If it is none of its step's.
    """
    answers = answers_of(network, step, drawn_scans(step), step.model)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{_ANSWERS: answers[step.outputs[0].name]})
    return buffer.getvalue()


def answers_of(network: bytes, step: Step, images: UInt8[np.ndarray, "n 512 512 3"], where: str) -> Answers:
    """What a network answers with open gates; held against what its step's answers can be.

    Args:
        network: The ONNX file.
        step: Whose network it is.
        images: Preprocessed scans.
        where: Begins the error.

    Returns:
        By the name of the output; NaN, numbers out of their range and gates that do not close are refused.

    Raises:
        ExportError: If it can not be run, or its answers can not be.
    """
    try:
        options = exact(ort.SessionOptions())
        options.intra_op_num_threads = _THREADS
        options.log_severity_level = 4
        session = ort.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        opened = _run(session, step, images, np.ones(len(images), bool))
        closed = _run(session, step, images[:1], np.zeros(1, bool))
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own.
        first_line = str(error).splitlines()[0]
        raise ExportError(f"{where}: expected a graph that ONNX Runtime runs, got: {first_line}") from error
    for tensor in step.outputs:
        if opened[tensor.name].shape != (len(images), *tensor.shape):
            raise ExportError(
                f"{where}: expected {tensor.name} of the shape {[len(images), *tensor.shape]}, "
                f"got {list(opened[tensor.name].shape)}"
            )
        if not np.isfinite(opened[tensor.name]).all():
            raise ExportError(f"{where}: expected finite numbers in {tensor.name}, got NaN or infinity")
    _check_range(opened, step, where)
    first = step.outputs[0].name
    value = step.gate.closed_value if step.gate else 0
    if not np.array_equal(closed[first], np.full_like(closed[first], value), equal_nan=closed[first].dtype.kind == "f"):
        raise ExportError(f"{where}: expected {first} to read {value} behind a closed gate, got something else")
    return opened


def _run(session: ort.InferenceSession, step: Step, images: np.ndarray, opened: Bool[np.ndarray, " n"]) -> Answers:
    names = [tensor.name for tensor in step.outputs]
    parts = []
    # Two by two: the batch axis is tried, and a wide network is not given more than it needs.
    for start in range(0, len(images), _BATCH):
        part = slice(start, start + _BATCH)
        parts.append(session.run(names, {IMAGE.name: images[part], **gate_inputs(step, opened[part])}))
    return {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}


def _check_range(answers: Mapping[str, Num[np.ndarray, "n ..."]], step: Step, where: str) -> None:
    name = step.outputs[0].name
    values = answers[name]
    if step.outputs[0] == MASK:
        classes = len(label_order(step))
        if values.max() >= classes:
            raise ExportError(f"{where}: expected class ids in 0..{classes - 1}, got {values.max()}")
        return
    if not ((values >= 0) & (values <= 1)).all():
        raise ExportError(f"{where}: expected probabilities in [0, 1], got {values.min():g} to {values.max():g}")
    if step == RECOGNITION and not np.allclose(values.sum(axis=-1), 1, atol=_SUM_ROUNDING):
        raise ExportError(f"{where}: expected diagnoses that sum to 1, got {values.sum(axis=-1)[0]:g}")
    if step.scores_copy is not None and not np.array_equal(answers[step.scores_copy.name], values):
        raise ExportError(f"{where}: expected {step.scores_copy.name} to repeat {name}, got other numbers")


def _hold_against_reference(reference: bytes, answers: Answers, step: Step, where: str) -> None:
    try:
        expected = np.load(io.BytesIO(reference), allow_pickle=False)[_ANSWERS]
    # What numpy raises over a file that is no archive of arrays, or another's.
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, zipfile.BadZipFile) as error:
        raise ExportError(f"{where}: expected answers in {REFERENCE_NAME}, got: {error}") from error
    _hold(expected, answers, step, f"{where} against its own {REFERENCE_NAME}")


def _hold_against_served(served: Path, answers: Answers, images: np.ndarray, step: Step, where: str) -> None:
    what = f"version {served.name}, which is served"
    try:
        network = (served / ONNX_NAME).read_bytes()
    except OSError as error:
        raise ExportError(f"expected the network of {what}, got: {error.strerror or error}") from error
    try:
        _hold(answers_of(network, step, images, what)[step.outputs[0].name], answers, step, f"{where} against {what}")
    except ParityError as error:
        raise ParityError(f"{error}; a network that is meant to answer otherwise needs --allow-change") from None


def _hold(expected: np.ndarray, answers: Answers, step: Step, what: str) -> None:
    got = answers[step.outputs[0].name]
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise ParityError(f"{what}: expected {got.dtype} {got.shape}, got {expected.dtype} {expected.shape}")
    check_agreement(expected, got, step, Bounds(), what)


def _refuse_first(problems: Iterable[str]) -> None:
    for problem in problems:
        raise ExportError(problem)
