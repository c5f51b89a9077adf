"""Whether two forms of one model say the same: Keras and ONNX, fp32 and int8, bare and gated.

Every function measures on images that the caller chose, raises `ParityError` over a limit, and returns what it
measured, for the provenance of the published version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from jaxtyping import Bool, Num, UInt8

from serving import pipeline
from serving.agreement import Bounds, check_agreement, hold
from serving.arithmetic import exact
from serving.errors import ExportError, ParityError
from serving.pipeline import IMAGE, MASK, RECOGNITION, Step, Tensor
from serving.trial_scans import gate_inputs
from train.provenance import label_order

if TYPE_CHECKING:
    import keras

_THREADS: Final = 2
_SUM_ROUNDING: Final = 1e-3
_ORT_DTYPES: Final = {"tensor(uint8)": "UINT8", "tensor(float)": "FP32"}
_CHECKED_ITEMS: Final = 3
_BATCH_ROUNDING: Final = 1e-6
"""Of the largest value, at least 1: a matrix product of three rows may round differently from the same of one row."""
_BATCH_PIXELS: Final = 1e-5
"""Share of a mask's pixels that such rounding may move over an edge."""


@dataclass(frozen=True)
class Tolerances:
    """How far two forms of a model may be apart on the golden images.

    Attributes:
        fp32_probability: Keras against ONNX, largest difference of a probability.
        fp32_mask: Keras against ONNX, share of pixels of another class.
        int8: fp32 against int8.
    """

    fp32_probability: float = 1e-4
    fp32_mask: float = 1e-4
    int8: Bounds = field(default_factory=Bounds)


def class_count(step: Step) -> int:
    """How many values a step's Keras model gives, for a scan or for each pixel."""
    return len(label_order(step.model))


def keras_answers(model: keras.Model, step: Step, images: UInt8[np.ndarray, "n h w 3"]) -> Num[np.ndarray, "n ..."]:
    """What the Keras model says, in the step's own terms: probabilities, or class ids as uint8.

    Raises:
        ExportError: If it says anything that is not finite.
    """
    answers = []
    for image in images:
        output = np.asarray(model(image[None], training=False))
        if not np.isfinite(output).all():
            raise ExportError(f"expected finite outputs of {step.model}, got NaN or infinity")
        answers.append(output.argmax(axis=-1).astype(np.uint8) if step.outputs[0] == MASK else output)
    return np.concatenate(answers)


def check_signature(session: ort.InferenceSession, step: Step) -> None:
    """Hold the names, types and dims of a graph against its step.

    Raises:
        ExportError: If any differs.
    """
    for what, values, tensors in (
        ("inputs", session.get_inputs(), step.inputs),
        ("outputs", session.get_outputs(), step.outputs),
    ):
        got = []
        for value in values:
            batch, *dims = value.shape or [1]
            if isinstance(batch, int):
                raise ExportError(f"expected the batch axis of {value.name!r} to be dynamic, got {batch}")
            got.append(Tensor(value.name, _ORT_DTYPES.get(value.type, value.type), tuple(dims)))
        if tuple(got) != tensors:
            raise ExportError(f"expected the {what} of {step.model} to be {tensors}, got {tuple(got)}")


def open_session(network: onnx.ModelProto | Path) -> ort.InferenceSession:
    """A session on the CPU, on two threads: checks run beside a training."""
    options = exact(ort.SessionOptions())
    options.intra_op_num_threads = _THREADS
    options.inter_op_num_threads = 1
    source = str(network) if isinstance(network, Path) else network.SerializeToString()
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def onnx_answers(session: ort.InferenceSession, images: UInt8[np.ndarray, "n h w 3"]) -> Num[np.ndarray, "n ..."]:
    """What the first output of a bare network says of each image."""
    # One at a time: the activations of a batch of a full-width DeepLab would not fit beside the model.
    return np.concatenate([session.run(None, {IMAGE.name: image[None]})[0] for image in images])


def check_fp32(
    expected: Num[np.ndarray, "n ..."], got: Num[np.ndarray, "n ..."], step: Step, tolerances: Tolerances
) -> dict[str, float]:
    """Hold the fp32 network against Keras; what was measured.

    Raises:
        ParityError: If it is off by more than the tolerances.
        ExportError: If Keras itself does not give probabilities where the step wants them.
    """
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise ParityError(f"expected {expected.dtype} {expected.shape} from ONNX, got {got.dtype} {got.shape}")
    if step.outputs[0] == MASK:
        measured = {"pixel_disagreement": float((expected != got).mean())}
        hold(measured, {"pixel_disagreement": tolerances.fp32_mask}, "ONNX against Keras")
        return measured
    _check_probabilities(expected, step)
    measured = {"max_abs_difference": float(np.abs(expected - got).max())}
    hold(measured, {"max_abs_difference": tolerances.fp32_probability}, "ONNX against Keras")
    return measured


