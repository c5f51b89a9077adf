"""Networks with random weights that behave like trained ones as far as the time they take is concerned.

Denormals are slow, units that always say 0 can be folded away, and a mask of noise is dear to compress. So batch norm
gets the statistics of images, no scale is left at 0, most of a mask is background, and networks that say the same of
different images are refused.
"""

from __future__ import annotations

from typing import Any, Final

import keras
import numpy as np
import onnx
from jaxtyping import Num, UInt8
from onnx import numpy_helper

from serving.errors import ExportError
from serving.pipeline import MASK, Step
from train.deeplab import CLASSIFIER_LAYER, DeepLabConfig, build_deeplab
from train.quantize import head_nodes

IDENTITY_GAMMA: Final = 0.25
"""Scale of batch norms that begin at 0, so that their units are the identity. Sixteen in a row then stay in range."""
BACKGROUND_SHARE: Final = 0.85
"""Of a mask's pixels."""
BATCH_IMAGES: Final = 2
LEAST_DIFFERENCE: Final = 1e-5
"""Of a probability between two images."""

Images = UInt8[np.ndarray, "n 512 512 3"]


def random_deeplab(config: DeepLabConfig, images: Images) -> keras.Model:
    """A DeepLab with new weights from Keras' global generator, in the range of a trained one.

    Args:
        config: Its shape.
        images: Preprocessed scans, `[0, 255]`.
    """
    import tensorflow as tf

    # A graph frees what nobody reads any more; eager Keras keeps every activation to the end, 1 GB an image.
    run = tf.function(model := build_deeplab(config))
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        if not np.asarray(norm.gamma).any():
            norm.gamma.assign(np.full(norm.gamma.shape, IDENTITY_GAMMA, np.float32))
        norm.momentum = 0.0  # one pass then leaves exactly its own statistics
    run(tf.constant(images[:BATCH_IMAGES]), training=True)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    logits = np.concatenate([run(tf.constant(image[np.newaxis]), training=False) for image in images[:BATCH_IMAGES]])
    lead = logits[..., 1:].max(axis=-1) - logits[..., 0]
    classifier = model.get_layer(CLASSIFIER_LAYER)
    bias = np.asarray(classifier.bias).copy()
    bias[0] += np.quantile(lead, BACKGROUND_SHARE)
    classifier.bias.assign(bias)
    return model


def narrowed_model(model: keras.Model, config: DeepLabConfig) -> keras.Model:
    """A DeepLab with fewer classes and otherwise the same weights.

    Args:
        model: Of the same shape but for its classes.
        config: With the number of classes wanted: the first ones.
    """
    narrow = build_deeplab(config)
    for layer in model.layers:
        weights = layer.get_weights()
        if layer.name == CLASSIFIER_LAYER:
            weights = [array[..., : config.n_classes] for array in weights]
        narrow.get_layer(layer.name).set_weights(weights)
    return narrow


def narrowed_network(network: onnx.ModelProto, n_classes: int) -> onnx.ModelProto:
    """What `narrowed_model` does, on a network from `train.export.to_onnx`, quantised or not.

    Raises:
        ExportError: If the network does not end in one convolution with weights of its own.
    """
    narrow = onnx.ModelProto()
    narrow.CopyFrom(network)
    head = set(head_nodes(narrow))
    weights = [
        name
        for node in narrow.graph.node
        if node.name in head and node.op_type == "Conv"
        for name in list(node.input)[1:]
    ]
    found = [tensor for tensor in narrow.graph.initializer if tensor.name in weights]
    if not weights or len(found) != len(weights):
        raise ExportError(f"expected a network that ends in one convolution, got one whose last weights are {weights}")
    for tensor in found:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[:n_classes].copy(), tensor.name))
    del narrow.graph.value_info[:]  # it holds the old shapes
    return narrow


def check_alive(answers: Num[np.ndarray, "n ..."], step: Step) -> None:
    """Refuses a network that does not look at its input.

    Args:
        answers: Of `step`'s network, to different images.
        step: What it is for.

    Raises:
        ExportError: If two answers are the same, or a mask has one class only.
    """
    values: Any = answers.astype(np.float64)
    differences = [float(np.abs(values[i] - values[i - 1]).max()) for i in range(1, len(values))]
    if not all(LEAST_DIFFERENCE < difference < np.inf for difference in differences):
        raise ExportError(f"expected {step.model} to tell images apart, got differences of {differences}")
    if step.outputs[0] == MASK and any(len(np.unique(mask)) < 2 for mask in answers):
        raise ExportError(f"expected masks of {step.model} with two classes or more, got one class all over")
