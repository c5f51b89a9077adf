"""What a run starts from: layers of another run by name, classes by name, and ImageNet's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import keras

from serving.errors import DatasetError
from train import data
from train.deeplab import CLASSIFIER_LAYER

IMAGENET_FILE: Final = "weights/inception_v3_imagenet_partial.npz"


def transfer(model: keras.Model, source: keras.Model) -> list[str]:
    """Copy the weights of every layer that both have with the same shapes.

    Returns:
        Names of the layers of `model` with weights that kept their own: the head, where the classes differ.
    """
    kept = []
    by_name = {layer.name: layer for layer in source.layers}
    for layer in model.layers:
        if not layer.weights:
            continue
        twin = by_name.get(layer.name)
        if twin is not None and [w.shape for w in twin.weights] == [w.shape for w in layer.weights]:
            layer.set_weights(twin.get_weights())
        else:
            kept.append(layer.name)
    return kept


def transfer_classes(
    model: keras.Model, names: tuple[str, ...], source: keras.Model, source_names: tuple[str, ...]
) -> list[str]:
    """Copy the classifier's weights of every class that both networks have, by name.

    Args:
        model: DeepLab-v3+ with the classes `names`.
        names: Background included.
        source: Another of the same width with the classes `source_names`.
        source_names: Background included.

    Returns:
        Names of the classes of `model` that kept their own weights.
    """
    kernel, bias = model.get_layer(CLASSIFIER_LAYER).get_weights()
    source_kernel, source_bias = source.get_layer(CLASSIFIER_LAYER).get_weights()
    for i, name in enumerate(names):
        if name in source_names:
            j = source_names.index(name)
            kernel[..., i], bias[i] = source_kernel[..., j], source_bias[j]
    model.get_layer(CLASSIFIER_LAYER).set_weights([kernel, bias])
    return [name for name in names if name not in source_names]


def imagenet_file(root: Path) -> Path:
    """The ImageNet weights, which a dataset as its origin gives it does not hold: then those beside our own scans."""
    here = root / IMAGENET_FILE
    if here.is_file():
        return here
    try:
        ours = data.data_root() / IMAGENET_FILE
    except DatasetError:
        ours = here
    if not ours.is_file():
        raise DatasetError(f"expected the ImageNet weights at {here} or under {data.DATA_ENV}, found none")
    return ours
