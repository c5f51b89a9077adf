"""Toys as TensorRT takes them: `tests.toy_models` whose masks are computed in float."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from serving import pipeline
from serving.labels import ALL_STREAM
from serving.pipeline import Step
from serving.repository import ONNX_NAME, PROVENANCE_NAME
from serving.repository_checks import label_order
from tests.toy_models import IR_VERSION, MASK_LEVEL, OPSET, SECOND_LEVEL, toy_network, write_toy_repository
from train.gating import add_gate
from train.tensorrt_configs import gated_steps


def float_mask_network(stream: str) -> onnx.ModelProto:
    """What `tests.toy_models.expected_mask` expects of a stream, by way of arg max, as the real ones."""
    first = MASK_LEVEL - 0.5
    second = (SECOND_LEVEL if stream == ALL_STREAM.name else 256) - 0.5
    # Scores 0, g - a and 2 g - a - b of grey g: class 1 wins from level a on, class 2 from b on.
    first_row = np.zeros((3, *pipeline.MODEL_HW), np.float32)
    first_row[1, 0] = 1e6
    constants = {
        "channel": np.array(0, np.int64),
        "axis": np.array([1], np.int64),
        "slope": np.array([0, 1, 2], np.float32).reshape(3, 1, 1),
        "offset": np.array([0, first, first + second], np.float32).reshape(3, 1, 1),
        "first_row": first_row,
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], name="pixels", to=TensorProto.FLOAT),
        helper.make_node("Gather", ["pixels", "channel"], ["grey"], name="grey", axis=3),
        helper.make_node("Unsqueeze", ["grey", "axis"], ["planes"], name="planes"),
        helper.make_node("Mul", ["planes", "slope"], ["sloped"], name="sloped"),
        helper.make_node("Sub", ["sloped", "offset"], ["scores"], name="scores"),
        helper.make_node("Add", ["scores", "first_row"], ["marked"], name="marked"),
        helper.make_node("ArgMax", ["marked"], ["classes"], name="classes", axis=1, keepdims=0),
        helper.make_node("Cast", ["classes"], ["small"], name="small", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *pipeline.IMAGE.shape])],
        [helper.make_tensor_value_info("small", TensorProto.UINT8, ["batch", *pipeline.MODEL_HW])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model


def toy_network_in_float(step: Step) -> onnx.ModelProto:
    """The ungated toy of a step."""
    if step.stage < 3:
        return toy_network(step)
    return float_mask_network(step.model.removeprefix(pipeline.segmentation_model("")))


def write_float_toy_repository(repository: Path, versions: dict[str, int] | None = None) -> Path:
    """A whole repository of toys, each in the version that is asked for, 1 by default."""
    write_toy_repository(repository)
    for step in gated_steps():
        folder = repository / step.model
        version = (folder / "1").rename(folder / str((versions or {}).get(step.model, 1)))
        onnx.save(add_gate(toy_network_in_float(step), step), version / ONNX_NAME)
        provenance = {"model": step.model, "label_order": label_order(step), "experiment": f"toy_{step.model}"}
        (version / PROVENANCE_NAME).write_text(json.dumps(provenance), encoding="utf-8")
    return repository
