"""DeepLab-v3+ on aligned Xception-65: stage 3, one network for each stream.

Chen et al. 2018, "Encoder-Decoder with Atrous Separable Convolution": atrous spatial pyramid pooling (ASPP) over the
backbone's features, and a decoder that refines them with low-level features between two bilinear up-samplings by 4.
Atrous rates 6, 12, 18 at output stride 16, as in the paper's "Results of Task 3".

::

    image --- Xception-65 --- stride 16 --- ASPP --- x4 ---+
                   |                                       |
                   +--------- stride 4 --- 1x1 -------- concatenate --- 3x3, 3x3 --- 1x1 --- x4 --- logits
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import keras

from serving.pipeline import MODEL_HW
from train.xception import (
    LOW_LEVEL_STRIDE,
    KerasTensor,
    XceptionConfig,
    batch_norm,
    convolution,
    scale_pixels,
    scaled_channels,
    separable_convolution,
    xception65_features,
)

ASPP_CHANNELS: Final = 256
LOW_LEVEL_CHANNELS: Final = 48
DECODER_CHANNELS: Final = 256
CLASSIFIER_LAYER: Final = "classifier"
"""The 1x1 convolution to the classes: the only weights that depend on `n_classes`."""


@dataclass(frozen=True)
class DeepLabConfig:
    """What a DeepLab-v3+ looks like.

    Attributes:
        n_classes: Background included: 2 for a stream of one manifestation, 4 for all.
        input_hw: Height and width of the input in pixels, multiples of 16; None where it may vary. Weights do not
            depend on it: train on crops, serve whole slices.
        width: Multiplier of every channel count.
        output_stride: Input pixels a step of the encoder's feature map, 16 or 8.
        atrous_rates: Of the three 3x3 convolutions of the ASPP. For output stride 8, double them.
        dropout: Share of the ASPP's result that is dropped in training.
        batch_norm_momentum: See `XceptionConfig`.
        input_downsample: Side in pixels of an average pooling before the backbone; the logits are up-sampled by as
            much more. 1 is none, as in the papers; 2 makes the compact variant, four times faster.
    """

    n_classes: int
    input_hw: tuple[int | None, int | None] = MODEL_HW
    width: float = 1.0
    output_stride: int = 16
    atrous_rates: tuple[int, ...] = (6, 12, 18)
    dropout: float = 0.1
    batch_norm_momentum: float = 0.99
    input_downsample: int = 1

    def __post_init__(self) -> None:
        """Refuse what can not be built.

        Raises:
            ValueError: If a field is out of range.
        """
        if self.n_classes < 2:
            raise ValueError(f"n_classes: expected at least 2, background included, got {self.n_classes}")
        if not self.atrous_rates or min(self.atrous_rates) < 1 or len(set(self.atrous_rates)) < len(self.atrous_rates):
            raise ValueError(f"atrous_rates: expected different positive rates, got {self.atrous_rates}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {self.dropout}")
        if self.input_downsample < 1:
            raise ValueError(f"input_downsample: expected at least 1, got {self.input_downsample}")
        _ = self.backbone

    @property
    def backbone(self) -> XceptionConfig:
        """Its Xception-65.

        Raises:
            ValueError: If a field is out of the backbone's range.
        """
        height, width = (None if side is None else side // self.input_downsample for side in self.input_hw)
        return XceptionConfig((height, width), self.width, self.output_stride, self.batch_norm_momentum)

    def channels(self, published: int) -> int:
        """A published channel count at this width."""
        return scaled_channels(published, self.width)


def _aspp(features: KerasTensor, config: DeepLabConfig) -> KerasTensor:
    """Atrous spatial pyramid pooling, `(n, h, w, c)` to `(n, h, w, 256 * width)`."""
    channels, momentum = config.channels(ASPP_CHANNELS), config.batch_norm_momentum
    branches = [convolution(features, channels, 1, "aspp_1x1", momentum)]
    for rate in config.atrous_rates:
        branches.append(separable_convolution(features, channels, f"aspp_rate{rate}", momentum, rate=rate))
    # The mean over the whole map, whatever its size, so that weights trained on crops hold for whole slices.
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="aspp_image_pooling")(features)
    pooled = convolution(pooled, channels, 1, "aspp_image_pooling_conv", momentum)
    # The papers stretch the pooled branch over the map and project the concatenation of all five. A 1x1 convolution
    # of a concatenation is the sum of two: so project the pooled branch where it is one pixel, and add.
    x = keras.layers.Concatenate(name="aspp_branches")(branches)
    x = keras.layers.Conv2D(channels, 1, use_bias=False, kernel_initializer="he_normal", name="aspp_projection")(x)
    pooled = keras.layers.Conv2D(
        channels, 1, use_bias=False, kernel_initializer="he_normal", name="aspp_projection_image_pooling"
    )(pooled)
    x = keras.layers.Add(name="aspp_sum")([x, pooled])
    x = batch_norm(x, "aspp_projection", momentum, relu=True)
    return keras.layers.Dropout(config.dropout, name="aspp_dropout")(x)


def _decoder(encoded: KerasTensor, low_level: KerasTensor, config: DeepLabConfig) -> KerasTensor:
    """Refine the encoder's `(n, h/16, w/16, c)` with `(n, h/4, w/4, c')` to `(n, h/4, w/4, 256 * width)`."""
    momentum = config.batch_norm_momentum
    x = keras.layers.UpSampling2D(
        config.output_stride // LOW_LEVEL_STRIDE, interpolation="bilinear", name="decoder_upsampling"
    )(encoded)
    low_level = convolution(low_level, config.channels(LOW_LEVEL_CHANNELS), 1, "decoder_low_level", momentum)
    x = keras.layers.Concatenate(name="decoder_concatenation")([x, low_level])
    for i in (1, 2):
        x = separable_convolution(x, config.channels(DECODER_CHANNELS), f"decoder_refinement{i}", momentum)
    return x


def build_deeplab(config: DeepLabConfig) -> keras.Model:
    """A DeepLab-v3+ with new weights from Keras' global generator.

    Returns:
        Model from ``image``, uint8 `(n, h, w, 3)` in `[0, 255]`, to ``logits``, float32 `(n, h, w, n_classes)` under
        any precision policy; class 0 is background.
    """
    image = keras.Input((*config.input_hw, 3), dtype="uint8", name="image")
    scaled = scale_pixels(image)
    if config.input_downsample > 1:
        scaled = keras.layers.AveragePooling2D(config.input_downsample, dtype="float32", name="downsampling")(scaled)
    low_level, features = xception65_features(scaled, config.backbone)
    x = _decoder(_aspp(features, config), low_level, config)
    x = keras.layers.Conv2D(
        config.n_classes,
        1,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.01),
        dtype="float32",
        name=CLASSIFIER_LAYER,
    )(x)
    enlarge = LOW_LEVEL_STRIDE * config.input_downsample
    logits = keras.layers.UpSampling2D(enlarge, interpolation="bilinear", dtype="float32", name="logits")(x)
    return keras.Model(image, logits, name="deeplab")
