"""A published network's quantisation, undone or made symmetric: what TensorRT builds in fp16 and in int8.

What ships has uint8 activations, one scale and zero point a tensor, and int8 weights with int32 biases
(`train.quantize`): the fastest pair on a CPU. TensorRT has signed, symmetric int8 only, and biases in float.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from serving.errors import ExportError
from train.ungating import like

_NEVER_NEGATIVE: Final = frozenset({"Relu", "Sigmoid", "Softmax", "Abs", "Exp"})
_KEEPS_SIGN: Final = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Resize", "Transpose", "Reshape", "Squeeze", "Flatten"}
)
_DATA_INPUTS: Final = {"Resize": 1, "Reshape": 1, "Squeeze": 1}
"""Of operators whose further inputs are shapes and scales."""


def in_float(network: onnx.ModelProto) -> onnx.ModelProto:
    """A quantised network without quantisation: its weights as they were rounded, its activations in float.

    Quantising took out each ReLU whose cut the uint8 range makes by itself; they are put back.

    Args:
        network: Of `ungated`; one that is in float already comes back as it is.

    Raises:
        ExportError: If a quantised tensor is used by anything but a ``DequantizeLinear``.
    """
    return _rewritten(network, keep_int8=False)


def symmetric(network: onnx.ModelProto) -> onnx.ModelProto:
    """A U8S8 network as S8S8: the ranges that were calibrated, made even around 0, and biases in float.

    No scans are needed: min and max of each activation are in its scale and zero point. Where the range begins at 0,
    as after a ReLU, half of the int8 values are not used: the price of symmetry.

    Args:
        network: Of `ungated`, quantised by `train.quantize`.

    Raises:
        ExportError: As `in_float`; or if its weights are not symmetric.
    """
    return _rewritten(network, keep_int8=True)


def is_quantized(network: onnx.ModelProto) -> bool:
    """Whether a network computes anything in int8."""
    return any(node.op_type == "QuantizeLinear" for node in network.graph.node)


class _Rewriting:
    """One pass over a quantised network, in the order of its nodes."""

    def __init__(self, graph: onnx.GraphProto, *, keep_int8: bool) -> None:
        self._keep_int8 = keep_int8
        self._outputs = {value.name for value in graph.output}
        self.constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.nodes: list[onnx.NodeProto] = []
        self._producers: dict[str, onnx.NodeProto] = {}
        self._renamed: dict[str, str] = {}
        self._sources: dict[str, str] = {}

    def add(self, node: onnx.NodeProto) -> None:
        if node.op_type == "QuantizeLinear":
            self._quantize(node)
        elif node.op_type == "DequantizeLinear":
            if node.input[0] in self.constants:
                self._constant(node)
            else:
                self._dequantize(node)
        else:
            if set(node.input) & set(self._sources):
                raise ExportError(
                    f"expected quantised tensors to be dequantised, got one in {node.op_type} {node.name}"
                )
            self._append(node)

    def _append(self, node: onnx.NodeProto) -> None:
        for index, name in enumerate(node.input):
            node.input[index] = self._renamed.get(name, name)
        self._producers |= dict.fromkeys(node.output, node)
        self.nodes.append(node)

    def _quantize(self, node: onnx.NodeProto) -> None:
        source = self._renamed.get(node.input[0], node.input[0])
        scale, zero_point = self._parameters(node)
        quantized = node.output[0]
        if zero_point.dtype == np.uint8:
            if not zero_point.any() and not self._never_negative(source):
                name = f"{quantized}/relu"
                self._append(helper.make_node("Relu", [source], [name], name=name))
                source = name
            # The wider side of [0 - z, 255 - z] steps, over the 127 of int8.
            scale = (scale * np.maximum(zero_point, 255 - zero_point) / 127).astype(np.float32)
        self._sources[quantized] = source
        if self._keep_int8:
            self.constants |= {f"{quantized}/scale": scale, f"{quantized}/zero": np.zeros(zero_point.shape, np.int8)}
            node.input[:] = [source, f"{quantized}/scale", f"{quantized}/zero"]
            self._append(node)

    def _dequantize(self, node: onnx.NodeProto) -> None:
        quantized, answer = node.input[0], node.output[0]
        if quantized not in self._sources:
            raise ExportError(f"expected {quantized!r} to come from a QuantizeLinear, got another source")
        if self._keep_int8:
            node.input[1:] = [f"{quantized}/scale", f"{quantized}/zero"]
            self._append(node)
        elif answer in self._outputs:
            self._append(helper.make_node("Identity", [self._sources[quantized]], [answer], name=answer))
        else:
            self._renamed[answer] = self._sources[quantized]

    def _constant(self, node: onnx.NodeProto) -> None:
        values = self.constants[node.input[0]]
        scale, zero_point = self._parameters(node)
        if self._keep_int8 and values.dtype == np.int8:
            if zero_point.any():
                raise ExportError(f"expected symmetric weights, got other zero points in {node.name}")
            self._append(node)
            return
        shape = [1] * values.ndim
        if scale.size > 1:
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            shape[axis] = scale.size
        steps = values.astype(np.int64) - zero_point.reshape(shape).astype(np.int64)
        self.constants[node.output[0]] = (steps * scale.reshape(shape).astype(np.float64)).astype(np.float32)

    def _parameters(self, node: onnx.NodeProto) -> tuple[np.ndarray, np.ndarray]:
        if len(node.input) < 3 or not set(node.input[1:]) <= set(self.constants):
            raise ExportError(f"expected a constant scale and zero point of {node.name!r}, got others")
        return self.constants[node.input[1]], self.constants[node.input[2]]

    def _never_negative(self, name: str) -> bool:
        node = self._producers.get(name)
        if node is None:
            return False
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            return self._never_negative(node.input[0])
        if node.op_type in _KEEPS_SIGN:
            return all(self._never_negative(each) for each in node.input[: _DATA_INPUTS.get(node.op_type)])
        return node.op_type in _NEVER_NEGATIVE


def _rewritten(network: onnx.ModelProto, *, keep_int8: bool) -> onnx.ModelProto:
    source = onnx.ModelProto()
    source.CopyFrom(network)
    rewriting = _Rewriting(source.graph, keep_int8=keep_int8)
    for node in source.graph.node:
        rewriting.add(node)
    used = {name for node in rewriting.nodes for name in node.input}
    graph = helper.make_graph(
        rewriting.nodes,
        source.graph.name,
        source.graph.input,
        source.graph.output,
        initializer=[
            numpy_helper.from_array(array, name) for name, array in rewriting.constants.items() if name in used
        ],
    )
    model = like(source, graph)
    onnx.checker.check_model(model)
    return model
