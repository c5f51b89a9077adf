r"""The gate that a published graph carries: an ONNX ``If`` around the network.

::

    image  gates  [scores]
      |      \      /
      |     open (batch)                          score >= threshold, for any pair of `pipeline.Gate.pairs`
      |        |
      |     If any open ---- else: closed_value everywhere
      |        | then
      +---> gather open items -> network -> scatter each of its answers into closed_value

Only operators whose definition is the same in opsets 16 to 21 are used, so that a graph loads wherever its network
does: in our ONNX Runtime and in the older one of NVIDIA's container.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving import pipeline
from serving.errors import ExportError
from serving.pipeline import Step, Tensor

IR_VERSION: Final = 10
"""The highest that ONNX Runtime 1.22, in NVIDIA's 25.08 container, reads without complaint."""
OPSETS: Final = range(16, 22)
"""`GreaterOrEqual`, `Where` and `ScatterND` are what we take them for from 16 on; 1.22 is held to 21."""

_ONNX_DTYPES: Final = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT}
_NUMPY_DTYPES: Final[dict[str, np.dtype[Any]]] = {"UINT8": np.dtype(np.uint8), "FP32": np.dtype(np.float32)}
INNER: Final = "network/"
"""Before every name of the network inside of a gate."""
SCATTER_NAME: Final = "gate/scatter"
"""Begins the names of the last nodes of the branch that runs the network, one for each of its answers."""
_DEFAULT_DOMAINS: Final = ("", "ai.onnx")


def add_gate(network: onnx.ModelProto, step: Step) -> onnx.ModelProto:
    """Wrap a network into the graph that is published for a step.

    Args:
        network: ``image`` UINT8 `[N, 512, 512, 3]` in, tensors of the shapes and types of the step's `answers` out,
            in their order, N dynamic.
        step: Whose wire names and gate the result gets.

    Returns:
        A model with exactly the step's inputs and outputs. An item whose gate is closed costs nothing and reads
        `Gate.closed_value`, and `pipeline.NOT_RUN` in the copy of the scores for the next gate. A comparison with NaN
        is false, so an item that could not be read (NaN thresholds) and one without a score stay closed.

    Raises:
        ExportError: If the step has no gate, or the network is not as described.
    """
    if step.gate is None:
        raise ExportError(f"expected a step with a gate, got {step.model!r}")
    opset = _check_network(network, step)
    inner = onnx.compose.add_prefix(network, INNER)
    nodes = _open_items(step.gate)
    nodes.append(helper.make_node("Shape", [pipeline.IMAGE.name], ["gate/batch"], name="gate/batch", start=0, end=1))
    for wire in step.answers:
        nodes += _filled(step, wire, step.gate.closed_value)
    nodes.append(
        helper.make_node(
            "If",
            ["gate/any_open"],
            [wire.name for wire in step.answers],
            name="gate/if",
            then_branch=_then_branch(inner.graph, step),
            else_branch=_else_branch(step),
        )
    )
    nodes += _scores_copy(step)
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        step.model,
        [_value_info(tensor) for tensor in step.inputs],
        [_value_info(tensor) for tensor in step.outputs],
        initializer=[constant for constant in _constants(step.gate) if constant.name in used],
    )
    gated = helper.make_model(
        graph, producer_name="lungstreams", ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", opset)]
    )
    onnx.checker.check_model(gated)
    return gated


def _check_network(network: onnx.ModelProto, step: Step) -> int:
    """Hold a network against `add_gate`'s terms; its opset."""
    opset = next((entry.version for entry in network.opset_import if entry.domain in _DEFAULT_DOMAINS), 0)
    if opset not in OPSETS:
        raise ExportError(f"expected an opset from {OPSETS.start} to {OPSETS.stop - 1}, got {opset}")
    if network.ir_version > IR_VERSION:
        raise ExportError(f"expected an IR version up to {IR_VERSION}, got {network.ir_version}")
    foreign = sorted({node.domain for node in network.graph.node} - set(_DEFAULT_DOMAINS))
    if foreign or network.functions:
        raise ExportError(
            f"expected plain ONNX operators, got domains {foreign} and {len(network.functions)} functions"
        )
    initialized = {tensor.name for tensor in network.graph.initializer}
    inputs = [value for value in network.graph.input if value.name not in initialized]
    _check_signature(inputs, (pipeline.IMAGE,), what="input")
    # An output's name is the exporter's and ends inside the gate: only its type is the step's.
    names = [value.name for value in network.graph.output]
    expected = tuple(
        Tensor(name or wire.name, wire.dtype, wire.shape)
        for name, wire in zip_longest(names[: len(step.answers)], step.answers)
    )
    _check_signature(network.graph.output, expected, what="output")
    return int(opset)


def _check_signature(values: object, expected: tuple[Tensor, ...], *, what: str) -> None:
    wanted = [(tensor.name, _ONNX_DTYPES[tensor.dtype], *tensor.shape) for tensor in expected]
    got = []
    for value in values:  # type: ignore[attr-defined]
        dims = value.type.tensor_type.shape.dim
        if not dims or dims[0].HasField("dim_value"):
            raise ExportError(f"expected the batch axis of {what} {value.name!r} to be dynamic, got {list(dims)}")
        got.append((value.name, value.type.tensor_type.elem_type, *(dim.dim_value for dim in dims[1:])))
    if got != wanted:
        raise ExportError(f"expected the network's {what} (name, ONNX type, dims) {wanted}, got {got}")


