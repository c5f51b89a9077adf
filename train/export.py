"""Keras -> ONNX -> a published version: converting means validating, in the same call.

::

    Keras model -- tf2onnx --> fp32 network -- quantize --> int8 network -- with_activation, add_gate --> model.onnx
                       |                          |                                    |
                  same numbers?            close enough?                  same bits, wire as the step says?

A version folder appears in one rename, after every check has passed. Until then nothing of it can be seen in the
repository, so a server that polls the folder never loads half a model.

TensorFlow is imported inside of `to_onnx` alone.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from jaxtyping import Num, UInt8

from serving import pipeline
from serving.candidates import reference_of
from serving.errors import ExportError
from serving.pipeline import IMAGE, MASK, Step
from serving.repository import REFERENCE_NAME, versions
from serving.version_folders import publish_version, unpublished_version
from train.activation_maps import check_activation, with_activation
from train.gating import add_gate
from train.parity import (
    Tolerances,
    check_fp32,
    check_gate,
    check_int8,
    check_signature,
    class_count,
    keras_answers,
    onnx_answers,
    open_session,
)
from train.provenance import FILE_NAME, Precision, Provenance
from train.quantize import QuantizationConfig, quantize

if TYPE_CHECKING:
    import keras

MODEL_FILE: Final = "model.onnx"
OPSET: Final = 17


def export(
    model: keras.Model,
    model_name: str,
    repository: Path,
    *,
    provenance: Provenance,
    golden: UInt8[np.ndarray, "n 512 512 3"],
    calibration: UInt8[np.ndarray, "m 512 512 3"] | None = None,
    precision: Precision = "int8",
    tolerances: Tolerances | None = None,
    quantization: QuantizationConfig | None = None,
    measure: Callable[[Callable[[np.ndarray], Num[np.ndarray, "n ..."]]], Mapping[str, Any]] | None = None,
    keep: int | None = None,
) -> Path:
    """Convert a model, check it, and publish it as the next version of a step.

    Args:
        model: UINT8 `[N, 512, 512, 3]` in; probabilities (recognition, manifestations) or logits
            `[N, 512, 512, classes]` (streams) out.
        model_name: Its step's model, as in ``segment_all``.
        repository: The model repository.
        provenance: Where the model came from. `parameters`, `precision` and `parity` are filled in here.
        golden: Preprocessed scans, `[0, 255]`, at least one; what both forms of the model are compared on. Not those
            of `calibration`.
        calibration: Preprocessed scans of the training split, `[0, 255]`; needed for int8.
        precision: Of the network's weights and activations.
        tolerances: `Tolerances()` by default.
        quantization: `QuantizationConfig()` by default.
        measure: Given what answers images as the published network does, returns figures for the provenance's
            ``metrics["published"]``.
        keep: How many versions to leave, the new one included; all by default.

    Returns:
        The new version folder, with ``model.onnx`` and ``provenance.json``.

    Raises:
        ExportError: If the model, the images or the provenance are not the step's. Nothing is published.
        ParityError: If a check fails. Nothing is published.
    """
    step = _exportable_step(model_name)
    tolerances = tolerances or Tolerances()
    _check_request(model, step, provenance, golden, keep)
    network = to_onnx(model, step)
    expected = keras_answers(model, step, golden)
    got = onnx_answers(open_session(network), golden)
    parity: dict[str, Any] = {"golden_images": len(golden), "fp32": check_fp32(expected, got, step, tolerances)}
    if precision == "int8":
        if calibration is None:
            raise ExportError("expected calibration images for int8, got none")
        _check_images(calibration, "calibration")
        network = quantize(network, calibration, quantization)
        parity["int8"] = check_int8(got, onnx_answers(open_session(network), golden), step, tolerances)
        parity["int8"]["calibration_images"] = len(calibration)
    if measure is not None:
        session = open_session(network)
        figures = measure(lambda images: onnx_answers(session, images))
        provenance = dataclasses.replace(provenance, metrics={**provenance.metrics, "published": figures})
    provenance = dataclasses.replace(
        provenance, parameters=int(model.count_params()), precision=precision, parity=parity
    )
    return publish_network(network, step, repository, provenance=provenance, golden=golden, keep=keep)


def publish_network(
    network: onnx.ModelProto,
    step: Step,
    repository: Path,
    *,
    provenance: Provenance,
    golden: UInt8[np.ndarray, "n 512 512 3"],
    keep: int | None = None,
) -> Path:
    """Publish a network as the next version of a step: with its activation maps, where it has any, and its gate.

    Args:
        network: One without either; its first output is what the step is for.
        step: The step.
        repository: The model repository.
        provenance: Complete but for what the activation maps are checked for.
        golden: Preprocessed scans, `[0, 255]`, at least one; what is added must not change what they are answered.
        keep: How many versions to leave, the new one included; all by default.

    Returns:
        The new version folder.

    Raises:
        ExportError: If the network is not the step's. Nothing is published.
        ParityError: If a check fails. Nothing is published.
    """
    whole = with_activation(network, step)
    if whole is not network:
        checked = check_activation(open_session(whole), open_session(network), golden)
        provenance = dataclasses.replace(provenance, parity={**provenance.parity, "activation": checked})
    with unpublished_version(repository / step.model) as folder:
        onnx.save(add_gate(whole, step), folder / MODEL_FILE)
        gated = open_session(folder / MODEL_FILE)
        check_signature(gated, step)
        check_gate(gated, open_session(whole), step, golden)
        (folder / FILE_NAME).write_text(provenance.to_json(), encoding="utf-8")
        # What `lungstreams repository publish` holds it against, on whichever machine serves it.
        (folder / REFERENCE_NAME).write_bytes(reference_of((folder / MODEL_FILE).read_bytes(), step))
        version = publish_version(folder)
    if keep is not None:
        prune(version.parent, keep)
    return version


def to_onnx(model: keras.Model, step: Step) -> onnx.ModelProto:
    """Convert to an fp32 network, batch axis dynamic; a stream's logits become its mask inside the graph.

    Args:
        model: See `export`.
        step: The step that it is for.

    Raises:
        ExportError: If tf2onnx can not express the model in plain ONNX operators.
    """
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec((None, *IMAGE.shape), tf.uint8, name=IMAGE.name)]

    @tf.function(input_signature=signature)  # type: ignore[untyped-decorator]
    def network(image: tf.Tensor) -> tf.Tensor:
        output = model(image, training=False)
        if step.outputs[0] == MASK:
            output = tf.cast(tf.argmax(output, axis=-1), tf.uint8)
        return tf.identity(output, name=step.outputs[0].name)

    with _quiet_tf2onnx():
        try:
            proto, _ = tf2onnx.convert.from_function(network, input_signature=signature, opset=OPSET)
            # An operator that it does not know is logged, and left in the graph.
            onnx.checker.check_model(proto)
        except (ValueError, RuntimeError, NotImplementedError, onnx.checker.ValidationError) as error:
            raise ExportError(f"expected a model that tf2onnx can convert, got: {error}") from error
    return proto


def prune(model_folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` versions of a model."""
    for version in versions(model_folder)[:-keep]:
        shutil.rmtree(model_folder / str(version))


