"""Tensors of the ensemble -> `CaseReport`: what the system says about one case, on the scan's own pixels.

A stage that did not run says nothing, which is not the same as finding nothing. So whatever depends on a stage that
was skipped is None here, and `CaseReport.status` says why: ``not_run`` (its gate was closed) or ``not_applicable``
(stages 2 and 3 are about CT slices; the case is an X-ray).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from jaxtyping import Float32, Int, UInt8

from serving import pipeline
from serving.activation import ActivationMaps
from serving.burden import SliceBurden
from serving.errors import GeometryError, InferenceFailed, RequestError, ServerMismatch
from serving.labels import ALL_STREAM, DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES, Modality
from serving.scans import Scan

StageStatus = Literal["ran", "not_run", "not_applicable"]

MANIFESTATIONS_STAGE: Final = "manifestations"
STATUS_NAMES: Final = (MANIFESTATIONS_STAGE, *STREAM_NAMES)
"""The keys of `CaseReport.status`: stage 2, and each stream of stage 3."""


@dataclass(frozen=True, eq=False)
class CaseReport:
    """What the system says about one case.

    Attributes:
        modality: What the scan was taken for.
        diagnosis: Probability of each diagnosis, in `[0, 1]`, in the order of `DIAGNOSES`.
        manifestations: Probability of each manifestation, in `[0, 1]`; None when stage 2 did not run.
        masks: By stream, uint8 of shape `size_hw` in original space: class ids `0..3` for ``all``, 0 or 1 for the
            others; None when the stream did not run.
        status: Of stage 2 (``manifestations``) and of each stream.
        area_fraction: By stream, the marked part of the scan's pixels, in `[0, 1]`; None when it did not run.
        thresholds: What the gates were asked to open at, all of them, in `[0, 1]`.
        models: Version of each model that was asked, by model.
        latency_ms: From the request's leaving the client to the answer's being there.
        stage_ms: The server's compute time by model. May lack models, and is an average over the requests that ran
            in between where others share the server.
        size_hw: Height and width of the scan in pixels.
        activation: By diagnosis, float32 of shape `size_hw` in original space: what each place adds to the logit, see
            `serving.activation`; drawn when it is read. None where nobody asked.
        doubts: Why the scan may be no plausible chest scan, as sentences for a reader, see `serving.plausibility`;
            empty when it is one.
        request_id: What the case is called in the logs of the page and of the server; random, and empty where nobody
            drew one.
        burden: How much of the lung is marked, see `serving.measuring`; None of an X-ray, and where nobody measured.

    Raises:
        GeometryError: If a mask or map is not of the scan's size.
        ServerMismatch: If names, statuses and values do not fit together.
    """

    modality: Modality
    diagnosis: Mapping[str, float]
    manifestations: Mapping[str, float | None]
    masks: Mapping[str, UInt8[np.ndarray, "h w"] | None]
    status: Mapping[str, StageStatus]
    area_fraction: Mapping[str, float | None]
    thresholds: Mapping[str, float]
    size_hw: tuple[int, int]
    models: Mapping[str, str] = field(default_factory=dict)
    latency_ms: float = 0.0
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    activation: ActivationMaps | None = None
    doubts: tuple[str, ...] = ()
    request_id: str = ""
    burden: SliceBurden | None = None

    def __post_init__(self) -> None:
        _expect_names("diagnosis", self.diagnosis, DIAGNOSIS_NAMES)
        _expect_names("manifestations", self.manifestations, MANIFESTATION_NAMES)
        _expect_names("status", self.status, STATUS_NAMES)
        _expect_names("masks", self.masks, STREAM_NAMES)
        _expect_names("area_fraction", self.area_fraction, STREAM_NAMES)
        for what, values in (("diagnosis", self.diagnosis), ("manifestations", self.manifestations)):
            for name, value in values.items():
                # Written so that NaN fails.
                if value is not None and not 0.0 <= value <= 1.0:
                    raise ServerMismatch(f"{what}: expected a probability in [0, 1] for {name}, got {value}")
        for stream, mask in self.masks.items():
            if (mask is not None) != (self.status[stream] == "ran"):
                raise ServerMismatch(f"mask of {stream}: its presence contradicts its status {self.status[stream]!r}")
            if mask is not None and mask.shape != self.size_hw:
                raise GeometryError(f"mask of {stream}: expected the scan's size {self.size_hw}, got {mask.shape}")
        if self.activation is not None and self.activation.size_hw != self.size_hw:
            raise GeometryError(f"activation: expected the scan's size {self.size_hw}, got {self.activation.size_hw}")

    def to_json(self) -> dict[str, object]:
        """Everything but the masks and maps, as what `json.dumps` takes."""
        return {
            "modality": self.modality,
            "diagnosis": dict(self.diagnosis),
            "manifestations": dict(self.manifestations),
            "area_fraction": dict(self.area_fraction),
            "status": dict(self.status),
            "thresholds": dict(self.thresholds),
            "models": dict(self.models),
            "latency_ms": self.latency_ms,
            "stage_ms": dict(self.stage_ms),
            "size_hw": list(self.size_hw),
            "doubts": list(self.doubts),
            "request_id": self.request_id,
            "burden": None if self.burden is None else self.burden.to_json(),
        }


def build_report(
    scan: Scan,
    tensors: Mapping[str, np.ndarray],
    thresholds: Mapping[str, float] | None = None,
    *,
    models: Mapping[str, str] = MappingProxyType({}),
    latency_ms: float = 0.0,
    stage_ms: Mapping[str, float] = MappingProxyType({}),
    doubts: tuple[str, ...] = (),
    request_id: str = "",
) -> CaseReport:
    """Read the ensemble's answer for one case.

    Args:
        scan: The scan that was sent.
        tensors: The ensemble's outputs for that case by name, without the batch axis. For an X-ray only the
            diagnosis is needed, for any only who wants an explanation needs the activation.
        thresholds: As sent; those left out are `pipeline.THRESHOLDS`.
        models: See `CaseReport`.
        latency_ms: See `CaseReport`.
        stage_ms: See `CaseReport`.
        doubts: See `CaseReport`.
        request_id: See `CaseReport`.

    Returns:
        The report, with masks in original space.

    Raises:
        RequestError: If a threshold has no such name or is not in `[0, 1]`.
        InferenceFailed: If the server answered that it could not read the scan.
        ServerMismatch: If a tensor is missing or is not what `serving.pipeline` says.
    """
    asked = resolve_thresholds(thresholds)
    diagnosis = _tensor(tensors, pipeline.DIAGNOSIS)
    if np.isnan(diagnosis).any():
        raise InferenceFailed("expected a diagnosis, got NaN: the server could not read the scan")
    findings = None if scan.modality == "xray" else _tensor(tensors, pipeline.FINDINGS)
    status = _status(scan.modality, diagnosis, findings, asked)
    masks = {
        stream: restore_mask(_mask_tensor(tensors, stream), scan) if status[stream] == "ran" else None
        for stream in STREAM_NAMES
    }
    stage_2_ran = findings is not None and status[MANIFESTATIONS_STAGE] == "ran"
    return CaseReport(
        modality=scan.modality,
        diagnosis={name: float(p) for name, p in zip(DIAGNOSIS_NAMES, diagnosis, strict=True)},
        manifestations={
            name: float(findings[i]) if findings is not None and stage_2_ran else None
            for i, name in enumerate(MANIFESTATION_NAMES)
        },
        masks=masks,
        status=status,
        area_fraction={stream: None if mask is None else area_fraction(mask) for stream, mask in masks.items()},
        thresholds=asked,
        size_hw=scan.size_hw,
        models=dict(models),
        latency_ms=latency_ms,
        stage_ms=dict(stage_ms),
        activation=_activation(tensors, scan) if pipeline.ACTIVATION.name in tensors else None,
        doubts=doubts,
        request_id=request_id,
    )


def resolve_thresholds(thresholds: Mapping[str, float] | None) -> dict[str, float]:
    """All thresholds, in the order of the ``thresholds`` tensor: those given, the defaults for the others.

    Raises:
        RequestError: If a name is not one of `pipeline.THRESHOLD_NAMES`, or a value is not in `[0, 1]`.
    """
    given = dict(thresholds or {})
    for name, value in given.items():
        if name not in pipeline.THRESHOLDS:
            raise RequestError(f"threshold: expected one of {', '.join(pipeline.THRESHOLD_NAMES)}, got {name!r}")
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise RequestError(f"threshold of {name}: expected a number in [0, 1], got {value}")
    return {name: float(given.get(name, default)) for name, default in pipeline.THRESHOLDS.items()}


def restore_mask(mask: UInt8[np.ndarray, "model_h model_w"], scan: Scan) -> UInt8[np.ndarray, "h w"]:
    """Map a class mask from model space back onto the scan's own pixels.

    `preprocess` stretches, with the corners of the images (not the centres of their corner pixels) on each other.
    So pixel `i` of `n`, whose centre is at `i + 1/2`, takes the class of the model's pixel that this centre falls
    into, `floor((i + 1/2) * model / n)`.

    Args:
        mask: Class ids; row 0 is the top.
        scan: The scan that the mask was computed from.

    Returns:
        Class ids at the scan's size, a new array.

    Raises:
        GeometryError: If `mask` is not uint8 of the model's input size.
    """
    if mask.shape != pipeline.MODEL_HW or mask.dtype != np.uint8:
        raise GeometryError(f"mask: expected uint8 of shape {pipeline.MODEL_HW}, got {mask.dtype} of {mask.shape}")
    # Nearest only: interpolating class ids would invent classes. In whole numbers and not by OpenCV, whose
    # INTER_NEAREST takes corners for centres, and whose INTER_NEAREST_EXACT drifts with the rounding of its step
    # (measured: 2.5 % of the pixels off at 48x10000, 1.3 % at 2991x2990).
    rows, columns = (nearest(model, size) for model, size in zip(pipeline.MODEL_HW, scan.size_hw, strict=True))
    return np.asarray(mask[rows[:, None], columns])


def area_fraction(mask: UInt8[np.ndarray, "h w"]) -> float:
    """The part of the pixels that is not background, in `[0, 1]`."""
    return float(np.count_nonzero(mask)) / mask.size


def gate_is_open(
    gate: pipeline.Gate, scores: Float32[np.ndarray, " scores"], thresholds: Float32[np.ndarray, " thresholds"]
) -> bool:
    """Whether a network ran, by the rule of `pipeline.Gate` and in float32 as in the graph."""
    return not gate.pairs or any(scores[score] >= thresholds[threshold] for score, threshold in gate.pairs)


def _status(
    modality: Modality,
    diagnosis: Float32[np.ndarray, " diagnoses"],
    findings: Float32[np.ndarray, " manifestations"] | None,
    thresholds: Mapping[str, float],
) -> dict[str, StageStatus]:
    if findings is None or modality == "xray":
        return dict.fromkeys(STATUS_NAMES, "not_applicable")
    gates = np.array([thresholds[name] for name in pipeline.THRESHOLD_NAMES], dtype=np.float32)

    def said(step: pipeline.Step, scores: Float32[np.ndarray, " scores"]) -> StageStatus:
        return "ran" if step.gate is None or gate_is_open(step.gate, scores, gates) else "not_run"

    status: dict[str, StageStatus] = {MANIFESTATIONS_STAGE: said(pipeline.MANIFESTATION_STEP, diagnosis)}
    ran = status[MANIFESTATIONS_STAGE] == "ran"
    seen_by_streams = findings if ran else np.full_like(findings, pipeline.NOT_RUN)
    for stream in STREAM_NAMES:
        status[stream] = said(pipeline.step(pipeline.segmentation_model(stream)), seen_by_streams)
    return status


def _tensor(tensors: Mapping[str, np.ndarray], expected: pipeline.Tensor) -> np.ndarray:
    dtype = {"FP32": np.float32, "UINT8": np.uint8}[expected.dtype]
    tensor = tensors.get(expected.name)
    if tensor is None:
        raise ServerMismatch(f"{expected.name}: expected this output, got {', '.join(tensors) or 'none'}")
    if tensor.shape != expected.shape or tensor.dtype != dtype:
        got = f"{tensor.dtype} of shape {tensor.shape}"
        raise ServerMismatch(f"{expected.name}: expected {expected.dtype} of shape {expected.shape}, got {got}")
    return tensor


def _activation(tensors: Mapping[str, np.ndarray], scan: Scan) -> ActivationMaps:
    return ActivationMaps(_tensor(tensors, pipeline.ACTIVATION), scan.size_hw)


def _mask_tensor(tensors: Mapping[str, np.ndarray], stream: str) -> UInt8[np.ndarray, "model_h model_w"]:
    mask = _tensor(tensors, pipeline.Tensor(pipeline.mask_output(stream), pipeline.MASK.dtype, pipeline.MASK.shape))
    highest = len(MANIFESTATION_NAMES) if stream == ALL_STREAM.name else 1
    if mask.max() > highest:
        raise ServerMismatch(f"mask of {stream}: expected class ids in [0, {highest}], got {mask.max()}")
    return mask


def nearest(model_px: int, size_px: int) -> Int[np.ndarray, " size"]:
    """Of each of `size_px` pixels, the one of `model_px` that its centre falls into, see `restore_mask`."""
    return (2 * np.arange(size_px) + 1) * model_px // (2 * size_px)


def _expect_names(what: str, values: Mapping[str, object], expected: tuple[str, ...]) -> None:
    if set(values) != set(expected):
        raise ServerMismatch(f"{what}: expected {', '.join(expected)}, got {', '.join(values) or 'nothing'}")
