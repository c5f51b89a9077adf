"""The ways of doing the same work that `loadtest.side_by_side` compares.

Each takes a scan's own bytes and gives all outputs of the ensemble. Those in this process are as plain as a user would
write them: default options, one network after the other. Packages that only these need are imported when one starts.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import numpy as np
import onnxruntime as ort

from loadtest.cases import LoadCase
from loadtest.networks import follow
from loadtest.raw import NETWORKS
from loadtest.wire import Answer
from serving.arithmetic import exact
from serving.errors import MissingPackage, RequestError
from serving.pipeline import IMAGE, MASK

if TYPE_CHECKING:
    import keras

Precision = Literal["fp32", "bf16", "int8"]
KerasModels = Callable[[], Mapping[str, "keras.Model"]]
"""Makes the models by name, with the weights of the fp32 repository."""

PACKAGES: Final = {
    "onnx": "onnx",
    "openvino": "openvino",
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python-multipart": "python_multipart",
}
"""Package -> its module: what the extra ``bench`` brings."""


def check_packages(packages: Mapping[str, str] = PACKAGES) -> None:
    """Looks for the packages that the competitors need, before anything is loaded.

    Raises:
        MissingPackage: If one is not installed.
    """
    for package, module in packages.items():
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(
                f"expected the package {package}, got an environment without it: pip install 'lungstreams[bench]'"
            )


class Competitor(ABC):
    """One way. Use as a context manager: entering loads it, leaving frees and stops all that is its own.

    Attributes:
        way: What computes, as in ``OpenVINO``.
        precision: Of what it computes in.
        served: Whether it answers over a socket, from another process.
        ours: Whether it is this project's server.
        how: How it is set up, for the report.
        packages: Distributions whose versions the report names.
    """

    way: ClassVar[str]
    served: ClassVar[bool] = False
    ours: ClassVar[bool] = False
    how: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()

    def __init__(self, precision: Precision) -> None:
        self.precision: Precision = precision

    @property
    def name(self) -> str:
        """As in ``OpenVINO bf16``."""
        return f"{self.way} {self.precision}"

    @property
    def group(self) -> int | None:
        """Process group of its server, if it has one."""
        return None

    @abstractmethod
    def answer(self, scan: bytes, case: LoadCase) -> Answer:
        """Does all the work for one scan.

        Args:
            scan: The file.
            case: Its modality and thresholds.

        Returns:
            All outputs of the ensemble, each with its batch axis.

        Raises:
            LungstreamsError: If the scan can not be used, or a server fails.
        """

    @abstractmethod
    def start(self) -> None:
        """Loads the networks, or starts the server."""

    @abstractmethod
    def stop(self) -> None:
        """Frees or stops them; also after a `start` that failed."""

    def __enter__(self) -> Competitor:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _InProcess(Competitor):
    """Networks that are called here."""

    def __init__(self, precision: Precision) -> None:
        super().__init__(precision)
        self._calls: dict[str, Callable[[np.ndarray[Any, Any]], Any]] = {}

    def answer(self, scan: bytes, case: LoadCase) -> Answer:
        return follow(scan, case, self._call)

    def _call(self, model: str, image: np.ndarray[Any, Any]) -> Any:
        return self._calls[model](image)

    def stop(self) -> None:
        self._calls.clear()


class KerasInProcess(_InProcess):
    """The Keras models themselves.

    Args:
        models: Makes them.
    """

    way = "Keras/TensorFlow"
    how = "each model in a `tf.function` of a batch of one, streams with their arg max inside"
    packages = ("tensorflow", "keras")

    def __init__(self, models: KerasModels) -> None:
        super().__init__("fp32")
        self._models = models

    def start(self) -> None:
        """Traces a function for each model.

        Raises:
            RequestError: If Keras runs on another backend.
        """
        import keras

        if keras.backend.backend() != "tensorflow":
            raise RequestError(f"expected Keras on TensorFlow, got {keras.backend.backend()}: unset KERAS_BACKEND")
        models = self._models()
        for step in NETWORKS:
            self._calls[step.model] = _tensorflow_call(models[step.model], masks=step.outputs[0] == MASK)


def _tensorflow_call(model: Any, *, masks: bool) -> Callable[[np.ndarray[Any, Any]], Any]:
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((1, *IMAGE.shape), tf.uint8)])  # type: ignore[untyped-decorator]
    def run(image: Any) -> Any:
        output = model(image, training=False)
        return tf.cast(tf.argmax(output, axis=-1), tf.uint8) if masks else output

    return lambda image: run(tf.constant(image)).numpy()


class OnnxRuntimeInProcess(_InProcess):
    """ONNX Runtime as it comes.

    Args:
        precision: Of the networks.
        networks: By model, from `loadtest.networks.unpack`.
    """

    way = "ONNX Runtime"
    how = "default session options but for exact int8, so a thread for each core, which spin while they wait"

    def __init__(self, precision: Precision, networks: Mapping[str, Path]) -> None:
        super().__init__(precision)
        self._networks = networks

    def start(self) -> None:
        """Opens a session for each network."""
        for model, path in self._networks.items():
            session = ort.InferenceSession(path, exact(ort.SessionOptions()), providers=["CPUExecutionProvider"])
            self._calls[model] = _onnx_call(session)


def _onnx_call(session: Any) -> Callable[[np.ndarray[Any, Any]], Any]:
    return lambda image: session.run(None, {IMAGE.name: image})[0]


class OpenVinoInProcess(_InProcess):
    """OpenVINO, told to be quick with one image at a time.

    Args:
        precision: fp32 and bf16 are hints about how to compute fp32 networks; int8 networks are quantised already.
        networks: By model, from `loadtest.networks.unpack`: fp32 or int8.
    """

    way = "OpenVINO"
    how = "`PERFORMANCE_HINT` latency, a static batch of one, fp32 and bf16 by `INFERENCE_PRECISION_HINT`"
    packages = ("openvino",)

    _HINTS: ClassVar[Mapping[str, str]] = {"fp32": "f32", "bf16": "bf16"}

    def __init__(self, precision: Precision, networks: Mapping[str, Path]) -> None:
        super().__init__(precision)
        self._networks = networks

    def start(self) -> None:
        """Compiles each network for the processor."""
        import openvino  # type: ignore[import-untyped, unused-ignore]

        from serving.backends.onnxruntime.openvino_session import exact_int8

        core = openvino.Core()
        settings = {"PERFORMANCE_HINT": "LATENCY", **exact_int8()}
        if self.precision in self._HINTS:
            # Where the processor has bf16, OpenVINO computes fp32 networks in it unless told otherwise.
            settings["INFERENCE_PRECISION_HINT"] = self._HINTS[self.precision]
        for model, path in self._networks.items():
            network = core.read_model(path)
            network.reshape([1, *IMAGE.shape])
            self._calls[model] = _openvino_call(core.compile_model(network, "CPU", settings))


def _openvino_call(compiled: Any) -> Callable[[np.ndarray[Any, Any]], Any]:
    # A copy: the result is a view of memory that the next call writes into.
    return lambda image: np.array(compiled(image)[0])
