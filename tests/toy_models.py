"""A repository of networks whose answers anyone can compute from the image: means of its parts.

Diagnosis `i` is the mean of quadrant `i`, manifestation `i` that of the `i`-th of three vertical strips, both of the
model's image in `[0, 1]`. The map of a diagnosis is that mean plus `SLOPE`, whose own mean is 0. A mask is 1 where the
image is at least `MASK_LEVEL` and all along its first row, so one that ran is never empty; the one of all
manifestations has 2 where it is at least `SECOND_LEVEL`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving import pipeline
from serving.labels import ALL_STREAM
from serving.pipeline import Step
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, PROVENANCE_NAME, PYTHON_NAME, write_configs
from serving.repository_checks import label_order
from train.gating import add_gate

OPSET = 17
IR_VERSION = 8
MASK_LEVEL = 128
SECOND_LEVEL = 192

Regions = Sequence[tuple[slice, slice]]
HALVES = (slice(0, 256), slice(256, 512))
QUADRANTS: Regions = [(rows, columns) for rows in HALVES for columns in HALVES]
SLOPE = np.linspace(-1, 1, 36, dtype=np.float32).reshape(pipeline.ACTIVATION_HW)
STRIPS: Regions = [(slice(0, 512), columns) for columns in (slice(0, 170), slice(170, 340), slice(340, 512))]


def expected_means(image: np.ndarray, regions: Regions) -> np.ndarray:
    """What a toy network of `means_network` answers for an image `[512, 512, 3]`."""
    return np.array([image[rows, columns].mean() / 255 for rows, columns in regions], np.float32)


def expected_activation(image: np.ndarray) -> np.ndarray:
    """What the toy of stage 1 answers as activation for an image `[512, 512, 3]`."""
    return np.asarray(expected_means(image, QUADRANTS)[:, None, None] + SLOPE)


def expected_mask(image: np.ndarray, stream: str) -> np.ndarray:
    """What a toy network of `mask_network` answers for an image `[512, 512, 3]`."""
    grey = image[:, :, 0]
    mask = (grey >= MASK_LEVEL).astype(np.uint8)
    mask[0] = 1
    if stream == ALL_STREAM.name:
        mask[grey >= SECOND_LEVEL] = 2
        mask[0] = 1
    return mask


def _model(nodes: list[onnx.NodeProto], *outputs: onnx.ValueInfoProto, **constants: np.ndarray) -> onnx.ModelProto:
    image = helper.make_tensor_value_info(pipeline.IMAGE.name, TensorProto.UINT8, ["batch", *pipeline.IMAGE.shape])
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "toy", [image], list(outputs), initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def means_network(regions: Regions, *, activation: bool = False) -> onnx.ModelProto:
    """The mean of each region, `[N, len(regions)]`, and as stage 1 has it, a map of each."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["pixels", "white"], ["scaled"]),
    ]
    constants = {"white": np.array(255, np.float32), "axes": np.array([1, 2], np.int64)}
    for index, (rows, columns) in enumerate(regions):
        constants[f"start_{index}"] = np.array([rows.start, columns.start, 0], np.int64)
        constants[f"end_{index}"] = np.array([rows.stop, columns.stop, 3], np.int64)
        nodes += [
            helper.make_node("Slice", ["scaled", f"start_{index}", f"end_{index}", "slice_axes"], [f"part_{index}"]),
            helper.make_node("ReduceMean", [f"part_{index}"], [f"mean_{index}"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Unsqueeze", [f"mean_{index}", "last"], [f"column_{index}"]),
        ]
    constants |= {"slice_axes": np.array([1, 2, 3], np.int64), "last": np.array([1], np.int64)}
    del constants["axes"]
    columns_of = [f"column_{index}" for index in range(len(regions))]
    nodes.append(helper.make_node("Concat", columns_of, ["scores"], axis=1))
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(regions)])]
    if activation:
        constants |= {"grid": np.array([2, 3], np.int64), "slope": SLOPE}
        nodes.append(helper.make_node("Unsqueeze", ["scores", "grid"], ["cells"]))
        nodes.append(helper.make_node("Add", ["cells", "slope"], ["maps"]))
        dims = ["batch", len(regions), *pipeline.ACTIVATION_HW]
        outputs.append(helper.make_tensor_value_info("maps", TensorProto.FLOAT, dims))
    return _model(nodes, *outputs, **constants)


def mask_network(stream: str) -> onnx.ModelProto:
    """A class mask, UINT8 `[N, 512, 512]`."""
    constants = {
        "start": np.array([0], np.int64),
        "end": np.array([1], np.int64),
        "axis": np.array([3], np.int64),
        "first_row": np.eye(512, 1, dtype=bool).repeat(512, axis=1)[np.newaxis],
        "level": np.array(MASK_LEVEL, np.uint8),
        # Over white where there is one class only. Compared as int32: uint8 has no 256.
        "second": np.array(SECOND_LEVEL if stream == ALL_STREAM.name else 256, np.int32),
        "one": np.array(1, np.uint8),
        "two": np.array(2, np.uint8),
        "none": np.array(0, np.uint8),
    }
    nodes = [
        helper.make_node("Slice", ["image", "start", "end", "axis"], ["channel"]),
        helper.make_node("Squeeze", ["channel", "axis"], ["grey"]),
        helper.make_node("Cast", ["grey"], ["wide"], to=TensorProto.INT32),
        helper.make_node("GreaterOrEqual", ["grey", "level"], ["bright"]),
        helper.make_node("GreaterOrEqual", ["wide", "second"], ["brighter"]),
        helper.make_node("Where", ["bright", "one", "none"], ["single"]),
        helper.make_node("Where", ["brighter", "two", "single"], ["double"]),
        helper.make_node("Where", ["first_row", "one", "double"], ["classes"]),
    ]
    output = helper.make_tensor_value_info("classes", TensorProto.UINT8, ["batch", *pipeline.MODEL_HW])
    return _model(nodes, output, **constants)


def toy_network(step: Step) -> onnx.ModelProto:
    """The ungated toy of a step."""
    if step.stage == 1:
        return means_network(QUADRANTS, activation=True)
    if step.stage == 2:
        return means_network(STRIPS)
    return mask_network(step.model.removeprefix(pipeline.segmentation_model("")))


def write_toy_repository(repository: Path) -> Path:
    """Write a whole model repository of toys, which `serving.repository.check` finds nothing wrong with.

    Args:
        repository: Where to; made if missing.

    Returns:
        The same path.
    """
    write_configs(repository)
    for step in pipeline.STEPS:
        version = repository / step.model / "1"
        version.mkdir(exist_ok=True)
        if step.backend == "python":
            shutil.copy(DEFAULT_REPOSITORY / step.model / "1" / PYTHON_NAME, version)
            continue
        onnx.save(add_gate(toy_network(step), step), version / ONNX_NAME)
        provenance = {"model": step.model, "label_order": label_order(step)}
        (version / PROVENANCE_NAME).write_text(json.dumps(provenance), encoding="utf-8")
    return repository
