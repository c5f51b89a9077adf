from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from loadtest.cases import CASES
from loadtest.networks import closed_answer, follow, output_of, unpack
from loadtest.raw import NETWORKS
from loadtest.wire import check_answer
from serving.errors import ExportError, RepositoryError
from serving.pipeline import MODEL_HW, RECOGNITION, REPORT_OUTPUTS, STEPS
from tests.toy_models import toy_network
from train.ungating import ungated


@pytest.fixture(scope="module")
def networks(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return unpack(toy_repository, tmp_path_factory.mktemp("bare") / "new")


@pytest.mark.parametrize("step", NETWORKS, ids=lambda step: step.model)
def test_a_bare_network_is_the_one_that_the_gate_was_put_around(step: Any, networks: dict[str, Path]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (2, *MODEL_HW, 3), np.uint8)
    bare = ort.InferenceSession(networks[step.model], providers=["CPUExecutionProvider"])
    before = ort.InferenceSession(toy_network(step).SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in bare.get_inputs()] == ["image"]
    assert len(bare.get_outputs()) == 1
    np.testing.assert_array_equal(bare.run(None, {"image": image})[0], before.run(None, {"image": image})[0])


def test_a_graph_without_a_gate_is_refused() -> None:
    with pytest.raises(ExportError, match=r"expected a graph with a gate of ours, got .* without one"):
        ungated(toy_network(RECOGNITION))


def test_a_repository_without_versions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="expected a version folder"):
        unpack(tmp_path, tmp_path / "bare")


class Recorder:
    """Answers 0.6 and the class 1, and knows what was asked."""

    def __init__(self) -> None:
        self.models: list[str] = []

    def __call__(self, model: str, image: np.ndarray) -> np.ndarray:
        self.models.append(model)
        (tensor,) = (step.outputs[0] for step in STEPS if step.model == model)
        assert image.shape == (1, *MODEL_HW, 3)
        if tensor.dtype == "UINT8":
            return np.ones((1, *tensor.shape), np.uint8)
        return np.full((1, *tensor.shape), 0.6, np.float32)


def test_open_gates_call_every_network_in_order() -> None:
    call = Recorder()
    answer = follow(CASES["ct_open"].scans()[0], CASES["ct_open"], call)
    assert call.models == [step.model for step in NETWORKS]
    assert set(answer) == {tensor.name for tensor in REPORT_OUTPUTS}
    assert all(array.any() for array in answer.values())


def test_an_xray_calls_stage_1_alone() -> None:
    call = Recorder()
    answer = follow(CASES["xray"].scans()[0], CASES["xray"], call)
    assert call.models == [RECOGNITION.model]
    check_answer(CASES["xray"], answer)


def test_scores_of_one_stage_gate_the_next() -> None:
    thresholds = dict(CASES["ct_open"].thresholds) | {"ground_glass": 0.7, "consolidation": 0.5}
    call = Recorder()
    follow(CASES["ct_open"].scans()[0], replace(CASES["ct_open"], thresholds=thresholds), call)
    assert "segment_consolidation" in call.models
    assert "segment_ground_glass" not in call.models
    shut = Recorder()
    follow(CASES["ct_open"].scans()[0], replace(CASES["ct_open"], thresholds=thresholds | {"covid19": 0.7}), shut)
    assert shut.models == [RECOGNITION.model]


def test_what_did_not_run_reads_its_closed_value() -> None:
    closed = closed_answer()
    for tensor in REPORT_OUTPUTS:
        assert closed[tensor.name].shape == (1, *tensor.shape)
        value = next(step.gate.closed_value for step in NETWORKS if step.gate and output_of(step) == tensor.name)
        np.testing.assert_array_equal(closed[tensor.name], np.full_like(closed[tensor.name], value))


def test_a_bare_network_loads_where_the_gated_one_does(networks: dict[str, Path], toy_repository: Path) -> None:
    for model, path in networks.items():
        gated = onnx.load(toy_repository / model / "1" / "model.onnx")
        assert onnx.load(path).ir_version == gated.ir_version
        assert onnx.load(path).opset_import == gated.opset_import
