"""Rendered configs, and what `check` finds wrong with a folder that is not ours any more."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2 as pb

from serving import pipeline, repository
from serving.errors import RepositoryError
from serving.repository_checks import label_order, wiring_problems
from tests.toy_models import QUADRANTS, means_network
from train.provenance import label_order as trained_label_order


@pytest.fixture
def folder(toy_repository: Path, tmp_path: Path) -> Path:
    """A copy of the toy repository, to be broken."""
    return Path(shutil.copytree(toy_repository, tmp_path / "model_repository"))


def parsed(text: str) -> pb.ModelConfig:
    return text_format.Parse(text, pb.ModelConfig())


def test_the_published_repository_fits_the_code() -> None:
    assert repository.check(repository.DEFAULT_REPOSITORY) == []


def test_the_toy_repository_fits_the_code(toy_repository: Path) -> None:
    assert repository.check(toy_repository) == []


@pytest.mark.parametrize("model", pipeline.MODEL_NAMES)
def test_the_configs_in_the_repository_are_the_rendered_ones(model: str) -> None:
    text = (repository.DEFAULT_REPOSITORY / model / repository.CONFIG_NAME).read_text(encoding="utf-8")
    assert text == repository.render_all()[model]


def test_rendering_does_not_depend_on_the_hash_seed() -> None:
    code = "from serving.repository import render_all; print(render_all())"
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True, text=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1


def test_a_config_says_who_wrote_it_and_reads_back() -> None:
    for text in repository.render_all().values():
        assert text.startswith("# Written by `lungstreams repository write`")
    for step in pipeline.STEPS:
        assert parsed(repository.render_config(step)) == repository.model_config(step)


@pytest.mark.parametrize("step", pipeline.STEPS[:3], ids=lambda step: step.model)
def test_the_queues_of_steps_that_run_alone_are_limited_and_refuse(step: pipeline.Step) -> None:
    policy = parsed(repository.render_config(step)).dynamic_batching.default_queue_policy
    is_door = step == pipeline.PREPROCESS
    assert policy.max_queue_size == (repository.MAX_QUEUE_SIZE if is_door else repository.MAX_INNER_QUEUE_SIZE)
    assert policy.default_timeout_microseconds == repository.QUEUE_TIMEOUT_US
    assert policy.timeout_action == pb.ModelQueuePolicy.REJECT


@pytest.mark.parametrize("step", pipeline.SEGMENTATION, ids=lambda step: step.model)
def test_no_step_that_runs_beside_others_refuses_since_that_crashes_triton(step: pipeline.Step) -> None:
    config = parsed(repository.render_config(step))
    assert config.HasField("dynamic_batching")
    assert not config.dynamic_batching.HasField("default_queue_policy")


def test_networks_run_where_the_server_has_a_device_and_preprocessing_on_the_cpu() -> None:
    kinds = {step.model: repository.model_config(step).instance_group[0].kind for step in pipeline.STEPS}
    assert kinds.pop("preprocess") == pb.ModelInstanceGroup.KIND_CPU
    assert set(kinds.values()) == {pb.ModelInstanceGroup.KIND_AUTO}


def test_the_ensemble_has_no_queue_of_its_own_and_no_cache_anywhere() -> None:
    ensemble = parsed(repository.render_ensemble())
    assert not ensemble.HasField("dynamic_batching")
    assert not any(parsed(text).response_cache.enable for text in repository.render_all().values())


def test_versions_are_those_that_triton_sees(tmp_path: Path) -> None:
    for name in ("1", "10", "9", "02", "x3", "0"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").touch()
    assert repository.versions(tmp_path) == [1, 9, 10]
    assert repository.versions(tmp_path / "none") == []


@pytest.mark.parametrize("step", [s for s in pipeline.STEPS if s.stage > 0], ids=lambda step: step.model)
def test_labels_are_those_that_training_writes(step: pipeline.Step) -> None:
    assert label_order(step) == list(trained_label_order(step.model))


def test_an_unwritable_repository_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="expected a folder that can be written"):
        repository.write_configs(tmp_path / "file")


def test_a_missing_repository_is_one_problem(tmp_path: Path) -> None:
    assert repository.check(tmp_path / "none") == [
        f"expected a model repository at {tmp_path / 'none'}, got no such folder"
    ]


def test_an_empty_repository_misses_every_model(tmp_path: Path) -> None:
    found = repository.check(tmp_path)
    assert [line.split(":")[0] for line in found] == list(pipeline.MODEL_NAMES)


Break = Callable[[Path], object]


def _rewrite(folder: Path, model: str, old: str, new: str) -> None:
    path = folder / model / repository.CONFIG_NAME
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def _ungated(folder: Path, model: str) -> None:
    onnx.save(means_network(QUADRANTS), folder / model / "1" / repository.ONNX_NAME)


def _fixed_batch(folder: Path) -> None:
    path = folder / "recognition" / "1" / repository.ONNX_NAME
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)


def _double_scores(folder: Path) -> None:
    shapes = {tensor.name: ["n", *tensor.shape] for tensor in pipeline.RECOGNITION.inputs}
    kinds = {"image": TensorProto.UINT8, "gates": TensorProto.FLOAT}
    weights = numpy_helper.from_array(np.zeros((4, 3), np.float64), "weights")
    nodes = [
        helper.make_node("Cast", ["gates"], ["wide"], to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "weights"], ["diagnosis"]),
        *(helper.make_node("Identity", ["diagnosis"], [name]) for name in ("diagnosis_scores", "activation")),
    ]
    graph = helper.make_graph(
        nodes,
        "wrong",
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info(t.name, TensorProto.DOUBLE, ["n", 3]) for t in pipeline.RECOGNITION.outputs],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "recognition" / "1" / repository.ONNX_NAME)


def _provenance(folder: Path, **changes: object) -> None:
    path = folder / "manifestations" / "1" / repository.PROVENANCE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


BREAKS: dict[str, tuple[Break, str, str]] = {
    "another folder": (lambda f: (f / "dbg").mkdir(), "dbg", "another folder"),
    "a missing model": (lambda f: shutil.rmtree(f / "segment_all"), "segment_all", "expected a folder, got none"),
    "a missing ensemble": (lambda f: shutil.rmtree(f / "covid_pipeline"), "covid_pipeline", "expected a folder"),
    "a missing config": (lambda f: (f / "recognition/config.pbtxt").unlink(), "recognition", "No such file"),
    "no config's words": (
        lambda f: _rewrite(f, "recognition", "dims", "dime"),
        "recognition",
        "expected a model config",
    ),
    "an edited config": (lambda f: _rewrite(f, "preprocess", "count: 2", "count: 3"), "preprocess", "instance_group"),
    "an edited ensemble": (
        lambda f: _rewrite(f, "covid_pipeline", "max_batch_size: 8", "max_batch_size: 4"),
        "covid_pipeline",
        "another max_batch_size",
    ),
    "no version": (lambda f: shutil.rmtree(f / "recognition/1"), "recognition", "expected a version folder"),
    "no ensemble version": (lambda f: shutil.rmtree(f / "covid_pipeline/1"), "covid_pipeline", "a version folder"),
    "no adapter": (lambda f: (f / "preprocess/1/model.py").unlink(), "preprocess/1", "expected model.py, got nothing"),
    "no graph": (lambda f: (f / "segment_all/1/model.onnx").unlink(), "segment_all/1", "expected model.onnx"),
    "no graph in the newest": (lambda f: (f / "segment_all/2").mkdir(), "segment_all/2", "expected model.onnx"),
    "garbage for a graph": (
        lambda f: (f / "segment_all/1/model.onnx").write_bytes(b"garbage"),
        "segment_all/1",
        "expected a graph that ONNX Runtime loads",
    ),
    "a network without gate": (
        lambda f: _ungated(f, "recognition"),
        "recognition/1",
        "expected the inputs gates, image",
    ),
    "a fixed batch": (_fixed_batch, "recognition/1", "input image: expected a batch axis of any size, got 1"),
    "other types": (_double_scores, "recognition/1", "output diagnosis: expected tensor(float), got tensor(double)"),
    "other shapes": (_double_scores, "recognition/1", "expected the shape [4] after the batch axis, got [3]"),
    "no provenance": (
        lambda f: (f / "manifestations/1/provenance.json").unlink(),
        "manifestations/1",
        "expected provenance.json beside the graph",
    ),
    "no JSON": (
        lambda f: (f / "manifestations/1/provenance.json").write_text("{", encoding="utf-8"),
        "manifestations/1",
        "expected JSON",
    ),
    "a list": (
        lambda f: (f / "manifestations/1/provenance.json").write_text("[]", encoding="utf-8"),
        "manifestations/1",
        "expected an object in provenance.json, got list",
    ),
    "other labels": (
        lambda f: _provenance(f, label_order=["consolidation", "ground_glass", "pleural_effusion"]),
        "manifestations/1",
        "expected label_order ['ground_glass'",
    ),
    "another model's": (lambda f: _provenance(f, model="recognition"), "manifestations/1", "expected model"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_repository_is_told_in_a_line_that_names_the_place(folder: Path, name: str) -> None:
    break_it, place, says = BREAKS[name]
    break_it(folder)
    found = repository.check(folder)
    assert any(line.startswith(f"{place}: ") and says in line for line in found), found
    assert not any("\n" in line for line in found)


def _models() -> dict[str, pb.ModelConfig]:
    return {step.model: repository.model_config(step) for step in pipeline.STEPS}


def test_the_pipeline_is_wired_from_end_to_end() -> None:
    assert list(wiring_problems(repository.ensemble_config(), _models())) == []


def _inner_step_reads_an_output(ensemble: pb.ModelConfig) -> None:
    ensemble.ensemble_scheduling.step[2].input_map["scores"] = "diagnosis"


def _input_that_the_first_step_does_not_read(ensemble: pb.ModelConfig) -> None:
    ensemble.input.add(name="extra", data_type=pb.TYPE_FP32, dims=[4])
    ensemble.ensemble_scheduling.step[1].input_map["gates"] = "extra"


def _made_twice(ensemble: pb.ModelConfig) -> None:
    ensemble.ensemble_scheduling.step[4].output_map["mask"] = "mask_all"


def _never_made(ensemble: pb.ModelConfig) -> None:
    ensemble.ensemble_scheduling.step[2].input_map["scores"] = "scores_of_nobody"


def _of_another_shape(ensemble: pb.ModelConfig) -> None:
    ensemble.ensemble_scheduling.step[3].input_map["scores"] = "diagnosis_scores"


def _unfed(ensemble: pb.ModelConfig) -> None:
    del ensemble.ensemble_scheduling.step[3].input_map["scores"]


def _no_such_output(ensemble: pb.ModelConfig) -> None:
    ensemble.ensemble_scheduling.step[3].output_map["masque"] = "mask_extra"


@pytest.mark.parametrize(
    ("rewire", "says"),
    [
        (_inner_step_reads_an_output, "expected output diagnosis to be read by no step"),
        (_input_that_the_first_step_does_not_read, "expected the first step to read every input, got extra"),
        (_made_twice, "expected mask_all to be made once, got it from segment_ground_glass again"),
        (_made_twice, "expected output mask_ground_glass TYPE_UINT8 [512, 512], got None"),
        (_never_made, "expected scores_of_nobody to be made before manifestations reads it"),
        (_of_another_shape, "expected diagnosis_scores to fit segment_all's scores TYPE_FP32 [3], got TYPE_FP32 [4]"),
        (_unfed, "expected segment_all to be fed gates, image, scores, got gates, image"),
        (_no_such_output, "expected an output of segment_all (mask), got masque"),
    ],
)
def test_a_wrong_wiring_is_told(rewire: Callable[[pb.ModelConfig], None], says: str) -> None:
    ensemble = repository.ensemble_config()
    rewire(ensemble)
    assert any(says in line for line in wiring_problems(ensemble, _models()))
