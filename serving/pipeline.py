"""The three stages and how they are wired, as data. Read this file first.

::

    scan, modality, thresholds
               |
          preprocess ------------------------ image, gates
               |
          recognition ----------------------- diagnosis, activation   stage 1
               |  gate: P(covid19)
         manifestations --------------------- manifestations          stage 2
               |  gate: P(manifestation)
          segment_<stream> x 4 -------------- mask_<stream>           stage 3

Everything that knows the shape of the pipeline reads it from here: `serving.repository` renders the Triton
configs, `train.export` the wire names and the gates inside the graphs, `serving.client` what it asks for, and
the tests what they hold each of these against.

**Gates.** A Triton ensemble cannot branch, so a stage that may be skipped carries its own gate: an ONNX ``If``
around the network, which sees the scores of the stage before and the thresholds of the request. Within a batch
only the items whose gate is open are computed; the others get `Gate.closed_value`. ``gates`` are the thresholds
as `preprocess` passes them on: as asked for a CT slice, `NEVER` for an X-ray (stages 2 and 3 are about CT
slices), NaN for an item that could not be read.

**Two copies of a score.** Triton prunes what is not requested, and wrongly prunes a tensor that is both an output
of the ensemble and an input of an inner step. So a model gives the score twice: ``diagnosis`` for the caller,
``diagnosis_scores`` for the next gate. In the second, an item whose gate was closed reads `NOT_RUN`, which no
threshold reaches.

**Why this diagnosis.** ``activation`` is the class activation map (Zhou et al. 2016, "Learning Deep Features for
Discriminative Localization") of each diagnosis: what each cell of the network's last grid adds to its logit. The mean
of a map is the logit, so their softmax is ``diagnosis``. Only who wants an explanation asks for it; no step reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from serving.labels import ALL_STREAM, DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAMS

ENSEMBLE_NAME: Final = "covid_pipeline"
MODEL_HW: Final = (512, 512)
"""Height and width in pixels of model space (paper, "Preprocessing and data augmentation")."""

MAX_BATCH_SIZE: Final = 8
NOT_RUN: Final = -1.0
"""The score of a stage that did not run, as the next gate sees it. No threshold in `[0, 1]` opens on it."""
NEVER: Final = 2.0
"""A threshold that no probability reaches."""

DType = Literal["BYTES", "UINT8", "FP32"]


@dataclass(frozen=True)
class Tensor:
    """A named tensor on the wire.

    Attributes:
        name: Its name in requests, responses and graphs.
        dtype: Triton's name of its type.
        shape: Its shape without the batch axis.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Gate:
    """When a network runs for an item of the batch, and what it returns when not.

    Open if, for any pair `(score, threshold)` of `pairs`, `scores[score] >= gates[threshold]`. An empty `pairs`
    is open for every item that could be read (its gates are not NaN).

    Attributes:
        pairs: Index into the scores of the stage before, index into ``gates``.
        closed_value: What the caller's output holds for an item whose gate was closed.
    """

    pairs: tuple[tuple[int, int], ...]
    closed_value: float


@dataclass(frozen=True)
class Step:
    """One model of the ensemble.

    Attributes:
        model: Name of the model's folder.
        stage: 0 preprocessing, 1 recognition, 2 manifestations, 3 segmentation.
        backend: Triton's backend.
        inputs: The model's own input tensors.
        outputs: The model's own output tensors. For ONNX models the first is what the step is for.
        input_map: Model's input name -> the ensemble's tensor.
        output_map: Model's output name -> the ensemble's tensor.
        gate: When it runs; None for preprocessing.
        scores_copy: Which of `outputs` is the copy of the first that the next gate reads, if any is.
    """

    model: str
    stage: int
    backend: Literal["python", "onnxruntime"]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    input_map: Mapping[str, str]
    output_map: Mapping[str, str]
    gate: Gate | None = field(default=None)
    scores_copy: Tensor | None = field(default=None)

    @property
    def answers(self) -> tuple[Tensor, ...]:
        """What the network itself gives: `outputs` without the copy that the gate makes."""
        return tuple(tensor for tensor in self.outputs if tensor != self.scores_copy)


THRESHOLDS: Final[Mapping[str, float]] = MappingProxyType(
    {
        # Open: the paper wants stage 2 even where stage 1 sees no COVID-19.
        "covid19": 0.0,
        # More likely there than not: the shipped weights are calibrated on their validation split.
        "ground_glass": 0.5,
        "consolidation": 0.5,
        "pleural_effusion": 0.5,
    }
)
"""Thresholds in the order of the ``thresholds`` tensor, with their defaults. 0 opens a gate."""
THRESHOLD_NAMES: Final = tuple(THRESHOLDS)

