"""Inception-v3 against Keras' own, and the ImageNet weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import pytest

from serving.errors import DatasetError
from train.inception import (
    InceptionV3Config,
    build_inception_v3,
    freeze_batch_norm,
    load_imagenet_partial,
)

# The smallest with 3x3 in the last blocks, where both poolings and all paddings count.
SMALL_HW = (139, 139)
REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("LUNGSTREAMS_DATA", REPOSITORY.parent / "shared" / "data"))
WEIGHTS = DATA / "weights" / "inception_v3_imagenet_partial.npz"
needs_weights = pytest.mark.skipif(not WEIGHTS.is_file(), reason="needs the ImageNet weights under LUNGSTREAMS_DATA")

Arrays = dict[str, npt.NDArray[np.float32]]


def _pixels(n: int = 2) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (n, *SMALL_HW, 3), dtype=np.uint8)


def _last_features(model: keras.Model) -> npt.NDArray[np.float32]:
    return np.asarray(keras.Model(model.input, model.get_layer("mixed10").output)(_pixels(), training=False))


def _convolutions(model: keras.Model) -> list[keras.layers.Conv2D]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]


def _number(layer: keras.layers.Layer) -> int:
    """Keras names layers ``conv2d``, ``conv2d_7`` in the order in which they are made."""
    return int(layer.name.rpartition("_")[2]) if layer.name[-1].isdigit() and "_" in layer.name else 0


@pytest.fixture(scope="module")
def reference() -> keras.Model:
    keras.utils.set_random_seed(5)
    return keras.applications.InceptionV3(weights=None, input_shape=(*SMALL_HW, 3), include_top=True, classes=1000)


@pytest.fixture(scope="module")
def folded() -> Arrays:
    """Small random weights for every convolution, as the published file has them."""
    rng = np.random.default_rng(1)
    model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, batch_norm=False))
    arrays = {}
    for layer in _convolutions(model):
        shape = tuple(layer.kernel.shape)
        arrays[f"{layer.name}/kernel"] = rng.normal(0, np.sqrt(2 / np.prod(shape[:3])), shape).astype(np.float32)
        arrays[f"{layer.name}/bias"] = rng.normal(0, 0.1, shape[3]).astype(np.float32)
    return arrays


def _save(path: Path, arrays: Arrays) -> Path:
    np.savez(path, **arrays)
    return path


def test_has_the_published_parameters_with_1000_classes() -> None:
    model = build_inception_v3(InceptionV3Config(n_classes=1000))
    assert model.count_params() == 23_851_784
    assert model.count_params() - model.get_layer("logits").count_params() == 21_802_784


@pytest.mark.parametrize("n_classes", [2, 4])
def test_the_head_has_as_many_outputs_as_classes(n_classes: int) -> None:
    model = build_inception_v3(InceptionV3Config(n_classes=n_classes))
    assert model.output_shape == (None, n_classes)
    assert model.get_layer("logits").count_params() == 2049 * n_classes
    assert model.input_shape == (None, 512, 512, 3)


@pytest.mark.parametrize(("layer", "shape"), [("mixed2", 288), ("mixed7", 768), ("mixed8", 1280), ("mixed10", 2048)])
def test_blocks_have_the_shapes_of_the_paper_at_299(layer: str, shape: int) -> None:
    model = build_inception_v3(InceptionV3Config(input_hw=(299, 299)))
    side = {288: 35, 768: 17, 1280: 8, 2048: 8}[shape]
    assert model.get_layer(layer).output.shape == (None, side, side, shape)


def test_computes_the_same_as_kerass_own(reference: keras.Model) -> None:
    config = InceptionV3Config(input_hw=SMALL_HW, n_classes=1000, last_pool="average")
    ours = build_inception_v3(config)
    theirs = {
        type_: sorted(filter(lambda x, t=type_: isinstance(x, t), reference.layers), key=_number)
        for type_ in (keras.layers.Conv2D, keras.layers.BatchNormalization)
    }
    for layer, conv, norm in zip(_in_graph_order(ours), *theirs.values(), strict=True):
        layer.set_weights(conv.get_weights())
        ours.get_layer(f"{layer.name}_bn").set_weights(norm.get_weights())
    ours.get_layer("logits").set_weights(reference.get_layer("predictions").get_weights())
    image = _pixels()
    expected = reference(image.astype(np.float32) / 127.5 - 1, training=False)
    np.testing.assert_allclose(ours(image, training=False), expected, rtol=1e-4)


def _in_graph_order(model: keras.Model) -> list[keras.layers.Conv2D]:
    """Our convolutions in the order in which Keras makes its own."""
    ours = {layer.name: layer for layer in _convolutions(model)}
    order = ["conv", "conv_1", "conv_2", "conv_3", "conv_4"]
    chains = {
        **{block: [("", 1), ("_tower", 2), ("_tower_1", 3), ("_tower_2", 1)] for block in (0, 1, 2)},
        3: [("", 1), ("_tower", 3)],
        **{block: [("", 1), ("_tower", 3), ("_tower_1", 5), ("_tower_2", 1)] for block in (4, 5, 6, 7)},
        8: [("_tower", 2), ("_tower_1", 4)],
    }
    split = [("", 1), ("_tower", 1), ("_tower_mixed", 2), ("_tower_1", 2), ("_tower_1_mixed", 2), ("_tower_2", 1)]
    chains |= {9: split, 10: split}
    for block, branches in chains.items():
        prefix = f"mixed_{block}" if block else "mixed"
        for branch, length in branches:
            order += [f"{prefix}{branch}_conv{f'_{i}' if i else ''}" for i in range(length)]
    assert sorted(order) == sorted(ours)
    return [ours[name] for name in order]


def test_last_pool_changes_the_function_but_no_weight(folded: Arrays, tmp_path: Path) -> None:
    path = _save(tmp_path / "weights.npz", folded)
    features = []
    for pool in ("max", "average"):
        model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, batch_norm=False, last_pool=pool))
        load_imagenet_partial(model, path)
        features.append(_last_features(model))
    own = slice(2048 - 192, None)
    np.testing.assert_allclose(features[0][..., : own.start], features[1][..., : own.start], atol=1e-5)
    assert not np.allclose(features[0][..., own], features[1][..., own])


def test_folded_and_normalised_forms_are_one_function(folded: Arrays, tmp_path: Path) -> None:
    path = _save(tmp_path / "weights.npz", folded)
    features = []
    for batch_norm in (True, False):
        model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, batch_norm=batch_norm))
        report = load_imagenet_partial(model, path)
        assert len(report.loaded) == 94
        assert report.untouched == ("logits",)
        features.append(_last_features(model))
    assert features[0].std() > 0.01
    np.testing.assert_allclose(features[0], features[1], rtol=1e-4, atol=1e-4)


def test_loader_keeps_the_new_kernel_where_none_is_published(folded: Arrays, tmp_path: Path) -> None:
    missing = "mixed_9_tower_1_conv_1"
    path = _save(tmp_path / "weights.npz", {k: v for k, v in folded.items() if k != f"{missing}/kernel"})
    model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, batch_norm=False))
    before = np.array(model.get_layer(missing).kernel)
    report = load_imagenet_partial(model, path)
    assert report.bias_only == (missing,)
    assert missing not in report.loaded
    np.testing.assert_array_equal(model.get_layer(missing).kernel, before)
    np.testing.assert_array_equal(model.get_layer(missing).bias, folded[f"{missing}/bias"])


def test_loader_refuses_a_kernel_of_another_shape(folded: Arrays, tmp_path: Path) -> None:
    path = _save(tmp_path / "weights.npz", folded | {"conv_2/kernel": np.zeros((3, 3, 32, 65), np.float32)})
    model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW))
    with pytest.raises(DatasetError, match=r"conv_2/kernel: expected shape \(3, 3, 32, 64\), got \(3, 3, 32, 65\)"):
        load_imagenet_partial(model, path)


def test_loader_refuses_arrays_of_no_layer(folded: Arrays, tmp_path: Path) -> None:
    path = _save(tmp_path / "weights.npz", folded | {"mixed_11_conv/kernel": np.zeros(3, np.float32)})
    with pytest.raises(DatasetError, match="mixed_11_conv/kernel"):
        load_imagenet_partial(build_inception_v3(InceptionV3Config(input_hw=SMALL_HW)), path)


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"PK\x03\x04cut off"])
def test_loader_refuses_what_is_no_archive(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"expected an \.npz"):
        load_imagenet_partial(build_inception_v3(InceptionV3Config(input_hw=SMALL_HW)), path)


def test_frozen_batch_norm_ignores_the_batch_in_training(folded: Arrays, tmp_path: Path) -> None:
    model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, dropout=0.0))
    load_imagenet_partial(model, _save(tmp_path / "weights.npz", folded))
    image = _pixels()
    inference = np.asarray(model(image, training=False))
    assert freeze_batch_norm(model) == 94
    np.testing.assert_allclose(model(image, training=True), inference, atol=1e-6)
    assert len(model.trainable_weights) == 94 + 2


def test_without_batch_norm_there_is_nothing_to_freeze() -> None:
    model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, batch_norm=False))
    assert freeze_batch_norm(model) == 0
    assert len(model.trainable_weights) == 2 * 94 + 2
    assert not model.non_trainable_weights or all("seed" in w.path for w in model.non_trainable_weights)


def test_compact_variant_averages_the_image_down(folded: Arrays, tmp_path: Path) -> None:
    path = _save(tmp_path / "weights.npz", folded)
    whole_hw = (2 * SMALL_HW[0], 2 * SMALL_HW[1])
    compact = build_inception_v3(InceptionV3Config(input_hw=whole_hw, backbone_hw=SMALL_HW, batch_norm=False))
    plain = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, batch_norm=False))
    for model in (compact, plain):
        load_imagenet_partial(model, path)
    compact.get_layer("logits").set_weights(plain.get_layer("logits").get_weights())
    pixels = _pixels()
    blocks = pixels.repeat(2, axis=1).repeat(2, axis=2).astype(np.int16)
    # Every 2x2 block keeps its mean, with different pixels in it.
    spread = np.minimum(blocks, 255 - blocks) // 2
    sign = np.where(np.indices(whole_hw).sum(0) % 2, 1, -1)[None, ..., None]
    np.testing.assert_allclose(compact((blocks + sign * spread).astype(np.uint8)), plain(pixels), rtol=1e-3)


def test_diagnosis_is_the_softmax_of_the_logits() -> None:
    model = build_inception_v3(InceptionV3Config(input_hw=SMALL_HW, n_classes=4))
    both = keras.Model(model.input, [model.get_layer("logits").output, model.output])
    logits, scores = map(np.asarray, both(_pixels(), training=False))
    assert model.output_names == ["diagnosis"]
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.log(scores) - np.log(scores[:, :1]), logits - logits[:, :1], atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_classes", 1),
        ("dropout", 1.0),
        ("backbone_hw", (300, 300)),
        ("backbone_hw", (64, 64)),
        ("backbone_hw", (1024, 1024)),
        ("last_pool", "mean"),
    ],
)
def test_impossible_configurations_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}: expected .*, got "):
        InceptionV3Config(**{field: value})


@needs_weights
def test_published_weights_fill_all_but_two_kernels_and_the_head() -> None:
    report = load_imagenet_partial(build_inception_v3(InceptionV3Config(batch_norm=False)), WEIGHTS)
    assert len(report.loaded) == 92
    assert report.bias_only == ("mixed_9_tower_1_conv_1", "mixed_10_tower_1_conv_1")
    assert report.untouched == ("logits",)


@needs_weights
@pytest.mark.slow
def test_published_weights_tell_radiographs_apart() -> None:
    import csv

    import cv2
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folder = DATA / "xray"
    (manifest,) = folder.glob("*.csv")
    with manifest.open() as lines:
        rows = list(csv.DictReader(lines))
    labels = sorted({row["label"] for row in rows})
    chosen = [row for label in labels for row in [r for r in rows if r["label"] == label][::6][:50]]
    images = [cv2.imread(str(folder / row["file"]), cv2.IMREAD_GRAYSCALE) for row in chosen]
    pixels = np.stack([cv2.resize(i, (192, 192), interpolation=cv2.INTER_AREA) for i in images])
    model = build_inception_v3(InceptionV3Config(input_hw=(192, 192), batch_norm=False))
    load_imagenet_partial(model, WEIGHTS)
    pooled = [keras.layers.GlobalAveragePooling2D()(model.get_layer(name).output) for name in ("mixed7", "mixed8")]
    backbone = keras.Model(model.input, keras.layers.Concatenate()(pooled))
    features = backbone.predict(np.repeat(pixels[..., None], 3, axis=-1), batch_size=16, verbose=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
    groups = [row["group_id"] for row in chosen]
    scores = cross_val_score(classifier, features, [row["label"] for row in chosen], groups=groups, cv=GroupKFold(4))
    # Chance is 0.25. Weights in the wrong layers, or another scaling of the pixels, come out below 0.55.
    assert scores.mean() > 0.6


def test_models_import_no_tensorflow_themselves() -> None:
    modules = "train.inception, train.manifestation_cnn, train.xception, train.deeplab"
    code = (
        "import sys, types\n"
        "keras = types.ModuleType('keras')\n"
        "keras.Model = keras.Variable = object\n"
        "keras.layers = types.SimpleNamespace(Conv2D=object)\n"
        "sys.modules['keras'] = keras\n"
        f"import {modules}\n"
        "print([name for name in ('tensorflow', 'torch', 'jax') if name in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
