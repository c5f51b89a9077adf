"""The CNN of stage 2 against the paper's Fig. 5 and text."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from serving.labels import MANIFESTATION_NAMES
from train import manifestation_cnn
from train.manifestation_cnn import ManifestationCnnConfig, build_manifestation_cnn

SMALL = ManifestationCnnConfig(input_hw=(64, 64), n_blocks=3, n_kernels=8)


@pytest.fixture(scope="module")
def default() -> keras.Model:
    return build_manifestation_cnn(ManifestationCnnConfig())


def _layers(model: keras.Model, kind: type) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, kind)]


def _macs(model: keras.Model) -> int:
    convolutions = sum(
        int(np.prod(layer.output.shape[1:3])) * int(np.prod(layer.kernel.shape))
        for layer in _layers(model, keras.layers.Conv2D)
    )
    return convolutions + sum(int(np.prod(layer.kernel.shape)) for layer in _layers(model, keras.layers.Dense))


def test_blocks_follow_the_paper_in_order(default: keras.Model) -> None:
    kinds = [type(layer).__name__ for layer in default.layers]
    block = ["Conv2D", "MaxPooling2D", "ELU", "Dropout"]
    dense = ["Flatten", "Dense", "Dropout", "Dense", "Dropout", "Dense", "Activation"]
    assert kinds == ["InputLayer", "Rescaling", *block * 6, *dense]


def test_sizes_are_those_of_the_paper(default: keras.Model) -> None:
    assert {layer.kernel_size for layer in _layers(default, keras.layers.Conv2D)} == {(5, 5)}
    assert {layer.pool_size for layer in _layers(default, keras.layers.MaxPooling2D)} == {(2, 2)}
    assert [layer.rate for layer in _layers(default, keras.layers.Dropout)] == [0.25] * 6 + [0.5] * 2
    assert [layer.units for layer in _layers(default, keras.layers.Dense)] == [128, 64, 3]
    activations = [keras.activations.serialize(layer.activation) for layer in _layers(default, keras.layers.Dense)]
    assert activations == ["elu", "elu", "linear"]


def test_six_blocks_leave_a_map_of_eight_by_eight(default: keras.Model) -> None:
    assert default.get_layer("block6_pooling").output.shape == (None, 8, 8, 32)
    assert default.get_layer("flatten").output.shape == (None, 2048)


@pytest.mark.parametrize(
    ("config", "parameters", "giga_macs"),
    [
        (ManifestationCnnConfig(), 401_315, "2.86"),
        (ManifestationCnnConfig(n_kernels=16), 172_947, "0.87"),
        (ManifestationCnnConfig(n_blocks=5), 1_162_115, "2.86"),
        (ManifestationCnnConfig(downsample=2), 204_707, "0.72"),
    ],
)
def test_table_in_the_docstring_is_true(config: ManifestationCnnConfig, parameters: int, giga_macs: str) -> None:
    model = build_manifestation_cnn(config)
    assert model.count_params() == parameters
    assert f"{_macs(model) / 1e9:.2f}" == giga_macs
    row = next(line for line in manifestation_cnn.__doc__.splitlines() if f"{parameters:,}" in line)
    assert row.endswith(f"{giga_macs} G")


def test_labels_are_independent_probabilities() -> None:
    model = build_manifestation_cnn(SMALL)
    assert model.output_shape == (None, len(MANIFESTATION_NAMES))
    model.get_layer("logits").bias.assign([10.0, 10.0, -10.0])
    scores = np.asarray(model(np.zeros((1, 64, 64, 3), np.uint8)))[0]
    assert scores[:2].min() > 0.5 > scores[2]
    assert scores.sum() > 1


def test_logits_are_reachable_and_give_the_scores() -> None:
    model = build_manifestation_cnn(SMALL)
    both = keras.Model(model.input, [model.get_layer("logits").output, model.output])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    logits, scores = map(np.asarray, both(pixels, training=False))
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), scores, rtol=1e-5)


def test_downsampling_averages_pixels() -> None:
    keras.utils.set_random_seed(0)
    model = build_manifestation_cnn(ManifestationCnnConfig(input_hw=(64, 64), n_blocks=3, n_kernels=8, downsample=2))
    # Four pixels of one mean in different orders: an average can not tell, picking one of them could.
    a, b = np.zeros((2, 1, 64, 64, 3), np.uint8)
    a[:, ::2, ::2] = 200
    b[:, 1::2, 1::2] = 200
    np.testing.assert_allclose(model(a), model(b), rtol=1e-5)


def test_pooling_before_elu_gives_what_the_papers_order_gives() -> None:
    model = build_manifestation_cnn(SMALL)
    pooling, elu = model.get_layer("block1_pooling"), model.get_layer("block1_elu")
    convolved = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype(np.float32)
    np.testing.assert_array_equal(elu(pooling(convolved)), pooling(elu(convolved)))


def test_batch_norm_follows_the_convolution() -> None:
    config = ManifestationCnnConfig(input_hw=(64, 64), n_blocks=3, n_kernels=8, batch_norm=True)
    model = build_manifestation_cnn(config)
    assert model.get_layer("block2_bn").input is model.get_layer("block2_conv").output
    assert model.get_layer("block2_pooling").input is model.get_layer("block2_bn").output
    assert not model.get_layer("block2_conv").use_bias
    assert not _layers(build_manifestation_cnn(SMALL), keras.layers.BatchNormalization)


def test_a_few_slices_can_be_learnt() -> None:
    keras.utils.set_random_seed(0)
    model = build_manifestation_cnn(SMALL)
    for layer in _layers(model, keras.layers.Dropout):
        layer.rate = 0.0
    images, labels = np.zeros((8, 64, 64, 3), np.uint8), np.zeros((8, 3), np.float32)
    for i in range(8):
        labels[i] = [i & 1, i >> 1 & 1, i >> 2 & 1]
        for k in range(3):
            images[i, 20 * k : 20 * k + 16, 20:40] = 220 * int(labels[i, k])
    model.compile(keras.optimizers.Adam(3e-3), "binary_crossentropy")
    model.fit(images, labels, batch_size=8, epochs=40, verbose=0)
    assert np.array_equal(np.asarray(model(images, training=False)) > 0.5, labels > 0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_blocks", 0), ("n_kernels", 0), ("downsample", 0), ("downsample", 3), ("n_blocks", 10)],
)
def test_impossible_configurations_are_refused(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"{field}: expected .*, got "):
        ManifestationCnnConfig(**{field: value})
