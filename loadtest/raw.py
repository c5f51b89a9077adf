"""The same pipeline without Triton: the same graphs, one after the other in this process.

What the ensemble takes beyond this is the price of serving: gRPC, the scheduler, copies between processes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from loadtest.cases import LoadCase
from loadtest.wire import Answer
from serving.arithmetic import exact
from serving.errors import RepositoryError
from serving.pipeline import GATES, IMAGE, PREPROCESS, REPORT_OUTPUTS, STEPS, Step, Tensor
from serving.preprocessing import prepare
from serving.repository import ONNX_NAME, versions
from serving.wire import models_behind

NETWORKS: Final = tuple(step for step in STEPS if step.backend == "onnxruntime")


_NO_SPINNING: Final = {"session.intra_op.allow_spinning": "0", "session.inter_op.allow_spinning": "0"}
_BRIEF_SPINNING: Final = {
    "session.intra_op.allow_spinning": "1",
    "session.intra_op.spin_duration_us": "200",
    "session.force_spinning_stop": "1",
    "session.inter_op.allow_spinning": "0",
}
SPINNING: Final = _BRIEF_SPINNING if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 32) else _NO_SPINNING
"""As the server's backend has it, which can not be imported outside of Triton."""


def served_version(repository: Path, model: str) -> int:
    """The version that Triton serves of a model.

    Raises:
        RepositoryError: If there is none.
    """
    there = versions(repository / model)
    if not there:
        raise RepositoryError(f"expected a version folder in {repository / model}, got none")
    return there[-1]


class RawPipeline:
    """The steps of `serving.pipeline`, run by hand.

    Args:
        repository: The model repository.
        parameters: By model, the `parameters` of its config, as the server gives them.

    Raises:
        RepositoryError: If a model has no version.
    """

    def __init__(self, repository: Path, parameters: Mapping[str, Mapping[str, str]]) -> None:
        self._sessions = {
            step.model: ort.InferenceSession(
                repository / step.model / str(served_version(repository, step.model)) / ONNX_NAME,
                session_options(parameters.get(step.model, {})),
                providers=["CPUExecutionProvider"],
            )
            for step in NETWORKS
        }

    def run(
        self, case: LoadCase, scan: bytes, outputs: Sequence[Tensor] = REPORT_OUTPUTS
    ) -> tuple[Answer, dict[str, float]]:
        """Runs on one scan all steps that make `outputs`.

        Returns:
            These outputs, and each step's time in milliseconds.
        """
        return self.run_batch(case, [scan], outputs)

    def run_batch(
        self, case: LoadCase, scans: Sequence[bytes], outputs: Sequence[Tensor] = REPORT_OUTPUTS
    ) -> tuple[Answer, dict[str, float]]:
        """The same for several scans, each network on all of them at once.

        Returns:
            The outputs with a row for each scan, and each step's time in milliseconds.
        """
        asked = models_behind(outputs)
        started = time.perf_counter()
        prepared = [prepare(scan, case.modality, list(case.thresholds.values())) for scan in scans]
        tensors: dict[str, np.ndarray[Any, Any]] = {
            tensor.name: np.stack(rows)
            for tensor, rows in zip((IMAGE, GATES), zip(*prepared, strict=True), strict=True)
        }
        times = {PREPROCESS.model: (time.perf_counter() - started) * 1000}
        for step in NETWORKS:
            if step.model not in asked:
                continue
            started = time.perf_counter()
            tensors |= self._run_step(step, tensors)
            times[step.model] = (time.perf_counter() - started) * 1000
        return {tensor.name: tensors[tensor.name] for tensor in outputs}, times

    def _run_step(self, step: Step, tensors: Answer) -> dict[str, np.ndarray[Any, Any]]:
        feeds = {name: tensors[source] for name, source in step.input_map.items()}
        outputs = self._sessions[step.model].run(list(step.output_map), feeds)
        return dict(zip(step.output_map.values(), outputs, strict=True))


def served_parameters(client: Any) -> dict[str, dict[str, str]]:
    """By network, the `parameters` of its config as a server gives them.

    Args:
        client: From `loadtest.wire.connect`.
    """
    configs = {step.model: client.get_model_config(step.model).config for step in NETWORKS}
    return {
        model: {key: value.string_value for key, value in config.parameters.items()}
        for model, config in configs.items()
    }


def session_options(parameters: Mapping[str, str]) -> Any:
    """The session settings that `serving.backends.onnxruntime` takes from a config.

    That module can be imported inside Triton's stub only; a test holds the two against each other.

    Args:
        parameters: Of the model's config. What it does not say is one thread for each usable core.

    Returns:
        An `onnxruntime.SessionOptions`.
    """
    options = exact(ort.SessionOptions())
    threads = int(parameters.get("intra_op_thread_count", 0))
    options.intra_op_num_threads = threads if threads > 0 else len(os.sched_getaffinity(0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    if parameters.get("execution_mode") == "1":
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    for key, value in SPINNING.items():
        options.add_session_config_entry(key, value)
    return options
