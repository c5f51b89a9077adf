"""fp32 ONNX -> int8 ONNX, by calibration, and what that changed.

Weights are int8, symmetric, one scale a channel: a depthwise filter has its own range, and one scale for all of them
is what ruins separable networks. Activations are uint8, one scale a tensor ("U8S8"): the pair for which ONNX Runtime
has the fastest kernels on x86 (triton-facts: 0.16 s against 0.25 s for S8S8).

On a CPU without VNNI (before Cascade Lake and Zen 4) the U8S8 kernels add pairs of products in 16 bits, which
saturates. `QuantizationConfig.reduce_range` keeps the weights to 7 bits for such machines; with VNNI it only costs
precision, so it is off.

TensorRT has neither unsigned nor asymmetric int8, and wants biases in float:
`QuantizationConfig.symmetric_activations` ("S8S8").
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
import onnx
from jaxtyping import UInt8
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from serving.errors import ExportError
from serving.pipeline import IMAGE

CalibrateMethod = Literal["minmax", "percentile", "entropy"]

_METHODS: Final = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
_WEIGHTED: Final = ("Conv", "MatMul", "Gemm")
QUANTIZED_OPS: Final = (
    *_WEIGHTED,
    "Relu",
    "Clip",
    "Add",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Resize",
)
"""What is computed in int8. Not the scaling of the pixels, not softmax, sigmoid, ELU or arg max: they cost little and
their rounding is what a caller would see."""


@dataclass(frozen=True)
class QuantizationConfig:
    """How to quantise.

    Attributes:
        calibrate_method: How an activation's range is chosen. ``minmax`` keeps every value seen and suits networks
            with batch norm; ``percentile`` cuts the tails, for activations with rare large values; ``entropy``
            balances both, at a high cost in time.
        percentile: The share of values, in percent, that ``percentile`` keeps.
        nodes_to_exclude: Names of nodes, as in the fp32 graph after `prepare`, that stay fp32.
        head_in_fp32: Keep the last layer with weights, and all that follows it, in fp32: a quantised logit ties
            classes that were apart.
        reduce_range: Seven bits for weights; for CPUs without VNNI.
        symmetric_activations: Activations in int8 around 0, ReLUs kept, biases in fp32; for TensorRT.
    """

    calibrate_method: CalibrateMethod = "minmax"
    percentile: float = 99.99
    nodes_to_exclude: tuple[str, ...] = ()
    head_in_fp32: bool = True
    reduce_range: bool = False
    symmetric_activations: bool = False

    def __post_init__(self) -> None:
        if self.calibrate_method not in get_args(CalibrateMethod):
            raise ExportError(
                f"expected a calibrate_method of {', '.join(get_args(CalibrateMethod))}, got {self.calibrate_method!r}"
            )
        if not 50 < self.percentile <= 100:
            raise ExportError(f"expected a percentile above 50 and up to 100, got {self.percentile}")


class _Images(CalibrationDataReader):  # type: ignore[misc]
    """Images one by one: histograms of every activation of one 512x512 image already take a gigabyte."""

    def __init__(self, images: UInt8[np.ndarray, "n h w 3"]) -> None:
        self._images = images
        self.set_range(0, len(images))

    def __len__(self) -> int:
        return len(self._images)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest: Iterator[int] = iter(range(start_index, end_index))

    def get_next(self) -> dict[str, np.ndarray] | None:
        index = next(self._rest, None)
        return None if index is None else {IMAGE.name: self._images[index : index + 1]}


def prepare(network: onnx.ModelProto) -> onnx.ModelProto:
    """Fold constants and batch norms and infer shapes, as quantisation needs it. Numbers stay within rounding."""
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "network.onnx", Path(folder) / "prepared.onnx"
        # By path: both of ORT's functions move the weights of a model that they are handed out into a file of theirs.
        onnx.save(network, source)
        # The symbolic inference needs sympy and adds nothing: only the batch axis is not known.
        quant_pre_process(source, path, skip_symbolic_shape=True)
        return onnx.load(path)


def head_nodes(network: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the last layer with weights before the output and of all that follows it."""
    producers = {name: node for node in network.graph.node for name in node.output}
    names: dict[str, None] = {}
    waiting = [value.name for value in network.graph.output]
    while waiting:
        node = producers.get(waiting.pop())
        if node is None or node.name in names:
            continue
        names[node.name] = None
        if node.op_type not in _WEIGHTED:
            waiting.extend(node.input)
    return tuple(names)


def quantize(
    network: onnx.ModelProto, calibration: UInt8[np.ndarray, "n h w 3"], config: QuantizationConfig | None = None
) -> onnx.ModelProto:
    """Quantise a network to int8.

    Args:
        network: fp32, input ``image`` UINT8 `[N, 512, 512, 3]`.
        calibration: Images like those that it will see, `[0, 255]`; from the training split, 16 to 100 of them.
        config: How; `QuantizationConfig()` by default.

    Returns:
        The network with ``QuantizeLinear`` and ``DequantizeLinear`` around what is computed in int8, inputs, outputs
        and opset as before.

    Raises:
        ExportError: If there are no images, or `nodes_to_exclude` names a node that is not there.
    """
    config = config or QuantizationConfig()
    if not len(calibration):
        raise ExportError("expected calibration images to quantise with, got none")
    prepared = prepare(network)
    unknown = set(config.nodes_to_exclude) - {node.name for node in prepared.graph.node}
    if unknown:
        raise ExportError(f"expected nodes_to_exclude to name nodes of the graph, got {sorted(unknown)}")
    excluded = [*config.nodes_to_exclude, *(head_nodes(prepared) if config.head_in_fp32 else ())]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, path = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        onnx.save(prepared, source)
        quantize_static(
            source,
            path,
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPS),
            per_channel=True,
            reduce_range=config.reduce_range,
            activation_type=QuantType.QInt8 if config.symmetric_activations else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
            calibrate_method=_METHODS[config.calibrate_method],
            extra_options={
                "CalibPercentile": config.percentile,
                "CalibStridedMinMax": 1,
                "ActivationSymmetric": config.symmetric_activations,
                "QuantizeBias": not config.symmetric_activations,
            },
        )
        return onnx.load(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The calibrators print, and warn on the root logger of a step that `prepare` has done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
