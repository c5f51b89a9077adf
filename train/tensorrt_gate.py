"""A gate in front of a TensorRT engine: the ``model.py`` of a step whose network Triton serves as a plan.

An engine holds no ONNX ``If``, and an ensemble cannot branch. So the step's model is this one, with the step's wire,
and the engine beside it, which its config names, is called for the open items alone. It answers as `train.gating`
describes.

It runs inside Triton's Python stub, from a copy of this file. `serving` must be importable there, as it must for
``preprocess``; `train` need not be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from serving import pipeline
from serving.pipeline import Gate, Step

ENGINE_PARAMETER: Final = "engine"
"""Key of the config's ``parameters`` under which the engine's model is named."""

Array = npt.NDArray[Any]

_DTYPES: Final[dict[str, type[np.generic]]] = {"UINT8": np.uint8, "FP32": np.float32}


def open_items(gate: Gate, gates: Array, scores: Array | None) -> npt.NDArray[np.bool_]:
    """Which items of a batch are open, `[N]`; see `pipeline.Gate`.

    Args:
        gate: The step's.
        gates: ``gates`` `[N, thresholds]`.
        scores: ``scores`` `[N, scores]`; None for a step without.
    """
    if not gate.pairs or scores is None:
        opened: npt.NDArray[np.bool_] = ~np.isnan(gates[:, 0])
        return opened
    reached: npt.NDArray[np.bool_] = np.zeros(len(gates), np.bool_)
    for score, threshold in gate.pairs:
        reached |= scores[:, score] >= gates[:, threshold]
    return reached


class TritonPythonModel:
    """What the Python stub looks for: one instance of the gate of one step."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Find the step.

        Args:
            args: Of the stub.
        """
        self._step = pipeline.step(args["model_name"])
        self._engine = json.loads(args["model_config"])["parameters"][ENGINE_PARAMETER]["string_value"]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of a dynamic batch by at most one call of the engine."""
        inputs = [_inputs(request, self._step) for request in requests]
        gate = self._step.gate or Gate((), 0)
        opened = [open_items(gate, each[pipeline.GATES.name], each.get(pipeline.SCORES_INPUT)) for each in inputs]
        images = [each[pipeline.IMAGE.name][mask] for each, mask in zip(inputs, opened, strict=True)]
        try:
            answered = self._ask(np.concatenate(images))
        except pb_utils.TritonModelException as error:
            # Those without an open item did not need the engine.
            return [_refusal(str(error)) if mask.any() else _response(self._step, gate, mask, None) for mask in opened]
        ends = np.cumsum([len(each) for each in images])
        parts = (slice(end - mask.sum(), end) for mask, end in zip(opened, ends, strict=True))
        return [
            _response(self._step, gate, mask, {name: values[part] for name, values in answered.items()})
            for mask, part in zip(opened, parts, strict=True)
        ]

    def _ask(self, images: Array) -> dict[str, Array]:
        wires = self._step.answers
        if not len(images):
            return {wire.name: np.zeros((0, *wire.shape), _DTYPES[wire.dtype]) for wire in wires}
        request = pb_utils.InferenceRequest(
            model_name=self._engine,
            requested_output_names=[wire.name for wire in wires],
            inputs=[pb_utils.Tensor(pipeline.IMAGE.name, images)],
            # Where as_numpy can read it: an engine's answer stays on the GPU otherwise.
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise pb_utils.TritonModelException(f"{self._engine}: {response.error().message()}")
        return {wire.name: pb_utils.get_output_tensor_by_name(response, wire.name).as_numpy() for wire in wires}


def _inputs(request: Any, step: Step) -> dict[str, Array]:
    return {tensor.name: pb_utils.get_input_tensor_by_name(request, tensor.name).as_numpy() for tensor in step.inputs}


def _refusal(message: str) -> Any:
    return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(message))


def _response(step: Step, gate: Gate, opened: npt.NDArray[np.bool_], answered: Mapping[str, Array] | None) -> Any:
    tensors: dict[str, Array] = {}
    for wire in step.answers:
        values = np.full((len(opened), *wire.shape), gate.closed_value, _DTYPES[wire.dtype])
        if answered is not None:
            values[opened] = answered[wire.name]
        tensors[wire.name] = values
    if step.scores_copy is not None:
        scores = tensors[step.outputs[0].name]
        tensors[step.scores_copy.name] = np.where(opened[:, np.newaxis], scores, np.float32(pipeline.NOT_RUN))
    return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor(name, array) for name, array in tensors.items()])
