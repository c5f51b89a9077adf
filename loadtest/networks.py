"""The bare networks of a model repository, and how they are run by hand: what `loadtest.competitors` share.

The published graphs carry gates for Triton's sake. Whoever runs the networks without Triton has no use for these: an
``if`` around a call does the same. So the competitors get the networks out of the graphs, with the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Num, UInt8

from loadtest.cases import LoadCase
from loadtest.raw import NETWORKS, served_version
from loadtest.wire import Answer, is_open
from serving.pipeline import NOT_RUN, REPORT_OUTPUTS, SCORES_INPUT, Step
from serving.preprocessing import prepare
from serving.repository import ONNX_NAME

Call = Callable[[str, UInt8[np.ndarray, "1 512 512 3"]], Num[np.ndarray, "1 ..."]]
"""A model's name and one image -> what its network answers."""

_DTYPES: Final = {"UINT8": np.uint8, "FP32": np.float32}


def unpack(repository: Path, folder: Path) -> dict[str, Path]:
    """Writes the networks of a repository without their gates, each with the one output that a report is made of.

    Args:
        repository: The model repository; of each model the version that is served.
        folder: Where to; made if it is not there. A network is as large as its published graph.

    Returns:
        By model, the file ``<folder>/<model>.onnx``.

    Raises:
        RepositoryError: If a model has no version.
        ExportError: If a graph has no gate.
    """
    import onnx

    from train.activation_maps import without_activation
    from train.ungating import ungated

    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for step in NETWORKS:
        gated = onnx.load(repository / step.model / str(served_version(repository, step.model)) / ONNX_NAME)
        files[step.model] = folder / f"{step.model}.onnx"
        onnx.save(without_activation(ungated(gated)), files[step.model])
    return files


def follow(scan: bytes, case: LoadCase, call: Call) -> Answer:
    """Runs one scan through the stages; a network whose gate is closed is not called.

    Args:
        scan: The file.
        case: Its modality and thresholds.
        call: Runs one network.

    Returns:
        All outputs of a report.

    Raises:
        ScanError: If the file can not be used.
    """
    image, gates = prepare(scan, case.modality, list(case.thresholds.values()))
    answer = closed_answer()
    scores = {name: np.full(answer[name].shape[1:], NOT_RUN, np.float32) for name in answer}
    for step in NETWORKS:
        before = scores[_scores_of(step)] if SCORES_INPUT in step.input_map else np.empty(0, np.float32)
        if is_open(step.gate, before, gates):
            output = output_of(step)
            answer[output] = call(step.model, image[np.newaxis])
            scores[output] = answer[output][0]
    return answer


def output_of(step: Step) -> str:
    """The ensemble's name of what a step answers."""
    return step.output_map[step.outputs[0].name]


def _scores_of(step: Step) -> str:
    """The output that a step's gate looks at. Triton needs a copy of it; in one process there is none."""
    (before,) = (other for other in NETWORKS if step.input_map[SCORES_INPUT] in other.output_map.values())
    return output_of(before)


def closed_answer() -> dict[str, np.ndarray[Any, Any]]:
    """All outputs of a report as they are where every gate is closed."""
    values = {output_of(step): step.gate.closed_value if step.gate else 0.0 for step in NETWORKS}
    return {
        tensor.name: np.full((1, *tensor.shape), values[tensor.name], _DTYPES[tensor.dtype])
        for tensor in REPORT_OUTPUTS
    }
