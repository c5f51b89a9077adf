"""What ImageNet's Inception-v3 sees in a scan that it was never trained on: frozen features, computed once and kept.

With the partial weights of ``shared/data/weights`` two convolutions of the last blocks are missing, so the features
are the pooled outputs of `FEATURE_LAYERS`, the deepest that are whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import cv2
import keras
import numpy as np
from jaxtyping import Float32, UInt8

from train import data, transfer
from train.augmentation import random_affine, warp
from train.batches import in_batches
from train.data import Example
from train.digest import sha256_of
from train.experiments import PAPER_AUGMENTATION
from train.inception import InceptionV3Config, build_inception_v3, load_imagenet_partial

INPUT_PX: Final = 299
FEATURE_LAYERS: Final = ("mixed7", "mixed8")
_BATCH: Final = 16


def kept(
    name: str,
    examples: Sequence[Example],
    root: Path,
    cache: Path,
    pictures: Callable[[], UInt8[np.ndarray, "n h w"]],
    copies: int = 0,
) -> Float32[np.ndarray, "n views d"]:
    """Frozen features, kept on disk under the fingerprint of the scans and of the weights.

    Args:
        name: Of this way of looking at the scans, for the file's name.
        examples: The scans.
        root: Of the data.
        cache: Folder of what is kept.
        pictures: Gives what the features are to see of each of `examples`; called only where nothing is kept.
        copies: As for `bottleneck`.

    Returns:
        `views` is ``1 + copies``; view 0 is the picture as it is.

    Raises:
        DatasetError: If the ImageNet weights are missing.
    """
    weights = transfer.imagenet_file(root)
    path = cache / f"{name}-{data.fingerprint(examples, root)[:16]}-{sha256_of(weights)[:8]}-{copies}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npy")
        np.save(partial, bottleneck(pictures(), frozen_network(weights), copies))
        partial.rename(path)
    return np.asarray(np.load(path))


def frozen_network(weights: Path) -> keras.Model:
    """Inception-v3 with ImageNet weights, from ``uint8 (n, 299, 299, 3)`` to pooled features.

    Args:
        weights: The partial npz.

    Raises:
        DatasetError: If the file is not that of an Inception-v3.
    """
    config = InceptionV3Config(n_classes=4, input_hw=(INPUT_PX, INPUT_PX), batch_norm=False)
    network = build_inception_v3(config)
    load_imagenet_partial(network, weights)
    pooled = [
        keras.layers.GlobalAveragePooling2D(name=f"{name}_pooled")(network.get_layer(name).output)
        for name in FEATURE_LAYERS
    ]
    return keras.Model(network.input, keras.layers.Concatenate(name="bottleneck")(pooled), name="bottleneck")


def bottleneck(
    images: UInt8[np.ndarray, "n h w"], network: keras.Model, copies: int, seed: int = 0
) -> Float32[np.ndarray, "n views d"]:
    """Features of each scan and of its augmented copies.

    Args:
        images: Preprocessed, grey.
        network: From `frozen_network`.
        copies: Augmented copies beside the scan itself.
        seed: Of the augmentation; copy `k` of scan `i` depends on nothing else.

    Returns:
        `views` is ``1 + copies``; view 0 is the scan as it is.
    """
    size_px = images.shape[1]
    views = []
    for i, image in enumerate(images):
        views.append(_resized(np.asarray(image)))
        for k in range(copies):
            rng = np.random.default_rng([seed, i, k])
            views.append(_resized(warp(image, random_affine(rng, PAPER_AUGMENTATION, size_px, size_px), size_px)))
    features = in_batches(network.predict_on_batch, views, _BATCH)
    return features.astype(np.float32).reshape(len(images), 1 + copies, -1)


def _resized(image: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "299 299"]:
    return np.asarray(cv2.resize(image, (INPUT_PX, INPUT_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)
