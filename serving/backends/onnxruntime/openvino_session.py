"""OpenVINO in the place of an ONNX Runtime session: what the twin's accelerator ``openvino`` runs.

The C++ backend reaches OpenVINO through ONNX Runtime's execution provider. The pip package with that provider takes the
place of ``onnxruntime`` itself, so here OpenVINO reads the same ONNX file without it. Its int8 arithmetic rounds
otherwise than ONNX Runtime's: see docs/decisions.md for how far answers move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import openvino

Array = npt.NDArray[Any]

_TYPES: Final[Mapping[str, str]] = {
    "u8": "tensor(uint8)",
    "i8": "tensor(int8)",
    "i32": "tensor(int32)",
    "i64": "tensor(int64)",
    "boolean": "tensor(bool)",
    "f16": "tensor(float16)",
    "f32": "tensor(float)",
    "f64": "tensor(double)",
}


_CPU_INFO: Final = Path("/proc/cpuinfo")


def exact_int8(cpu_info: Path = _CPU_INFO) -> dict[str, str]:
    """Settings without which int8 saturates on x86 processors that have no VNNI, see `serving.arithmetic`.

    Args:
        cpu_info: As Linux writes it.

    Returns:
        Nothing where int8 is exact; otherwise that networks are computed in fp32, rounded as int8 would be.
    """
    try:
        flags = next((line for line in cpu_info.read_text().splitlines() if line.startswith("flags")), "").split()
    except OSError:
        return {}
    # Only x86 has a line of that name.
    return {"LP_TRANSFORMS_MODE": "NO"} if flags and not {"avx512_vnni", "avx_vnni"} & set(flags) else {}


class Node(NamedTuple):
    """An input or output, as ONNX Runtime describes one: None in a shape is any size."""

    name: str
    shape: list[int | None]
    type: str


class OpenVinoSession:
    """A network on the CPU, behind the methods of an `onnxruntime.InferenceSession` that the twin calls.

    Args:
        path: The ONNX file.
        threads: Within the network.
    """

    def __init__(self, path: Path, threads: int) -> None:
        core = openvino.Core()
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            # Each model is a process of its own: pinned, they would all sit on the same cores.
            "ENABLE_CPU_PINNING": False,
            # Otherwise what the file says is fp32 runs in bfloat16 where the CPU has it.
            "INFERENCE_PRECISION_HINT": "f32",
            **exact_int8(),
        }
        self._network = core.compile_model(core.read_model(path), "CPU", settings)
        self._request = self._network.create_infer_request()

    def get_inputs(self) -> list[Node]:
        """The graph's inputs."""
        return [_node(port) for port in self._network.inputs]

    def get_outputs(self) -> list[Node]:
        """The graph's outputs."""
        return [_node(port) for port in self._network.outputs]

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any = None) -> list[Array]:
        """One run.

        Args:
            names: Of the outputs that are wanted.
            feeds: By input's name.
            options: ONNX Runtime's; there is nothing that OpenVINO could take of them.
        """
        self._request.infer(dict(feeds))
        # A copy: the next run writes into the same memory.
        return [np.array(self._request.get_tensor(name).data) for name in names]


def _node(port: Any) -> Node:
    shape = [dimension.get_length() if dimension.is_static else None for dimension in port.partial_shape]
    kind = port.element_type.get_type_name()
    return Node(port.any_name, shape, _TYPES.get(kind, kind))
