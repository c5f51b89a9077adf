"""Inception-v3: stage 1 (Szegedy et al. 2016, "Rethinking the Inception Architecture", Table 1).

Layers carry the names of the ImageNet graph of December 2015 (``mixed_4_tower_1_conv_2``), which the weights in
`load_imagenet_partial` come with; the ends of the blocks are ``mixed0`` to ``mixed10`` as in Keras.

Two forms of the same function. With `batch_norm` a unit is convolution, batch norm (no gamma) and ReLU, as published,
with the published parameter count. Without, it is convolution with bias and ReLU: the published weights have their
batch norm folded in, so nothing is lost, every weight can be fine-tuned, and small batches disturb no statistics.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import keras
import numpy as np
import numpy.typing as npt

from serving.errors import DatasetError
from serving.labels import DIAGNOSES
from serving.pipeline import MODEL_HW
from train.xception import KerasTensor, scale_pixels

SMALLEST_SIDE_PX: Final = 75
BATCH_NORM_EPSILON: Final = 1e-3
Pool = Literal["average", "max"]
Kernel = tuple[int, int]
_Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class InceptionV3Config:
    """What an Inception-v3 looks like.

    Attributes:
        input_hw: Height and width of the input in pixels.
        n_classes: Diagnoses told apart.
        backbone_hw: Height and width that the first convolution sees; the input is averaged down to it, so it must
            divide `input_hw`. None is the input's own size. `(256, 256)` is the compact variant.
        batch_norm: See the module's docstring.
        dropout: Share of the pooled features that is dropped in training.
        last_pool: Pooling inside the last block. The paper's is an average; the graph of 2015, and so the published
            weights, have a maximum.
    """

    input_hw: tuple[int, int] = MODEL_HW
    n_classes: int = len(DIAGNOSES)
    backbone_hw: tuple[int, int] | None = None
    batch_norm: bool = True
    dropout: float = 0.2
    last_pool: Pool = "max"

    def __post_init__(self) -> None:
        """Refuse what can not be built.

        Raises:
            ValueError: If a field is out of range, or `backbone_hw` does not divide `input_hw`.
        """
        if self.n_classes < 2:
            raise ValueError(f"n_classes: expected at least 2, got {self.n_classes}")
        if self.last_pool not in get_args(Pool):
            raise ValueError(f"last_pool: expected one of {get_args(Pool)}, got {self.last_pool!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected a share in [0, 1), got {self.dropout}")
        backbone_hw = self.backbone_hw or self.input_hw
        if min(backbone_hw) < SMALLEST_SIDE_PX:
            raise ValueError(f"backbone_hw: expected at least {SMALLEST_SIDE_PX} pixels a side, got {backbone_hw}")
        if any(whole % part for whole, part in zip(self.input_hw, backbone_hw, strict=True)):
            raise ValueError(f"backbone_hw: expected divisors of input_hw {self.input_hw}, got {backbone_hw}")

    @property
    def shrink_hw(self) -> tuple[int, int]:
        """By how much height and width are averaged down before the first convolution."""
        height, width = self.backbone_hw or self.input_hw
        return self.input_hw[0] // height, self.input_hw[1] // width


@dataclass(frozen=True)
class LoadReport:
    """What a loader found for each convolution.

    Attributes:
        loaded: Layers that got kernel and bias.
        bias_only: Layers that got their bias and keep their new kernel.
        untouched: Layers with weights of which nothing was found, for example the head.
    """

    loaded: tuple[str, ...]
    bias_only: tuple[str, ...]
    untouched: tuple[str, ...]


class _Blocks:
    """Draws the blocks of one network; holds what all of its units share."""

    def __init__(self, *, batch_norm: bool) -> None:
        self._batch_norm = batch_norm

    def unit(
        self, x: KerasTensor, channels: int, kernel: Kernel, name: str, stride: int = 1, padding: str = "same"
    ) -> KerasTensor:
        """Convolution, batch norm or bias, ReLU."""
        x = keras.layers.Conv2D(
            channels,
            kernel,
            strides=stride,
            padding=padding,
            use_bias=not self._batch_norm,
            kernel_initializer="he_normal",
            name=name,
        )(x)
        if self._batch_norm:
            x = keras.layers.BatchNormalization(scale=False, epsilon=BATCH_NORM_EPSILON, name=f"{name}_bn")(x)
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def chain(self, x: KerasTensor, name: str, *units: tuple[int, Kernel]) -> KerasTensor:
        """Units one after the other, named ``<name>_conv``, ``<name>_conv_1``, ..."""
        for i, (channels, kernel) in enumerate(units):
            x = self.unit(x, channels, kernel, f"{name}_conv_{i}" if i else f"{name}_conv")
        return x

    def pooled(self, x: KerasTensor, channels: int, name: str, pool: Pool = "average") -> KerasTensor:
        """The pooling branch of a block: 3x3 at stride 1, then 1x1."""
        layer = keras.layers.AveragePooling2D if pool == "average" else keras.layers.MaxPooling2D
        x = layer(3, strides=1, padding="same", name=f"{name}_pool")(x)
        return self.unit(x, channels, (1, 1), f"{name}_conv")

    def stem(self, x: KerasTensor) -> KerasTensor:
        """299x299x3 to 35x35x192."""
        x = self.unit(x, 32, (3, 3), "conv", stride=2, padding="valid")
        x = self.unit(x, 32, (3, 3), "conv_1", padding="valid")
        x = self.unit(x, 64, (3, 3), "conv_2")
        x = keras.layers.MaxPooling2D(3, strides=2, name="pool")(x)
        x = self.unit(x, 80, (1, 1), "conv_3", padding="valid")
        x = self.unit(x, 192, (3, 3), "conv_4", padding="valid")
        return keras.layers.MaxPooling2D(3, strides=2, name="pool_1")(x)

    def grid35(self, x: KerasTensor, block: int, pool_channels: int) -> KerasTensor:
        """Blocks 0 to 2 (the paper's Fig. 5)."""
        name = f"mixed_{block}" if block else "mixed"
        branches = [
            self.chain(x, name, (64, (1, 1))),
            self.chain(x, f"{name}_tower", (48, (1, 1)), (64, (5, 5))),
            self.chain(x, f"{name}_tower_1", (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
            self.pooled(x, pool_channels, f"{name}_tower_2"),
        ]
        return keras.layers.Concatenate(name=f"mixed{block}")(branches)

    def reduction3(self, x: KerasTensor) -> KerasTensor:
        """Block 3: half the grid (the paper's Fig. 10)."""
        direct = self.unit(x, 384, (3, 3), "mixed_3_conv", stride=2, padding="valid")
        tower = self.chain(x, "mixed_3_tower", (64, (1, 1)), (96, (3, 3)))
        tower = self.unit(tower, 96, (3, 3), "mixed_3_tower_conv_2", stride=2, padding="valid")
        pool = keras.layers.MaxPooling2D(3, strides=2, name="mixed_3_pool")(x)
        return keras.layers.Concatenate(name="mixed3")([direct, tower, pool])

    def grid17(self, x: KerasTensor, block: int, c: int) -> KerasTensor:
        """Blocks 4 to 7: 7x7 as 1x7 and 7x1 (the paper's Fig. 6), `c` channels inside."""
        name, row, column = f"mixed_{block}", (1, 7), (7, 1)
        branches = [
            self.chain(x, name, (192, (1, 1))),
            self.chain(x, f"{name}_tower", (c, (1, 1)), (c, row), (192, column)),
            self.chain(x, f"{name}_tower_1", (c, (1, 1)), (c, column), (c, row), (c, column), (192, row)),
            self.pooled(x, 192, f"{name}_tower_2"),
        ]
        return keras.layers.Concatenate(name=f"mixed{block}")(branches)

    def reduction8(self, x: KerasTensor) -> KerasTensor:
        """Block 8: half the grid again."""
        tower = self.chain(x, "mixed_8_tower", (192, (1, 1)))
        tower = self.unit(tower, 320, (3, 3), "mixed_8_tower_conv_1", stride=2, padding="valid")
        tower_1 = self.chain(x, "mixed_8_tower_1", (192, (1, 1)), (192, (1, 7)), (192, (7, 1)))
        tower_1 = self.unit(tower_1, 192, (3, 3), "mixed_8_tower_1_conv_3", stride=2, padding="valid")
        pool = keras.layers.MaxPooling2D(3, strides=2, name="mixed_8_pool")(x)
        return keras.layers.Concatenate(name="mixed8")([tower, tower_1, pool])

    def grid8(self, x: KerasTensor, block: int, pool: Pool) -> KerasTensor:
        """Blocks 9 and 10: expanded filter banks (the paper's Fig. 7)."""
        name = f"mixed_{block}"
        tower = self.chain(x, f"{name}_tower", (384, (1, 1)))
        tower_1 = self.chain(x, f"{name}_tower_1", (448, (1, 1)), (384, (3, 3)))
        branches = [
            self.chain(x, name, (320, (1, 1))),
            *self._split(tower, f"{name}_tower_mixed"),
            *self._split(tower_1, f"{name}_tower_1_mixed"),
            self.pooled(x, 192, f"{name}_tower_2", pool),
        ]
        return keras.layers.Concatenate(name=f"mixed{block}")(branches)

    def _split(self, x: KerasTensor, name: str) -> tuple[KerasTensor, KerasTensor]:
        return self.unit(x, 384, (1, 3), f"{name}_conv"), self.unit(x, 384, (3, 1), f"{name}_conv_1")


def inception_v3_features(x: KerasTensor, config: InceptionV3Config) -> KerasTensor:
    """Run scaled pixels `(n, h, w, 3)` in `[-1, 1]` through all blocks, to `(n, h', w', 2048)`; 299 gives 8."""
    blocks = _Blocks(batch_norm=config.batch_norm)
    x = blocks.stem(x)
    for block, pool_channels in enumerate((32, 64, 64)):
        x = blocks.grid35(x, block, pool_channels)
    x = blocks.reduction3(x)
    for block, inner in enumerate((128, 160, 160, 192), start=4):
        x = blocks.grid17(x, block, inner)
    x = blocks.grid8(blocks.reduction8(x), 9, "average")
    return blocks.grid8(x, 10, config.last_pool)


def build_inception_v3(config: InceptionV3Config) -> keras.Model:
    """An Inception-v3 with new weights from Keras' global generator.

    Returns:
        Model from ``image``, uint8 `(n, h, w, 3)` in `[0, 255]`, to ``diagnosis``, float32 `(n, n_classes)`,
        probabilities that sum to 1; its logits are the layer ``logits``.
    """
    image = keras.Input((*config.input_hw, 3), dtype="uint8", name="image")
    x = scale_pixels(image)
    if config.shrink_hw != (1, 1):
        x = keras.layers.AveragePooling2D(config.shrink_hw, name="shrinking")(x)
    x = inception_v3_features(x, config)
    x = keras.layers.GlobalAveragePooling2D(name="pooled_features")(x)
    x = keras.layers.Dropout(config.dropout, name="dropout")(x)
    logits = keras.layers.Dense(config.n_classes, dtype="float32", name="logits")(x)
    diagnosis = keras.layers.Softmax(dtype="float32", name="diagnosis")(logits)
    return keras.Model(image, diagnosis, name="inception_v3")


def freeze_batch_norm(model: keras.Model) -> int:
    """Make every batch norm use its moving statistics in training too, and keep all of its weights.

    For fine-tuning with small batches, whose statistics are noise. Call before `compile`. In Keras this freezes beta
    with the statistics; build with `batch_norm=False` to fine-tune the biases as well.

    Returns:
        How many layers were frozen; 0 without batch norm.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.trainable = False
    return len(norms)


def load_imagenet_partial(model: keras.Model, npz_path: Path) -> LoadReport:
    """Load ImageNet weights whose batch norm was folded into kernel and bias.

    Batch norm gets beta = bias, mean 0 and variance 1 - epsilon, which is the same function in inference mode.

    Args:
        model: From `build_inception_v3`; changed in place.
        npz_path: Arrays ``<layer>/kernel``, HWIO, and ``<layer>/bias``. Kernels may be missing: the published file
            lacks ``mixed_9_tower_1_conv_1`` and ``mixed_10_tower_1_conv_1``, which keep their new ones.

    Raises:
        DatasetError: If the file can not be read, or holds an array that does not fit or belongs to no layer.
    """
    arrays = _read(npz_path)
    loaded: list[str] = []
    bias_only: list[str] = []
    untouched: list[str] = []
    for layer in model.layers:
        if not isinstance(layer, keras.layers.Conv2D):
            continue
        kernel, bias = arrays.pop(f"{layer.name}/kernel", None), arrays.pop(f"{layer.name}/bias", None)
        if bias is None:
            untouched.append(layer.name)
            continue
        if kernel is not None:
            _assign(layer.kernel, kernel, f"{layer.name}/kernel")
        _assign_bias(model, layer, bias)
        (bias_only if kernel is None else loaded).append(layer.name)
    if arrays:
        raise DatasetError(f"{npz_path}: expected arrays of Inception-v3's convolutions, got also {sorted(arrays)[:5]}")
    return LoadReport(tuple(loaded), tuple(bias_only), (*untouched, model.get_layer("logits").name))


def _read(npz_path: Path) -> dict[str, _Array]:
    try:
        # Opened here: np.load leaves a broken archive open.
        with npz_path.open("rb") as file, np.load(file) as archive:
            return {name: archive[name].astype(np.float32) for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{npz_path}: expected an .npz of kernels and biases, got {error}") from error


def _assign(variable: keras.Variable, value: _Array, name: str) -> None:
    if tuple(variable.shape) != value.shape:
        raise DatasetError(f"{name}: expected shape {tuple(variable.shape)}, got {value.shape}")
    variable.assign(value)


def _assign_bias(model: keras.Model, layer: keras.layers.Conv2D, bias: _Array) -> None:
    if layer.use_bias:
        _assign(layer.bias, bias, f"{layer.name}/bias")
        return
    norm = model.get_layer(f"{layer.name}_bn")
    _assign(norm.beta, bias, f"{layer.name}/bias")
    norm.moving_mean.assign(np.zeros_like(bias))
    norm.moving_variance.assign(np.full_like(bias, 1 - norm.epsilon))