def _check_probabilities(values: Num[np.ndarray, "n k"], step: Step) -> None:
    """Logits look like scores, and no later check could tell."""
    if not np.all((values >= 0) & (values <= 1)):
        raise ExportError(f"expected probabilities in [0, 1] from {step.model}, got {values.min()} to {values.max()}")
    if step == RECOGNITION and not np.allclose(values.sum(axis=-1), 1, atol=_SUM_ROUNDING):
        raise ExportError(f"expected the diagnoses to sum to 1, got {values.sum(axis=-1)}")


def check_int8(
    expected: Num[np.ndarray, "n ..."],
    got: Num[np.ndarray, "n ..."],
    step: Step,
    tolerances: Tolerances,
    what: str = "int8 against fp32",
) -> dict[str, Any]:
    """Hold the int8 network against the fp32 one, or two networks that are as near; what was measured.

    Raises:
        ParityError: If it is off by more than the tolerances.
    """
    return check_agreement(expected, got, step, tolerances.int8, what)


def check_gate(
    gated: ort.InferenceSession, network: ort.InferenceSession, step: Step, images: UInt8[np.ndarray, "n h w 3"]
) -> None:
    """Hold a gated graph against its bare network: open, closed and mixed batches.

    Args:
        gated: What `add_gate` made of the network.
        network: The network by itself.
        step: The step that it was made for.
        images: At least one; the first three are used.

    Raises:
        ParityError: If open gates change a bit, a closed one returns anything but its value, or one item's gate
            changes the answer of another.
    """
    batch = np.resize(images, (_CHECKED_ITEMS, *images.shape[1:]))
    bare = network.run(None, {pipeline.IMAGE.name: batch})
    for opened in ([True, True, True], [False, False, False], [True, False, True], [False, True, False]):
        mask = np.array(opened)
        answer = dict(
            zip(
                (output.name for output in gated.get_outputs()),
                gated.run(None, {pipeline.IMAGE.name: batch, **gate_inputs(step, mask)}),
                strict=True,
            )
        )
        _check_answer(answer, bare, mask, step)


def _check_answer(
    answer: Mapping[str, Num[np.ndarray, "n ..."]],
    bare: Sequence[Num[np.ndarray, "n ..."]],
    opened: Bool[np.ndarray, " n"],
    step: Step,
) -> None:
    case = f"{step.model} with gates {['open' if is_open else 'closed' for is_open in opened]}"
    for tensor, expected in zip(step.answers, bare, strict=True):
        wire = answer[tensor.name]
        closed = np.full_like(wire[~opened], step.gate.closed_value if step.gate else 0)
        if not np.array_equal(wire[~opened], closed, equal_nan=wire.dtype.kind == "f"):
            raise ParityError(f"{case}: expected closed items to read {closed.flat[0]}, got something else")
        _check_open(wire[opened], expected[opened], case, exact=bool(opened.all()))
    if step.scores_copy is not None:
        copied = np.where(opened[:, None], answer[step.outputs[0].name], np.float32(pipeline.NOT_RUN))
        if not np.array_equal(answer[step.scores_copy.name], copied):
            raise ParityError(
                f"{case}: expected {step.scores_copy.name} to be the scores, {pipeline.NOT_RUN} where closed"
            )


def _check_open(got: Num[np.ndarray, "k ..."], expected: Num[np.ndarray, "k ..."], case: str, *, exact: bool) -> None:
    """The same batch gives the same bits; a part of it may round differently."""
    if exact or not len(got):
        same = np.array_equal(got, expected)
    elif got.dtype.kind == "f":
        same = np.allclose(got, expected, rtol=0, atol=_BATCH_ROUNDING * max(1.0, float(np.abs(expected).max())))
    else:
        same = bool((got != expected).mean() <= _BATCH_PIXELS)
    if not same:
        difference = np.abs(got.astype(np.float64) - expected).max()
        raise ParityError(f"{case}: expected open items as without the gate, got a difference of {difference:.3g}")
