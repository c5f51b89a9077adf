"""What `serving.repository.check` looks at: folders, configs, the graphs' own tensors, provenance, the wiring."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import onnxruntime as ort
from tritonclient.grpc import model_config_pb2 as pb

from serving import pipeline
from serving.errors import RepositoryError
from serving.labels import BACKGROUND_CLASS, DIAGNOSIS_NAMES, MANIFESTATION_NAMES
from serving.pipeline import Step, Tensor
from serving.repository import (
    CONFIG_NAME,
    ONNX_NAME,
    PROVENANCE_NAME,
    PYTHON_NAME,
    ensemble_config,
    listed,
    model_config,
    parse_config,
    versions,
)

_ONNX_TYPES: Final = {"UINT8": "tensor(uint8)", "FP32": "tensor(float)"}


def problems(repository: Path) -> Iterator[str]:
    """Every problem of a repository, one line each."""
    if not repository.is_dir():
        yield f"expected a model repository at {repository}, got no such folder"
        return
    folders = {path.name for path in repository.iterdir() if path.is_dir()}
    for name in sorted(folders - set(pipeline.MODEL_NAMES)):
        yield f"{name}: expected only the pipeline's models ({listed(pipeline.MODEL_NAMES)}), got another folder"
    for step in pipeline.STEPS:
        if step.model not in folders:
            yield f"{step.model}: expected a folder, got none"
            continue
        yield from _config_problems(repository / step.model / CONFIG_NAME, model_config(step))
        yield from _version_problems(repository / step.model, step)
    yield from _ensemble_problems(repository)


def _config_problems(path: Path, expected: Any) -> Iterator[str]:
    name = path.parent.name
    try:
        found = parse_config(path)
    except RepositoryError as error:
        yield f"{name}: {error}"
        return
    if found == expected:
        return
    fields = {field.name for field, _ in (*found.ListFields(), *expected.ListFields())}
    differing = [field for field in sorted(fields) if getattr(found, field) != getattr(expected, field)]
    yield f"{name}: expected the config that serving/pipeline.py renders, got another {', '.join(differing)}"


def _version_problems(folder: Path, step: Step) -> Iterator[str]:
    present = versions(folder)
    if not present:
        yield f"{folder.name}: expected a version folder such as 1, got none"
        return
    version = folder / str(present[-1])
    where = f"{folder.name}/{version.name}"
    file = version / (ONNX_NAME if step.backend == "onnxruntime" else PYTHON_NAME)
    if not file.is_file():
        there = listed(path.name for path in version.iterdir() if path.name != "__pycache__")
        yield f"{where}: expected {file.name}, got {there}"
    elif step.backend == "onnxruntime":
        yield from graph_problems(where, file, step)
    if step.backend == "onnxruntime":
        yield from _provenance_file_problems(where, version / PROVENANCE_NAME, step)


def graph_problems(where: str, graph: Path | bytes, step: Step) -> Iterator[str]:
    """Hold the inputs and outputs of an ONNX graph against its step.

    Args:
        where: Begins each line.
        graph: Its file, or what is in it.
        step: The step that it is for.
    """
    options = ort.SessionOptions()
    # Only its signature is wanted: optimising 160 MB takes seconds.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no common base of their own.
        first_line = str(error).splitlines()[0]
        yield f"{where}: expected a graph that ONNX Runtime loads, got: {first_line}"
        return
    for what, nodes, tensors in (
        ("input", session.get_inputs(), step.inputs),
        ("output", session.get_outputs(), step.outputs),
    ):
        found = {node.name: node for node in nodes}
        wanted = {tensor.name: tensor for tensor in tensors}
        if set(found) != set(wanted):
            yield f"{where}: expected the {what}s {listed(wanted)}, got {listed(found)}"
            continue
        for name, tensor in wanted.items():
            yield from _tensor_problems(f"{where}: {what} {name}", found[name], tensor)


def _tensor_problems(where: str, node: Any, tensor: Tensor) -> Iterator[str]:
    if node.type != _ONNX_TYPES[tensor.dtype]:
        yield f"{where}: expected {_ONNX_TYPES[tensor.dtype]}, got {node.type}"
    batch, *rest = node.shape or [None]
    if isinstance(batch, int):
        yield f"{where}: expected a batch axis of any size, got {batch}"
    if tuple(rest) != tensor.shape:
        yield f"{where}: expected the shape {list(tensor.shape)} after the batch axis, got {rest}"


def label_order(step: Step) -> list[str]:
    """What the last axis of a model's scores, or the class ids of its mask, mean: `label_order` of its provenance."""
    if step.stage == 1:
        return list(DIAGNOSIS_NAMES)
    if step.stage == 2:
        return list(MANIFESTATION_NAMES)
    classes = list(MANIFESTATION_NAMES)
    stream = next((name for name in MANIFESTATION_NAMES if step.model == pipeline.segmentation_model(name)), None)
    classes = [stream] if stream is not None else classes
    classes.insert(BACKGROUND_CLASS, "background")
    return classes


