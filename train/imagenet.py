"""Where ImageNet's weights of Inception-v3 come from: Keras' own, a local file, or the partial file beside our scans.

Keras' own (`keras.applications.InceptionV3`) are whole, but need the network once. The partial file is the graph of
December 2015 without two convolutions (``shared/data/SOURCES.md``). The two differ in the pooling of the last block:
Keras' is an average, the other's a maximum (`InceptionV3Config.last_pool`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import keras
import numpy as np

from serving.errors import DatasetError
from train.inception import BATCH_NORM_EPSILON, LoadReport, load_imagenet_partial
from train.transfer import imagenet_file

AUTO: Final = "auto"
DOWNLOAD: Final = "download"


def _chain(name: str, n: int) -> list[str]:
    return [f"{name}_conv_{i}" if i else f"{name}_conv" for i in range(n)]


def _order() -> tuple[str, ...]:
    names = [f"conv_{i}" if i else "conv" for i in range(5)]
    for block in ("mixed", "mixed_1", "mixed_2"):
        names += _chain(block, 1) + _chain(f"{block}_tower", 2) + _chain(f"{block}_tower_1", 3)
        names += _chain(f"{block}_tower_2", 1)
    names += _chain("mixed_3", 1) + _chain("mixed_3_tower", 3)
    for i in range(4, 8):
        block = f"mixed_{i}"
        names += _chain(block, 1) + _chain(f"{block}_tower", 3) + _chain(f"{block}_tower_1", 5)
        names += _chain(f"{block}_tower_2", 1)
    names += _chain("mixed_8_tower", 2) + _chain("mixed_8_tower_1", 4)
    for block in ("mixed_9", "mixed_10"):
        names += _chain(block, 1) + _chain(f"{block}_tower", 1) + _chain(f"{block}_tower_mixed", 2)
        names += _chain(f"{block}_tower_1", 2) + _chain(f"{block}_tower_1_mixed", 2) + _chain(f"{block}_tower_2", 1)
    return tuple(names)


CONVOLUTIONS: Final = _order()
"""Our convolutions in the order in which `keras.applications.InceptionV3` creates its own."""


def _in_creation_order(model: keras.Model, kind: type[keras.layers.Layer]) -> list[keras.layers.Layer]:
    def number(layer: keras.layers.Layer) -> int:
        found = re.search(r"_(\d+)$", layer.name)
        return int(found.group(1)) if found else 0

    return sorted((layer for layer in model.layers if isinstance(layer, kind)), key=number)


def load_applications(model: keras.Model, source: keras.Model) -> LoadReport:
    """Copy the convolutions and batch norms of `keras.applications.InceptionV3`.

    Without batch norm in `model` they are folded: kernel / s and beta - mean / s, with s the standard deviation.

    Args:
        model: From `train.inception.build_inception_v3`; changed in place.
        source: Keras' network.

    Raises:
        DatasetError: If `source` is not an Inception-v3.
    """
    convolutions = _in_creation_order(source, keras.layers.Conv2D)
    norms = _in_creation_order(source, keras.layers.BatchNormalization)
    if len(convolutions) != len(CONVOLUTIONS) or len(norms) != len(CONVOLUTIONS):
        raise DatasetError(
            f"expected Inception-v3's {len(CONVOLUTIONS)} convolutions and as many batch norms, got"
            f" {len(convolutions)} and {len(norms)}"
        )
    for name, convolution, norm in zip(CONVOLUTIONS, convolutions, norms, strict=True):
        kernel = np.asarray(convolution.kernel)
        target = model.get_layer(name)
        if tuple(target.kernel.shape) != kernel.shape:
            raise DatasetError(f"{name}: expected a kernel {tuple(target.kernel.shape)}, got {kernel.shape}")
        beta, mean, variance = (np.asarray(w) for w in (norm.beta, norm.moving_mean, norm.moving_variance))
        if target.use_bias:
            deviation = np.sqrt(variance + norm.epsilon)
            target.kernel.assign(kernel / deviation)
            target.bias.assign(beta - mean / deviation)
        else:
            target.kernel.assign(kernel)
            own = model.get_layer(f"{name}_bn")
            own.beta.assign(beta)
            own.moving_mean.assign(mean)
            own.moving_variance.assign(variance + norm.epsilon - BATCH_NORM_EPSILON)
    return LoadReport(CONVOLUTIONS, (), (model.get_layer("logits").name,))


def load_imagenet(model: keras.Model, root: Path, where: str = AUTO) -> LoadReport:
    """Give an Inception-v3 ImageNet's weights.

    Args:
        model: From `train.inception.build_inception_v3`; changed in place.
        root: Of the scans.
        where: ``auto``: the partial file beside the scans, or Keras' own if there is none. ``download``: Keras' own. Or
            the path of an ``.npz`` (`load_imagenet_partial`) or of an ``.h5`` of Keras' network without its top.

    Raises:
        DatasetError: If nothing is there, or it is not what it should be.
    """
    if where == AUTO:
        try:
            return load_imagenet_partial(model, imagenet_file(root))
        except DatasetError:
            where = DOWNLOAD
    if where == DOWNLOAD:
        return load_applications(model, _applications("imagenet"))
    path = Path(where)
    if not path.is_file():
        raise DatasetError(f"expected ImageNet's weights at {path}, found none")
    if path.suffix == ".npz":
        return load_imagenet_partial(model, path)
    return load_applications(model, _applications(str(path)))


def _applications(weights: str) -> keras.Model:
    try:
        return keras.applications.InceptionV3(weights=weights, include_top=False)
    # A failed download is a plain Exception, and a wrong file may raise what it likes.
    except Exception as error:
        raise DatasetError(f"expected the weights of keras.applications.InceptionV3 ({weights}): {error}") from error
