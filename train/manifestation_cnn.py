"""The multi-label CNN of stage 2 (paper, Fig. 5, "A CNN architecture for multi-label recognition ...", Eq. 1).

Blocks of convolution with M kernels of 5x5, ELU, max pooling of 2x2 and dropout of 25 %; then dense layers of 128
and 64 with ELU and dropout of 0.5, and a sigmoid for each manifestation.

The paper leaves the number of blocks and M open. Six blocks bring 512x512 down to 8x8, so that flattening gives
64 M values: with fewer blocks the first dense layer outgrows all convolutions together (five blocks: 1.05 M of
1.2 M weights), and it would be fitted on some hundred slices. M = 32 was the largest that stays clearly cheaper than
stage 1:

===========================  ==========  ======
configuration                parameters  MACs
===========================  ==========  ======
6 blocks, M = 32 (default)   401,315     2.86 G
6 blocks, M = 16             172,947     0.87 G
5 blocks, M = 32             1,162,115   2.86 G
6 blocks, M = 32, halved     204,707     0.72 G
===========================  ==========  ======

Parameters as Keras counts them; multiply-accumulates of convolutions and dense layers for one 512x512 slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import keras

from serving.labels import MANIFESTATIONS
from serving.pipeline import MODEL_HW

KERNEL_PX: Final = 5
POOL_PX: Final = 2
BLOCK_DROPOUT: Final = 0.25
DENSE_UNITS: Final = (128, 64)
DENSE_DROPOUT: Final = 0.5


@dataclass(frozen=True)
class ManifestationCnnConfig:
    """What the CNN looks like.

    Attributes:
        input_hw: Height and width of the input in pixels.
        n_blocks: Blocks of convolution and pooling; each halves height and width.
        n_kernels: Kernels of each convolution, the paper's M.
        downsample: Side in pixels of an average pooling before the first block; 1 is none. Not in the paper: it
            makes the compact variant.
        batch_norm: Normalise between convolution and ELU. Not in the paper.
    """

    input_hw: tuple[int, int] = MODEL_HW
    n_blocks: int = 6
    n_kernels: int = 32
    downsample: int = 1
    batch_norm: bool = False

    def __post_init__(self) -> None:
        """Refuse what can not be built.

        Raises:
            ValueError: If a field is out of range, or nothing is left of the image after pooling.
        """
        for name in ("n_blocks", "n_kernels", "downsample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if min(self.input_hw) % self.downsample or max(self.input_hw) % self.downsample:
            raise ValueError(f"downsample: expected a divisor of {self.input_hw}, got {self.downsample}")
        if min(self.feature_hw) < 1:
            raise ValueError(f"n_blocks: expected at least a pixel of {self.input_hw} left, got {self.n_blocks} blocks")

    @property
    def feature_hw(self) -> tuple[int, int]:
        """Height and width of the map that is flattened."""
        shrink = self.downsample * POOL_PX**self.n_blocks
        return self.input_hw[0] // shrink, self.input_hw[1] // shrink


def build_manifestation_cnn(config: ManifestationCnnConfig) -> keras.Model:
    """The CNN with new weights from Keras' global generator.

    Returns:
        Model from ``image``, uint8 `(n, h, w, 3)` in `[0, 255]`, to ``manifestations``, float32 `(n, 3)` in `[0, 1]`
        in the order of `serving.labels.MANIFESTATIONS`; its logits are the layer ``logits``.
    """
    image = keras.Input((*config.input_hw, 3), dtype="uint8", name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="scaling")(image)
    if config.downsample > 1:
        x = keras.layers.AveragePooling2D(config.downsample, name="downsampling")(x)
    for i in range(1, config.n_blocks + 1):
        x = keras.layers.Conv2D(
            config.n_kernels,
            KERNEL_PX,
            padding="same",
            use_bias=not config.batch_norm,
            kernel_initializer="he_normal",
            name=f"block{i}_conv",
        )(x)
        if config.batch_norm:
            x = keras.layers.BatchNormalization(name=f"block{i}_bn")(x)
        # ELU is monotone, so pooling first gives the same values for a quarter of the work.
        x = keras.layers.MaxPooling2D(POOL_PX, name=f"block{i}_pooling")(x)
        x = keras.layers.ELU(name=f"block{i}_elu")(x)
        x = keras.layers.Dropout(BLOCK_DROPOUT, name=f"block{i}_dropout")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for units in DENSE_UNITS:
        x = keras.layers.Dense(units, activation="elu", kernel_initializer="he_normal", name=f"dense{units}")(x)
        x = keras.layers.Dropout(DENSE_DROPOUT, name=f"dense{units}_dropout")(x)
    logits = keras.layers.Dense(len(MANIFESTATIONS), dtype="float32", name="logits")(x)
    scores = keras.layers.Activation("sigmoid", dtype="float32", name="manifestations")(logits)
    return keras.Model(image, scores, name="manifestation_cnn")
