"""The published models once more, asked through a running Triton: the way that a scan really goes.

`train.evaluate` asks ONNX Runtime in its own process. Here the same scans go over gRPC to the embedded server:

- a scan whose file the ensemble reads as training did is sent as **its own bytes** to ``covid_pipeline`` with every
  gate open, by the project's client: decoding, preprocessing, gates and batching are Triton's;
- the others (16-bit slices of Hounsfield units, slices equalised upstream, slices of a volume) are prepared here and
  sent as **pictures** to the composing models.

Then figures and answers are held against those of ONNX Runtime. ``lungstreams evaluate --through-triton`` writes
``docs/triton_parity.json``.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Num, UInt8
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serving import pipeline, wire
from serving.client import PipelineClient
from serving.errors import ParityError
from serving.pipeline import MASK, Step
from serving.repository import DEFAULT_REPOSITORY
from serving.trial_scans import gate_inputs
from serving.tritonserver import ServerConfig, TritonServer
from train.batches import Arrays, in_three_channels
from train.data import Example
from train.parity import Tolerances

if TYPE_CHECKING:
    from train.evaluate import Answered

FILE_NAME: Final = "triton_parity.json"
OPEN: Final = dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0)
HEADLINES: Final = ("accuracy", "auc", "dice")
_NO_HEADLINE: Final = "by_source"
_IN_FLIGHT: Final = 4
_TIMEOUT_S: Final = 300.0
_NAMED: Final = 10

Json = dict[str, Any]


def goes_as_file(example: Example) -> bool:
    """Whether the ensemble makes of the file's bytes what `train.data.load_image` makes of it."""
    return example.clahe and not example.stored_hu and example.slice_index is None


def compare(
    answered: Mapping[str, Answered],
    results: Mapping[str, Json],
    root: Path,
    repository: Path = DEFAULT_REPOSITORY,
) -> Json:
    """Start the embedded Triton, ask it for every answer, and compare.

    Args:
        answered: ONNX Runtime's answers by model.
        results: Their figures by model.
        root: Of the data.
        repository: What the server serves.

    Returns:
        See `compared`.

    Raises:
        ServerError: If the server does not start, is not of `serving.pipeline`, or fails a scan.
        ScanError: If a file can not be read.
    """
    arrays = {model: answers.arrays for model, answers in answered.items()}
    with TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0)) as server:
        got = answers_of(server.grpc_url, arrays, root)
    return compared(answered, got, results)


def answers_of(url: str, arrays: Mapping[str, Arrays], root: Path) -> dict[str, Num[np.ndarray, "n ..."]]:
    """A running server's answers.

    Args:
        url: Host and port of its gRPC endpoint.
        arrays: Scans by model.
        root: Of their files.

    Returns:
        By model, one a scan: probabilities, or masks `(512, 512)` of class ids.

    Raises:
        ServerError: If the server is not of `serving.pipeline`, or fails a scan.
        ScanError: If a file can not be read.
    """
    # A scan that several models are measured on is sent once; the ensemble answers for all of them.
    files = {e.path: e for scans in arrays.values() for e in scans.examples if goes_as_file(e)}
    with PipelineClient(url) as client, ThreadPoolExecutor(_IN_FLIGHT) as pool:
        client.check()
        tensors = pool.map(lambda e: client.tensors((root / e.path).read_bytes(), e.modality, OPEN), files.values())
        replies = dict(zip(files, tensors, strict=True))
    triton = wire.connect(url)
    try:
        return {model: np.stack(list(_rows(triton, model, scans, replies))) for model, scans in arrays.items()}
    finally:
        triton.close()


def _rows(
    triton: Any, model: str, scans: Arrays, replies: Mapping[str, Mapping[str, np.ndarray]]
) -> Iterator[np.ndarray]:
    step = pipeline.step(model)
    output = step.output_map[step.outputs[0].name]
    for example, image in zip(scans.examples, scans.images, strict=True):
        yield replies[example.path][output] if goes_as_file(example) else answer_of_model(triton, step, image)


