"""Whether activation maps depend on the weights, and where what they show lies.

A map that random weights leave as it is explains the picture and not the network (Adebayo et al. 2018, "Sanity Checks
for Saliency Maps"). So weights are shuffled, layer after layer from the last one down, and the maps are compared with
the network's own by rank. Shuffled within a layer and not drawn anew: the values and their ranges stay, which int8
needs, and only what was learned is gone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import onnx
from jaxtyping import Float32, UInt8
from onnx import numpy_helper
from scipy import stats

from serving.pipeline import IMAGE, RECOGNITION
from train.activation_maps import find_head, with_activation, without_activation
from train.parity import open_session

LAYERS: Final = 95
"""Of Inception-v3: 94 convolutions and the dense layer."""
_WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul"})


def shuffled(network: onnx.ModelProto, layers: int, seed: int) -> onnx.ModelProto:
    """A network with the weights of its last layers shuffled, each within itself; biases stay.

    Args:
        network: One without a gate and without maps, in fp32 or int8.
        layers: How many, from the dense layer down.
        seed: Of the shuffling.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    rng = np.random.default_rng(seed)
    for name in weights_from_the_top(model)[:layers]:
        values = numpy_helper.to_array(constants[name])
        constants[name].CopyFrom(numpy_helper.from_array(rng.permutation(values.ravel()).reshape(values.shape), name))
    return model


def weights_from_the_top(network: onnx.ModelProto) -> list[str]:
    """Names of the kernels of all layers with weights, the last one first."""
    constants = {tensor.name for tensor in network.graph.initializer}
    quantized = {node.output[0]: node.input[0] for node in network.graph.node if node.op_type == "DequantizeLinear"}
    kernels = [node.input[1] for node in network.graph.node if node.op_type in _WEIGHTED]
    names = [quantized.get(name, name) for name in reversed(kernels)]
    return list(dict.fromkeys(name for name in names if name in constants))


def maps_of(network: onnx.ModelProto, images: UInt8[np.ndarray, "n 512 512 3"]) -> Float32[np.ndarray, "n 4 6 6"]:
    """The maps of a network without a gate, one image at a time."""
    session = open_session(with_activation(without_activation(network), RECOGNITION))
    return np.concatenate([session.run(None, {IMAGE.name: image[None]})[1] for image in images])


def rank_correlations(
    ours: Float32[np.ndarray, "n 4 6 6"], others: Float32[np.ndarray, "n 4 6 6"]
) -> Float32[np.ndarray, "n 4"]:
    """Spearman's correlation of the cells of each pair of maps, in `[-1, 1]`; NaN where a map is the same all over."""
    pairs = zip(ours.reshape(-1, ours[0, 0].size), others.reshape(-1, others[0, 0].size), strict=True)
    found = [np.nan if np.ptp(a) == 0 or np.ptp(b) == 0 else stats.spearmanr(a, b).statistic for a, b in pairs]
    return np.asarray(found, np.float32).reshape(ours.shape[:2])


def cascade(
    network: onnx.ModelProto,
    images: UInt8[np.ndarray, "n 512 512 3"],
    depths: Sequence[int],
    seeds: Sequence[int] = (0,),
) -> Iterator[tuple[int, Float32[np.ndarray, "seeds n 4"]]]:
    """Shuffle more and more layers from the last one down, and compare the maps with the network's own.

    Args:
        network: One without a gate.
        images: Preprocessed scans, `[0, 255]`.
        depths: How many layers.
        seeds: Of the shuffling; each is another network.

    Yields:
        Each depth, and `rank_correlations` for each seed.

    Raises:
        ExportError: If the network has no head that maps can be made of.
    """
    bare = without_activation(network)
    find_head(bare)
    ours = maps_of(bare, images)
    for depth in depths:
        yield depth, np.stack([rank_correlations(ours, maps_of(shuffled(bare, depth, seed), images)) for seed in seeds])
