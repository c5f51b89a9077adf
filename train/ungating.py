"""The network inside of a published graph, without the gate: for whatever runs it by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import helper

from serving.errors import ExportError
from serving.pipeline import IMAGE
from train.gating import INNER, SCATTER_NAME


def ungated(gated: onnx.ModelProto) -> onnx.ModelProto:
    """The network inside of a published graph: the inverse of `train.gating.add_gate`.

    Args:
        gated: A published graph.

    Returns:
        ``image`` UINT8 `[N, 512, 512, 3]` in, the step's answers out, under the exporter's names.

    Raises:
        ExportError: If the graph carries no gate of ours, or the network has graphs within nodes.
    """
    gate = next((node for node in gated.graph.node if node.op_type == "If"), None)
    branch = _graph(gate, "then_branch") if gate is not None else onnx.GraphProto()
    scatters = [node for node in branch.node if node.name.startswith(SCATTER_NAME)]
    if gate is None or not scatters:
        raise ExportError(f"expected a graph with a gate of ours, got {gated.graph.name!r} without one")
    gather, *nodes = branch.node[: -len(scatters)]
    if any(attribute.HasField("g") or attribute.graphs for node in nodes for attribute in node.attribute):
        raise ExportError(f"expected a network without graphs in its nodes, got one in {gated.graph.name!r}")
    wires = {value.name: value.type for value in gated.graph.output}
    image = next(value for value in gated.graph.input if value.name == IMAGE.name)
    graph = helper.make_graph(
        nodes,
        gated.graph.name,
        [helper.make_value_info(gather.output[0], image.type)],
        [
            helper.make_value_info(scatter.input[2], wires[name])
            for scatter, name in zip(scatters, gate.output, strict=True)
        ],
        initializer=branch.initializer,
    )
    _strip_prefix(graph)
    return like(gated, graph)


def like(model: onnx.ModelProto, graph: onnx.GraphProto) -> onnx.ModelProto:
    """A model of a graph, in the versions of another model."""
    return helper.make_model(
        graph, producer_name="lungstreams", ir_version=model.ir_version, opset_imports=model.opset_import
    )


def _graph(node: onnx.NodeProto, attribute: str) -> Any:
    return helper.get_node_attr_value(node, attribute)


def _strip_prefix(graph: onnx.GraphProto) -> None:
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    names |= {tensor.name for tensor in graph.initializer}
    rename(graph, {name: name.removeprefix(INNER) for name in names})
    for node in graph.node:
        node.name = node.name.removeprefix(INNER)


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Gives values other names, wherever a node, an initialiser or the graph itself says them."""
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for values in (graph.input, graph.output, graph.initializer):
        for value in values:
            value.name = names.get(value.name, value.name)
