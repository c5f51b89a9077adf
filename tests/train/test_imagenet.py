from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest

from serving.errors import DatasetError
from train import imagenet
from train.inception import InceptionV3Config, build_inception_v3
from train.inception import load_imagenet_partial as load_partial

_SIDE = 107
_HW = (_SIDE, _SIDE)


@pytest.fixture(scope="module")
def published() -> keras.Model:
    """Keras' network with weights and statistics that no layer has by chance."""
    keras.utils.set_random_seed(3)
    model = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(*_HW, 3))
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(rng.normal(0.2, 0.1, layer.beta.shape))
            layer.moving_mean.assign(rng.normal(0, 0.1, layer.beta.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 2, layer.beta.shape))
    return model


@pytest.mark.parametrize("batch_norm", [True, False])
def test_with_keras_own_weights_our_network_is_keras_own(published: keras.Model, batch_norm: bool) -> None:
    config = InceptionV3Config(input_hw=_HW, batch_norm=batch_norm, last_pool="average")
    ours = build_inception_v3(config)
    report = imagenet.load_applications(ours, published)
    assert len(report.loaded) == 94
    assert report.untouched == ("logits",)
    image = np.random.default_rng(1).integers(0, 256, (2, *_HW, 3), dtype=np.uint8)
    features = keras.Model(ours.input, ours.get_layer("mixed10").output).predict(image, verbose=0)
    theirs = published.predict(keras.applications.inception_v3.preprocess_input(image.astype(np.float32)), verbose=0)
    assert features.shape == theirs.shape
    assert np.abs(features).max() > 0.1
    assert np.allclose(features, theirs, atol=1e-3 * np.abs(theirs).max())


def test_another_network_is_refused() -> None:
    other = keras.applications.MobileNet(weights=None, include_top=False, input_shape=(64, 64, 3), alpha=0.25)
    ours = build_inception_v3(InceptionV3Config(input_hw=_HW))
    with pytest.raises(DatasetError, match="expected Inception-v3's 94 convolutions"):
        imagenet.load_applications(ours, other)


def test_a_local_file_of_keras_network_will_do(published: keras.Model, tmp_path: Path) -> None:
    path = tmp_path / "inception.weights.h5"
    published.save_weights(path)
    ours = build_inception_v3(InceptionV3Config(input_hw=_HW, batch_norm=False))
    imagenet.load_imagenet(ours, tmp_path, str(path))
    twin = build_inception_v3(InceptionV3Config(input_hw=_HW, batch_norm=False))
    imagenet.load_applications(twin, published)
    for name in ("conv", "mixed_10_tower_1_conv_1"):
        assert np.allclose(ours.get_layer(name).get_weights()[0], twin.get_layer(name).get_weights()[0])


def test_what_is_beside_the_scans_comes_first_and_keras_own_next(
    published: keras.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def applications(weights: str) -> keras.Model:
        asked.append(weights)
        return published

    monkeypatch.setattr(imagenet, "_applications", applications)
    ours = build_inception_v3(InceptionV3Config(input_hw=_HW, batch_norm=False))
    monkeypatch.setenv("LUNGSTREAMS_DATA", str(tmp_path))
    imagenet.load_imagenet(ours, tmp_path)
    assert asked == ["imagenet"]
    beside = tmp_path / "weights" / "inception_v3_imagenet_partial.npz"
    beside.parent.mkdir()
    np.savez(beside, **{"conv/kernel": np.full((3, 3, 3, 32), 0.5, np.float32), "conv/bias": np.zeros(32, np.float32)})
    assert imagenet.load_imagenet(ours, tmp_path).loaded == ("conv",)
    assert load_partial(ours, beside).loaded == ("conv",)
    assert asked == ["imagenet"]
    imagenet.load_imagenet(ours, tmp_path, imagenet.DOWNLOAD)
    assert asked == ["imagenet"] * 2


def test_weights_that_can_not_be_had_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = build_inception_v3(InceptionV3Config(input_hw=_HW))
    with pytest.raises(DatasetError, match="nowhere"):
        imagenet.load_imagenet(ours, tmp_path, str(tmp_path / "nowhere.h5"))

    def offline(**_: object) -> keras.Model:
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.applications, "InceptionV3", offline)
    with pytest.raises(DatasetError, match=r"expected the weights of keras.applications.InceptionV3 .*URL fetch"):
        imagenet.load_imagenet(ours, tmp_path, imagenet.DOWNLOAD)
