"""Triton's backend ``onnxruntime``, written in Python: the twin of NVIDIA's C++ one.

The embedded server's wheel has no C++ ONNX Runtime backend; this file takes its place, so that a stock
``backend: "onnxruntime"`` config loads in both servers. It reads the same file (`<version>/model.onnx`) and the
same parameters as ``src/onnxruntime.cc`` of triton-inference-server/onnxruntime_backend.

It runs inside Triton's Python stub, one process per model instance, from a copy of this folder alone. So it imports
nothing of ours but what lies beside it: ``request_log``, ``hanging``, and ``openvino_session`` where a model asks for
OpenVINO.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

Array = npt.NDArray[Any]
Feeds = dict[str, Array]

THREADS_VARIABLE: Final = "LUNGSTREAMS_THREADS"
"""Threads within an operator, for models whose config does not say. `ServerConfig.threads` sets it."""

THREADS_BY_MODEL_VARIABLE: Final = "LUNGSTREAMS_THREADS_BY_MODEL"
"""The same for single models, as in ``segment_all=1,segment_ground_glass=1``; goes before `THREADS_VARIABLE`."""

ACCELERATOR_VARIABLE: Final = "LUNGSTREAMS_ACCELERATOR"
"""Accelerator of models whose config names none. `ServerConfig.accelerator` sets it."""

LIMITS_SPINNING_SINCE: Final = (1, 32)
"""The release of ONNX Runtime in which ``spin_duration_us`` was seen to work."""

SPIN_US: Final = 200
PRECISE: Final = {"session.x64quantprecision": "1"}
"""Of `serving.arithmetic`: without it, int8 saturates on processors that have no VNNI."""

OPENVINO: Final = "openvino"
DEFAULT_FILE_NAME: Final = "model.onnx"

HONOURED_PARAMETERS: Final = frozenset(
    {
        "execution_mode",
        "intra_op_thread_count",
        "inter_op_thread_count",
        "enable_mem_arena",
        "enable_mem_pattern",
        "session.use_device_allocator_for_initializers",
        "memory.enable_memory_arena_shrinkage",
    }
)
IGNORED_PARAMETERS: Final = frozenset(
    {
        # A session cannot be shared between processes, and there is no CUDA here.
        "share_session_between_instances",
        "cudnn_conv_algo_search",
        "gpu_mem_limit",
        "arena_extend_strategy",
        "do_copy_in_default_stream",
    }
)
KNOWN_PARAMETERS: Final = HONOURED_PARAMETERS | IGNORED_PARAMETERS
"""Every key of ``parameters`` that the C++ backend reads."""

# `optimization { graph { level } }`. Counter-intuitive, but so it is in ModelState::ModelState: unset (0) is
# everything enabled and 2 is everything disabled.
_GRAPH_LEVELS: Final[Mapping[int, Any]] = {
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_NUMPY_TYPES: Final[Mapping[str, type[np.generic]]] = {
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}


class BadRequest(Exception):
    """A request whose tensors do not fit the model."""


def parameters_of(config: Mapping[str, Any]) -> dict[str, str]:
    """The ``parameters`` of a model config (as JSON), as plain strings."""
    return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}


def _integer(parameters: Mapping[str, str], key: str) -> int:
    text = parameters.get(key, "0")
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"parameter {key}: expected an integer, got {text!r}") from None


def _boolean(parameters: Mapping[str, str], key: str) -> bool:
    text = parameters.get(key, "true").lower()
    if text not in {"true", "1", "false", "0"}:
        raise ValueError(f"parameter {key}: expected true, 1, false or 0, got {text!r}")
    return text in {"true", "1"}


def default_threads(environment: Mapping[str, str], model: str = "") -> int:
    """Threads within an operator: of the environment, else one for each core that this process may use."""
    by_model = dict(
        pair.split("=", 1) for pair in environment.get(THREADS_BY_MODEL_VARIABLE, "").split(",") if "=" in pair
    )
    for text in (by_model.get(model, ""), environment.get(THREADS_VARIABLE, "")):
        if text.isdigit() and int(text) > 0:
            return int(text)
    return len(os.sched_getaffinity(0))


def session_options(config: Mapping[str, Any], environment: Mapping[str, str]) -> ort.SessionOptions:
    """What the C++ backend would set for this config, little spinning, and int8 without saturation.

    Args:
        config: The model's config as Triton hands it over, decoded from JSON.
        environment: Where `THREADS_VARIABLE` is looked up.

    Returns:
        Options for an `onnxruntime.InferenceSession`.

    Raises:
        ValueError: If a parameter that the C++ backend would refuse has such a value.
    """
    parameters = parameters_of(config)
    options = ort.SessionOptions()
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = _GRAPH_LEVELS.get(int(level), ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    execution_mode = _integer(parameters, "execution_mode")
    if execution_mode not in {0, 1}:
        raise ValueError(f"parameter execution_mode: expected 0 or 1, got {execution_mode}")
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if execution_mode else ort.ExecutionMode.ORT_SEQUENTIAL
    intra_op = _integer(parameters, "intra_op_thread_count")
    options.intra_op_num_threads = intra_op if intra_op > 0 else default_threads(environment, config.get("name", ""))
    inter_op = _integer(parameters, "inter_op_thread_count")
    if inter_op > 0:
        options.inter_op_num_threads = inter_op
    options.enable_cpu_mem_arena = _boolean(parameters, "enable_mem_arena")
    options.enable_mem_pattern = _boolean(parameters, "enable_mem_pattern")
    for key in ("session.use_device_allocator_for_initializers",):
        if key in parameters:
            options.add_session_config_entry(key, parameters[key])
    for key, value in {**spinning(ort.__version__), **PRECISE}.items():
        options.add_session_config_entry(key, value)
    return options


def accelerator_of(config: Mapping[str, Any], environment: Mapping[str, str]) -> str | None:
    """``openvino`` or None: of ``execution_accelerators { cpu_execution_accelerator }``, else of the environment.

    Raises:
        ValueError: If it is another one, as the C++ backend has it.
    """
    listed = config.get("optimization", {}).get("execution_accelerators", {}).get("cpu_execution_accelerator", [])
    names = [str(entry.get("name", "")) for entry in listed] or [environment.get(ACCELERATOR_VARIABLE, "")]
    for name in names:
        if name not in {OPENVINO, ""}:
            raise ValueError(f"expected the CPU accelerator {OPENVINO}, got {name!r}")
    return names[0] or None


def open_session(path: Path, config: Mapping[str, Any], environment: Mapping[str, str]) -> Any:
    """A network, ready to run: ONNX Runtime's, or OpenVINO's behind the same methods.

    Args:
        path: The ONNX file.
        config: The model's config, decoded from JSON.
        environment: Where `THREADS_VARIABLE` and `ACCELERATOR_VARIABLE` are looked up.

    Raises:
        ValueError: If a parameter or an accelerator is none that there is.
        ImportError: If OpenVINO is asked for and not installed.
    """
    options = session_options(config, environment)
    if accelerator_of(config, environment) is None:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return _beside("openvino_session").OpenVinoSession(path, options.intra_op_num_threads)


def _beside(name: str) -> ModuleType:
    # By its path: the stub does not promise that this folder is where Python looks.
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(f"expected {name}.py beside the backend, got none")
    module = importlib.util.module_from_spec(spec)
    # Before it runs, as `import` does: dataclasses look their module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def spinning(version: str) -> dict[str, str]:
    """Session entries: how long a thread that waits for its next operator stays awake.

    Every instance is a process of its own, and threads that spin for long take the cores from the others: with five
    models on two cores a case took 1.29 s so, and 0.73-0.95 s without. But a thread that sleeps at once wakes late: an
    X-ray on an idle machine took 27 ms so, and takes 23 ms.

    Args:
        version: ONNX Runtime's. One that can not limit the time does not spin at all.
    """
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < LIMITS_SPINNING_SINCE:
        return {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
    return {
        "session.intra_op.allow_spinning": "1",
        "session.intra_op.spin_duration_us": str(SPIN_US),
        "session.force_spinning_stop": "1",
        "session.inter_op.allow_spinning": "0",
    }


def run_options(config: Mapping[str, Any]) -> ort.RunOptions:
    """The run options that the C++ backend would set for this config."""
    options = ort.RunOptions()
    shrinkage = parameters_of(config).get("memory.enable_memory_arena_shrinkage")
    if shrinkage is not None:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", shrinkage)
    return options


def model_path(repository: str, version: str, config: Mapping[str, Any]) -> Path:
    """The ONNX file of a version: `default_model_filename`, or its ``model.onnx`` if that is a folder."""
    path = Path(repository) / version / (config.get("default_model_filename") or DEFAULT_FILE_NAME)
    if path.is_dir():
        path /= DEFAULT_FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"expected an ONNX model at {path}, got no such file")
    return path


class Network:
    """An ONNX Runtime session that answers several requests in one run.

    Args:
        session: From `open_session`; the first axis of its inputs and outputs is the batch if `batching`.
        batching: Whether requests may be concatenated along axis 0.
        options: Options of each run.
    """

    def __init__(self, session: Any, *, batching: bool, options: ort.RunOptions | None = None) -> None:
        self._session = session
        self._batching = batching
        self._options = options
        self._inputs = {node.name: node for node in session.get_inputs()}
        self.input_names = tuple(self._inputs)
        self.output_names = tuple(node.name for node in session.get_outputs())

    def check(self, feeds: Feeds) -> None:
        """Hold the tensors of one request against the graph.

        Raises:
            BadRequest: If one is missing, or has another dtype, rank or size, or their batches differ.
        """
        for name, node in self._inputs.items():
            if name not in feeds:
                raise BadRequest(f"input {name}: expected a tensor, got none")
            array, dtype = feeds[name], _NUMPY_TYPES.get(node.type)
            if dtype is not None and array.dtype != dtype:
                raise BadRequest(f"input {name}: expected {np.dtype(dtype).name}, got {array.dtype.name}")
            fits = len(node.shape) == array.ndim and all(
                not isinstance(want, int) or want == got for want, got in zip(node.shape, array.shape, strict=True)
            )
            if not fits:
                raise BadRequest(f"input {name}: expected shape {node.shape}, got {list(array.shape)}")
        if self._batching and len({array.shape[0] for array in feeds.values()}) > 1:
            sizes = {name: array.shape[0] for name, array in feeds.items()}
            raise BadRequest(f"expected inputs of one batch size, got {sizes}")

    def run(self, feeds: Feeds, outputs: Sequence[str]) -> Feeds:
        """One run of the graph."""
        names = [name for name in self.output_names if name in outputs]
        results = self._session.run(names, {name: feeds[name] for name in self.input_names}, self._options)
        return dict(zip(names, results, strict=True))

    def run_many(self, requests: Sequence[Feeds], outputs: Sequence[Sequence[str]]) -> list[Feeds | Exception]:
        """Answer each request, in one run where that is possible.

        Args:
            requests: The inputs of each request.
            outputs: The names of the outputs that each wants.

        Returns:
            For each request its outputs, or why there are none. One that fails takes no other with it.
        """
        answers: list[Feeds | Exception] = [BadRequest("not run") for _ in requests]
        good: list[int] = []
        for index, feeds in enumerate(requests):
            try:
                self.check(feeds)
                good.append(index)
            except BadRequest as error:
                answers[index] = error
        if self._batching and len(good) > 1:
            try:
                together = self._run_together([requests[i] for i in good], [outputs[i] for i in good])
            except Exception:
                pass  # Whose fault it was, a run of each alone will tell.
            else:
                for index, answer in zip(good, together, strict=True):
                    answers[index] = answer
                return answers
        for index in good:
            try:
                answers[index] = self.run(requests[index], outputs[index])
            except Exception as error:
                answers[index] = error
        return answers

    def _run_together(self, requests: Sequence[Feeds], outputs: Sequence[Sequence[str]]) -> list[Feeds]:
        feeds = {name: np.concatenate([request[name] for request in requests]) for name in self.input_names}
        results = self.run(feeds, sorted({name for names in outputs for name in names}))
        sizes = [request[self.input_names[0]].shape[0] for request in requests]
        ends = np.cumsum(sizes)
        return [
            {name: results[name][end - size : end] for name in names if name in results}
            for names, size, end in zip(outputs, sizes, ends, strict=True)
        ]


class TritonPythonModel:
    """What the Python stub looks for: one instance of one ONNX model."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Nothing to complete: our configs state every tensor, which `serving.repository.check` proves."""
        return auto_complete_model_config

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the model's file.

        Args:
            args: Of the stub; ``model_repository`` is the model's own folder, also for a Python-based backend.
        """
        config = json.loads(args["model_config"])
        for key in sorted(set(parameters_of(config)) - KNOWN_PARAMETERS):
            pb_utils.Logger.log_warn(f"{args['model_name']}: parameter {key} is not one of the C++ backend's; ignored")
        try:
            path = model_path(args["model_repository"], args["model_version"], config)
            session = open_session(path, config, os.environ)
            self._request_log = _beside("request_log")
            self._log = self._request_log.StepLog.of_stub(args, os.environ, pb_utils.Logger.log_warn)
            self._hanging = _beside("hanging")
            self._hung_s = self._hanging.hung_s(os.environ)
        except Exception as error:
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        pb_utils.Logger.log_info(f"{args['model_name']}: computed by {type(session).__name__}")
        self._network = Network(session, batching=int(config.get("max_batch_size", 0)) > 0, options=run_options(config))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer the requests of a dynamic batch, each by its own response."""
        with self._hanging.no_longer_than(self._hung_s):
            return self._answer(requests)

    def _answer(self, requests: Sequence[Any]) -> list[Any]:
        started_s = time.perf_counter()
        feeds = [{tensor.name(): tensor.as_numpy() for tensor in request.inputs()} for request in requests]
        answers = self._network.run_many(feeds, [list(request.requested_output_names()) for request in requests])
        if self._log is not None:
            done = [self._done(*each) for each in zip(requests, feeds, answers, strict=True)]
            self._log.write(done, 1e3 * (time.perf_counter() - started_s))
        return [_response(answer) for answer in answers]

    def _done(self, request: Any, feeds: Feeds, answer: Feeds | Exception) -> Any:
        items = max((array.shape[0] for array in feeds.values() if array.ndim), default=0)
        if isinstance(answer, Exception):
            return self._request_log.Done.failed(request.request_id(), items, answer)
        return self._request_log.Done(request.request_id(), items)

    def finalize(self) -> None:
        """Let the session go."""
        del self._network


def _response(answer: Feeds | Exception) -> Any:
    if isinstance(answer, Exception):
        return pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(str(answer)))
    return pb_utils.InferenceResponse(
        output_tensors=[pb_utils.Tensor(name, np.ascontiguousarray(array)) for name, array in answer.items()]
    )
