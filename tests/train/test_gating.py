"""The gate inside a graph: which items run, and what the others read."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving import pipeline
from serving.errors import ExportError, ParityError
from serving.pipeline import MANIFESTATION_STEP, PREPROCESS, RECOGNITION, Step
from serving.trial_scans import gate_inputs
from train.gating import IR_VERSION, add_gate
from train.parity import check_gate

ALL = pipeline.step("segment_all")
CONSOLIDATION = pipeline.step("segment_consolidation")
ALL_STEPS = [step for step in pipeline.STEPS if step.gate is not None]


def scores_network(n_scores: int, *, opset: int = 17, ir_version: int = 8, maps: bool = False) -> onnx.ModelProto:
    """Scores that tell images apart: the mean brightness times 1, 2, ...; and maps of twice the scores."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["planes"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["out"]),
    ]
    weights = np.tile(np.arange(1, n_scores + 1, dtype=np.float32) / 3000, (3, 1))
    network = as_network(nodes, TensorProto.FLOAT, [n_scores], weights, opset=opset, ir_version=ir_version)
    if maps:
        twos = np.full(pipeline.ACTIVATION_HW, 2, np.float32)
        network.graph.initializer.append(numpy_helper.from_array(np.array([2, 3], np.int64), "grid"))
        network.graph.initializer.append(numpy_helper.from_array(twos, "twos"))
        network.graph.node.append(helper.make_node("Unsqueeze", ["out", "grid"], ["cells"]))
        network.graph.node.append(helper.make_node("Mul", ["cells", "twos"], ["maps"]))
        dims = ["N", n_scores, *pipeline.ACTIVATION_HW]
        network.graph.output.append(helper.make_tensor_value_info("maps", TensorProto.FLOAT, dims))
    return network


def mask_network() -> onnx.ModelProto:
    """A mask that tells images apart: their first channel."""
    nodes = [helper.make_node("Gather", ["image", "weights"], ["out"], axis=3)]
    return as_network(nodes, TensorProto.UINT8, [512, 512], np.array(0, np.int64))


def as_network(
    nodes: list[onnx.NodeProto],
    dtype: int,
    dims: list[int],
    weights: np.ndarray,
    *,
    opset: int = 17,
    ir_version: int = 8,
    batch: str | int = "N",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [batch, 512, 512, 3])],
        [helper.make_tensor_value_info("out", dtype, [batch, *dims])],
        initializer=[numpy_helper.from_array(weights, "weights")],
    )
    return helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])


def network_for(step: Step) -> onnx.ModelProto:
    if step.outputs[0] == pipeline.MASK:
        return mask_network()
    return scores_network(*step.outputs[0].shape, maps=pipeline.ACTIVATION in step.outputs)


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ask(gated: ort.InferenceSession, **feeds: object) -> dict[str, np.ndarray]:
    names = [output.name for output in gated.get_outputs()]
    return dict(zip(names, gated.run(None, {name: np.asarray(value) for name, value in feeds.items()}), strict=True))


def rows(n: int, *values: float) -> np.ndarray:
    return np.tile(np.array(values, np.float32), (n, 1))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (3, 512, 512, 3), dtype=np.uint8) // np.array(
        [1, 2, 3], np.uint8
    ).reshape(3, 1, 1, 1)


@pytest.mark.parametrize("step", ALL_STEPS, ids=lambda step: step.model)
def test_a_gated_graph_has_the_wire_of_its_step(step: Step) -> None:
    gated = add_gate(network_for(step), step)
    elem = {"UINT8": TensorProto.UINT8, "FP32": TensorProto.FLOAT}
    for values, tensors in ((gated.graph.input, step.inputs), (gated.graph.output, step.outputs)):
        got = [
            (v.name, v.type.tensor_type.elem_type, tuple(d.dim_value for d in v.type.tensor_type.shape.dim[1:]))
            for v in values
        ]
        assert got == [(t.name, elem[t.dtype], t.shape) for t in tensors]
        assert all(v.type.tensor_type.shape.dim[0].dim_param == "batch" for v in values)


