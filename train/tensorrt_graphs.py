"""Published graphs as TensorRT takes them: without the gate, and in float or symmetric int8.

::

    model.onnx -- ungated --> network --+-- in_float ----> fp32, which TensorRT builds in fp16
                                        +-- symmetric ---> int8 weights and activations, zero points all 0
                                        |
                                        +-- through_float: uint8 is cast from float alone

What TensorRT's ONNX parser refuses, after its documentation ("Working with Quantized Types" and `DataType`, 10.x):
zero points other than 0, quantised uint8, quantised biases (int32), and uint8 other than as an input that is cast to
float at once or an output that is cast from float. Ours are uint8 activations with int32 biases, made for CPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import onnx
from onnx import TensorProto, helper, numpy_helper

from serving.pipeline import IMAGE, Step
from train.ungating import rename

_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)


def through_float(network: onnx.ModelProto, step: Step) -> onnx.ModelProto:
    """The same network, its outputs named as on the wire, and what is cast to uint8 cast to float first.

    Args:
        network: One without the gate.
        step: Whose it is.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    rename(graph, {output.name: wire.name for output, wire in zip(graph.output, step.answers, strict=True)})
    nodes = []
    for node in graph.node:
        if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.UINT8:
            exact = f"{node.output[0]}/float"
            nodes.append(helper.make_node("Cast", [node.input[0]], [exact], name=exact, to=TensorProto.FLOAT))
            node.input[0] = exact
        nodes.append(node)
    _set_nodes(graph, nodes)
    onnx.checker.check_model(model)
    return model


def refusals(network: onnx.ModelProto) -> Iterator[str]:
    """What TensorRT's parser is documented to refuse in a network, one line each. What else it may refuse is not known.

    Args:
        network: One without the gate.
    """
    graph = network.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            yield from _zero_point_refusals(node, constants)
        if IMAGE.name in node.input and not _casts_to(node, _FLOATS):
            yield f"{node.name}: expected {IMAGE.name} to be cast to float first, got {node.op_type}"
        if _casts_to(node, (TensorProto.UINT8,)) and not _casts_to(producers.get(node.input[0]), _FLOATS):
            yield f"{node.name}: expected a cast to uint8 from float, got one from {node.input[0]}"
    for output in graph.output:
        is_uint8 = output.type.tensor_type.elem_type == TensorProto.UINT8
        if is_uint8 and not _casts_to(producers.get(output.name), (TensorProto.UINT8,)):
            yield f"{output.name}: expected a uint8 output that is cast from float, got another"


def _zero_point_refusals(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Iterator[str]:
    zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero_point is None or zero_point.data_type != TensorProto.INT8:
        name = TensorProto.DataType.Name(zero_point.data_type) if zero_point is not None else "none"
        yield f"{node.name}: expected an INT8 zero point, got {name}"
    elif numpy_helper.to_array(zero_point).any():
        yield f"{node.name}: expected a zero point of 0, got another"


def _casts_to(node: onnx.NodeProto | None, types: tuple[int, ...]) -> bool:
    return node is not None and node.op_type == "Cast" and helper.get_node_attr_value(node, "to") in types


def _set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
