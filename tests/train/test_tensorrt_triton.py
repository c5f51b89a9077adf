"""Both rendered repositories in a real Triton, on the CPU: ONNX Runtime stands where TensorRT would.

The gate in Python, the configs' wire and the ensemble are the rendered ones. Changed for want of a GPU: the kind of the
instances, and the engines, which are the networks that ``trtexec`` would have been given.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto, helper, numpy_helper
from tritonclient.utils import InferenceServerException

from serving import pipeline
from serving.client import PipelineClient
from serving.pipeline import ENSEMBLE_OUTPUTS, MANIFESTATION_STEP, NOT_RUN, RECOGNITION, Step
from serving.preprocessing import prepare
from serving.repository import parse_config
from serving.tritonserver import ServerConfig, TritonServer
from tests.integration.test_ensemble import CLOSED, Item, assert_row, expected, findings_of, infer, png
from tests.toy_models import STRIPS, expected_mask, expected_means
from tests.train.tensorrt_toys import write_float_toy_repository
from train.tensorrt_configs import engine_model, gated_steps, render
from train.tensorrt_render import render_all

pytestmark = pytest.mark.triton

OPEN_GATES = np.zeros((1, len(pipeline.THRESHOLD_NAMES)), np.float32)
GROUND_GLASS = pipeline.step("segment_ground_glass")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = write_float_toy_repository(tmp_path_factory.mktemp("toys") / "model_repository")
    return render_all(repository, tmp_path_factory.mktemp("out") / "tensorrt", "fp16").parent


def rewrite(folder: Path, **changes: Any) -> None:
    """Change fields of a rendered config; None clears one."""
    config = parse_config(folder / "config.pbtxt")
    for group in config.instance_group:
        group.kind = group.KIND_CPU
    for name, value in changes.items():
        config.ClearField(name)
        if value is not None:
            setattr(config, name, value)
    (folder / "config.pbtxt").write_text(render(config), encoding="utf-8")


def started(repository: Path) -> Iterator[TritonServer]:
    config = ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, threads=1)
    with TritonServer(config) as server:
        yield server


@pytest.fixture(scope="module")
def accelerated(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("accelerated") / "models"
    shutil.copytree(rendered / "accelerated_repository", repository)
    for step in gated_steps():
        rewrite(repository / step.model)
    yield from started(repository)


@pytest.fixture(scope="module")
def plan(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    repository = tmp_path_factory.mktemp("plan") / "models"
    shutil.copytree(rendered / "plan_repository", repository)
    for step in gated_steps():
        engine = repository / engine_model(step)
        rewrite(engine, backend="onnxruntime", platform=None)
        shutil.copy(rendered / "networks" / f"{step.model}.onnx", engine / "1" / "model.onnx")
    yield from started(repository)


@pytest.fixture
def client(plan: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(plan.grpc_url) as client:
        yield client


ITEMS = (
    Item(png(10)),
    Item(png(11), "xray"),
    Item(png(12), thresholds=CLOSED),
    Item(png(13), thresholds=(0.0, 1.0, 0.0, 1.0)),
    Item(png(14), thresholds=(1.0, 0.0, 0.0, 0.0)),
    Item(png(15), thresholds=(0.0, *np.add(findings_of(Item(png(15))), (0.01, -0.01, 0.01)))),
)


@pytest.mark.parametrize("way", ["accelerated", "plan"])
def test_the_ensemble_answers_as_it_does_without_tensorrt(way: str, request: pytest.FixtureRequest) -> None:
    server = request.getfixturevalue(way)
    with grpc.InferenceServerClient(server.grpc_url) as client:
        together = infer(client, ITEMS)
        for row, item in enumerate(ITEMS):
            assert_row(together, row, expected(item))
            assert_row(infer(client, [item]), 0, expected(item))
        assert set(together) == {tensor.name for tensor in ENSEMBLE_OUTPUTS}
        for tensor in ENSEMBLE_OUTPUTS:
            alone = infer(client, ITEMS[:1], [tensor.name])
            assert_row(alone, 0, {tensor.name: expected(ITEMS[0])[tensor.name]})


@pytest.mark.parametrize("way", ["accelerated", "plan"])
def test_our_client_takes_the_server_for_the_pipeline(way: str, request: pytest.FixtureRequest) -> None:
    with PipelineClient(request.getfixturevalue(way).grpc_url) as client:
        client.check()
        report = client.predict(ITEMS[0].scan, "ct", dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0))
    assert report.diagnosis


def computed(client: grpc.InferenceServerClient, step: Step, items: int = 0) -> tuple[int, int]:
    """Items and calls that an engine has computed, once it has counted as many items or a second has passed."""
    for _ in range(100):
        (stats,) = client.get_inference_statistics(engine_model(step)).model_stats
        if stats.inference_count >= items:
            break
        time.sleep(0.01)  # Triton counts a request a moment after it has answered it.
    return stats.inference_count, stats.execution_count


def ask(client: grpc.InferenceServerClient, step: Step, **values: np.ndarray) -> dict[str, np.ndarray]:
    """Ask a step's gate alone."""
    inputs = []
    for tensor in step.inputs:
        inputs.append(grpc.InferInput(tensor.name, list(values[tensor.name].shape), tensor.dtype))
        inputs[-1].set_data_from_numpy(values[tensor.name])
    result = client.infer(step.model, inputs)
    return {tensor.name: result.as_numpy(tensor.name) for tensor in step.outputs}


