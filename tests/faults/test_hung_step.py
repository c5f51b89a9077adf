"""A backend process that neither answers nor ends: Triton would wait for it for ever, and says that it is ready."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving.backends.onnxruntime.hanging import HUNG_VARIABLE
from serving.repository import CONFIG_NAME
from tests.reliability import Tally, record
from tests.test_cli import ANY_PORTS, Serving

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

MODEL = "counter"
HUNG_S = 2.0
DEADLINE_S = 30.0
FOR_EVER = 2**62

CONFIG = f"""
name: "{MODEL}"
backend: "onnxruntime"
max_batch_size: 0
input {{ name: "times" data_type: TYPE_INT64 dims: [1] }}
output {{ name: "counted" data_type: TYPE_INT64 dims: [1] }}
"""


def counter() -> onnx.ModelProto:
    """Counts up to ``times``, INT64 [1], one by one: `FOR_EVER` hangs in ONNX Runtime itself."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_again"]),
            helper.make_node("Add", ["count", "one"], ["count_next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on_again", TensorProto.BOOL, []),
            helper.make_tensor_value_info("count_next", TensorProto.INT64, [1]),
        ],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Squeeze", ["times"], ["trips"]),
            helper.make_node("Loop", ["trips", "yes", "zero"], ["counted"], body=body),
        ],
        "counter",
        [helper.make_tensor_value_info("times", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("counted", TensorProto.INT64, [1])],
        [
            numpy_helper.from_array(np.array(True), "yes"),
            numpy_helper.from_array(np.array([0], np.int64), "zero"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serving]:
    version = tmp_path / MODEL / "1"
    version.mkdir(parents=True)
    onnx.save(counter(), version / "model.onnx")
    (tmp_path / MODEL / CONFIG_NAME).write_text(CONFIG)
    monkeypatch.setenv(HUNG_VARIABLE, str(HUNG_S))
    running = Serving("serve", "--repository", tmp_path, *ANY_PORTS, "--threads=1")
    yield running
    assert running.stop(signal.SIGTERM)[0] == 0


def count(url: str, times: int) -> int:
    tensor = grpc.InferInput("times", [1], "INT64")
    tensor.set_data_from_numpy(np.array([times], np.int64))
    with grpc.InferenceServerClient(url) as client:
        answer = client.infer(MODEL, [tensor], client_timeout=DEADLINE_S).as_numpy("counted")
    assert answer is not None
    return int(answer[0])


def test_a_step_that_hangs_ends_and_the_server_is_back(serving: Serving) -> None:
    url, tally = serving.first_line.removeprefix("ready grpc=").strip(), Tally()
    assert count(url, 7) == 7
    tally.answer()
    with pytest.raises(InferenceServerException) as failed:
        count(url, FOR_EVER)
    # Not its own deadline: whoever waits hears of it as soon as the process is gone.
    assert "Deadline Exceeded" not in str(failed.value)
    tally.refuse()
    assert serving.process.stderr is not None
    assert "Triton lost one of its backend processes" in serving.process.stderr.readline()
    assert serving.process.stderr.readline() == f"lungstreams: Triton is back at {url}\n"
    assert count(url, 9) == 9
    tally.answer()
    record(tally.row("a network that computes for ever", group="Faults"))
