"""What `train.tensorrt` writes: networks, two model repositories, the script that builds engines, and the report."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from jaxtyping import UInt8

from serving import pipeline
from serving.agreement import Bounds
from serving.errors import ExportError
from serving.pipeline import PREPROCESS, Step
from serving.repository import (
    CONFIG_NAME,
    ONNX_NAME,
    PROVENANCE_NAME,
    PYTHON_NAME,
    ensemble_config,
    model_config,
    versions,
)
from serving.trial_scans import drawn_scans
from train.digest import sha256_of
from train.gating import add_gate
from train.parity import Tolerances, check_gate, check_int8, check_signature, onnx_answers, open_session
from train.provenance import code_version, today
from train.quantize import QuantizationConfig, quantize
from train.tensorrt_configs import (
    ACCELERATED_REPOSITORY,
    ENGINE_CACHE,
    NETWORKS,
    PLAN_REPOSITORY,
    EnginePrecision,
    accelerated_config,
    build_script,
    cache_folder,
    engine_config,
    engine_model,
    engine_path,
    gate_config,
    gated_steps,
    network_path,
    render,
    trtexec_command,
)
from train.tensorrt_graphs import refusals, through_float
from train.tensorrt_int8 import in_float, is_quantized, symmetric
from train.ungating import ungated

SCRIPT_NAME: Final = "build_engines.sh"
REPORT_NAME: Final = "tensorrt.json"
TOLERANCES: Final = Tolerances(int8=Bounds(dice=0.0))
"""On phantoms, whose lesions are a few hundred pixels: their Dice is written down and not held."""

_GATE_SOURCE: Final = Path(__file__).with_name("tensorrt_gate.py")

Calibration = Callable[[Mapping[str, Any]], UInt8[np.ndarray, "n 512 512 3"]]
"""A published version's provenance -> preprocessed scans to calibrate its int8 activations with."""


@dataclass(frozen=True)
class Published:
    """A step's newest published version.

    Attributes:
        step: The step.
        version: Its number.
        graph: Its ``model.onnx``.
        provenance: Of its ``provenance.json``.
    """

    step: Step
    version: int
    graph: Path
    provenance: Mapping[str, Any]


