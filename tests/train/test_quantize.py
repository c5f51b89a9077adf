"""Quantising: what becomes int8, what stays fp32, and how near the numbers stay."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.errors import ExportError
from train.quantize import CalibrateMethod, QuantizationConfig, head_nodes, prepare, quantize

CHANNELS = 8


def network() -> onnx.ModelProto:
    """Pixels -> convolution -> depthwise convolution -> mean -> dense -> sigmoid.

    The depthwise filters differ by a factor of 100, as after folding a batch norm.
    """
    rng = np.random.default_rng(3)
    gains = np.logspace(-1, 1, CHANNELS)
    depthwise = rng.normal(1, 0.3, (CHANNELS, 1, 3, 3)) * gains[:, None, None, None]
    weights = {
        "scale": np.array(1 / 255),
        "conv": rng.normal(0, 0.3, (CHANNELS, 3, 3, 3)),
        "depthwise": depthwise,
        "dense": rng.normal(0, 1, (CHANNELS, 3)) / gains[:, None],
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"], name="scaling"),
        helper.make_node("Transpose", ["scaled"], ["planes"], name="planes", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "conv"], ["features"], name="stem", strides=[8, 8]),
        helper.make_node("Relu", ["features"], ["positive"], name="relu"),
        helper.make_node("Conv", ["positive", "depthwise"], ["filtered"], name="depthwise", group=CHANNELS),
        helper.make_node("GlobalAveragePool", ["filtered"], ["mean"], name="mean"),
        helper.make_node("Flatten", ["mean"], ["flat"], name="flat"),
        helper.make_node("MatMul", ["flat", "dense"], ["logits"], name="logits"),
        helper.make_node("Sigmoid", ["logits"], ["out"], name="sigmoid"),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", 512, 512, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 3])],
        initializer=[numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    coarse = np.random.default_rng(5).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answer: np.ndarray = session.run(None, {"image": images})[0]
    return answer


def computed_in_int8(model: onnx.ModelProto) -> set[str]:
    dequantized = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {
        node.name for node in model.graph.node if node.op_type != "QuantizeLinear" and set(node.input) & dequantized
    }


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_int8_stays_near_fp32(method: CalibrateMethod, images: np.ndarray) -> None:
    quantized = quantize(network(), images[:2], QuantizationConfig(calibrate_method=method))
    assert np.abs(run(quantized, images) - run(network(), images)).max() < 0.02


def test_each_channel_of_a_depthwise_filter_has_its_own_scale(images: np.ndarray) -> None:
    quantized = quantize(network(), images)
    scales = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.endswith("_scale")}
    filters = next(scale for name, scale in scales.items() if name.startswith("depthwise"))
    assert filters.shape == (CHANNELS,)
    assert filters.max() > 20 * filters.min()


def test_weights_are_int8_and_activations_uint8(images: np.ndarray) -> None:
    quantized = quantize(network(), images)
    types = {t.name: t.data_type for t in quantized.graph.initializer if t.name.endswith("_quantized")}
    assert types["conv_quantized"] == types["depthwise_quantized"] == TensorProto.INT8
    inputs = [node.input[2] for node in quantized.graph.node if node.op_type == "QuantizeLinear"]
    zeros = {t.name: t.data_type for t in quantized.graph.initializer}
    assert inputs
    assert {zeros[name] for name in inputs} == {TensorProto.UINT8}


def test_the_head_and_the_pixels_scaling_stay_fp32(images: np.ndarray) -> None:
    assert {"stem", "depthwise"} <= computed_in_int8(quantize(network(), images))
    assert not {"logits", "sigmoid", "scaling", "cast"} & computed_in_int8(quantize(network(), images))


def test_the_head_is_quantised_on_request(images: np.ndarray) -> None:
    assert "logits" in computed_in_int8(quantize(network(), images, QuantizationConfig(head_in_fp32=False)))


def test_a_named_node_stays_fp32(images: np.ndarray) -> None:
    config = QuantizationConfig(nodes_to_exclude=("depthwise",))
    quantized = computed_in_int8(quantize(network(), images, config))
    assert "stem" in quantized
    assert "depthwise_quantized" not in {t.name for t in quantize(network(), images, config).graph.initializer}


def test_reduced_range_keeps_weights_to_seven_bits(images: np.ndarray) -> None:
    for reduce_range, limit in ((False, 127), (True, 64)):
        quantized = quantize(network(), images, QuantizationConfig(reduce_range=reduce_range))
        weights = next(t for t in quantized.graph.initializer if t.name == "conv_quantized")
        assert np.abs(numpy_helper.to_array(weights).astype(int)).max() == limit


def test_the_wire_and_the_opset_stay_and_the_network_is_not_touched(images: np.ndarray) -> None:
    source = network()
    before = source.SerializeToString()
    quantized = quantize(source, images)
    assert source.SerializeToString() == before
    assert {entry.version for entry in quantized.opset_import if entry.domain == ""} == {17}
    assert [value.name for value in quantized.graph.input] == ["image"]
    assert quantized.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert {node.domain for node in quantized.graph.node} <= {"", "ai.onnx"}


def test_calibration_sees_every_image(images: np.ndarray) -> None:
    """A range from the dark image alone clips the bright one."""
    dark, bright = np.full((1, 512, 512, 3), 10, np.uint8), np.full((1, 512, 512, 3), 250, np.uint8)
    expected = run(network(), bright)
    both = np.abs(run(quantize(network(), np.concatenate([dark, bright])), bright) - expected).max()
    dark_alone = np.abs(run(quantize(network(), dark), bright) - expected).max()
    assert both < 0.02 < dark_alone


def test_the_head_begins_at_the_last_layer_with_weights() -> None:
    assert set(head_nodes(prepare(network()))) == {"logits", "sigmoid"}


def test_quantising_is_silent(
    images: np.ndarray, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    level = logging.getLogger().level
    quantize(network(), images[:1], QuantizationConfig(calibrate_method="percentile"))
    assert capfd.readouterr().out == ""
    assert not caplog.records
    assert logging.getLogger().level == level


def test_no_images_are_refused() -> None:
    with pytest.raises(ExportError, match="expected calibration images to quantise with, got none"):
        quantize(network(), np.zeros((0, 512, 512, 3), np.uint8))


def test_a_node_that_is_not_there_is_refused(images: np.ndarray) -> None:
    with pytest.raises(ExportError, match=r"expected nodes_to_exclude .* got \['nowhere'\]"):
        quantize(network(), images, QuantizationConfig(nodes_to_exclude=("nowhere", "stem")))


def test_a_config_that_is_out_of_range_is_refused() -> None:
    with pytest.raises(ExportError, match="expected a calibrate_method of minmax, percentile, entropy, got 'best'"):
        QuantizationConfig(calibrate_method="best")  # type: ignore[arg-type]
    with pytest.raises(ExportError, match="expected a percentile above 50 and up to 100, got 101"):
        QuantizationConfig(percentile=101)
