"""Keras in, a published version out; or nothing at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest

import train.export
import train.gating
from serving import pipeline
from serving.agreement import Bounds, class_dice
from serving.errors import ExportError, ParityError
from serving.trial_scans import gate_inputs
from train.export import export, prune, to_onnx, versions
from train.parity import Tolerances, check_signature, onnx_answers, open_session
from train.provenance import DataSource, Provenance
from train.quantize import QuantizationConfig

SHAPE = (512, 512, 3)


def trunk(image: keras.KerasTensor) -> keras.KerasTensor:
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = keras.layers.Conv2D(8, 5, strides=8, padding="same", activation="relu")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", dilation_rate=6, use_bias=False)(x)
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(x))


def classifier(units: int = 4, activation: str | None = "softmax", **changes: Any) -> keras.Model:
    keras.utils.set_random_seed(11)
    image = keras.Input(changes.get("shape", SHAPE), dtype=changes.get("dtype", "uint8"), name="image")
    x = keras.layers.GlobalAveragePooling2D()(trunk(image))
    return keras.Model(image, keras.layers.Dense(units, activation=activation)(x))


def segmenter(classes: int = 4, shape: tuple[int | None, ...] = SHAPE) -> keras.Model:
    keras.utils.set_random_seed(11)
    image = keras.Input(shape, dtype="uint8", name="image")
    x = keras.layers.Conv2D(classes, 1, kernel_initializer=keras.initializers.RandomNormal(stddev=1))(trunk(image))
    return keras.Model(image, keras.layers.UpSampling2D(8, interpolation="bilinear")(x))


def provenance(model: str = "recognition") -> Provenance:
    return Provenance(
        model=model,
        experiment="tiny",
        data_fingerprint="0" * 64,
        data_sources=(DataSource("Noise", "CC0"),),
        metrics={"test": {"auc": 0.5}},
        code_version="v0",
    )


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    coarse = np.random.default_rng(5).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    return coarse.repeat(32, axis=1).repeat(32, axis=2)


@pytest.fixture
def publish(tmp_path: Path, images: np.ndarray) -> Callable[..., Path]:
    (tmp_path / "repository").mkdir()

    def call(model: keras.Model, name: str = "recognition", **changes: Any) -> Path:
        options: dict[str, Any] = {
            "provenance": provenance(name),
            "golden": images[:2],
            "calibration": images[2:],
            "precision": "fp32",
            **changes,
        }
        return export(model, name, tmp_path / "repository", **options)

    return call


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_version_is_published_with_the_steps_wire_and_its_provenance(publish: Callable[..., Path]) -> None:
    model = classifier()
    version = publish(model)
    assert version.name == "1"
    assert everything_in(version.parent) == ["1", "1/model.onnx", "1/provenance.json", "1/reference.npz"]
    check_signature(open_session(version / "model.onnx"), pipeline.RECOGNITION)
    written = Provenance.from_json((version / "provenance.json").read_text(encoding="utf-8"))
    assert (written.precision, written.parameters) == ("fp32", model.count_params())
    assert written.parity["golden_images"] == 2
    assert 0 <= written.parity["fp32"]["max_abs_difference"] < 1e-4


def test_the_published_graph_says_what_keras_says(publish: Callable[..., Path], images: np.ndarray) -> None:
    model = classifier(3, "sigmoid")
    session = open_session(publish(model, "manifestations") / "model.onnx")
    feeds = gate_inputs(pipeline.MANIFESTATION_STEP, np.array([True, False]))
    findings, scores = session.run(["manifestations", "manifestations_scores"], {"image": images[:2], **feeds})
    expected = np.asarray(model(images[:1]))
    np.testing.assert_allclose(findings, np.concatenate([expected, np.zeros((1, 3))]), atol=1e-5)
    np.testing.assert_allclose(scores, np.concatenate([expected, np.full((1, 3), pipeline.NOT_RUN)]), atol=1e-5)


@pytest.mark.parametrize(("name", "classes"), [("segment_all", 4), ("segment_consolidation", 2)])
def test_a_streams_mask_is_the_likeliest_class_of_each_pixel(
    publish: Callable[..., Path], images: np.ndarray, name: str, classes: int
) -> None:
    model = segmenter(classes)
    session = open_session(publish(model, name) / "model.onnx")
    (mask,) = session.run(None, {"image": images[:1], **gate_inputs(pipeline.step(name), np.array([True]))})
    expected = np.asarray(model(images[:1])).argmax(axis=-1)
    assert len(np.unique(expected)) > 1
    assert (mask != expected).mean() <= 1e-4


def test_atrous_depthwise_convolutions_stay_convolutions() -> None:
    network = to_onnx(segmenter(), pipeline.step("segment_all"))
    operators = {node.op_type for node in network.graph.node}
    assert not operators & {"SpaceToDepth", "DepthToSpace", "Pad", "Slice", "BatchNormalization"}
    attributes = [{a.name: a for a in node.attribute} for node in network.graph.node if node.op_type == "Conv"]
    assert [(list(a["dilations"].ints), a["group"].i) for a in attributes if a["group"].i > 1] == [([6, 6], 8)]


def test_a_network_of_any_size_is_published_for_the_size_of_the_model_space(publish: Callable[..., Path]) -> None:
    version = publish(segmenter(shape=(None, None, 3)), "segment_all")
    check_signature(open_session(version / "model.onnx"), pipeline.step("segment_all"))


def test_int8_is_measured_against_fp32_and_smaller(publish: Callable[..., Path]) -> None:
    version = publish(segmenter(), "segment_all", precision="int8")
    written = Provenance.from_json((version / "provenance.json").read_text(encoding="utf-8"))
    assert written.precision == "int8"
    assert written.parity["int8"]["calibration_images"] == 2
    assert 0 < written.parity["int8"]["pixel_disagreement"] < 0.02
    assert set(written.parity["int8"]["dice"]) == set(written.label_order)
    graph = onnx.load(version / "model.onnx").graph
    branches = [a.g for node in graph.node if node.op_type == "If" for a in node.attribute]
    assert any(node.op_type == "QuantizeLinear" for branch in branches for node in branch.node)


def test_int8_that_is_off_publishes_nothing(publish: Callable[..., Path], images: np.ndarray, tmp_path: Path) -> None:
    dark = images[2:] // 32
    with pytest.raises(ParityError, match=r"int8 against fp32: expected pixel_disagreement up to 0\.02"):
        publish(segmenter(), "segment_all", precision="int8", calibration=dark)
    assert everything_in(tmp_path / "repository") == []


def test_int8_probabilities_that_are_off_publish_nothing(publish: Callable[..., Path], tmp_path: Path) -> None:
    strict = Tolerances(int8=Bounds(probability_mean=1e-9))
    with pytest.raises(ParityError, match="int8 against fp32: expected mean_abs_difference up to 1e-09"):
        publish(classifier(), precision="int8", tolerances=strict)
    assert everything_in(tmp_path / "repository") == []


def test_int8_without_calibration_images_publishes_nothing(publish: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected calibration images for int8, got none"):
        publish(classifier(), precision="int8", calibration=None)
    assert everything_in(tmp_path / "repository") == []


def test_keras_and_onnx_that_disagree_publish_nothing(
    publish: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another_network(model: keras.Model, step: pipeline.Step) -> onnx.ModelProto:
        model.layers[-1].bias.assign([0.5, 0, 0, 0])
        network = to_onnx(model, step)
        model.layers[-1].bias.assign([0, 0, 0, 0])
        return network

    publish(classifier())
    before = everything_in(tmp_path / "repository")
    monkeypatch.setattr(train.export, "to_onnx", another_network)
    with pytest.raises(ParityError, match=r"ONNX against Keras: expected max_abs_difference up to 0\.0001"):
        publish(classifier())
    assert everything_in(tmp_path / "repository") == before


def test_a_gate_that_changes_answers_publishes_nothing(
    publish: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = pipeline.RECOGNITION
    never = pipeline.Step(**{**vars(step), "gate": pipeline.Gate(pairs=(), closed_value=0.25)})
    monkeypatch.setattr(train.export, "add_gate", lambda network, _: train.gating.add_gate(network, never))
    with pytest.raises(ParityError, match="expected closed items to read nan"):
        publish(classifier())
    assert everything_in(tmp_path / "repository") == []


def test_versions_count_up_and_the_old_ones_stay_unless_pruned(publish: Callable[..., Path], tmp_path: Path) -> None:
    model = classifier()
    folder = tmp_path / "repository" / "recognition"
    (folder / "9").mkdir(parents=True)
    (folder / "config.pbtxt").touch()
    assert publish(model).name == "10"
    assert versions(folder) == [9, 10]
    assert publish(model, keep=1).name == "11"
    assert versions(folder) == [11]
    assert (folder / "config.pbtxt").exists()


def test_pruning_keeps_the_newest_by_number(tmp_path: Path) -> None:
    for name in ("9", "10", "2", "notes"):
        (tmp_path / name).mkdir()
    prune(tmp_path, 2)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["10", "9", "notes"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
def test_another_user_can_read_what_is_published(publish: Callable[..., Path]) -> None:
    version = publish(classifier())
    assert stat.S_IMODE(version.stat().st_mode) == 0o755
    assert all(path.stat().st_mode & stat.S_IROTH for path in version.iterdir())


@pytest.mark.parametrize(
    ("model", "name", "message"),
    [
        (lambda: classifier(3), "recognition", r"expected output dims \(None, 4\) of recognition, got \(None, 3\)"),
        (lambda: classifier(shape=(256, 256, 3)), "recognition", r"expected input dims .* got \(None, 256, 256, 3\)"),
        (lambda: classifier(dtype="float32"), "recognition", "expected a uint8 input .* got float32"),
        (lambda: segmenter(3), "segment_all", r"expected output dims \(None, 512, 512, 4\) .* 512, 3\)"),
        (lambda: segmenter(4), "segment_consolidation", r"expected output dims \(None, 512, 512, 2\)"),
        (lambda: classifier(), "segment_all", r"expected output dims .* got \(None, 4\)"),
        (lambda: classifier(4, None), "recognition", r"expected probabilities in \[0, 1\] from recognition"),
        (lambda: classifier(4, "sigmoid"), "recognition", "expected the diagnoses to sum to 1"),
    ],
)
def test_a_model_that_is_not_the_steps_publishes_nothing(
    publish: Callable[..., Path], tmp_path: Path, model: Callable[[], keras.Model], name: str, message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        publish(model(), name)
    assert everything_in(tmp_path / "repository") == []


def test_a_model_that_gives_nan_publishes_nothing(publish: Callable[..., Path], tmp_path: Path) -> None:
    model = segmenter()
    model.layers[-2].bias.assign([np.nan, 0, 0, 0])
    with pytest.raises(ExportError, match="expected finite outputs of segment_all"):
        publish(model, "segment_all")
    assert everything_in(tmp_path / "repository") == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"golden": np.zeros((0, *SHAPE), np.uint8)}, "expected golden images as uint8"),
        ({"golden": np.zeros((1, *SHAPE), np.float32)}, "expected golden images as uint8 .* got float32"),
        ({"calibration": np.zeros((1, 256, 256, 3), np.uint8), "precision": "int8"}, "expected calibration images"),
        ({"provenance": provenance("manifestations")}, "expected the provenance of 'recognition', got .*'manifest"),
        ({"keep": 0}, "expected to keep at least 1 version, got 0"),
        ({"precision": "fp16"}, "expected a precision of fp32, int8, got 'fp16'"),
    ],
)
def test_a_request_that_makes_no_sense_publishes_nothing(
    publish: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ExportError, match=message):
        publish(classifier(), **changes)
    assert everything_in(tmp_path / "repository") == []


@pytest.mark.parametrize(
    ("name", "message"), [("preprocess", "backend 'python'"), ("stage_4", "no step runs 'stage_4'")]
)
def test_a_step_that_has_no_onnx_model_is_refused(tmp_path: Path, images: np.ndarray, name: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(classifier(), name, tmp_path, provenance=provenance(), golden=images)


def test_a_layer_without_an_onnx_operator_is_refused(publish: Callable[..., Path], tmp_path: Path) -> None:
    image = keras.Input(SHAPE, dtype="uint8", name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    x = keras.ops.erfinv(x * 0.5)
    model = keras.Model(image, keras.layers.Dense(4, activation="softmax")(x))
    with pytest.raises(ExportError, match="tf2onnx"):
        publish(model)
    assert everything_in(tmp_path / "repository") == []


def test_the_signature_of_another_step_is_refused(publish: Callable[..., Path]) -> None:
    session = open_session(publish(classifier(3, "sigmoid"), "manifestations") / "model.onnx")
    with pytest.raises(ExportError, match="expected the inputs of segment_all"):
        check_signature(session, pipeline.step("segment_all"))


def test_dice_is_pooled_over_images_and_none_of_an_absent_class() -> None:
    a = np.array([[[0, 1], [1, 1]], [[0, 0], [0, 2]]], np.uint8)
    b = np.array([[[0, 1], [1, 0]], [[0, 0], [1, 2]]], np.uint8)
    assert class_dice(a, b, 1) == pytest.approx(2 * 2 / (3 + 3))
    assert class_dice(a, b, 2) == 1.0
    assert class_dice(a, b, 3) is None


def test_a_quantised_network_stays_near_with_every_calibration(images: np.ndarray) -> None:
    network = to_onnx(segmenter(), pipeline.step("segment_all"))
    expected = onnx_answers(open_session(network), images[:2])
    for config in (QuantizationConfig(), QuantizationConfig(calibrate_method="percentile")):
        got = onnx_answers(open_session(train.export.quantize(network, images[2:], config)), images[:2])
        assert (got != expected).mean() < 0.02


def test_published_graphs_run_a_batch_of_the_largest_size(publish: Callable[..., Path], images: np.ndarray) -> None:
    session: ort.InferenceSession = open_session(publish(classifier()) / "model.onnx")
    batch = np.resize(images, (pipeline.MAX_BATCH_SIZE, *SHAPE))
    diagnosis, *_ = session.run(None, {"image": batch, **gate_inputs(pipeline.RECOGNITION, np.ones(8, bool))})
    np.testing.assert_allclose(diagnosis[:4], diagnosis[4:], atol=1e-6)