def _exportable_step(model_name: str) -> Step:
    try:
        step = pipeline.step(model_name)
    except KeyError as error:
        raise ExportError(error.args[0]) from None
    if step.backend != "onnxruntime":
        raise ExportError(f"expected a model that ONNX Runtime serves, got {model_name!r} of backend {step.backend!r}")
    return step


def _check_request(
    model: keras.Model, step: Step, provenance: Provenance, golden: UInt8[np.ndarray, "n h w 3"], keep: int | None
) -> None:
    if provenance.model != step.model:
        raise ExportError(f"expected the provenance of {step.model!r}, got that of {provenance.model!r}")
    if keep is not None and keep < 1:
        raise ExportError(f"expected to keep at least 1 version, got {keep}")
    _check_images(golden, "golden")
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ExportError(f"expected one input and one output, got {len(model.inputs)} and {len(model.outputs)}")
    if model.inputs[0].dtype != "uint8":
        raise ExportError(f"expected a uint8 input with the scaling inside, got {model.inputs[0].dtype}")
    per_image = MASK.shape if step.outputs[0] == MASK else ()
    for what, got, expected in (
        ("input", model.inputs[0].shape, (None, *IMAGE.shape)),
        ("output", model.outputs[0].shape, (None, *per_image, class_count(step))),
    ):
        # A None of the model's own fits any size: a network trained on crops is served on whole slices.
        fits = len(got) == len(expected) and all(g is None or g == e for g, e in zip(got, expected, strict=True))
        if not fits or got[-1] is None:
            raise ExportError(f"expected {what} dims {expected} of {step.model}, got {tuple(got)}")


def _check_images(images: UInt8[np.ndarray, "n h w 3"], what: str) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != IMAGE.shape or not len(images):
        raise ExportError(f"expected {what} images as uint8 (n, {IMAGE.shape}), got {images.dtype} {images.shape}")


@contextmanager
def _quiet_tf2onnx() -> Iterator[None]:
    """tf2onnx reports each of its passes at INFO."""
    logger = logging.getLogger("tf2onnx")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