def render_all(
    repository: Path, out: Path, precision: EnginePrecision, *, calibration: Calibration | None = None
) -> Path:
    """Write networks, both repositories, the cache folders, the script and the report; all of it or nothing.

    Args:
        repository: The published model repository.
        out: See `main`.
        precision: Of the engines.
        calibration: Needed for int8 of a version that was published in fp32.

    Returns:
        The report.

    Raises:
        ExportError: If `out` is not as described, or a model is not published or can not be converted.
        ParityError: If a network for TensorRT does not say what is published.
    """
    out, repository = out.resolve(), repository.resolve()
    if out.is_relative_to(repository) or repository.is_relative_to(out):
        raise ExportError(f"expected an output folder apart from the repository {repository}, got {out}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"expected a new or empty folder to write to, got {out}")
    published = [_published(repository, step) for step in gated_steps()]
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        models = {each.step.model: _render_model(each, folder, precision, calibration) for each in published}
        _render_shared(repository, folder)
        commands = [trtexec_command(each.step, each.version, precision) for each in published]
        script = folder / SCRIPT_NAME
        script.write_text(build_script(commands), encoding="utf-8")
        _write_report(folder, {"precision": precision, "created": today(), "code_version": code_version()}, models)
        folder.chmod(0o755)
        script.chmod(0o755)
        folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return out / REPORT_NAME


def network_for(
    published: onnx.ModelProto,
    step: Step,
    precision: EnginePrecision,
    scans: Callable[[], UInt8[np.ndarray, "n 512 512 3"]],
) -> onnx.ModelProto:
    """A step's network as TensorRT takes it.

    Args:
        published: The published graph.
        step: Whose it is.
        precision: For fp16 the network is in fp32: TensorRT rounds it. For int8 it says which tensors are quantised.
        scans: To calibrate with where the published network was not quantised; called in that case alone.

    Raises:
        ExportError: If TensorRT would refuse it.
    """
    network = ungated(published)
    if precision == "fp16":
        network = in_float(network)
    elif is_quantized(network):
        network = symmetric(network)
    else:
        network = quantize(network, scans(), QuantizationConfig(symmetric_activations=True))
    network = through_float(network, step)
    problems = list(refusals(network))
    if problems:
        raise ExportError(f"{step.model}: {problems[0]}, and {len(problems) - 1} more that TensorRT refuses")
    return network


def _published(repository: Path, step: Step) -> Published:
    present = versions(repository / step.model)
    if not present:
        raise ExportError(f"expected a published {step.model} in {repository}, got none")
    folder = repository / step.model / str(present[-1])
    try:
        provenance = json.loads((folder / PROVENANCE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"expected {PROVENANCE_NAME} beside the graph of {step.model}, got: {error}") from error
    return Published(step, present[-1], folder / ONNX_NAME, provenance)


def _render_model(
    published: Published, folder: Path, precision: EnginePrecision, calibration: Calibration | None
) -> dict[str, Any]:
    step, version = published.step, published.version

    def scans() -> UInt8[np.ndarray, "n 512 512 3"]:
        if calibration is None:
            raise ExportError(f"expected scans to calibrate {step.model} with, got none")
        return calibration(published.provenance)

    network = network_for(onnx.load(published.graph), step, precision, scans)
    (folder / NETWORKS).mkdir(exist_ok=True)
    onnx.save(network, folder / network_path(step))
    accelerated = folder / ACCELERATED_REPOSITORY / step.model
    _write_model(accelerated, accelerated_config(step, version, precision), version)
    onnx.save(add_gate(network, step), accelerated / str(version) / ONNX_NAME)
    shutil.copy(published.graph.with_name(PROVENANCE_NAME), accelerated / str(version))
    (folder / ENGINE_CACHE / cache_folder(step, version, precision)).mkdir(parents=True)
    plans = folder / PLAN_REPOSITORY
    _write_model(plans / step.model, gate_config(step), version)
    shutil.copy(_GATE_SOURCE, plans / step.model / str(version) / PYTHON_NAME)
    _write_model(plans / engine_model(step), engine_config(step), version)
    return {
        "version": version,
        "experiment": published.provenance.get("experiment"),
        "published_precision": published.provenance.get("precision"),
        "published_sha256": sha256_of(published.graph),
        "network": network_path(step),
        "network_sha256": sha256_of(folder / network_path(step)),
        "engine": engine_path(step, version),
        "engine_sha256": None,
        "command": list(trtexec_command(step, version, precision)),
        "against_published": _compare(published.graph, network, accelerated / str(version) / ONNX_NAME, step),
    }


def _compare(published: Path, network: onnx.ModelProto, gated: Path, step: Step) -> dict[str, Any]:
    """On drawn scans and on this CPU: whether the graphs were taken apart and put together right."""
    images = drawn_scans(step)
    bare, session = open_session(network), open_session(gated)
    check_signature(session, step)
    check_gate(session, bare, step, images)
    expected = onnx_answers(open_session(ungated(onnx.load(published))), images)
    what = f"{step.model} for TensorRT against what is published"
    return {"phantoms": len(images), **check_int8(expected, onnx_answers(bare, images), step, TOLERANCES, what)}


def _render_shared(repository: Path, folder: Path) -> None:
    version = max(versions(repository / PREPROCESS.model), default=1)
    source = repository / PREPROCESS.model / str(version) / PYTHON_NAME
    if not source.is_file():
        raise ExportError(f"expected {PYTHON_NAME} of {PREPROCESS.model} in {repository}, got none")
    for way in (ACCELERATED_REPOSITORY, PLAN_REPOSITORY):
        _write_model(folder / way / pipeline.ENSEMBLE_NAME, ensemble_config(), 1)
        _write_model(folder / way / PREPROCESS.model, model_config(PREPROCESS), version)
        shutil.copy(source, folder / way / PREPROCESS.model / str(version))


def _write_model(folder: Path, config: Any, version: int) -> None:
    (folder / str(version)).mkdir(parents=True)
    (folder / CONFIG_NAME).write_text(render(config), encoding="utf-8")


def _write_report(folder: Path, about: Mapping[str, str], models: Mapping[str, Any]) -> None:
    (folder / REPORT_NAME).write_text(as_json({**about, "models": models}), encoding="utf-8")


def as_json(report: Mapping[str, Any]) -> str:
    """The text of a report."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