SCAN = Tensor("scan", "BYTES", (1,))
MODALITY = Tensor("modality", "BYTES", (1,))
THRESHOLDS_TENSOR = Tensor("thresholds", "FP32", (len(THRESHOLDS),))
IMAGE = Tensor("image", "UINT8", (*MODEL_HW, 3))
GATES = Tensor("gates", "FP32", (len(THRESHOLDS),))
SCORES_INPUT = "scores"
DIAGNOSIS = Tensor("diagnosis", "FP32", (len(DIAGNOSIS_NAMES),))
DIAGNOSIS_SCORES = Tensor("diagnosis_scores", "FP32", DIAGNOSIS.shape)
ACTIVATION_HW: Final = (6, 6)
"""Rows and columns of the last grid of the network that ships."""
ACTIVATION_FIRST: Final = 37.5 / 256
"""Where the first cell of that grid looks at: the centre of its receptive field, as a part of the image's side."""
ACTIVATION_STEP: Final = 32 / 256
"""From one cell to the next, as a part of the side. Convolutions without padding keep the grid off the border, so it
must not be stretched over the image: the outermost cells would be shown 0.06 of the side too far out."""
ACTIVATION = Tensor("activation", "FP32", (len(DIAGNOSIS_NAMES), *ACTIVATION_HW))
FINDINGS = Tensor("manifestations", "FP32", (len(MANIFESTATION_NAMES),))
FINDINGS_SCORES = Tensor("manifestations_scores", "FP32", FINDINGS.shape)
MASK = Tensor("mask", "UINT8", MODEL_HW)


def _same(*tensors: Tensor) -> dict[str, str]:
    return {tensor.name: tensor.name for tensor in tensors}


def segmentation_model(stream: str) -> str:
    """Name of the model of a stream, as in ``segment_ground_glass``."""
    return f"segment_{stream}"


def mask_output(stream: str) -> str:
    """Name of the ensemble's output of a stream, as in ``mask_ground_glass``."""
    return f"mask_{stream}"


def _stream_gate(stream: str) -> Gate:
    every = tuple((i, THRESHOLD_NAMES.index(name)) for i, name in enumerate(MANIFESTATION_NAMES))
    if stream == ALL_STREAM.name:
        return Gate(pairs=every, closed_value=0)
    return Gate(pairs=(every[MANIFESTATION_NAMES.index(stream)],), closed_value=0)


PREPROCESS = Step(
    model="preprocess",
    stage=0,
    backend="python",
    # Every input of the ensemble is consumed here: a step that always runs. See the traps in docs/decisions.md.
    inputs=(SCAN, MODALITY, THRESHOLDS_TENSOR),
    outputs=(IMAGE, GATES),
    input_map=_same(SCAN, MODALITY, THRESHOLDS_TENSOR),
    output_map=_same(IMAGE, GATES),
)
RECOGNITION = Step(
    model="recognition",
    stage=1,
    backend="onnxruntime",
    inputs=(IMAGE, GATES),
    outputs=(DIAGNOSIS, DIAGNOSIS_SCORES, ACTIVATION),
    input_map=_same(IMAGE, GATES),
    output_map=_same(DIAGNOSIS, DIAGNOSIS_SCORES, ACTIVATION),
    gate=Gate(pairs=(), closed_value=float("nan")),
    scores_copy=DIAGNOSIS_SCORES,
)
MANIFESTATION_STEP = Step(
    model="manifestations",
    stage=2,
    backend="onnxruntime",
    inputs=(IMAGE, GATES, Tensor(SCORES_INPUT, "FP32", DIAGNOSIS.shape)),
    outputs=(FINDINGS, FINDINGS_SCORES),
    input_map={**_same(IMAGE, GATES), SCORES_INPUT: DIAGNOSIS_SCORES.name},
    output_map=_same(FINDINGS, FINDINGS_SCORES),
    gate=Gate(pairs=((DIAGNOSIS_NAMES.index("covid19"), THRESHOLD_NAMES.index("covid19")),), closed_value=0.0),
    scores_copy=FINDINGS_SCORES,
)
SEGMENTATION: Final[tuple[Step, ...]] = tuple(
    Step(
        model=segmentation_model(stream.name),
        stage=3,
        backend="onnxruntime",
        inputs=(IMAGE, GATES, Tensor(SCORES_INPUT, "FP32", FINDINGS.shape)),
        outputs=(MASK,),
        input_map={**_same(IMAGE, GATES), SCORES_INPUT: FINDINGS_SCORES.name},
        output_map={MASK.name: mask_output(stream.name)},
        gate=_stream_gate(stream.name),
    )
    for stream in STREAMS
)

STEPS: Final[tuple[Step, ...]] = (PREPROCESS, RECOGNITION, MANIFESTATION_STEP, *SEGMENTATION)
"""The ensemble's steps, in order."""

ENSEMBLE_INPUTS: Final = PREPROCESS.inputs
REPORT_OUTPUTS: Final[tuple[Tensor, ...]] = (
    DIAGNOSIS,
    FINDINGS,
    *(Tensor(mask_output(stream.name), MASK.dtype, MASK.shape) for stream in STREAMS),
)
"""What a report is made of."""
ENSEMBLE_OUTPUTS: Final[tuple[Tensor, ...]] = (*REPORT_OUTPUTS, ACTIVATION)
"""All that can be requested."""
MODEL_NAMES: Final = (*(step.model for step in STEPS), ENSEMBLE_NAME)


def step(model: str) -> Step:
    """The step of a model.

    Raises:
        KeyError: If no step has that model; the message lists those that there are.
    """
    for candidate in STEPS:
        if candidate.model == model:
            return candidate
    raise KeyError(f"no step runs {model!r}: expected one of {', '.join(s.model for s in STEPS)}")
