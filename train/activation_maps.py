"""Class activation maps, as a second output of a network that ends in global average pooling and one dense layer.

::

    image -> convolutions -> features [N, C, h, w] -> mean over the grid -> dense -> logits -> softmax -> diagnosis
                                 |                                                     |
                             1x1 convolution with the dense layer's weights            |
                                 |                                                     |
                             minus its own mean over the grid, plus the logit <--------+ ---> activation

Pooling and a dense layer commute: weighting the features of each cell first and averaging afterwards gives the same
logit (Zhou et al. 2016, "Learning Deep Features for Discriminative Localization", eq. 2). So the map is exact and needs
no gradients. Its mean is made to be the logit, which adds the layer's bias, and in int8 also what rounding the pooled
features took away, evenly to all cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from jaxtyping import Float32, UInt8
from onnx import TensorProto, helper, numpy_helper, shape_inference

from serving.errors import ExportError, ParityError
from serving.pipeline import ACTIVATION, ACTIVATION_HW, IMAGE, Step

PREFIX: Final = "activation/"
"""Before every name that is added."""
_PASSING_ON: Final = frozenset(
    {"Squeeze", "Flatten", "Reshape", "Identity", "Cast", "QuantizeLinear", "DequantizeLinear"}
)
"""Between the pooling and the dense layer, or after the softmax: what changes shape or precision alone."""
_LOGIT_ROUNDING: Final = 1e-4
"""Of a probability: softmax over the means of the maps against what the network says."""
_DIAGNOSIS_ROUNDING: Final = 1e-6
"""Of a probability: with the maps against without."""


@dataclass(frozen=True)
class Head:
    """Where a network's last layers are.

    Attributes:
        features: Name of what is pooled, `[N, C, h, w]`.
        grid_hw: Its height and width.
        weights: Of the dense layer, `[C, classes]`.
        logits: Name of what the softmax reads, `[N, classes]`.
    """

    features: str
    grid_hw: tuple[int, int]
    weights: Float32[np.ndarray, "c classes"]
    logits: str


def with_activation(network: onnx.ModelProto, step: Step) -> onnx.ModelProto:
    """A network with the activation maps that its step answers; the network itself where it answers none.

    Args:
        network: One without a gate; fp32, or quantised with its head in fp32.
        step: The step that it is for.

    Returns:
        A copy with one more output, ``activation`` FP32 `[N, classes, *ACTIVATION_HW]`. A grid of another size is
        averaged onto this one by area, which keeps the mean.

    Raises:
        ExportError: If the network does not end in global average pooling, a dense layer in fp32 and softmax.
    """
    if ACTIVATION not in step.answers:
        return network
    head = find_head(network)
    classes = ACTIVATION.shape[0]
    if head.weights.shape[1] != classes:
        raise ExportError(f"expected a dense layer of {classes} classes, got {head.weights.shape[1]}")
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    graph.initializer.append(
        numpy_helper.from_array(np.ascontiguousarray(head.weights.T[..., None, None]), f"{PREFIX}weights")
    )
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), f"{PREFIX}axes"))
    graph.node.append(_node("Conv", [head.features, f"{PREFIX}weights"], f"{PREFIX}cells", kernel_shape=[1, 1]))
    cells = f"{PREFIX}cells"
    if head.grid_hw != ACTIVATION_HW:
        cells = _onto_grid(graph, cells, head.grid_hw)
    graph.node.extend(
        [
            _node("GlobalAveragePool", [cells], f"{PREFIX}mean"),
            _node("Sub", [cells, f"{PREFIX}mean"], f"{PREFIX}differences"),
            _node("Unsqueeze", [head.logits, f"{PREFIX}axes"], f"{PREFIX}logits"),
            helper.make_node(
                "Add", [f"{PREFIX}differences", f"{PREFIX}logits"], [ACTIVATION.name], name=f"{PREFIX}{ACTIVATION.name}"
            ),
        ]
    )
    graph.output.append(
        helper.make_tensor_value_info(
            ACTIVATION.name, TensorProto.FLOAT, [_batch_name(graph.output[0]), *ACTIVATION.shape]
        )
    )
    onnx.checker.check_model(model)
    return model


def without_activation(network: onnx.ModelProto) -> onnx.ModelProto:
    """The network that `with_activation` was given; one without maps comes back as it is."""
    model = onnx.ModelProto()
    model.CopyFrom(network)
    graph = model.graph
    nodes = [node for node in graph.node if not node.name.startswith(PREFIX)]
    constants = [tensor for tensor in graph.initializer if not tensor.name.startswith(PREFIX)]
    for field, kept in ((graph.node, nodes), (graph.initializer, constants), (graph.output, graph.output[:1])):
        copies = [type(each).FromString(each.SerializeToString()) for each in kept]
        del field[:]
        field.extend(copies)
    return model


def find_head(network: onnx.ModelProto) -> Head:
    """The last layers of a network whose first output is a softmax.

    Raises:
        ExportError: If they are not global average pooling, a dense layer in fp32 and softmax.
    """
    producers = {name: node for node in network.graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in network.graph.initializer}
    softmax = _behind(producers, network.graph.output[0].name, "Softmax")
    logits = softmax.input[0]
    dense = producers.get(logits)
    if dense is not None and dense.op_type == "Add":
        dense = next((producers[name] for name in dense.input if name in producers), None)
    if dense is None or dense.op_type not in {"Gemm", "MatMul"}:
        raise ExportError(f"expected a dense layer before the softmax, got {dense.op_type if dense else 'none'}")
    if dense.input[1] not in constants:
        raise ExportError(f"expected the weights of {dense.name} in fp32, got what {dense.input[1]!r} computes")
    weights = numpy_helper.to_array(constants[dense.input[1]]).astype(np.float32)
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in dense.attribute}
    weights = (weights.T if attributes.get("transB") else weights) * np.float32(attributes.get("alpha", 1.0))
    pooling = _behind(producers, dense.input[0], "GlobalAveragePool")
    return Head(pooling.input[0], _grid_of(network, pooling.input[0]), weights, logits)


def _behind(producers: dict[str, onnx.NodeProto], name: str, wanted: str) -> onnx.NodeProto:
    node = producers.get(name)
    while node is not None and node.op_type in _PASSING_ON:
        node = producers.get(node.input[0])
    if node is None or node.op_type != wanted:
        raise ExportError(f"expected {wanted} behind {name!r}, got {node.op_type if node is not None else 'an input'}")
    return node


def _grid_of(network: onnx.ModelProto, name: str) -> tuple[int, int]:
    inferred = shape_inference.infer_shapes(network).graph.value_info
    dims = next((value.type.tensor_type.shape.dim for value in inferred if value.name == name), ())
    sizes = [dim.dim_value for dim in dims]
    if len(sizes) != 4 or not all(sizes[1:]):
        raise ExportError(f"expected features of a known size [N, C, h, w] to be pooled, got {sizes}")
    return sizes[2], sizes[3]


def _onto_grid(graph: onnx.GraphProto, cells: str, grid_hw: tuple[int, int]) -> str:
    rows, columns = (area_means(size, cells) for size, cells in zip(grid_hw, ACTIVATION_HW, strict=True))
    graph.initializer.append(numpy_helper.from_array(rows, f"{PREFIX}rows"))
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(columns.T), f"{PREFIX}columns"))
    graph.node.append(_node("MatMul", [f"{PREFIX}rows", cells], f"{PREFIX}by_rows"))
    graph.node.append(_node("MatMul", [f"{PREFIX}by_rows", f"{PREFIX}columns"], f"{PREFIX}on_grid"))
    return f"{PREFIX}on_grid"


def area_means(size: int, cells: int) -> Float32[np.ndarray, "cells size"]:
    """The matrix that averages `size` values over `cells` equal parts of their range; each row sums to 1."""
    edges = np.arange(cells + 1) * size / cells
    places = np.arange(size)
    overlap = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return np.asarray(np.clip(overlap, 0, None) * cells / size, np.float32)


def check_activation(
    with_maps: ort.InferenceSession, without: ort.InferenceSession, images: UInt8[np.ndarray, "n 512 512 3"]
) -> dict[str, Any]:
    """Hold a network's maps against what it says; what was measured.

    Args:
        with_maps: From `with_activation`.
        without: The network that it was made of.
        images: At least one.

    Raises:
        ParityError: If the maps change the diagnosis, or the mean of a map is not the logit.
    """
    changed, apart = 0.0, 0.0
    for image in images:
        diagnosis, maps = with_maps.run(None, {IMAGE.name: image[None]})[:2]
        before = without.run(None, {IMAGE.name: image[None]})[0]
        logits = maps.astype(np.float64).mean(axis=(2, 3))
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        changed = max(changed, float(np.abs(diagnosis - before).max()))
        apart = max(apart, float(np.abs(odds / odds.sum(axis=1, keepdims=True) - diagnosis).max()))
    # Written so that a NaN fails.
    if not changed <= _DIAGNOSIS_ROUNDING:
        raise ParityError(f"expected the same diagnosis with activation maps, got one {changed:.3g} apart")
    if not apart <= _LOGIT_ROUNDING:
        raise ParityError(f"expected the mean of each map to be its logit, got probabilities {apart:.3g} apart")
    return {"golden_images": len(images), "diagnosis_changed_by": changed, "softmax_of_means_apart_by": apart}


def _node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=output, **attributes)


def _batch_name(output: onnx.ValueInfoProto) -> str:
    return output.type.tensor_type.shape.dim[0].dim_param or "batch"
