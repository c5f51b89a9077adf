"""Class activation maps: exact, of the right place, and of the trained weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from serving import pipeline
from serving.errors import ExportError, ParityError
from serving.pipeline import ACTIVATION, ACTIVATION_HW, MANIFESTATION_STEP, RECOGNITION
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, PROVENANCE_NAME, versions
from serving.trial_scans import drawn_scans
from tests.toy_models import means_network
from train import republish
from train.activation_maps import (
    PREFIX,
    area_means,
    check_activation,
    find_head,
    with_activation,
    without_activation,
)
from train.digest import sha256_of
from train.export import MODEL_FILE, publish_network, to_onnx
from train.gating import add_gate
from train.inception import InceptionV3Config, build_inception_v3
from train.parity import open_session
from train.provenance import DataSource, Provenance
from train.quantize import QuantizationConfig, quantize
from train.ungating import ungated

WITHOUT_MAPS = pipeline.Step(**{**vars(RECOGNITION), "outputs": RECOGNITION.outputs[:2]})
"""Recognition as it was up to version 3."""


def classifier(*, size_px: int = 512, stride: int = 85, bias: bool = True) -> keras.Model:
    """A convolution, global average pooling and a dense layer, over a grid of 6x6 unless told otherwise."""
    keras.utils.set_random_seed(3)
    image = keras.Input((size_px, size_px, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    x = keras.layers.Conv2D(8, stride, strides=stride, activation="relu", name="cells")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    some = keras.initializers.RandomNormal(stddev=1.0)
    x = keras.layers.Dense(4, use_bias=bias, kernel_initializer=some, bias_initializer=some, name="logits")(x)
    return keras.Model(image, keras.layers.Softmax()(x))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return drawn_scans(RECOGNITION)[[0, -1]]


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return classifier()


@pytest.fixture(scope="module")
def network(model: keras.Model) -> onnx.ModelProto:
    return to_onnx(model, RECOGNITION)


def answers(network: onnx.ModelProto, images: np.ndarray) -> list[np.ndarray]:
    return list(open_session(network).run(None, {"image": images}))


def logits_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.Model(model.input, model.get_layer("logits").output)(images))


def test_a_map_is_the_dense_layer_on_each_cells_features(model: keras.Model, images: np.ndarray) -> None:
    _, maps = answers(with_activation(to_onnx(model, RECOGNITION), RECOGNITION), images)
    features = np.asarray(keras.Model(model.input, model.get_layer("cells").output)(images))
    kernel, bias = model.get_layer("logits").get_weights()
    np.testing.assert_allclose(maps, np.moveaxis(features @ kernel + bias, 3, 1), atol=1e-4)
    assert maps.std(axis=(2, 3)).min() > 0.01


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [85, 36, 128])
def test_the_mean_of_a_map_is_the_logit_whatever_the_grid(images: np.ndarray, bias: bool, stride: int) -> None:
    model = classifier(stride=stride, bias=bias)
    diagnosis, maps = answers(with_activation(to_onnx(model, RECOGNITION), RECOGNITION), images)
    assert maps.shape == (2, *ACTIVATION.shape)
    np.testing.assert_allclose(maps.mean(axis=(2, 3)), logits_of(model, images), atol=1e-4)
    np.testing.assert_allclose(diagnosis, np.asarray(model(images)), atol=1e-5)


def test_a_quantised_networks_maps_still_average_to_its_own_logits(network: onnx.ModelProto) -> None:
    scans = drawn_scans(RECOGNITION)
    int8 = quantize(network, scans[1:5])
    measured = check_activation(open_session(with_activation(int8, RECOGNITION)), open_session(int8), scans[[0, 5]])
    assert measured["diagnosis_changed_by"] == 0
    # Rounded is the pooled vector, not the map: that it is not, a map without the correction would show.
    assert measured["softmax_of_means_apart_by"] < 1e-6


def test_a_grid_is_averaged_by_area() -> None:
    np.testing.assert_allclose(area_means(4, 2), [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])
    np.testing.assert_allclose(area_means(3, 2), [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]], atol=1e-7)
    np.testing.assert_allclose(area_means(2, 3), [[1, 0], [0.5, 0.5], [0, 1]], atol=1e-7)
    np.testing.assert_allclose(area_means(14, 6).sum(axis=1), 1, atol=1e-6)


def test_what_was_added_comes_off_again(network: onnx.ModelProto) -> None:
    assert without_activation(with_activation(network, RECOGNITION)) == network
    assert without_activation(network) == network


def test_a_step_without_maps_gets_none() -> None:
    toy = means_network([(slice(0, 9), slice(0, 9))])
    assert with_activation(toy, MANIFESTATION_STEP) is toy


@pytest.mark.parametrize(
    ("op", "break_it", "message"),
    [
        ("Softmax", lambda node: setattr(node, "op_type", "Sigmoid"), "expected Softmax behind .*, got Sigmoid"),
        ("GlobalAveragePool", lambda node: setattr(node, "op_type", "MaxPool"), "expected Global.*, got MaxPool"),
        ("MatMul", lambda node: setattr(node, "op_type", "Mul"), "expected a dense layer before the softmax, got Mul"),
        ("MatMul", lambda node: node.input.__setitem__(1, "elsewhere"), "in fp32, got what 'elsewhere' computes"),
    ],
)
def test_a_network_with_another_end_is_refused(network: onnx.ModelProto, op: str, break_it: Any, message: str) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(network)
    break_it(next(node for node in broken.graph.node if node.op_type == op))
    with pytest.raises(ExportError, match=message):
        find_head(broken)


def test_a_head_in_int8_is_refused(network: onnx.ModelProto, images: np.ndarray) -> None:
    with pytest.raises(ExportError, match="expected a dense layer before the softmax, got DequantizeLinear"):
        find_head(quantize(network, images, QuantizationConfig(head_in_fp32=False)))


def test_another_number_of_classes_is_refused(network: onnx.ModelProto) -> None:
    fewer = onnx.ModelProto()
    fewer.CopyFrom(network)
    weights = next(t for t in fewer.graph.initializer if list(t.dims) == [8, 4])
    weights.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights)[:, :3].copy(), weights.name))
    with pytest.raises(ExportError, match="expected a dense layer of 4 classes, got 3"):
        with_activation(fewer, RECOGNITION)


@pytest.mark.parametrize(
    ("name", "message"), [("weights", "expected the mean of each map"), ("diagnosis", "expected the same diagnosis")]
)
def test_maps_that_are_off_are_found(network: onnx.ModelProto, images: np.ndarray, name: str, message: str) -> None:
    wrong = with_activation(network, RECOGNITION)
    if name == "weights":
        # Without the subtraction, the mean is the logit twice.
        node = next(node for node in wrong.graph.node if node.op_type == "Sub")
        node.op_type = "Add"
    else:
        bias = next(t for t in wrong.graph.initializer if list(t.dims) == [4])
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.eye(4, dtype=np.float32)[0], bias.name))
    with pytest.raises(ParityError, match=message):
        check_activation(open_session(wrong), open_session(network), images)


def provenance() -> Provenance:
    return Provenance(
        model="recognition",
        experiment="tiny",
        data_fingerprint="0" * 64,
        data_sources=(DataSource("Noise", "CC0"),),
        metrics={"test": {"auc": 0.5}},
        code_version="v0",
    )


def publish_without_maps(network: onnx.ModelProto, repository: Path) -> Path:
    """As versions up to 3 were published."""
    version = repository / "recognition" / "3"
    version.mkdir(parents=True)
    onnx.save(add_gate(network, WITHOUT_MAPS), version / MODEL_FILE)
    (version / PROVENANCE_NAME).write_text(provenance().to_json(), encoding="utf-8")
    return version


def test_a_published_version_is_replaced_by_itself_with_maps(network: onnx.ModelProto, tmp_path: Path) -> None:
    digest = sha256_of(publish_without_maps(network, tmp_path) / MODEL_FILE)
    version = republish.main(tmp_path)
    assert versions(tmp_path / "recognition") == [4]
    written = Provenance.from_json((version / PROVENANCE_NAME).read_text(encoding="utf-8"))
    assert (written.experiment, written.metrics) == ("tiny", {"test": {"auc": 0.5}})
    assert written.parity["activation_added"]["to_version"] == 3
    assert written.parity["activation_added"]["its_sha256"] == digest
    assert written.parity["activation"]["diagnosis_changed_by"] == 0
    with pytest.raises(ExportError, match="expected a version without activation maps, got 4"):
        republish.main(tmp_path)


def test_nothing_published_has_nothing_to_add_to(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a published recognition"):
        republish.main(tmp_path)


def test_every_publication_has_maps(network: onnx.ModelProto, images: np.ndarray, tmp_path: Path) -> None:
    version = publish_network(network, RECOGNITION, tmp_path, provenance=provenance(), golden=images)
    whole = ungated(onnx.load(version / MODEL_FILE))
    assert [value.name for value in whole.graph.output][1:] == [ACTIVATION.name]
    assert json_of(version)["activation"]["golden_images"] == 2


def json_of(version: Path) -> Any:
    return Provenance.from_json((version / PROVENANCE_NAME).read_text(encoding="utf-8")).parity


# What ships.


@pytest.fixture(scope="module")
def published() -> tuple[Path, onnx.ModelProto]:
    present = versions(DEFAULT_REPOSITORY / RECOGNITION.model)
    if not present:
        pytest.skip("needs the published models")
    folder = DEFAULT_REPOSITORY / RECOGNITION.model / str(present[-1])
    return folder, onnx.load(folder / ONNX_NAME)


def test_what_ships_is_version_3_to_the_byte_and_its_maps(
    published: tuple[Path, onnx.ModelProto], tmp_path: Path
) -> None:
    folder, gated = published
    added = json_of(folder).get("activation_added")
    if added is None:
        pytest.skip("needs a version that maps were added to afterwards")
    before = add_gate(without_activation(ungated(gated)), WITHOUT_MAPS)
    onnx.save(before, tmp_path / ONNX_NAME)
    assert sha256_of(tmp_path / ONNX_NAME) == added["its_sha256"]


def test_what_ships_answers_as_without_its_maps_to_the_bit(
    published: tuple[Path, onnx.ModelProto], images: np.ndarray
) -> None:
    whole = ungated(published[1])
    assert find_head(without_activation(whole)).grid_hw == ACTIVATION_HW
    measured = check_activation(open_session(whole), open_session(without_activation(whole)), images)
    assert measured["diagnosis_changed_by"] == 0
    assert measured["softmax_of_means_apart_by"] < 1e-6


def centres(network: onnx.ModelProto, axis: int) -> dict[str, tuple[float, float]]:
    """Where the first cell of each tensor looks at along an axis, in pixels, and from one cell to the next.

    Args:
        network: Convolutions and pooling in NCHW.
        axis: 0 for rows, 1 for columns.
    """
    found = {"image": (0.5, 1.0)}
    for node in network.graph.node:
        ways = [found[name] for name in node.input if name in found]
        if not ways or node.op_type == "GlobalAveragePool":
            continue
        assert len(set(ways)) == 1, f"{node.name}: branches that look at other places: {ways}"
        first, step = ways[0]
        if node.op_type in {"Conv", "MaxPool", "AveragePool"}:
            given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
            assert given.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
            reach = (given["kernel_shape"][axis] - 1) * given.get("dilations", [1, 1])[axis]
            first += (reach / 2 - given.get("pads", [0] * 4)[axis]) * step
            step *= given.get("strides", [1, 1])[axis]
        found |= dict.fromkeys(node.output, (first, step))
    return found


@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "columns"])
def test_a_cell_is_shown_where_what_ships_looks(published: tuple[Path, onnx.ModelProto], axis: int) -> None:
    network = without_activation(ungated(published[1]))
    first, step = centres(network, axis)[find_head(network).features]
    side = pipeline.MODEL_HW[axis]
    assert (first / side, step / side) == (pipeline.ACTIVATION_FIRST, pipeline.ACTIVATION_STEP)


def test_the_network_that_is_exported_next_has_the_same_grid() -> None:
    config = InceptionV3Config(backbone_hw=(256, 256), batch_norm=False)
    features = build_inception_v3(config).get_layer("mixed10").output
    assert tuple(features.shape[1:3]) == ACTIVATION_HW


def test_names_of_what_is_added_are_its_own(network: onnx.ModelProto) -> None:
    before = {name for node in network.graph.node for name in (*node.input, *node.output)}
    assert not [name for name in before if name.startswith(PREFIX)]