@pytest.mark.parametrize("step", ALL_STEPS, ids=lambda step: step.model)
def test_open_closed_and_mixed_batches_answer_as_the_bare_network(step: Step, images: np.ndarray) -> None:
    network = network_for(step)
    check_gate(session(add_gate(network, step)), session(network), step, images)


def test_a_gated_graph_loads_in_the_older_runtime_of_the_container() -> None:
    gated = add_gate(network_for(ALL), ALL)
    assert gated.ir_version == IR_VERSION <= 10
    assert {entry.domain: entry.version for entry in gated.opset_import} == {"": 17}


def test_the_network_runs_on_the_open_items_alone() -> None:
    gated = add_gate(network_for(ALL), ALL)
    branch = next(node for node in gated.graph.node if node.op_type == "If")
    then = next(attribute.g for attribute in branch.attribute if attribute.name == "then_branch")
    assert then.node[0].op_type == "Gather"
    assert then.node[0].output[0] == then.node[1].input[0]
    assert {tensor.name for tensor in then.initializer} == {"network/weights"}


def test_a_threshold_opens_from_its_own_value_on(images: np.ndarray) -> None:
    gated = session(add_gate(network_for(CONSOLIDATION), CONSOLIDATION))
    half = np.float32(0.5)
    scores = np.array([[0, np.nextafter(half, np.float32(0)), 0], [0, half, 0], [1, 0.2, 1]], np.float32)
    mask = ask(gated, image=images, gates=rows(3, 0, 0.5, 0.5, 0.5), scores=scores)["mask"]
    assert [bool(item.any()) for item in mask] == [False, True, False]


def test_a_stream_listens_to_its_own_manifestation_and_all_to_any(images: np.ndarray) -> None:
    gates = rows(3, 0, 0.9, 0.5, 0.1)
    scores = np.array([[0.8, 0.6, 0.0], [0.95, 0.4, 0.0], [0.8, 0.4, 0.05]], np.float32)
    for step, expected in ((CONSOLIDATION, [True, False, False]), (ALL, [True, True, False])):
        mask = ask(session(add_gate(network_for(step), step)), image=images, gates=gates, scores=scores)["mask"]
        assert [bool(item.any()) for item in mask] == expected


@pytest.mark.parametrize("step", [MANIFESTATION_STEP, CONSOLIDATION, ALL], ids=lambda step: step.model)
def test_nan_thresholds_nan_scores_and_stages_that_did_not_run_stay_closed(step: Step, images: np.ndarray) -> None:
    n_scores = step.inputs[2].shape[0]
    gates = np.concatenate([rows(1, *[np.nan] * 4), rows(2, 0, 0, 0, 0)])
    scores = np.concatenate([rows(1, *[1] * n_scores), rows(1, *[np.nan] * n_scores), rows(1, *[-1] * n_scores)])
    answer = ask(session(add_gate(network_for(step), step)), image=images, gates=gates, scores=scores)
    assert not answer[step.outputs[0].name].any()
    if step.scores_copy is not None:
        assert (answer[step.scores_copy.name] == pipeline.NOT_RUN).all()


def test_a_threshold_of_never_closes_at_certainty(images: np.ndarray) -> None:
    gated = session(add_gate(network_for(ALL), ALL))
    answer = ask(gated, image=images, gates=rows(3, *[pipeline.NEVER] * 4), scores=rows(3, 1, 1, 1))
    assert not answer["mask"].any()


def test_recognition_runs_for_every_readable_item_whatever_the_thresholds(images: np.ndarray) -> None:
    gated = session(add_gate(network_for(RECOGNITION), RECOGNITION))
    gates = np.stack([np.full(4, pipeline.NEVER), np.full(4, np.nan), np.zeros(4)]).astype(np.float32)
    answer = ask(gated, image=images, gates=gates)
    assert np.isnan(answer["diagnosis"]).all(axis=1).tolist() == [False, True, False]
    assert (answer["diagnosis_scores"] == pipeline.NOT_RUN).all(axis=1).tolist() == [False, True, False]
    assert math.isnan(answer["diagnosis"][1, 0])
    np.testing.assert_array_equal(answer["diagnosis"][[0, 2]], answer["diagnosis_scores"][[0, 2]])
    assert np.isnan(answer["activation"]).all(axis=(1, 2, 3)).tolist() == [False, True, False]
    np.testing.assert_array_equal(answer["activation"][0, :, 5, 0], 2 * answer["diagnosis"][0])


