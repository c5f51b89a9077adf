"""Aligned Xception-65, the backbone of DeepLab-v3+.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution", Fig. 4, after Chollet 2017: strided separable
convolutions instead of every max pooling, batch norm and ReLU also after each 3x3 depthwise convolution, 16 middle
units. At width 1 the channels are the published ones.

Initial weights come from Keras' global generator: `keras.utils.set_random_seed` makes them repeatable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import keras

from serving.pipeline import MODEL_HW

MIDDLE_UNITS: Final = 16
LOW_LEVEL_STRIDE: Final = 4
CHANNEL_DIVISOR: Final = 8
_ENTRY_CHANNELS: Final = (128, 256, 728)
_MIDDLE_CHANNELS: Final = 728
_EXIT_CHANNELS: Final = ((728, 1024, 1024), (1536, 1536, 2048))
# What strides are left to the third entry block, and the atrous rates of middle flow, exit block 1 and exit block 2,
# once the network has reached its output stride.
_AFTER_OUTPUT_STRIDE: Final[dict[int, tuple[int, int, int, int]]] = {16: (2, 1, 1, 2), 8: (1, 2, 2, 4)}

# A Keras tensor; Keras ships no types.
KerasTensor = Any


@dataclass(frozen=True)
class XceptionConfig:
    """What an Xception-65 backbone looks like.

    Attributes:
        input_hw: Height and width of the input in pixels, multiples of `output_stride`; None where it may vary.
        width: Multiplier of every channel count, which is then rounded to a multiple of `CHANNEL_DIVISOR`.
        output_stride: Input pixels a step of the feature map, 16 or 8.
        batch_norm_momentum: Share of the old moving statistics that an update keeps. The paper's 0.9997 is for
            hundreds of thousands of steps.
    """

    input_hw: tuple[int | None, int | None] = MODEL_HW
    width: float = 1.0
    output_stride: int = 16
    batch_norm_momentum: float = 0.99

    def __post_init__(self) -> None:
        """Refuse what can not be built.

        Raises:
            ValueError: If a field is out of range.
        """
        if self.output_stride not in _AFTER_OUTPUT_STRIDE:
            raise ValueError(f"output_stride: expected one of {sorted(_AFTER_OUTPUT_STRIDE)}, got {self.output_stride}")
        if not self.width > 0:
            raise ValueError(f"width: expected more than 0, got {self.width}")
        if not 0 < self.batch_norm_momentum < 1:
            raise ValueError(f"batch_norm_momentum: expected a number in (0, 1), got {self.batch_norm_momentum}")
        for side in self.input_hw:
            # 16 at output stride 8 too: the decoder's two feature maps must meet at the same size.
            if side is not None and (side <= 0 or side % 16):
                raise ValueError(f"input_hw: expected None or multiples of 16, got {self.input_hw}")


def scaled_channels(channels: int, width: float) -> int:
    """Channel count at a width: the multiple of `CHANNEL_DIVISOR` nearest to `channels * width`, at least one."""
    return max(CHANNEL_DIVISOR, int(channels * width / CHANNEL_DIVISOR + 0.5) * CHANNEL_DIVISOR)


def scale_pixels(image: KerasTensor) -> KerasTensor:
    """`[0, 255]` to `[-1, 1]`, in float32 under any precision policy."""
    return keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="scaling")(image)


def batch_norm(x: KerasTensor, name: str, momentum: float, *, relu: bool, gamma: float = 1.0) -> KerasTensor:
    """Batch norm as ``<name>_bn`` with an initial scale of `gamma`, then ReLU as ``<name>_relu`` if asked for."""
    x = keras.layers.BatchNormalization(
        momentum=momentum, epsilon=1e-3, gamma_initializer=keras.initializers.Constant(gamma), name=f"{name}_bn"
    )(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def convolution(
    x: KerasTensor,
    channels: int,
    kernel: int,
    name: str,
    momentum: float,
    *,
    stride: int = 1,
    relu: bool = True,
    gamma: float = 1.0,
) -> KerasTensor:
    """Convolution without bias, batch norm, and ReLU if asked for. A stride of 2 samples at pixels 0, 2, 4, ..."""
    x, padding = _pad(x, kernel, stride, name)
    x = keras.layers.Conv2D(
        channels,
        kernel,
        strides=stride,
        padding=padding,
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return batch_norm(x, name, momentum, relu=relu, gamma=gamma)


def separable_convolution(
    x: KerasTensor,
    channels: int,
    name: str,
    momentum: float,
    *,
    stride: int = 1,
    rate: int = 1,
    relu: bool = True,
    gamma: float = 1.0,
) -> KerasTensor:
    """3x3 depthwise at an atrous rate, batch norm, ReLU, 1x1 pointwise, batch norm, and ReLU if asked for.

    Args:
        x: Feature map `(n, h, w, c)`.
        channels: Channels of the result.
        name: Layers are ``<name>_depthwise`` and ``<name>_pointwise``, and theirs with ``_bn`` and ``_relu``.
        momentum: Of the moving statistics.
        stride: 1 or 2.
        rate: Atrous rate; 1 where `stride` is 2.
        relu: Whether the last batch norm is followed by a ReLU.
        gamma: Initial scale of the last batch norm.
    """
    depthwise = f"{name}_depthwise"
    x, padding = _pad(x, 3, stride, depthwise)
    x = keras.layers.DepthwiseConv2D(
        3,
        strides=stride,
        padding=padding,
        dilation_rate=rate,
        use_bias=False,
        # DeepLab's own. Keras' default counts every channel into the fan of a depthwise kernel, which leaves the
        # output's variance near batch norm's epsilon.
        depthwise_initializer=keras.initializers.TruncatedNormal(stddev=0.33),
        name=depthwise,
    )(x)
    x = batch_norm(x, depthwise, momentum, relu=True)
    return convolution(x, channels, 1, f"{name}_pointwise", momentum, relu=relu, gamma=gamma)


def _pad(x: KerasTensor, kernel: int, stride: int, name: str) -> tuple[KerasTensor, str]:
    if stride == 1 or kernel == 1:
        return x, "same"
    # "same" would centre a strided 3x3 kernel on odd pixels of an even input, where the 1x1 of the shortcut takes
    # the even ones. Padding by hand keeps both on the even ones, as in DeepLab's conv2d_same.
    return keras.layers.ZeroPadding2D(kernel // 2, name=f"{name}_padding")(x), "valid"


def _module(
    x: KerasTensor,
    channels: tuple[int, int, int],
    name: str,
    momentum: float,
    *,
    stride: int = 1,
    rate: int = 1,
    shortcut: Literal["convolution", "identity"] = "convolution",
) -> tuple[KerasTensor, KerasTensor]:
    """Three pre-activated separable convolutions, the last one strided, and a shortcut around them.

    Returns:
        Their sum, and the last features before the stride.
    """
    y = x
    before_stride = x
    for i, depth in enumerate(channels, start=1):
        unit = f"{name}_separable_conv{i}"
        before_stride = y
        y = keras.layers.ReLU(name=f"{unit}_preactivation")(y)
        last = i == len(channels)
        y = separable_convolution(
            y,
            depth,
            unit,
            momentum,
            stride=stride if last else 1,
            rate=rate,
            relu=False,
            # A unit around an identity begins as the identity (Goyal et al. 2017, 5.1): sixteen in a row learn sooner.
            gamma=0.0 if last and shortcut == "identity" else 1.0,
        )
    if shortcut == "convolution":
        x = convolution(x, channels[-1], 1, f"{name}_shortcut", momentum, stride=stride, relu=False)
    return keras.layers.Add(name=f"{name}_sum")([y, x]), before_stride


def xception65_features(x: KerasTensor, config: XceptionConfig) -> tuple[KerasTensor, KerasTensor]:
    """Run scaled pixels through the backbone.

    Args:
        x: `(n, h, w, 3)` in `[-1, 1]`.
        config: Its shape.

    Returns:
        Low-level features `(n, h/4, w/4, 256 * width)`: the last at that stride, as in DeepLab's own code, before any
        ReLU. And features `(n, h/output_stride, w/output_stride, 2048 * width)`, after one.
    """

    def at_width(*channels: int) -> tuple[int, ...]:
        return tuple(scaled_channels(c, config.width) for c in channels)

    momentum = config.batch_norm_momentum
    entry3_stride, middle_rate, exit1_rate, exit2_rate = _AFTER_OUTPUT_STRIDE[config.output_stride]
    first, second = at_width(32, 64)
    x = convolution(x, first, 3, "entry_flow_conv1", momentum, stride=2)
    x = convolution(x, second, 3, "entry_flow_conv2", momentum)
    entry1, entry2, entry3 = at_width(*_ENTRY_CHANNELS)
    x, _ = _module(x, (entry1,) * 3, "entry_flow_block1", momentum, stride=2)
    x, low_level = _module(x, (entry2,) * 3, "entry_flow_block2", momentum, stride=2)
    x, _ = _module(x, (entry3,) * 3, "entry_flow_block3", momentum, stride=entry3_stride)
    (depth,) = at_width(_MIDDLE_CHANNELS)
    for i in range(1, MIDDLE_UNITS + 1):
        name = f"middle_flow_unit{i}"
        x, _ = _module(x, (depth,) * 3, name, momentum, rate=middle_rate, shortcut="identity")
    first, second, third = at_width(*_EXIT_CHANNELS[0])
    # Stride 1 at either output stride: it has been reached by now, and the rates make up for it.
    x, _ = _module(x, (first, second, third), "exit_flow_block1", momentum, rate=exit1_rate)
    for i, depth in enumerate(at_width(*_EXIT_CHANNELS[1]), start=1):
        x = separable_convolution(x, depth, f"exit_flow_block2_separable_conv{i}", momentum, rate=exit2_rate)
    return low_level, x


def build_xception65(config: XceptionConfig) -> keras.Model:
    """The backbone alone.

    Returns:
        Model from ``image``, uint8 `(n, h, w, 3)` in `[0, 255]`, to ``low_level`` `(n, h/4, w/4, 256 * width)` and
        ``features`` `(n, h/output_stride, w/output_stride, 2048 * width)`.
    """
    image = keras.Input((*config.input_hw, 3), dtype="uint8", name="image")
    low_level, features = xception65_features(scale_pixels(image), config)
    return keras.Model(image, {"low_level": low_level, "features": features}, name="xception65")