def images_of(*seeds: int) -> np.ndarray:
    return np.stack([prepare(png(seed), "ct", [0.0] * 4)[0] for seed in seeds])


def test_an_engine_computes_the_open_items_of_a_batch_alone(client: grpc.InferenceServerClient) -> None:
    images = images_of(1, 2, 3, 4)
    scores = np.array([[0.9, 0, 0], [0.1, 1, 1], [0.5, 0, 0], [0.49, 1, 1]], np.float32)
    gates = np.tile(np.array([0, 0.5, 0, 0], np.float32), (4, 1))
    items, calls = computed(client, GROUND_GLASS)
    answer = ask(client, GROUND_GLASS, image=images, gates=gates, scores=scores)["mask"]
    assert computed(client, GROUND_GLASS, items + 2) == (items + 2, calls + 1)
    for row, is_open in enumerate([True, False, True, False]):
        mask = expected_mask(images[row], "ground_glass")
        np.testing.assert_array_equal(answer[row], mask if is_open else np.zeros_like(mask))


def test_an_engine_is_not_called_when_every_gate_is_closed(client: grpc.InferenceServerClient) -> None:
    items, calls = computed(client, MANIFESTATION_STEP)
    answer = ask(
        client,
        MANIFESTATION_STEP,
        image=images_of(1, 2, 3),
        gates=np.array([[0.5] * 4, [np.nan] * 4, [0] * 4], np.float32),
        scores=np.array([[0.4, 1, 1, 1], [1, 1, 1, 1], [NOT_RUN] * 4], np.float32),
    )
    opened = {"gates": OPEN_GATES, "scores": np.ones((1, 4), np.float32)}
    ask(client, MANIFESTATION_STEP, image=images_of(1), **opened)
    assert computed(client, MANIFESTATION_STEP, items + 1) == (items + 1, calls + 1)
    assert not answer["manifestations"].any()
    assert (answer["manifestations_scores"] == NOT_RUN).all()


def test_the_scores_for_the_next_gate_are_those_of_the_open_items(client: grpc.InferenceServerClient) -> None:
    images = images_of(5, 6)
    gates, scores = np.full((2, 4), 0.5, np.float32), np.array([[0.5, 0, 0, 0], [0.4, 0, 0, 0]], np.float32)
    answer = ask(client, MANIFESTATION_STEP, image=images, gates=gates, scores=scores)
    np.testing.assert_allclose(answer["manifestations"][0], expected_means(images[0], STRIPS), atol=1e-3)
    np.testing.assert_array_equal(answer["manifestations_scores"][0], answer["manifestations"][0])
    assert not answer["manifestations"][1].any()
    assert (answer["manifestations_scores"][1] == NOT_RUN).all()


def test_what_could_not_be_read_has_nan_as_diagnosis_and_no_score(client: grpc.InferenceServerClient) -> None:
    items, _ = computed(client, RECOGNITION)
    gates = np.array([[np.nan] * 4, [2.0] * 4], np.float32)
    answer = ask(client, RECOGNITION, image=images_of(7, 8), gates=gates)
    assert computed(client, RECOGNITION, items + 1)[0] == items + 1
    assert np.isnan(answer["diagnosis"][0]).all()
    assert np.isnan(answer["activation"][0]).all()
    assert np.isfinite(answer["activation"][1]).all()
    assert (answer["diagnosis_scores"][0] == NOT_RUN).all()
    assert (answer["diagnosis"][1] > 0).all()
    np.testing.assert_array_equal(answer["diagnosis_scores"][1], answer["diagnosis"][1])


