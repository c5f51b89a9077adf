"""The backbone against Chen et al. 2018, Fig. 4."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from train.xception import (
    MIDDLE_UNITS,
    XceptionConfig,
    build_xception65,
    convolution,
    scaled_channels,
    separable_convolution,
)

NARROW = 0.05


@pytest.fixture(scope="module")
def full() -> keras.Model:
    return build_xception65(XceptionConfig())


def _separable(c_in: int, c_out: int) -> int:
    """Weights of 3x3 depthwise and 1x1 pointwise with a batch norm (four vectors) after each."""
    return 9 * c_in + 4 * c_in + c_in * c_out + 4 * c_out


def _published_parameters() -> int:
    total = 9 * 3 * 32 + 4 * 32 + 9 * 32 * 64 + 4 * 64
    residual_blocks = [(64, (128, 128, 128)), (128, (256, 256, 256)), (256, (728, 728, 728)), (728, (728, 1024, 1024))]
    for c_in, channels in residual_blocks:
        total += c_in * channels[-1] + 4 * channels[-1]
        for a, b in zip((c_in, *channels), channels, strict=False):
            total += _separable(a, b)
    total += 16 * 3 * _separable(728, 728)
    return total + _separable(1024, 1536) + _separable(1536, 1536) + _separable(1536, 2048)


def test_has_the_parameters_of_the_published_architecture(full: keras.Model) -> None:
    assert full.count_params() == _published_parameters()


def test_is_65_layers_deep_as_its_name_counts_them(full: keras.Model) -> None:
    # A separable convolution counts once, shortcuts do not count.
    separable = [layer for layer in full.layers if layer.name.endswith("_pointwise")]
    plain = [layer for layer in full.layers if layer.name in ("entry_flow_conv1", "entry_flow_conv2")]
    assert len(plain) + len(separable) == 65


def test_features_are_at_the_output_stride(full: keras.Model) -> None:
    assert full.output["features"].shape == (None, 32, 32, 2048)
    assert full.output["low_level"].shape == (None, 128, 128, 256)


def test_output_stride_8_doubles_the_map_and_keeps_the_weights() -> None:
    coarse = build_xception65(XceptionConfig(width=NARROW))
    fine = build_xception65(XceptionConfig(width=NARROW, output_stride=8))
    assert fine.output["features"].shape[1:3] == (64, 64)
    assert fine.output["low_level"].shape == coarse.output["low_level"].shape
    assert fine.count_params() == coarse.count_params()


@pytest.mark.parametrize(
    ("output_stride", "middle", "exit1", "exit2"),
    [(16, 1, 1, 2), (8, 2, 2, 4)],
)
def test_atrous_rates_stand_in_for_the_strides_left_out(
    output_stride: int, middle: int, exit1: int, exit2: int
) -> None:
    model = build_xception65(XceptionConfig(width=NARROW, output_stride=output_stride))
    expected = {
        "entry_flow_block3_separable_conv3": 1,
        "middle_flow_unit1_separable_conv1": middle,
        "middle_flow_unit16_separable_conv3": middle,
        "exit_flow_block1_separable_conv3": exit1,
        "exit_flow_block2_separable_conv1": exit2,
        "exit_flow_block2_separable_conv3": exit2,
    }
    found = {name: model.get_layer(f"{name}_depthwise").dilation_rate for name in expected}
    assert found == {name: (rate, rate) for name, rate in expected.items()}


def test_strided_convolutions_take_the_place_of_pooling(full: keras.Model) -> None:
    assert not [layer.name for layer in full.layers if "Pooling" in type(layer).__name__]
    strided = [
        layer.name
        for layer in full.layers
        if isinstance(layer, keras.layers.DepthwiseConv2D) and layer.strides == (2, 2)
    ]
    assert strided == [f"entry_flow_block{i}_separable_conv3_depthwise" for i in (1, 2, 3)]


def test_batch_norm_and_relu_follow_every_depthwise_convolution(full: keras.Model) -> None:
    depthwise = [layer for layer in full.layers if isinstance(layer, keras.layers.DepthwiseConv2D)]
    assert len(depthwise) == 4 * 3 + 16 * 3 + 3
    for layer in depthwise:
        norm = full.get_layer(f"{layer.name}_bn")
        assert norm.input is layer.output
        assert full.get_layer(f"{layer.name}_relu").input is norm.output


def test_middle_units_add_to_what_came_in(full: keras.Model) -> None:
    before, unit = full.get_layer("middle_flow_unit3_sum"), full.get_layer("middle_flow_unit4_sum")
    assert any(tensor is before.output for tensor in unit.input)


def test_middle_units_begin_as_the_identity_and_can_learn_to_be_more(full: keras.Model) -> None:
    gammas = {
        layer.name: layer.get_weights()[0]
        for layer in full.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    zero = [name for name, gamma in gammas.items() if not gamma.any()]
    assert zero == [f"middle_flow_unit{i}_separable_conv3_pointwise_bn" for i in range(1, MIDDLE_UNITS + 1)]
    assert all((gamma == 1).all() for name, gamma in gammas.items() if name not in zero)


def test_strided_branch_and_shortcut_sample_the_same_pixels() -> None:
    # With the kernel's centre alone, a strided convolution copies the pixels that it is centred on.
    image = np.arange(64, dtype=np.float32).reshape(1, 8, 8, 1)
    x = keras.Input((8, 8, 1))
    model = keras.Model(x, convolution(x, 1, 3, "conv", 0.9, stride=2, relu=False))
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 1
    model.get_layer("conv").set_weights([centre])
    sampled = np.asarray(model(image, training=False)) * np.sqrt(1 + 1e-3)
    np.testing.assert_allclose(sampled[0, ..., 0], image[0, ::2, ::2, 0], rtol=1e-5)


def test_last_relu_of_a_separable_convolution_is_optional() -> None:
    x = keras.Input((8, 8, 8))
    noise = np.random.default_rng(0).normal(size=(2, 8, 8, 8)).astype(np.float32)
    linear = keras.Model(x, separable_convolution(x, 8, "linear", 0.9, relu=False))
    rectified = keras.Model(x, separable_convolution(x, 8, "rectified", 0.9))
    assert np.min(linear(noise)) < 0
    assert np.min(rectified(noise)) == 0


@pytest.mark.parametrize(
    ("channels", "width", "expected"),
    [(728, 1.0, 728), (728, 0.5, 368), (728, 0.25, 184), (32, 0.25, 8), (32, 0.01, 8), (48, 0.25, 16)],
)
def test_width_rounds_channels_to_multiples_of_eight(channels: int, width: float, expected: int) -> None:
    assert scaled_channels(channels, width) == expected


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("output_stride", 32),
        ("width", 0.0),
        ("width", float("nan")),
        ("input_hw", (500, 512)),
        ("input_hw", (512, 0)),
        ("batch_norm_momentum", 1.0),
    ],
)
def test_impossible_configurations_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field}: expected .*, got "):
        XceptionConfig(**{field: value})
