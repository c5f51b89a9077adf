"""Model repositories for TensorRT, and the commands that build its engines: what is rendered, as data.

Two ways, of which a deployment takes one. Both keep the ensemble and its wire as they are:

- *accelerated*: the step's ONNX graph with its gate, run by the onnxruntime backend with TensorRT as accelerator. ONNX
  Runtime leaves the gate to itself and builds an engine of the network inside.
- *plan*: the network alone as an engine of ``trtexec``, served as ``tensorrt_plan`` under the step's name with
  `ENGINE_SUFFIX`; under the step's name itself a gate in Python (`train.tensorrt_gate`), which calls it.
"""

from __future__ import annotations

import shlex
from typing import Any, Final, Literal

from google.protobuf import text_format  # type: ignore[import-untyped, unused-ignore]
from tritonclient.grpc import model_config_pb2 as pb

from serving import pipeline
from serving.pipeline import IMAGE, MAX_BATCH_SIZE, Step
from serving.repository import model_config
from train.gating import INNER

EnginePrecision = Literal["fp16", "int8"]

ENGINE_SUFFIX: Final = "_engine"
PLAN_NAME: Final = "model.plan"
PLAN_REPOSITORY: Final = "plan_repository"
ACCELERATED_REPOSITORY: Final = "accelerated_repository"
NETWORKS: Final = "networks"
ENGINE_CACHE: Final = "engine_cache"
"""Folder beside the repositories; in the container a mount at ``/engine_cache`` that Triton may write to."""
TIMING_CACHE: Final = "timing.cache"
HEADER: Final = "# Written by `lungstreams export --target tensorrt` from serving/pipeline.py. Change that, not this.\n"

OPT_BATCH: Final = MAX_BATCH_SIZE // 2
"""The batch that TensorRT times its kernels on: between a case alone and a full batch."""
WORKSPACE_MIB: Final = 1024
MIN_SUBGRAPH_NODES: Final = 20
"""Below the smallest network (35 nodes), above a whole gate (18): a piece of the gate on TensorRT would need a profile
for each of its own dynamic inputs."""

TRTEXEC_FOLDER: Final = "/usr/src/tensorrt/bin"
"""Where NVIDIA's Triton image has ``trtexec``, which is not on its PATH."""


def engine_model(step: Step) -> str:
    """Name of the model that serves a step's engine, as in ``segment_all_engine``."""
    return step.model + ENGINE_SUFFIX


def cache_folder(step: Step, version: int, precision: EnginePrecision) -> str:
    """Name of a step's own folder of cached engines.

    Its own: models of one architecture that share one have returned each other's results (onnxruntime#6455). By version
    and precision: ONNX Runtime does not notice that the weights behind a cached engine changed.
    """
    return f"{step.model}-{version}-{precision}"


def accelerated_config(step: Step, version: int, precision: EnginePrecision) -> Any:
    """The `ModelConfig` of a step whose gated graph ONNX Runtime runs with TensorRT.

    Each key is one that ``src/onnxruntime.cc`` of the onnxruntime backend reads; it refuses any other.
    """
    config = model_config(step)
    _on_gpu(config)
    folder = f"/{ENGINE_CACHE}/{cache_folder(step, version, precision)}"
    accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name="tensorrt")
    shapes = {f"trt_profile_{name}_shapes": shape for name, shape in profile(f"{INNER}{IMAGE.name}").items()}
    accelerator.parameters.update(
        {
            "precision_mode": precision.upper(),
            "max_workspace_size_bytes": str(WORKSPACE_MIB * 2**20),
            "trt_min_subgraph_size": str(MIN_SUBGRAPH_NODES),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": folder,
            "trt_engine_cache_prefix": step.model,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": folder,
            **shapes,
        }
    )
    return config


def gate_config(step: Step) -> Any:
    """The `ModelConfig` of the gate in front of an engine: the step's own wire."""
    config = model_config(step)
    config.backend = "python"
    config.parameters["engine"].string_value = engine_model(step)
    del config.instance_group[:]
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_CPU)
    # Warming it up would call an engine that may not be loaded yet; the engine warms itself up.
    config.ClearField("model_warmup")
    return config


def engine_config(step: Step) -> Any:
    """The `ModelConfig` of a step's engine: the image in, the step's `answers` out."""
    config = model_config(step)
    config.name, config.backend, config.platform = engine_model(step), "tensorrt", "tensorrt_plan"
    config.ClearField("dynamic_batching")  # The gate batches.
    _on_gpu(config)
    kept = [tensor for tensor in config.input if tensor.name == IMAGE.name]
    del config.input[:]
    config.input.extend(kept)
    answers = {tensor.name for tensor in step.answers}
    given = [tensor for tensor in config.output if tensor.name in answers]
    del config.output[:]
    config.output.extend(given)
    for warmup in config.model_warmup:
        for name in set(warmup.inputs) - {IMAGE.name}:
            del warmup.inputs[name]
    return config


def _on_gpu(config: Any) -> None:
    """No fall-back: a server without a GPU refuses to load it and says so."""
    del config.instance_group[:]
    config.instance_group.add(count=1, kind=pb.ModelInstanceGroup.KIND_GPU)


def render(config: Any) -> str:
    """A ``config.pbtxt``."""
    return f"{HEADER}{text_format.MessageToString(config, use_short_repeated_primitives=True)}"


def profile(name: str) -> dict[str, str]:
    """The optimisation profile of an image input: ``min``, ``opt`` and ``max`` -> the shape as TensorRT takes it.

    Args:
        name: The input's name.
    """
    dims = "x".join(str(size) for size in IMAGE.shape)
    batches = {"min": 1, "opt": OPT_BATCH, "max": MAX_BATCH_SIZE}
    return {which: f"{name}:{batch}x{dims}" for which, batch in batches.items()}


def network_path(step: Step) -> str:
    """A step's network for ``trtexec``, relative to the output folder."""
    return f"{NETWORKS}/{step.model}.onnx"


def engine_path(step: Step, version: int) -> str:
    """A step's engine, relative to the output folder."""
    return f"{PLAN_REPOSITORY}/{engine_model(step)}/{version}/{PLAN_NAME}"


def trtexec_command(step: Step, version: int, precision: EnginePrecision) -> tuple[str, ...]:
    """What builds a step's engine, to be run in the output folder.

    int8 is explicit: where the network says so by its QuantizeLinear nodes. What it leaves in float runs in fp16.
    """
    shapes = (f"--{which}Shapes={shape}" for which, shape in profile(IMAGE.name).items())
    return (
        "trtexec",
        f"--onnx={network_path(step)}",
        f"--saveEngine={engine_path(step, version)}",
        *shapes,
        *(("--int8",) if precision == "int8" else ()),
        "--fp16",
        f"--memPoolSize=workspace:{WORKSPACE_MIB}",
        f"--timingCacheFile={TIMING_CACHE}",
        "--skipInference",
    )


def build_script(commands: list[tuple[str, ...]]) -> str:
    """``build_engines.sh``: the commands, from wherever it is called."""
    lines = (
        "#!/usr/bin/env bash",
        "# For NVIDIA's container, of the release that serves, on the kind of GPU that serves. See docs/tensorrt.md.",
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")"',
        f'export PATH="$PATH:{TRTEXEC_FOLDER}"',
        *(shlex.join(command) for command in commands),
    )
    return "\n".join(lines) + "\n"


def gated_steps() -> tuple[Step, ...]:
    """The steps that have a network."""
    return tuple(step for step in pipeline.STEPS if step.gate is not None)
