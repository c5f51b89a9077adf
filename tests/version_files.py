"""Folders as `train.export` writes them, of toys; and such that must not be published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from serving import pipeline
from serving.candidates import reference_of
from serving.labels import ALL_STREAM
from serving.repository import ONNX_NAME, PROVENANCE_NAME, REFERENCE_NAME
from serving.repository_checks import label_order
from tests.toy_models import STRIPS, Regions, means_network, toy_network
from train.gating import add_gate

FINDINGS = pipeline.MANIFESTATION_STEP
STREAM = pipeline.step(pipeline.segmentation_model(ALL_STREAM.name))
BANDS: Regions = [(rows, slice(0, 512)) for rows in (slice(0, 40), slice(40, 170), slice(170, 512))]
"""What another network looks at: of a drawn slice the first band is air."""


def gated(network: onnx.ModelProto, step: pipeline.Step = FINDINGS) -> bytes:
    """The ONNX file of a network with its step's gate."""
    return add_gate(network, step).SerializeToString()


def other_findings() -> bytes:
    """A good network of stage 2 that answers otherwise than the toy: the mean of each of `BANDS`."""
    return gated(means_network(BANDS))


def exported(
    folder: Path, network: bytes, step: pipeline.Step = FINDINGS, *, provenance: bool = True, reference: bool = True
) -> Path:
    """Write a version folder; its reference, if it has one, is the network's own."""
    folder.mkdir(parents=True)
    (folder / ONNX_NAME).write_bytes(network)
    if provenance:
        described = {"model": step.model, "label_order": label_order(step)}
        (folder / PROVENANCE_NAME).write_text(json.dumps(described), encoding="utf-8")
    if reference:
        (folder / REFERENCE_NAME).write_bytes(reference_of(network, step))
    return folder


def truncated() -> bytes:
    """A file of which the second half was lost."""
    whole = other_findings()
    return whole[: len(whole) // 2]


def wrong_outputs() -> bytes:
    """A network that names its scores as it likes."""
    network = add_gate(means_network(STRIPS), FINDINGS)
    for node in network.graph.node:
        for i, name in enumerate(node.output):
            if name == FINDINGS.outputs[0].name:
                node.output[i] = "findings"
        for i, name in enumerate(node.input):
            if name == FINDINGS.outputs[0].name:
                node.input[i] = "findings"
    network.graph.output[0].name = "findings"
    return network.SerializeToString()


def scaled(white: float) -> bytes:
    """The toy of stage 2, with a weight of your own: NaN makes all answers NaN, 1 makes them grey values."""
    network = means_network(STRIPS)
    for weight in network.graph.initializer:
        if weight.name == "white":
            weight.CopyFrom(numpy_helper.from_array(np.array(white, np.float32), "white"))
    return gated(network)


def unknown_class() -> bytes:
    """A stream whose masks have a class that there is not."""
    network = toy_network(STREAM)
    for weight in network.graph.initializer:
        if weight.name == "two":
            weight.CopyFrom(numpy_helper.from_array(np.array(9, np.uint8), "two"))
    return gated(network, STREAM)


def always_open() -> bytes:
    """A network whose gate opens for everything: it compares with a threshold that all reach."""
    network = add_gate(means_network(STRIPS), FINDINGS)
    for node in network.graph.node:
        if node.op_type in {"GreaterOrEqual", "LessOrEqual"}:
            node.input[1] = node.input[0]
    return network.SerializeToString()
