"""`serving.pipeline` as Triton's model repository: render its configs, write them, hold a folder against them.

Configs are `ModelConfig` messages before they are text, so a field that Triton does not have cannot be rendered.
The same folder is served by the embedded server and by NVIDIA's container.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from google.protobuf import text_format  # type: ignore[import-untyped, unused-ignore]
from tritonclient.grpc import model_config_pb2 as pb

from serving import pipeline
from serving.errors import RepositoryError
from serving.pipeline import Step, Tensor

REPOSITORY_VARIABLE: Final = "LUNGSTREAMS_REPOSITORY"
DEFAULT_REPOSITORY: Final = Path(
    os.environ.get(REPOSITORY_VARIABLE) or Path(__file__).resolve().parents[1] / "model_repository"
)
"""The repository beside the packages, or the one that the environment names."""

CONFIG_NAME: Final = "config.pbtxt"
ONNX_NAME: Final = "model.onnx"
PYTHON_NAME: Final = "model.py"
PROVENANCE_NAME: Final = "provenance.json"
REFERENCE_NAME: Final = "reference.npz"
"""What a network answered drawn scans where it was exported: `serving.candidates`."""
HEADER: Final = "# Written by `lungstreams repository write` from serving/pipeline.py. Change that, not this.\n"

MAX_QUEUE_SIZE: Final = 64
"""Requests that may wait for `preprocess`; the next is refused at once rather than answered too late."""

MAX_INNER_QUEUE_SIZE: Final = 128
"""Requests that may wait for each of the steps behind it that run alone. They take 1 MiB each, and some seconds."""

QUEUE_TIMEOUT_US: Final = 30_000_000
"""Longest wait in a queue, in microseconds: the client's own default timeout. Nobody waits for the rest."""

PREPROCESS_INSTANCES: Final = 2

_TYPES: Final = {"BYTES": pb.TYPE_STRING, "UINT8": pb.TYPE_UINT8, "FP32": pb.TYPE_FP32}


def model_config(step: Step) -> Any:
    """The `ModelConfig` message of a step."""
    config = pb.ModelConfig(name=step.model, backend=step.backend, max_batch_size=pipeline.MAX_BATCH_SIZE)
    config.input.extend(_input(tensor) for tensor in step.inputs)
    config.output.extend(_output(tensor) for tensor in step.outputs)
    config.version_policy.latest.num_versions = 1
    config.dynamic_batching.SetInParent()
    if _runs_alone(step):
        # A step that refuses or times out while its siblings run crashes Triton: see docs/decisions.md.
        policy = config.dynamic_batching.default_queue_policy
        policy.timeout_action = pb.ModelQueuePolicy.REJECT
        policy.default_timeout_microseconds = QUEUE_TIMEOUT_US
        policy.max_queue_size = MAX_QUEUE_SIZE if step == pipeline.PREPROCESS else MAX_INNER_QUEUE_SIZE
    if step.backend == "python":
        config.instance_group.add(count=PREPROCESS_INSTANCES, kind=pb.ModelInstanceGroup.KIND_CPU)
    else:
        config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)
        config.model_warmup.append(_warmup(step))
    return config


def _runs_alone(step: Step) -> bool:
    """Whether no other step of the ensemble can run for the same request at the same time."""
    return sum(other.stage == step.stage for other in pipeline.STEPS) == 1


def ensemble_config() -> Any:
    """The `ModelConfig` message of the ensemble."""
    config = pb.ModelConfig(name=pipeline.ENSEMBLE_NAME, platform="ensemble", max_batch_size=pipeline.MAX_BATCH_SIZE)
    config.input.extend(_input(tensor) for tensor in pipeline.ENSEMBLE_INPUTS)
    config.output.extend(_output(tensor) for tensor in pipeline.ENSEMBLE_OUTPUTS)
    config.version_policy.latest.num_versions = 1
    for step in pipeline.STEPS:
        config.ensemble_scheduling.step.add(
            model_name=step.model, model_version=-1, input_map=step.input_map, output_map=step.output_map
        )
    return config


def _input(tensor: Tensor) -> Any:
    return pb.ModelInput(name=tensor.name, data_type=_TYPES[tensor.dtype], dims=tensor.shape)


def _output(tensor: Tensor) -> Any:
    return pb.ModelOutput(name=tensor.name, data_type=_TYPES[tensor.dtype], dims=tensor.shape)


def _warmup(step: Step) -> Any:
    # Zeros open every gate, as thresholds of 0 do, so the network itself is warmed up.
    warmup = pb.ModelWarmup(name="zeros", batch_size=1)
    for tensor in step.inputs:
        warmup.inputs[tensor.name].CopyFrom(
            pb.ModelWarmup.Input(data_type=_TYPES[tensor.dtype], dims=tensor.shape, zero_data=True)
        )
    return warmup


def render_config(step: Step) -> str:
    """The ``config.pbtxt`` of a step."""
    return _render(model_config(step))


def render_ensemble() -> str:
    """The ``config.pbtxt`` of the ensemble."""
    return _render(ensemble_config())


def render_all() -> dict[str, str]:
    """Model name -> its ``config.pbtxt``, for every folder of the repository."""
    return {
        **{step.model: render_config(step) for step in pipeline.STEPS},
        pipeline.ENSEMBLE_NAME: render_ensemble(),
    }


def _render(config: Any) -> str:
    return f"{HEADER}{text_format.MessageToString(config, use_short_repeated_primitives=True)}"


def parse_config(path: Path) -> Any:
    """The `ModelConfig` message of a ``config.pbtxt``.

    Raises:
        RepositoryError: If the file can not be read, or is no model config.
    """
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), pb.ModelConfig())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise RepositoryError(f"expected a model config at {path}, got: {error}") from error


def write_configs(repository: Path) -> None:
    """Write the config of every model, and the ensemble's version folder, which is empty but must be there.

    Args:
        repository: The model repository; folders that are missing are made.

    Raises:
        RepositoryError: If it can not be written.
    """
    try:
        for model, text in render_all().items():
            folder = repository / model
            folder.mkdir(parents=True, exist_ok=True)
            (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
        version = repository / pipeline.ENSEMBLE_NAME / "1"
        version.mkdir(exist_ok=True)
        (version / ".gitkeep").touch()  # git keeps no empty folder
    except OSError as error:
        raise RepositoryError(f"expected a folder that can be written at {repository}, got: {error}") from error


def versions(model_folder: Path) -> list[int]:
    """The versions of a model that Triton sees, in ascending order; the last is the one that is served."""
    if not model_folder.is_dir():
        return []
    names = (path.name for path in model_folder.iterdir() if path.is_dir())
    # As Triton reads them: a leading zero makes a folder that is passed over.
    return sorted(int(name) for name in names if name.isdecimal() and not name.startswith("0"))


def check(repository: Path) -> list[str]:
    """Hold a model repository against the code.

    Args:
        repository: The model repository.

    Returns:
        One line for each problem, in the order of the pipeline; empty if there is none.
    """
    # Not at the top: the checks read this module, and ONNX Runtime takes a while to import.
    from serving.repository_checks import problems

    return list(problems(repository))


def listed(names: Iterable[str]) -> str:
    """Names for an error message."""
    return ", ".join(sorted(names)) or "nothing"