def _provenance_file_problems(where: str, file: Path, step: Step) -> Iterator[str]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        yield f"{where}: expected {file.name} beside the graph, got none"
        return
    except OSError as error:
        yield f"{where}: expected JSON in {file.name}, got: {error}"
        return
    yield from provenance_problems(where, content, step)


def provenance_problems(where: str, content: bytes, step: Step) -> Iterator[str]:
    """Hold what is in a version's provenance against its step; `where` begins each line."""
    try:
        provenance = json.loads(content)
    except ValueError as error:
        yield f"{where}: expected JSON in {PROVENANCE_NAME}, got: {error}"
        return
    if not isinstance(provenance, dict):
        yield f"{where}: expected an object in {PROVENANCE_NAME}, got {type(provenance).__name__}"
        return
    for key, expected in (("model", step.model), ("label_order", label_order(step))):
        if provenance.get(key) != expected:
            yield f"{where}: expected {key} {expected} in {PROVENANCE_NAME}, got {provenance.get(key)}"


def _ensemble_problems(repository: Path) -> Iterator[str]:
    name = pipeline.ENSEMBLE_NAME
    if not (repository / name).is_dir():
        yield f"{name}: expected a folder, got none"
        return
    yield from _config_problems(repository / name / CONFIG_NAME, ensemble_config())
    if not versions(repository / name):
        yield f"{name}: expected a version folder such as 1, got none"
    try:
        ensemble = parse_config(repository / name / CONFIG_NAME)
        models = {
            step.model_name: parse_config(repository / step.model_name / CONFIG_NAME)
            for step in ensemble.ensemble_scheduling.step
        }
    except RepositoryError:
        return  # Named above already.
    yield from wiring_problems(ensemble, models)


def wiring_problems(ensemble: Any, models: dict[str, Any]) -> Iterator[str]:
    """Follow every tensor of an ensemble from where it is made to where it is read.

    Args:
        ensemble: The ensemble's `ModelConfig`.
        models: Model name -> the `ModelConfig` of each step's model.

    Yields:
        One line for each tensor that is made twice, never, or of another type or shape than it is read as; and
        for the two wirings that Triton 24.10 prunes wrongly (answered by "unexpected deadlock").
    """
    name = ensemble.name
    steps = ensemble.ensemble_scheduling.step
    made = {tensor.name: _signature(tensor) for tensor in ensemble.input}
    for step in steps:
        model = models[step.model_name]
        yield from (f"{name}: {problem}" for problem in _inputs_problems(step, model, made))
        yield from (f"{name}: {problem}" for problem in _outputs_problems(step, model, made))
        outputs = {tensor.name: _signature(tensor) for tensor in model.output}
        made.update({tensor: outputs[own] for own, tensor in step.output_map.items() if own in outputs})
    read_inside = {tensor for step in steps for tensor in step.input_map.values()}
    for output in ensemble.output:
        if made.get(output.name) != _signature(output):
            yield f"{name}: expected output {output.name} {_signature(output)}, got {made.get(output.name)}"
        if output.name in read_inside:
            yield f"{name}: expected output {output.name} to be read by no step, got one that reads it"
    first = set(steps[0].input_map.values()) if steps else set()
    for tensor in ensemble.input:
        if tensor.name not in first:
            yield f"{name}: expected the first step to read every input, got {tensor.name} unread by it"


def _inputs_problems(step: Any, model: Any, made: dict[str, str]) -> Iterator[str]:
    inputs = {tensor.name: _signature(tensor) for tensor in model.input}
    if set(step.input_map) != set(inputs):
        yield f"expected {step.model_name} to be fed {listed(inputs)}, got {listed(step.input_map)}"
    for own, tensor in sorted(step.input_map.items()):
        if tensor not in made:
            yield f"expected {tensor} to be made before {step.model_name} reads it, got no such tensor"
        elif own in inputs and made[tensor] != inputs[own]:
            yield f"expected {tensor} to fit {step.model_name}'s {own} {inputs[own]}, got {made[tensor]}"


def _outputs_problems(step: Any, model: Any, made: dict[str, str]) -> Iterator[str]:
    outputs = {tensor.name for tensor in model.output}
    for own, tensor in sorted(step.output_map.items()):
        if own not in outputs:
            yield f"expected an output of {step.model_name} ({listed(outputs)}), got {own}"
        elif tensor in made:
            yield f"expected {tensor} to be made once, got it from {step.model_name} again"


def _signature(tensor: Any) -> str:
    return f"{pb.DataType.Name(tensor.data_type)} {list(tensor.dims)}"
