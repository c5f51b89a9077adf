"""The configs and command lines for TensorRT, held against the pipeline and against what the backends read."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import onnx
import pytest

from serving import pipeline
from serving.pipeline import MAX_BATCH_SIZE, Step
from serving.repository import ensemble_config, model_config, parse_config
from serving.repository_checks import wiring_problems
from tests.train.tensorrt_toys import toy_network_in_float
from train.gating import add_gate
from train.tensorrt_configs import (
    MIN_SUBGRAPH_NODES,
    OPT_BATCH,
    EnginePrecision,
    accelerated_config,
    build_script,
    engine_config,
    engine_model,
    engine_path,
    gate_config,
    gated_steps,
    profile,
    render,
    trtexec_command,
)
from train.ungating import ungated

ACCELERATOR_PARAMETERS = {
    # Every key that src/onnxruntime.cc of triton-inference-server/onnxruntime_backend reads for "tensorrt"; it refuses
    # a model with any other.
    *("precision_mode", "max_workspace_size_bytes", "trt_max_partition_iterations", "trt_min_subgraph_size"),
    *("int8_calibration_table_name", "int8_use_native_calibration_table", "trt_dla_enable", "trt_dla_core"),
    *("trt_engine_cache_enable", "trt_engine_cache_path", "trt_engine_cache_prefix", "trt_dump_subgraphs"),
    *("trt_force_sequential_engine_build", "trt_context_memory_sharing_enable", "trt_layer_norm_fp32_fallback"),
    *("trt_timing_cache_enable", "trt_timing_cache_path", "trt_force_timing_cache", "trt_detailed_build_log"),
    *("trt_build_heuristics_enable", "trt_sparsity_enable", "trt_builder_optimization_level"),
    *("trt_auxiliary_streams", "trt_tactic_sources", "trt_extra_plugin_lib_paths", "trt_profile_min_shapes"),
    *("trt_profile_max_shapes", "trt_profile_opt_shapes", "trt_cuda_graph_enable", "trt_dump_ep_context_model"),
    *("trt_ep_context_file_path", "trt_ep_context_embed_mode"),
}

by_step = pytest.mark.parametrize("step", gated_steps(), ids=lambda step: step.model)
by_precision = pytest.mark.parametrize("precision", ["fp16", "int8"])


def reread(config: Any, folder: Path) -> Any:
    """A config after it was rendered and parsed as Triton does."""
    path = folder / "config.pbtxt"
    path.write_text(render(config), encoding="utf-8")
    parsed = parse_config(path)
    assert parsed == config
    return parsed


def wire(config: Any) -> list[Any]:
    return [list(config.input), list(config.output), config.max_batch_size]


def parameters(config: Any) -> dict[str, str]:
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    return dict(accelerator.parameters)


@by_precision
@by_step
def test_an_accelerated_step_keeps_its_wire_and_uses_known_parameters_alone(
    step: Step, precision: EnginePrecision, tmp_path: Path
) -> None:
    config = reread(accelerated_config(step, 3, precision), tmp_path)
    assert (config.name, config.backend) == (step.model, "onnxruntime")
    assert wire(config) == wire(model_config(step))
    assert set(parameters(config)) <= ACCELERATOR_PARAMETERS
    assert parameters(config)["precision_mode"] == precision.upper()
    assert [config.instance_group[0].kind, len(config.instance_group)] == [config.instance_group[0].KIND_GPU, 1]


def test_every_step_version_and_precision_has_an_engine_cache_of_its_own() -> None:
    paths = [
        parameters(accelerated_config(step, version, precision))["trt_engine_cache_path"]
        for step in gated_steps()
        for version in (1, 2)
        for precision in ("fp16", "int8")
    ]
    assert len(set(paths)) == len(paths) == 6 * 2 * 2
    # TensorRT's provider makes the last folder of a path, but not its parents.
    assert all(path.startswith("/engine_cache/") and path.count("/") == 2 for path in paths)
    assert all(
        parameters(accelerated_config(step, 1, "fp16"))["trt_engine_cache_enable"] == "1" for step in gated_steps()
    )


@by_step
def test_the_profile_is_that_of_the_tensor_that_the_gate_hands_to_the_network(step: Step) -> None:
    gated = add_gate(toy_network_in_float(step), step)
    branch = next(node for node in gated.graph.node if node.op_type == "If")
    then = next(attribute.g for attribute in branch.attribute if attribute.name == "then_branch")
    handed = then.node[0].output[0]
    options = parameters(accelerated_config(step, 1, "fp16"))
    for which, batch in (("min", 1), ("opt", OPT_BATCH), ("max", model_config(step).max_batch_size)):
        assert options[f"trt_profile_{which}_shapes"] == f"{handed}:{batch}x512x512x3"
    # The option's own format parts a name from its dims by a colon, and inputs by commas.
    assert not set(":,") & set(handed)


def test_no_part_of_a_gate_is_large_enough_for_tensorrt() -> None:
    for step in gated_steps():
        gated = add_gate(toy_network_in_float(step), step)
        assert len(gated.graph.node) < MIN_SUBGRAPH_NODES
        assert parameters(accelerated_config(step, 1, "fp16"))["trt_min_subgraph_size"] == str(MIN_SUBGRAPH_NODES)


@by_step
def test_a_gate_in_front_of_an_engine_keeps_the_steps_wire(step: Step, tmp_path: Path) -> None:
    config = reread(gate_config(step), tmp_path)
    assert (config.name, config.backend) == (step.model, "python")
    assert wire(config) == wire(model_config(step))
    assert config.parameters["engine"].string_value == engine_model(step) not in pipeline.MODEL_NAMES
    assert not config.model_warmup


@by_step
def test_an_engine_takes_the_image_and_gives_the_steps_own_answers(step: Step, tmp_path: Path) -> None:
    config = reread(engine_config(step), tmp_path)
    assert (config.name, config.platform, config.backend) == (engine_model(step), "tensorrt_plan", "tensorrt")
    of_step = model_config(step)
    assert list(config.input) == [tensor for tensor in of_step.input if tensor.name == pipeline.IMAGE.name]
    assert [output.name for output in config.output] == [tensor.name for tensor in step.answers]
    assert all(output in of_step.output for output in config.output)
    assert config.max_batch_size == of_step.max_batch_size
    assert [set(warmup.inputs) for warmup in config.model_warmup] == [{pipeline.IMAGE.name}]
    assert config.instance_group[0].kind == config.instance_group[0].KIND_GPU


@pytest.mark.parametrize("of_step", [gate_config, lambda step: accelerated_config(step, 1, "int8")])
def test_the_ensemble_is_wired_as_before(of_step: Any) -> None:
    models = {step.model: of_step(step) for step in gated_steps()}
    models[pipeline.PREPROCESS.model] = model_config(pipeline.PREPROCESS)
    assert list(wiring_problems(ensemble_config(), models)) == []


def test_a_profile_reaches_from_one_case_to_the_largest_batch() -> None:
    assert profile("image") == {
        "min": "image:1x512x512x3",
        "opt": "image:4x512x512x3",
        "max": f"image:{MAX_BATCH_SIZE}x512x512x3",
    }


@pytest.mark.parametrize(("precision", "flags"), [("fp16", ["--fp16"]), ("int8", ["--int8", "--fp16"])])
def test_the_command_line_of_an_engine(precision: EnginePrecision, flags: list[str]) -> None:
    assert list(trtexec_command(pipeline.step("segment_all"), 2, precision)) == [
        "trtexec",
        "--onnx=networks/segment_all.onnx",
        "--saveEngine=plan_repository/segment_all_engine/2/model.plan",
        "--minShapes=image:1x512x512x3",
        "--optShapes=image:4x512x512x3",
        "--maxShapes=image:8x512x512x3",
        *flags,
        "--memPoolSize=workspace:1024",
        "--timingCacheFile=timing.cache",
        "--skipInference",
    ]
    assert engine_path(pipeline.step("segment_all"), 2) == "plan_repository/segment_all_engine/2/model.plan"


def test_the_script_runs_each_command_in_its_own_folder_and_stops_at_the_first_that_fails(tmp_path: Path) -> None:
    (tmp_path / "a folder").mkdir()
    script = tmp_path / "a folder" / "build_engines.sh"
    script.write_text(build_script([("touch", "first one"), ("false",), ("touch", "never")]), encoding="utf-8")
    run = subprocess.run(["bash", script], cwd="/", capture_output=True, check=False)
    assert run.returncode == 1
    assert {path.name for path in script.parent.iterdir()} == {script.name, "first one"}


def test_the_smallest_real_network_is_large_enough_for_tensorrt() -> None:
    from serving.repository import DEFAULT_REPOSITORY, versions
    from train.tensorrt_int8 import in_float

    found = [
        DEFAULT_REPOSITORY / step.model / str(version) / "model.onnx"
        for step in gated_steps()
        for version in versions(DEFAULT_REPOSITORY / step.model)[-1:]
    ]
    if not found:
        pytest.skip("needs the published models")
    assert min(len(in_float(ungated(onnx.load(path))).graph.node) for path in found) > MIN_SUBGRAPH_NODES