def answer_of_model(triton: Any, step: Step, image: UInt8[np.ndarray, "512 512"]) -> np.ndarray:
    """What a composing model answers for a prepared image with its gate open.

    Args:
        triton: A `tritonclient.grpc.InferenceServerClient`.
        step: Whose model.
        image: As `train.data.load_image` gives it.

    Raises:
        ServerError: If the server fails.
    """
    feeds = {
        pipeline.IMAGE.name: in_three_channels(np.asarray(image)[None]),
        **gate_inputs(step, np.ones(1, dtype=bool)),
    }
    inputs = []
    for tensor in step.inputs:
        inputs.append(triton_grpc.InferInput(tensor.name, [1, *tensor.shape], tensor.dtype))
        inputs[-1].set_data_from_numpy(feeds[tensor.name])
    name = step.outputs[0].name
    try:
        result = triton.infer(
            step.model, inputs, outputs=[triton_grpc.InferRequestedOutput(name)], client_timeout=_TIMEOUT_S
        )
    except InferenceServerException as fault:
        raise wire.translate(fault, step.model, timeout_s=_TIMEOUT_S, inferring=True) from fault
    return np.asarray(result.as_numpy(name)[0])


def compared(
    answered: Mapping[str, Answered], got: Mapping[str, Num[np.ndarray, "n ..."]], results: Mapping[str, Json]
) -> Json:
    """Triton's answers and figures beside ONNX Runtime's.

    Args:
        answered: ONNX Runtime's answers by model.
        got: Triton's, of the same scans.
        results: Figures of the first, rounded as in `docs/results.json`.

    Returns:
        By model: how many scans went which way, the largest difference of a probability or the part of the masks'
        pixels that differ, how many figures were compared, those that differ, some of them by name, and ``agrees``.
    """
    return {model: _compare_model(model, answered[model], got[model], results[model]) for model in answered}


def _compare_model(model: str, expected: Answered, got: Num[np.ndarray, "n ..."], results: Json) -> Json:
    if got.shape != expected.answers.shape:
        raise ParityError(f"{model}: expected answers of shape {expected.answers.shape}, got {got.shape}")
    tolerances = Tolerances()
    if pipeline.step(model).outputs[0] == MASK:
        key, limit = "differing_part_of_mask_pixels", tolerances.fp32_mask
        apart = float((got != expected.answers).mean())
    else:
        key, limit = "max_probability_difference", tolerances.fp32_probability
        apart = float(np.abs(got.astype(np.float64) - expected.answers).max())
    ours = dict(_leaves(results))
    # A NaN has no figures.
    theirs = dict(_leaves(dataclasses.replace(expected, answers=got).figures())) if math.isfinite(apart) else {}
    differing = {
        name: [ours.get(name), theirs.get(name)]
        for name in sorted({*ours, *theirs})
        if name not in ours or name not in theirs or ours[name] != theirs[name]
    }
    direct = [e for e in expected.arrays.examples if not goes_as_file(e)]
    return {
        "n_scans": len(got),
        "as_files": len(got) - len(direct),
        "as_pictures_by_source": dict(sorted(Counter(e.source for e in direct).items())),
        # Not rounded to four places: 0.0000 would hide what there is.
        key: float(f"{apart:.3g}"),
        "tolerance": limit,
        "n_figures": len(ours),
        "differing_figures": differing,
        "headlines": {name: value for name, value in theirs.items() if _is_headline(name)},
        # Written so that a NaN does not agree.
        "agrees": not differing and apart <= limit,
    }


def _is_headline(name: str) -> bool:
    *_, last = name.split("/")
    return last in HEADLINES and f"/{_NO_HEADLINE}/" not in name


def _leaves(figures: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every number of a tree of figures, by its path; rows of a list by their index."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(figures, Mapping):
        items = list(figures.items())
    elif isinstance(figures, (list, tuple)):
        items = list(enumerate(figures))
    else:
        yield "/".join(path), figures
    for key, value in items:
        yield from _leaves(value, (*path, str(key)))


def refuse(figures: Json) -> None:
    """Stop where Triton says something else.

    Args:
        figures: From `compared`.

    Raises:
        ParityError: If a model does not agree; it names the first figures that differ.
    """
    problems = []
    for model, entry in figures.items():
        if entry["agrees"]:
            continue
        named = [f"{name} {a} and {b}" for name, (a, b) in list(entry["differing_figures"].items())[:_NAMED]]
        apart = next(entry[k] for k in ("max_probability_difference", "differing_part_of_mask_pixels") if k in entry)
        problems.append(f"{model}: answers {apart:g} apart, {len(entry['differing_figures'])} figures differ {named}")
    if problems:
        raise ParityError("expected of Triton what ONNX Runtime answers, got otherwise: " + "; ".join(problems))
