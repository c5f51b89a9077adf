"""What a network is tried with where there are no scans: drawn ones, with gates that are open or closed."""

from __future__ import annotations

import functools
from typing import Final

import numpy as np
from jaxtyping import Bool, UInt8

from serving import phantom, pipeline
from serving.phantom_xray import chest_xray
from serving.pipeline import RECOGNITION, THRESHOLD_NAMES, Step
from serving.preprocessing import prepare

PHANTOMS: Final = 3
"""Of each kind that a step sees."""


def drawn_scans(step: Step) -> UInt8[np.ndarray, "n 512 512 3"]:
    """Preprocessed phantoms of the kinds that a step sees. Drawn once; not to be written to."""
    scans: UInt8[np.ndarray, "n 512 512 3"] = _drawn(xrays=step == RECOGNITION)
    return scans


@functools.cache
def _drawn(*, xrays: bool) -> UInt8[np.ndarray, "n 512 512 3"]:
    files = [(phantom.png_bytes(phantom.ct_slice(seed=seed).pixels), "ct") for seed in range(PHANTOMS)]
    if xrays:
        files += [(phantom.png_bytes(chest_xray(seed=seed)), "xray") for seed in range(PHANTOMS)]
    images: UInt8[np.ndarray, "n 512 512 3"] = np.stack(
        [prepare(data, modality, [0.0] * len(THRESHOLD_NAMES))[0] for data, modality in files]
    )
    images.setflags(write=False)
    return images


def gate_inputs(step: Step, opened: Bool[np.ndarray, " n"]) -> dict[str, np.ndarray]:
    """``gates`` and, where the step has them, ``scores`` that open and close the items of a batch as told.

    Args:
        step: A step with a gate.
        opened: True for the items to open.
    """
    gates = np.full((len(opened), *pipeline.GATES.shape), 0.5, np.float32)
    gates[~opened] = pipeline.NEVER if step.gate and step.gate.pairs else np.nan
    feeds = {pipeline.GATES.name: gates}
    for tensor in step.inputs:
        if tensor.name == pipeline.SCORES_INPUT:
            feeds[tensor.name] = np.ones((len(opened), *tensor.shape), np.float32)
    return feeds
