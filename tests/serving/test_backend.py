"""The twin of the C++ ONNX Runtime backend: options, batching, and errors that stay where they belong."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import sys
import uuid
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from serving import pipeline, repository
from serving.backends.onnxruntime.request_log import REQUEST_LOG_VARIABLE

SOURCE = Path(repository.__file__).parent / "backends" / "onnxruntime" / "model.py"

CPP_PARAMETERS = {
    # Every key that src/onnxruntime.cc of triton-inference-server/onnxruntime_backend looks up in `parameters`.
    "execution_mode",
    "intra_op_thread_count",
    "inter_op_thread_count",
    "session.use_device_allocator_for_initializers",
    "enable_mem_arena",
    "enable_mem_pattern",
    "share_session_between_instances",
    "cudnn_conv_algo_search",
    "gpu_mem_limit",
    "arena_extend_strategy",
    "do_copy_in_default_stream",
    "memory.enable_memory_arena_shrinkage",
}


class FakeTensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class FakeRequest:
    def __init__(self, outputs: list[str], id_: str = "", **inputs: np.ndarray) -> None:
        self._outputs, self._id, self._inputs = outputs, id_, inputs

    def request_id(self) -> str:
        return self._id

    def inputs(self) -> list[FakeTensor]:
        return [FakeTensor(name, array) for name, array in self._inputs.items()]

    def requested_output_names(self) -> list[str]:
        return self._outputs


class FakeModelException(Exception):
    pass


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def twin(warned: list[str], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend's module, beside what the stub would give it."""
    utils: Any = ModuleType("triton_python_backend_utils")
    utils.Tensor = FakeTensor
    utils.TritonError = str
    utils.TritonModelException = FakeModelException
    utils.Logger = SimpleNamespace(log_warn=warned.append, log_info=lambda text: None)
    utils.InferenceResponse = lambda output_tensors, error=None: SimpleNamespace(
        outputs={tensor.name(): tensor.as_numpy() for tensor in output_tensors}, error=error
    )
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    spec = importlib.util.spec_from_file_location("twin", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lookup_model(path: Path) -> Path:
    """`doubled` = 2 x, and `looked_up` = row `i` of a table of three, which fails at run time for any other."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("Gather", ["table", "i"], ["looked_up"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.UINT8, ["n", 2]),
            helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]),
        ],
        [
            helper.make_tensor_value_info("doubled", TensorProto.UINT8, ["n", 2]),
            helper.make_tensor_value_info("looked_up", TensorProto.FLOAT, ["n"]),
        ],
        [numpy_helper.from_array(np.array([10, 20, 30], np.float32), "table")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def config(**more: Any) -> dict[str, Any]:
    return {"name": "m", "max_batch_size": 8, **more}


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {key: {"string_value": value} for key, value in values.items()}}


def started(twin: ModuleType, folder: Path, **more: Any) -> Any:
    (folder / "1").mkdir(parents=True, exist_ok=True)
    lookup_model(folder / "1" / "model.onnx")
    return initialized(twin, folder, config(**more))


def initialized(twin: ModuleType, folder: Path, of: dict[str, Any]) -> Any:
    model = twin.TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(of),
            "model_repository": str(folder),
            "model_version": "1",
            "model_name": "m",
        }
    )
    return model


def request(
    x: list[list[int]], i: list[int], outputs: tuple[str, ...] = ("doubled", "looked_up"), id_: str = ""
) -> FakeRequest:
    return FakeRequest(list(outputs), id_, x=np.array(x, np.uint8), i=np.array(i, np.int64))


def test_it_knows_every_parameter_of_the_cpp_backend_and_no_other(twin: ModuleType) -> None:
    assert twin.KNOWN_PARAMETERS == CPP_PARAMETERS


@pytest.mark.parametrize("step", pipeline.STEPS, ids=lambda step: step.model)
def test_our_configs_use_only_parameters_of_the_cpp_backend(step: pipeline.Step) -> None:
    found = repository.model_config(step)
    assert set(found.parameters) <= CPP_PARAMETERS
    # An accelerator that the container was not built with fails the load there.
    assert not found.optimization.HasField("execution_accelerators")


def test_it_imports_what_a_stub_has_and_nothing_of_ours() -> None:
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "triton_python_backend_utils"}


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (None, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (0, ort.GraphOptimizationLevel.ORT_ENABLE_ALL),
        (-1, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC),
        (1, ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
        (2, ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
    ],
)
def test_graph_levels_mean_what_they_mean_in_the_cpp_backend(
    twin: ModuleType, level: int | None, expected: Any
) -> None:
    more = {} if level is None else {"optimization": {"graph": {"level": level}}}
    assert twin.session_options(config(**more), {}).graph_optimization_level == expected


def test_parameters_set_the_session(twin: ModuleType) -> None:
    of = config(
        **parameters(
            intra_op_thread_count="3",
            inter_op_thread_count="2",
            execution_mode="1",
            enable_mem_arena="false",
            enable_mem_pattern="0",
        )
    )
    options = twin.session_options(of, {"LUNGSTREAMS_THREADS": "5"})
    assert options.intra_op_num_threads == 3
    assert options.inter_op_num_threads == 2
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern


def test_defaults_are_sequential_and_of_the_cores_at_hand(twin: ModuleType) -> None:
    options = twin.session_options(config(), {})
    assert options.execution_mode == ort.ExecutionMode.ORT_SEQUENTIAL
    assert options.intra_op_num_threads == len(os.sched_getaffinity(0))
    assert options.enable_cpu_mem_arena
    assert options.enable_mem_pattern


def test_a_thread_that_waits_stays_awake_for_a_moment_where_onnx_runtime_can_limit_it(twin: ModuleType) -> None:
    entries = twin.spinning("1.32.0")
    assert entries["session.intra_op.allow_spinning"] == "1"
    assert 0 < int(entries["session.intra_op.spin_duration_us"]) < 1000
    assert twin.spinning("1.22.1")["session.intra_op.allow_spinning"] == "0"
    options = twin.session_options(config(), {})
    for key, value in twin.spinning(ort.__version__).items():
        assert options.get_session_config_entry(key) == value


@pytest.mark.parametrize(("text", "expected"), [("5", 5), ("0", None), ("", None), ("many", None)])
def test_the_environment_sets_the_threads_of_models_that_do_not_say(
    twin: ModuleType, text: str, expected: int | None
) -> None:
    options = twin.session_options(config(), {"LUNGSTREAMS_THREADS": text})
    assert options.intra_op_num_threads == (expected or len(os.sched_getaffinity(0)))


def test_the_environment_sets_the_threads_of_single_models(twin: ModuleType) -> None:
    environment = {"LUNGSTREAMS_THREADS": "5", "LUNGSTREAMS_THREADS_BY_MODEL": "other=7,m=3"}
    assert twin.session_options(config(), environment).intra_op_num_threads == 3
    assert twin.session_options(config(name="another"), environment).intra_op_num_threads == 5
    assert twin.session_options(config(**parameters(intra_op_thread_count="2")), environment).intra_op_num_threads == 2


@pytest.mark.parametrize(
    ("key", "value"), [("execution_mode", "2"), ("intra_op_thread_count", "two"), ("enable_mem_arena", "perhaps")]
)
def test_values_that_the_cpp_backend_refuses_are_refused(
    twin: ModuleType, tmp_path: Path, key: str, value: str
) -> None:
    with pytest.raises(FakeModelException, match=rf"m: parameter {key}: expected .* got .*{value}"):
        started(twin, tmp_path, **parameters(**{key: value}))


def test_a_parameter_of_nobody_is_warned_about(twin: ModuleType, tmp_path: Path, warned: list[str]) -> None:
    started(twin, tmp_path, **parameters(intra_op_threads="1", gpu_mem_limit="1"))
    assert len(warned) == 1
    assert "intra_op_threads" in warned[0]


def test_another_file_name_is_honoured(twin: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    lookup_model(tmp_path / "1" / "other.onnx")
    assert initialized(twin, tmp_path, config(default_model_filename="other.onnx"))
    with pytest.raises(FakeModelException, match=r"expected an ONNX model at .*model\.onnx"):
        initialized(twin, tmp_path, config())


def test_a_folder_of_that_name_holds_the_model(twin: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "1" / "model.onnx").mkdir(parents=True)
    lookup_model(tmp_path / "1" / "model.onnx" / "model.onnx")
    assert initialized(twin, tmp_path, config())


def test_requests_of_a_batch_run_together_and_each_gets_its_rows(
    twin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = started(twin, tmp_path)
    runs: list[int] = []
    run = model._network.run
    monkeypatch.setattr(
        model._network, "run", lambda feeds, names: (runs.append(len(feeds["x"])), run(feeds, names))[1]
    )
    answers = model.execute([request([[1, 2]], [0]), request([[3, 4], [5, 6]], [1, 2]), request([[7, 8]], [0])])
    assert runs == [4]
    assert [answer.outputs["doubled"].tolist() for answer in answers] == [[[2, 4]], [[6, 8], [10, 12]], [[14, 16]]]
    assert [answer.outputs["looked_up"].tolist() for answer in answers] == [[10], [20, 30], [10]]
    assert answers[0].outputs["doubled"].dtype == np.uint8
    assert answers[0].outputs["looked_up"].dtype == np.float32


def test_a_model_without_batches_runs_each_request_alone(
    twin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = started(twin, tmp_path, max_batch_size=0)
    runs: list[int] = []
    run = model._network.run
    monkeypatch.setattr(
        model._network, "run", lambda feeds, names: (runs.append(len(feeds["x"])), run(feeds, names))[1]
    )
    model.execute([request([[1, 2]], [0]), request([[3, 4], [5, 6]], [1, 2])])
    assert runs == [1, 2]


def test_each_request_gets_the_outputs_that_it_asked_for(twin: ModuleType, tmp_path: Path) -> None:
    answers = started(twin, tmp_path).execute(
        [request([[1, 2]], [0], ("looked_up",)), request([[3, 4]], [1], ("doubled",))]
    )
    assert [set(answer.outputs) for answer in answers] == [{"looked_up"}, {"doubled"}]


def test_a_request_that_fails_in_the_network_takes_no_other_with_it(twin: ModuleType, tmp_path: Path) -> None:
    answers = started(twin, tmp_path).execute(
        [request([[1, 2]], [0]), request([[3, 4]], [99]), request([[5, 6]], [2])]  # the table has three rows
    )
    assert [answer.error is None for answer in answers] == [True, False, True]
    assert "99" in answers[1].error
    assert answers[2].outputs["looked_up"].tolist() == [30]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (FakeRequest(["doubled"], x=np.zeros((1, 2), np.uint8)), "input i: expected a tensor, got none"),
        (
            FakeRequest(["doubled"], x=np.zeros((1, 2), np.float32), i=np.zeros(1, np.int64)),
            "input x: expected uint8, got float32",
        ),
        (
            FakeRequest(["doubled"], x=np.zeros((1, 3), np.uint8), i=np.zeros(1, np.int64)),
            r"input x: expected shape ['n', 2], got [1, 3]",
        ),
        (
            FakeRequest(["doubled"], x=np.zeros(2, np.uint8), i=np.zeros(1, np.int64)),
            r"input x: expected shape ['n', 2], got [2]",
        ),
        (
            FakeRequest(["doubled"], x=np.zeros((2, 2), np.uint8), i=np.zeros(1, np.int64)),
            "expected inputs of one batch size",
        ),
    ],
)
def test_a_request_that_does_not_fit_is_answered_alone(
    twin: ModuleType, tmp_path: Path, bad: FakeRequest, says: str
) -> None:
    good = request([[1, 2]], [0])
    answers = started(twin, tmp_path).execute([good, bad, good])
    assert says in answers[1].error
    assert answers[0].error is None
    assert answers[2].outputs["doubled"].tolist() == [[2, 4]]


def accelerated(*names: str) -> dict[str, Any]:
    listed = [{"name": name} for name in names]
    return {"optimization": {"execution_accelerators": {"cpu_execution_accelerator": listed}}}


def test_a_config_or_the_environment_asks_for_openvino(twin: ModuleType) -> None:
    assert twin.accelerator_of(config(), {}) is None
    assert twin.accelerator_of(config(**accelerated("openvino")), {}) == "openvino"
    assert twin.accelerator_of(config(), {"LUNGSTREAMS_ACCELERATOR": "openvino"}) == "openvino"
    with pytest.raises(ValueError, match="expected the CPU accelerator openvino, got 'fpga'"):
        twin.accelerator_of(config(**accelerated("fpga")), {})


@pytest.mark.parametrize(
    "asked", [request([[1, 2]], [1]), request([[3, 4], [5, 6]], [0, 2], ("doubled",)), request([[1, 2, 3]], [0])]
)
def test_openvino_answers_as_onnx_runtime_does(twin: ModuleType, tmp_path: Path, asked: FakeRequest) -> None:
    plain = started(twin, tmp_path / "plain")
    fast = started(twin, tmp_path / "fast", **accelerated("openvino"))
    expected, got = (model.execute([asked])[0] for model in (plain, fast))
    assert got.outputs.keys() == expected.outputs.keys()
    for name, array in expected.outputs.items():
        np.testing.assert_array_equal(got.outputs[name], array)
    assert (got.error is None) == (expected.error is None)


def test_an_answer_of_openvino_outlives_the_next_run(twin: ModuleType, tmp_path: Path) -> None:
    fast = started(twin, tmp_path, **accelerated("openvino"))
    first = fast.execute([request([[1, 2]], [0])])[0].outputs["doubled"]
    kept = first.copy()
    fast.execute([request([[7, 8]], [0])])
    np.testing.assert_array_equal(first, kept)


def test_every_request_of_a_batch_is_a_line_of_its_own(
    twin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "requests.jsonl"
    monkeypatch.setenv(REQUEST_LOG_VARIABLE, str(log))
    ids = [uuid.uuid4().hex for _ in range(3)]
    # The second fails at run time, and its words name the row that it asked for.
    batch = [request([[1, 2]], [0], id_=ids[0]), request([[3, 4]], [77], id_=ids[1])]
    batch.append(request([[5, 6], [7, 8]], [1, 2], id_=ids[2]))
    answers = started(twin, tmp_path).execute(batch)
    assert [bool(answer.error) for answer in answers] == [False, True, False]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["request_id"], line["items"]) for line in lines] == list(zip(ids, (1, 1, 2), strict=True))
    assert {(line["step"], line["version"], line["batch"]) for line in lines} == {("m", "1", 4)}
    assert lines[0]["outcome"] == lines[2]["outcome"] == "ok"
    assert lines[1]["outcome"] == "InvalidArgument"
    assert "77" in answers[1].error
    assert "77" not in json.dumps([line["outcome"] for line in lines])


def test_without_a_request_log_no_request_is_asked_for_its_id(
    twin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(REQUEST_LOG_VARIABLE, raising=False)
    monkeypatch.delattr(FakeRequest, "request_id")
    (answer,) = started(twin, tmp_path).execute([request([[1, 2]], [0])])
    assert answer.error is None
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_request_log_that_can_not_be_written_is_said_at_the_start(
    twin: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(REQUEST_LOG_VARIABLE, str(tmp_path / "nowhere" / "log"))
    with pytest.raises(FakeModelException, match="No such file or directory"):
        started(twin, tmp_path)