def test_an_engine_takes_the_largest_batch(client: grpc.InferenceServerClient) -> None:
    seeds = range(pipeline.MAX_BATCH_SIZE)
    gates = np.repeat(OPEN_GATES, len(seeds), axis=0)
    items, calls = computed(client, RECOGNITION)
    answer = ask(client, RECOGNITION, image=images_of(*seeds), gates=gates)
    assert computed(client, RECOGNITION, items + len(seeds)) == (items + len(seeds), calls + 1)
    assert np.isfinite(answer["diagnosis"]).all()


def test_requests_that_come_together_keep_their_own_answers(client: grpc.InferenceServerClient) -> None:
    """Sixteen at once: while the gate is busy, Triton batches those that wait, and one call serves several."""
    seeds = range(16)
    gates = np.full((1, 4), 0.5, np.float32)
    items, calls = computed(client, GROUND_GLASS)

    def one(seed: int) -> np.ndarray:
        scores = np.array([[seed % 4 / 3, 0, 0]], np.float32)
        return ask(client, GROUND_GLASS, image=images_of(seed), gates=gates, scores=scores)["mask"][0]

    with ThreadPoolExecutor(len(seeds)) as pool:
        answers = list(pool.map(one, seeds))
    for seed, mask in zip(seeds, answers, strict=True):
        wanted = expected_mask(images_of(seed)[0], "ground_glass")
        np.testing.assert_array_equal(mask, wanted if seed % 4 >= 2 else np.zeros_like(wanted))
    after_items, after_calls = computed(client, GROUND_GLASS, items + 8)
    assert after_items - items == 8
    assert 1 <= after_calls - calls <= 8


def network_that_fails_on_bright_images() -> onnx.ModelProto:
    """A mask that is 7 everywhere; a first pixel over 2 fails at run time, for a table has three rows."""
    nodes = [
        helper.make_node("Slice", ["image", "starts", "ends", "axes"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["row"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "row"], ["value"], axis=0),
        helper.make_node("Squeeze", ["value", "last"], ["column"]),
        helper.make_node("Mul", ["column", "ones"], ["wide"]),
        helper.make_node("Cast", ["wide"], ["mask"], to=TensorProto.UINT8),
    ]
    constants = {
        "starts": np.zeros(3, np.int64),
        "ends": np.ones(3, np.int64),
        "axes": np.array([1, 2, 3], np.int64),
        "last": np.array([3], np.int64),
        "table": np.full(3, 7, np.float32),
        "ones": np.ones((1, *pipeline.MODEL_HW), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "fails",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", *pipeline.IMAGE.shape])],
        [helper.make_tensor_value_info("mask", TensorProto.UINT8, ["batch", *pipeline.MODEL_HW])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_engine_that_fails_is_an_error_that_names_it_and_closed_gates_do_not_mind(
    rendered: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    for name in (GROUND_GLASS.model, engine_model(GROUND_GLASS)):
        shutil.copytree(rendered / "plan_repository" / name, repository / name)
    engine = repository / engine_model(GROUND_GLASS)
    rewrite(engine, backend="onnxruntime", platform=None)
    onnx.save(network_that_fails_on_bright_images(), engine / "1" / "model.onnx")
    dark, bright = (np.full((1, *pipeline.IMAGE.shape), value, np.uint8) for value in (0, 200))
    for server in started(repository):
        with grpc.InferenceServerClient(server.grpc_url) as client:
            closed = {"gates": OPEN_GATES + 1, "scores": np.zeros((1, 3), np.float32)}
            opened = {"gates": OPEN_GATES, "scores": np.zeros((1, 3), np.float32)}
            with pytest.raises(InferenceServerException, match=f"{engine_model(GROUND_GLASS)}: .*out of"):
                ask(client, GROUND_GLASS, image=bright, **opened)
            assert not ask(client, GROUND_GLASS, image=bright, **closed)["mask"].any()
            assert (ask(client, GROUND_GLASS, image=dark, **opened)["mask"] == 7).all()
