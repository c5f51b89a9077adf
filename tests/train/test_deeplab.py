"""DeepLab-v3+ against Chen et al. 2018, and what training and export rely on."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
from jaxtyping import UInt8

from train.deeplab import DeepLabConfig, build_deeplab

NARROW = 0.05


def _pixels(side: int, n: int = 2, seed: int = 0) -> UInt8[np.ndarray, "n side side 3"]:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def full() -> keras.Model:
    return build_deeplab(DeepLabConfig(n_classes=4))


@pytest.fixture(scope="module")
def narrow() -> keras.Model:
    keras.utils.set_random_seed(3)
    return build_deeplab(DeepLabConfig(n_classes=4, input_hw=(None, None), width=NARROW))


def test_has_the_parameters_of_the_published_architecture(full: keras.Model) -> None:
    # 41,258,213 with the 21 classes of Pascal VOC, as in bonlime/keras-deeplab-v3-plus, which runs the authors'
    # weights. A class is 256 weights and a bias.
    assert full.count_params() == 41_258_213 - (21 - 4) * 257
    assert sum(int(np.prod(w.shape)) for w in full.trainable_weights) == 41_055_413 - (21 - 4) * 257


@pytest.mark.parametrize(("width", "millions"), [(0.5, 10.7), (0.25, 2.8)])
def test_width_shrinks_the_network_about_quadratically(width: float, millions: float) -> None:
    model = build_deeplab(DeepLabConfig(n_classes=2, width=width))
    assert model.count_params() / 1e6 == pytest.approx(millions, abs=0.05)
    assert model.output_shape == (None, 512, 512, 2)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        ("exit_flow_block2_separable_conv3_pointwise_relu", (32, 32, 2048)),
        ("aspp_1x1_relu", (32, 32, 256)),
        ("aspp_rate6_pointwise_relu", (32, 32, 256)),
        ("aspp_rate12_pointwise_relu", (32, 32, 256)),
        ("aspp_rate18_pointwise_relu", (32, 32, 256)),
        ("aspp_image_pooling_conv_relu", (1, 1, 256)),
        ("aspp_branches", (32, 32, 4 * 256)),
        ("aspp_projection_relu", (32, 32, 256)),
        ("decoder_upsampling", (128, 128, 256)),
        ("decoder_low_level_relu", (128, 128, 48)),
        ("decoder_concatenation", (128, 128, 256 + 48)),
        ("decoder_refinement1_pointwise_relu", (128, 128, 256)),
        ("decoder_refinement2_pointwise_relu", (128, 128, 256)),
        ("classifier", (128, 128, 4)),
        ("logits", (512, 512, 4)),
    ],
)
def test_every_stage_has_the_published_shape(full: keras.Model, layer: str, shape: tuple[int, ...]) -> None:
    assert full.get_layer(layer).output.shape == (None, *shape)


def test_decoder_reads_the_last_features_at_stride_4_before_their_relu(full: keras.Model) -> None:
    source = full.get_layer("entry_flow_block2_separable_conv2_pointwise_bn")
    assert full.get_layer("decoder_low_level").input is source.output


@pytest.mark.parametrize("rate", [6, 12, 18])
def test_aspp_branch_sees_nine_points_at_its_rate(narrow: keras.Model, rate: int) -> None:
    layer = narrow.get_layer(f"aspp_rate{rate}_depthwise")
    impulse = np.zeros((1, 48, 48, layer.input.shape[-1]), np.float32)
    impulse[:, 24, 24] = 1
    response = np.abs(np.asarray(layer(impulse))).sum(axis=(0, -1))
    steps = (24 - rate, 24, 24 + rate)
    assert {tuple(map(int, p)) for p in np.argwhere(response)} == {(y, x) for y in steps for x in steps}


def test_output_stride_8_still_answers_every_pixel() -> None:
    config = DeepLabConfig(n_classes=2, input_hw=(64, 64), width=NARROW, output_stride=8, atrous_rates=(12, 24, 36))
    model = build_deeplab(config)
    assert model.get_layer("aspp_branches").output.shape[1:3] == (8, 8)
    assert np.asarray(model(_pixels(64))).shape == (2, 64, 64, 2)


def test_bilinear_upsampling_keeps_pixel_centres(narrow: keras.Model) -> None:
    # Half-pixel centres: a ramp stays a ramp, shifted by (4 - 1) / 2 of the fine pixels. What ONNX must do too.
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[None, None, :, None], (1, 8, 8, 4))
    fine = np.asarray(narrow.get_layer("logits")(ramp))[0, 0, :, 0]
    expected = np.clip((np.arange(32) - 1.5) / 4, 0, 7)
    np.testing.assert_allclose(fine, expected, atol=1e-6)


def test_network_for_any_size_agrees_with_that_for_one_size(narrow: keras.Model, tmp_path: Path) -> None:
    weights = tmp_path / "deeplab.weights.h5"
    narrow.save_weights(weights)
    fixed = build_deeplab(DeepLabConfig(n_classes=4, input_hw=(128, 128), width=NARROW))
    image = _pixels(128)
    assert not np.allclose(fixed(image), narrow(image))
    fixed.load_weights(weights)
    np.testing.assert_allclose(fixed(image), narrow(image), atol=1e-6)


def test_image_pooling_is_the_mean_over_the_whole_map(narrow: keras.Model) -> None:
    pooling = narrow.get_layer("aspp_image_pooling")
    features = np.random.default_rng(0).normal(size=(2, 5, 9, 4)).astype(np.float32)
    np.testing.assert_allclose(pooling(features), features.mean((1, 2), keepdims=True), atol=1e-6)


def test_one_item_of_a_batch_does_not_change_another(narrow: keras.Model) -> None:
    image = _pixels(64, n=3)
    together = np.asarray(narrow(image, training=False))
    alone = np.asarray(narrow(image[1:2], training=False))
    np.testing.assert_allclose(together[1:2], alone, atol=1e-6)


@pytest.mark.long
def test_the_same_seed_gives_the_same_network() -> None:
    config = DeepLabConfig(n_classes=2, input_hw=(64, 64), width=NARROW)
    answers = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        answers.append(np.asarray(build_deeplab(config)(_pixels(64))))
    np.testing.assert_array_equal(answers[0], answers[1])
    assert not np.array_equal(answers[0], answers[2])


def test_units_of_the_middle_flow_start_different(narrow: keras.Model) -> None:
    first, second = (narrow.get_layer(f"middle_flow_unit{i}_separable_conv1_depthwise").kernel for i in (1, 2))
    assert not np.allclose(first, second)


def test_every_weight_learns() -> None:
    # A branch that is cut off by mistake would keep its weights.
    keras.utils.set_random_seed(0)
    model = build_deeplab(DeepLabConfig(n_classes=2, input_hw=(None, None), width=NARROW, dropout=0.0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss, run_eagerly=True)
    before = [np.array(weight) for weight in model.weights]
    # Twice: the middle units begin as the identity, so nothing reaches inside them until the first step opens them.
    for _ in range(2):
        model.train_on_batch(_pixels(64), np.random.default_rng(1).integers(0, 2, (2, 64, 64)))
    unmoved = [w.path for w, old in zip(model.weights, before, strict=True) if np.array_equal(w, old)]
    assert [path for path in unmoved if "seed" not in path] == []


def test_logits_are_float32_under_mixed_precision() -> None:
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        model = build_deeplab(DeepLabConfig(n_classes=2, input_hw=(64, 64), width=NARROW))
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert model.get_layer("middle_flow_unit1_sum").compute_dtype == "bfloat16"
    assert model.get_layer("scaling").compute_dtype == "float32"
    assert model.output.dtype == "float32"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n_classes", 1),
        ("atrous_rates", ()),
        ("atrous_rates", (6, 0)),
        ("atrous_rates", (6, 6)),
        ("dropout", 1.0),
        ("input_hw", (256, 250)),
        ("output_stride", 4),
    ],
)
def test_impossible_configurations_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}: expected .*, got "):
        DeepLabConfig(**{"n_classes": 2, field: value})