def test_one_items_gate_never_changes_the_answer_of_another(images: np.ndarray) -> None:
    gated = session(add_gate(network_for(MANIFESTATION_STEP), MANIFESTATION_STEP))
    alone = [
        ask(gated, image=images[i : i + 1], **gate_inputs(MANIFESTATION_STEP, np.array([True])))["manifestations"][0]
        for i in range(3)
    ]
    for opened in ([True, False, True], [False, False, True], [True, True, True]):
        answer = ask(gated, image=images, **gate_inputs(MANIFESTATION_STEP, np.array(opened)))["manifestations"]
        for i in range(3):
            np.testing.assert_allclose(answer[i], alone[i] if opened[i] else 0, rtol=0, atol=1e-6)


def test_a_gate_that_is_the_wrong_way_round_is_found(images: np.ndarray) -> None:
    network = network_for(ALL)
    gated = add_gate(network, ALL)
    branch = next(node for node in gated.graph.node if node.op_type == "If")
    then, other = branch.attribute
    then.name, other.name = other.name, then.name
    with pytest.raises(ParityError, match="segment_all with gates"):
        check_gate(session(gated), session(network), ALL, images)


def test_a_network_that_answers_something_else_than_the_gated_one_is_found(images: np.ndarray) -> None:
    other = network_for(RECOGNITION)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((3, 4), np.float32) / 3000, "weights"))
    with pytest.raises(ParityError, match="as without the gate"):
        check_gate(session(add_gate(network_for(RECOGNITION), RECOGNITION)), session(other), RECOGNITION, images)


def test_a_network_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected the network's output .* 4\).*got .* 3\)"):
        add_gate(scores_network(3, maps=True), RECOGNITION)


def test_a_network_without_an_answer_of_its_step_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected the network's output .*'activation', 1, 4, 6, 6\).*got .* 4\)\]"):
        add_gate(scores_network(4), RECOGNITION)


def test_a_network_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(ExportError, match="expected the network's output"):
        add_gate(scores_network(4), ALL)


def test_a_network_whose_input_has_another_name_is_refused() -> None:
    network = scores_network(4)
    network.graph.input[0].name = network.graph.node[0].input[0] = "pixels_in"
    with pytest.raises(ExportError, match=r"expected the network's input .*'image'.*got .*'pixels_in'"):
        add_gate(network, RECOGNITION)


def test_a_network_with_a_fixed_batch_is_refused() -> None:
    network = as_network(
        list(scores_network(4).graph.node), TensorProto.FLOAT, [4], np.ones((3, 4), np.float32), batch=1
    )
    with pytest.raises(ExportError, match="expected the batch axis of input 'image' to be dynamic"):
        add_gate(network, RECOGNITION)


def test_a_network_that_the_container_could_not_load_is_refused() -> None:
    with pytest.raises(ExportError, match="expected an opset from 16 to 21, got 22"):
        add_gate(scores_network(4, opset=22), RECOGNITION)
    with pytest.raises(ExportError, match="expected an IR version up to 10, got 11"):
        add_gate(scores_network(4, ir_version=11), RECOGNITION)


def test_operators_of_one_runtime_alone_are_refused() -> None:
    network = scores_network(4)
    network.graph.node[0].domain = "com.microsoft"
    with pytest.raises(ExportError, match=r"com\.microsoft"):
        add_gate(network, RECOGNITION)


def test_a_step_without_a_gate_is_refused() -> None:
    with pytest.raises(ExportError, match="expected a step with a gate, got 'preprocess'"):
        add_gate(scores_network(4), PREPROCESS)
