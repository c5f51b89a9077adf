"""Networks for TensorRT: out of the gate, out of uint8, and still the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving import pipeline
from serving.errors import ExportError
from serving.pipeline import Step
from serving.repository import DEFAULT_REPOSITORY, versions
from serving.trial_scans import gate_inputs
from tests.toy_models import toy_network
from tests.train.tensorrt_toys import toy_network_in_float
from tests.train.test_quantize import network as small_network
from train.gating import add_gate
from train.parity import open_session
from train.quantize import QuantizationConfig, quantize
from train.tensorrt_configs import gated_steps
from train.tensorrt_graphs import refusals, through_float
from train.tensorrt_int8 import in_float, is_quantized, symmetric
from train.ungating import ungated

FINDINGS = pipeline.MANIFESTATION_STEP
ALL = pipeline.step("segment_all")
by_model = pytest.mark.parametrize("step", gated_steps(), ids=lambda step: step.model)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    coarse = np.random.default_rng(5).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


@pytest.fixture(scope="module")
def published(images: np.ndarray) -> onnx.ModelProto:
    """As what ships: U8S8, its ReLU taken out by the quantiser, gated."""
    return add_gate(quantize(small_network(), images), FINDINGS)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    answer: np.ndarray = open_session(model).run(None, {"image": images})[0]
    return answer


def zero_points(model: onnx.ModelProto) -> list[np.ndarray]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    quantizing = [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    return [constants[node.input[2]] for node in quantizing]


def op_types(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@by_model
def test_an_ungated_network_answers_as_the_graph_with_its_gate_open(step: Step, images: np.ndarray) -> None:
    gated = add_gate(toy_network(step), step)
    opened = gate_inputs(step, np.ones(len(images), bool))
    expected = open_session(gated).run(None, {"image": images, **opened})[0]
    assert np.unique(expected).size > 1
    np.testing.assert_array_equal(run(ungated(gated), images), expected)


@by_model
def test_taking_the_gate_off_and_putting_it_on_changes_nothing(step: Step) -> None:
    gated = add_gate(toy_network(step), step)
    assert add_gate(ungated(gated), step) == gated


def test_the_published_graphs_come_apart_and_together_too() -> None:
    found = 0
    for step in gated_steps():
        for version in versions(DEFAULT_REPOSITORY / step.model)[-1:]:
            gated = onnx.load(DEFAULT_REPOSITORY / step.model / str(version) / "model.onnx")
            assert add_gate(ungated(gated), step) == gated
            found += 1
    if not found:
        pytest.skip("needs the published models")


def test_a_graph_without_a_gate_is_refused() -> None:
    with pytest.raises(ExportError, match="expected a graph with a gate of ours"):
        ungated(toy_network(FINDINGS))


def test_the_relu_that_the_quantiser_took_out_is_put_back(published: onnx.ModelProto, images: np.ndarray) -> None:
    network = ungated(published)
    assert "Relu" not in op_types(network)
    for back in (in_float(network), symmetric(network)):
        assert np.abs(run(back, images) - run(network, images)).max() < 0.02
        without = onnx.ModelProto()
        without.CopyFrom(back)
        for node in without.graph.node:
            node.op_type = "Identity" if node.op_type == "Relu" else node.op_type
        assert np.abs(run(without, images) - run(network, images)).max() > 0.05


def test_in_float_nothing_is_quantised_and_the_weights_are_those_that_were_published(
    published: onnx.ModelProto, images: np.ndarray
) -> None:
    network = in_float(ungated(published))
    assert not is_quantized(network)
    assert "DequantizeLinear" not in op_types(network)
    weights = {t.name: numpy_helper.to_array(t) for t in network.graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in small_network().graph.initializer}
    (filters,) = (array for array in weights.values() if array.shape == original["depthwise"].shape)
    step = np.abs(original["depthwise"]).max(axis=(1, 2, 3), keepdims=True) / 127
    assert (np.abs(filters - original["depthwise"]) <= step / 2 + 1e-6).all()
    assert (filters != original["depthwise"]).any()
    # Nearer to fp32 than int8 is: only the weights are rounded.
    expected = run(small_network(), images)
    assert np.abs(run(network, images) - expected).max() < 0.01


def test_a_network_that_is_in_float_already_stays_as_it_is(images: np.ndarray) -> None:
    network = toy_network(FINDINGS)
    np.testing.assert_array_equal(run(in_float(network), images), run(network, images))


@pytest.mark.parametrize("way", ["converted", "calibrated"])
def test_symmetric_int8_has_zero_points_of_0_and_stays_near(
    way: str, published: onnx.ModelProto, images: np.ndarray
) -> None:
    config = QuantizationConfig(symmetric_activations=True)
    network = symmetric(ungated(published)) if way == "converted" else quantize(small_network(), images, config)
    points = zero_points(network)
    assert len(points) > 3
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    assert not {t.data_type for t in network.graph.initializer} & {TensorProto.UINT8, TensorProto.INT32}
    assert list(refusals(through_float(network, FINDINGS))) == []
    answer = run(network, images)
    assert np.abs(answer - run(small_network(), images)).max() < 0.02
    assert np.abs(answer - run(small_network(), images)).max() > 0


def test_a_symmetric_scale_covers_the_range_that_was_calibrated(published: onnx.ModelProto) -> None:
    before, after = ungated(published), symmetric(ungated(published))

    def reach(model: onnx.ModelProto) -> list[float]:
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        found = []
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                scale, zero = constants[node.input[1]], constants[node.input[2]].astype(int)
                lowest, highest = (0, 255) if constants[node.input[2]].dtype == np.uint8 else (-127, 127)
                found.append(float(max(abs(lowest - zero), abs(highest - zero)) * scale))
        return found

    assert len(reach(before)) > 3
    np.testing.assert_allclose(reach(after), reach(before), rtol=1e-6)


def test_asymmetric_weights_are_refused() -> None:
    constants = {
        "w": np.ones((4, 3, 1, 1), np.int8),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(3, np.int8),
        "axes": np.array([2, 3], np.int64),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["weights"], name="weights"),
        helper.make_node("Cast", ["image"], ["pixels"], name="pixels", to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["pixels"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "weights"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 512, 512, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 4, 512, 512])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ExportError, match="expected symmetric weights, got other zero points in weights"):
        symmetric(model)
    assert any("zero point of 0" in problem for problem in refusals(model))


def test_what_ships_is_refused_and_what_comes_of_it_is_not() -> None:
    present = versions(DEFAULT_REPOSITORY / FINDINGS.model)
    if not present:
        pytest.skip("needs the published models")
    network = ungated(onnx.load(DEFAULT_REPOSITORY / FINDINGS.model / str(present[-1]) / "model.onnx"))
    problems = list(refusals(network))
    for dtype in ("UINT8", "INT32"):
        assert any(f"expected an INT8 zero point, got {dtype}" in problem for problem in problems)
    for way in (in_float, symmetric):
        assert list(refusals(through_float(way(network), FINDINGS))) == []


def test_uint8_that_is_computed_with_is_named() -> None:
    problems = list(refusals(toy_network(ALL)))
    assert any("expected image to be cast to float first, got Slice" in problem for problem in problems)
    assert any("expected a uint8 output that is cast from float" in problem for problem in problems)


def test_class_ids_become_uint8_by_way_of_float_and_get_the_name_on_the_wire(images: np.ndarray) -> None:
    network = toy_network_in_float(ALL)
    assert any("expected a cast to uint8 from float" in problem for problem in refusals(network))
    cast = through_float(network, ALL)
    assert list(refusals(cast)) == []
    assert [value.name for value in cast.graph.output] == [pipeline.MASK.name]
    np.testing.assert_array_equal(run(cast, images), run(network, images))
    assert network == toy_network_in_float(ALL)
