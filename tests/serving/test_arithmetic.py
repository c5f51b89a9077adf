"""That 8-bit products are added without loss. On a processor with VNNI nothing here can fail but the entries' names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving.arithmetic import PRECISE, exact
from serving.backends.onnxruntime.openvino_session import OpenVinoSession, exact_int8

CHANNELS = 64
STEP = 255 * 127 * CHANNELS / 200
"""Of the output: the largest sum there is comes out as 200; one whose pairs stop at 32,767 comes out as 101."""


def largest_products() -> onnx.ModelProto:
    """A convolution whose every product is the largest that U8S8 has, as QDQ."""
    constants = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "signed_zero": np.int8(0),
        "step": np.float32(STEP),
        "weights": np.full((8, CHANNELS, 1, 1), 127, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["weights", "one", "signed_zero"], ["w"]),
        helper.make_node("Conv", ["d", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "step", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["r", "one", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "largest",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 4, 4])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


FEEDS = {"x": np.full((1, CHANNELS, 4, 4), 255, np.float32)}


def test_the_largest_products_are_added_whole() -> None:
    session = ort.InferenceSession(
        largest_products().SerializeToString(), exact(ort.SessionOptions()), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_array_equal(session.run(["y"], FEEDS)[0], 200)


def test_openvino_adds_them_whole(tmp_path: Path) -> None:
    onnx.save(largest_products(), tmp_path / "model.onnx")
    np.testing.assert_allclose(OpenVinoSession(tmp_path / "model.onnx", 1).run(["y"], FEEDS)[0], 200, atol=1)


def test_the_entry_is_one_that_onnx_runtime_keeps() -> None:
    options = exact(ort.SessionOptions())
    assert {key: options.get_session_config_entry(key) for key in PRECISE} == PRECISE


@pytest.mark.parametrize(
    ("text", "is_changed"),
    [
        ("flags\t\t: fma avx2", True),
        ("processor : 0\nflags\t\t: fma avx2 avx512f", True),
        ("flags\t\t: avx2 avx_vnni", False),
        ("flags\t\t: avx2 avx512f avx512_vnni", False),
        ("Features\t: fp asimd", False),
    ],
)
def test_openvino_computes_int8_as_such_only_where_that_is_exact(tmp_path: Path, text: str, is_changed: bool) -> None:
    (tmp_path / "cpuinfo").write_text(text + "\n")
    assert bool(exact_int8(tmp_path / "cpuinfo")) is is_changed
    assert exact_int8(tmp_path / "none") == {}