def _value_info(tensor: Tensor, name: str | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name or tensor.name, _ONNX_DTYPES[tensor.dtype], ["batch", *tensor.shape])


def _constants(gate: pipeline.Gate) -> list[onnx.TensorProto]:
    arrays = {
        "gate/axis_0": np.array([0], np.int64),
        "gate/axis_1": np.array([1], np.int64),
        "gate/zero": np.array(0, np.int64),
        "gate/zero_score": np.array(0, np.float32),
        "gate/not_run": np.array(pipeline.NOT_RUN, np.float32),
        "gate/score_columns": np.array([score for score, _ in gate.pairs], np.int64),
        "gate/gate_columns": np.array([threshold for _, threshold in gate.pairs] or [0], np.int64),
    }
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def _open_items(gate: pipeline.Gate) -> list[onnx.NodeProto]:
    """Which items are open: ``gate/open`` `[N]`, their ``gate/indices`` `[K]` and whether there are any."""

    def node(op: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], name=output, **attributes)

    thresholds = node("Gather", [pipeline.GATES.name, "gate/gate_columns"], "gate/thresholds", axis=1)
    if gate.pairs:
        opened = [
            thresholds,
            node("Gather", [pipeline.SCORES_INPUT, "gate/score_columns"], "gate/compared", axis=1),
            node("GreaterOrEqual", ["gate/compared", "gate/thresholds"], "gate/reached"),
            # A sum of counts for "any": its axes are an input in every opset from 13 on, those of ReduceMax are not.
            node("Cast", ["gate/reached"], "gate/reached_float", to=TensorProto.FLOAT),
            node("ReduceSum", ["gate/reached_float", "gate/axis_1"], "gate/count", keepdims=0),
            node("Greater", ["gate/count", "gate/zero_score"], "gate/open"),
        ]
    else:
        # IsNaN and not `x == x`, which an optimiser may take for a constant.
        opened = [
            thresholds,
            node("Squeeze", ["gate/thresholds", "gate/axis_1"], "gate/first"),
            node("IsNaN", ["gate/first"], "gate/unreadable"),
            node("Not", ["gate/unreadable"], "gate/open"),
        ]
    return [
        *opened,
        node("NonZero", ["gate/open"], "gate/positions"),
        node("Squeeze", ["gate/positions", "gate/axis_0"], "gate/indices"),
        node("Unsqueeze", ["gate/indices", "gate/axis_1"], "gate/index_rows"),
        node("Size", ["gate/indices"], "gate/open_count"),
        node("Greater", ["gate/open_count", "gate/zero"], "gate/any_open"),
    ]


def _own(name: str, step: Step, wire: Tensor) -> str:
    """A name of the gate's for one of the step's answers: as it is for the first."""
    return name if wire == step.answers[0] else f"{name}_{wire.name}"


def _filled(step: Step, wire: Tensor, closed_value: float) -> list[onnx.NodeProto]:
    """``gate/filled``: an answer for a batch whose every gate is closed."""
    value = numpy_helper.from_array(np.array([closed_value], _NUMPY_DTYPES[wire.dtype]), "value")
    constant = numpy_helper.from_array(np.array(wire.shape, np.int64), "dims")
    dims, shape, filled = (_own(name, step, wire) for name in ("gate/dims", "gate/shape", "gate/filled"))
    return [
        helper.make_node("Constant", [], [dims], name=dims, value=constant),
        helper.make_node("Concat", ["gate/batch", dims], [shape], name=shape, axis=0),
        helper.make_node("ConstantOfShape", [shape], [filled], name=filled, value=value),
    ]


def _then_branch(network: onnx.GraphProto, step: Step) -> onnx.GraphProto:
    """The network over the open items alone, with its weights: ORT packs a branch's own initialisers."""
    gather = helper.make_node(
        "Gather", [pipeline.IMAGE.name, "gate/indices"], [network.input[0].name], name="gate/gather", axis=0
    )
    scatters = [
        helper.make_node(
            "ScatterND",
            [_own("gate/filled", step, wire), "gate/index_rows", answer.name],
            [_own("gate/answered", step, wire)],
            name=_own(SCATTER_NAME, step, wire),
        )
        for wire, answer in zip(step.answers, network.output, strict=True)
    ]
    return helper.make_graph(
        [gather, *network.node, *scatters],
        "open",
        [],
        [_value_info(wire, _own("gate/answered", step, wire)) for wire in step.answers],
        initializer=list(network.initializer),
    )


def _else_branch(step: Step) -> onnx.GraphProto:
    names = [(_own("gate/filled", step, wire), _own("gate/closed", step, wire)) for wire in step.answers]
    return helper.make_graph(
        [helper.make_node("Identity", [filled], [closed], name=closed) for filled, closed in names],
        "closed",
        [],
        [_value_info(wire, closed) for wire, (_, closed) in zip(step.answers, names, strict=True)],
    )


def _scores_copy(step: Step) -> list[onnx.NodeProto]:
    """The copy of the scores that the next gate reads, for the steps that have one."""
    if step.scores_copy is None:
        return []
    scores, copy = step.outputs[0], step.scores_copy
    return [
        helper.make_node("Unsqueeze", ["gate/open", "gate/axis_1"], ["gate/open_rows"], name="gate/open_rows"),
        helper.make_node("Where", ["gate/open_rows", scores.name, "gate/not_run"], [copy.name], name="gate/copy"),
    ]
