"""Measures models on the test split: patients and groups that no training run of ours has seen.

Two forms of a model can be measured: a run's Keras weights, and what is published in the model repository, as
ONNX Runtime computes it. `train.publish` writes the second into each version's provenance; ``lungstreams evaluate``
does it again for all that ships and writes ``docs/results.md``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from jaxtyping import Num, UInt8

from serving import pipeline
from serving.errors import DatasetError
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, versions
from train import data, fit
from train.batches import Arrays, in_batches
from train.callbacks import WEIGHTS_FILE
from train.experiments import EXPERIMENTS, Experiment
from train.leaks import LEFT_OUT, Leak, by_source, clean_split
from train.paper_task1 import REPORT_FILE
from train.parity import gate_inputs, open_session
from train.provenance import FILE_NAME, Provenance
from train.report import leaks_markdown, results_markdown
from train.scoring import score_manifestations, score_recognition, score_segmentation

Predictor = Callable[[UInt8[np.ndarray, "n 512 512 3"]], Num[np.ndarray, "n ..."]]
"""Preprocessed scans -> probabilities, or class ids of a mask."""

EVALUATION_FILE: Final = "evaluation.json"
LEAKS_FILE: Final = "leaks.md"
_BATCH: Final = 8
_log = logging.getLogger(__name__)


def keras_predictor(model: keras.Model, *, masks: bool) -> Predictor:
    """Answers of a Keras model."""

    def predict(images: UInt8[np.ndarray, "n 512 512 3"]) -> Num[np.ndarray, "n ..."]:
        output = np.asarray(model.predict_on_batch(images))
        return output.argmax(axis=-1).astype(np.uint8) if masks else output

    return predict


def onnx_predictor(path: Path, model_name: str) -> Predictor:
    """Answers of a published graph with its gate open."""
    step = pipeline.step(model_name)
    session = open_session(path)

    def predict(images: UInt8[np.ndarray, "n 512 512 3"]) -> Num[np.ndarray, "n ..."]:
        feed = {"image": images, **gate_inputs(step, np.ones(len(images), dtype=bool))}
        return np.asarray(session.run([step.outputs[0].name], feed)[0])

    return predict


def measure(experiment: Experiment, arrays: Arrays, predict: Predictor) -> dict[str, Any]:
    """Figures of one model on a split.

    Args:
        experiment: Says what the answers mean.
        arrays: The split.
        predict: The model.

    Returns:
        Plain JSON; see `train.scoring`.
    """
    answers = in_batches(predict, arrays.images, _BATCH)
    if experiment.task == "recognition":
        return score_recognition(arrays.examples, answers)
    if experiment.task == "manifestations":
        return score_manifestations(arrays.examples, answers)
    return score_segmentation(arrays, answers, experiment.stream or "")


def trained(run: Path) -> tuple[Experiment, keras.Model]:
    """A finished run's experiment and its best network, sized for whole scans.

    Raises:
        DatasetError: If the folder is not that of a finished run.
    """
    record, weights = run / fit.RUN_FILE, run / WEIGHTS_FILE
    for path in (record, weights):
        if not path.is_file():
            raise DatasetError(f"expected a finished run with {path.name} in {run}, found none")
    experiment = EXPERIMENTS[json.loads(record.read_text(encoding="utf-8"))["experiment"]]
    model = fit.build(experiment)
    model.load_weights(weights)
    return experiment, model


def main(runs: Sequence[Path], data_folder: Path | None, out: Path = Path("docs/results.md")) -> dict[str, Any]:
    """Measure runs, or, without any, everything that is published.

    Args:
        runs: Folders of runs; each gets an ``evaluation.json``.
        data_folder: Root of the scans; None for the default.
        out: Where the report on what is published goes; its JSON and ``leaks.md`` lie beside it. Used without runs.

    Returns:
        Figures by run or by model.

    Raises:
        DatasetError: If data or a run is missing, or a group or a file is in two splits.
    """
    root = data.data_root(data_folder)
    results: dict[str, Any] = {}
    if runs:
        for run in runs:
            experiment, model = trained(run)
            arrays, leaks = clean_split(fit.load(experiment, root, run.parent / "cache"), "test", root)
            figures = measure(experiment, arrays, keras_predictor(model, masks=experiment.stream is not None))
            figures[LEFT_OUT] = by_source(leaks, "test")
            (run / EVALUATION_FILE).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
            results[experiment.name] = figures
            _log.info("%s: %s", experiment.name, json.dumps(figures))
        return results
    provenances = {}
    found: dict[str, dict[Leak, None]] = {}
    for model_name, folder in published(DEFAULT_REPOSITORY).items():
        provenances[model_name] = Provenance.from_json((folder / FILE_NAME).read_text(encoding="utf-8"))
        experiment = EXPERIMENTS[provenances[model_name].experiment]
        arrays, leaks = clean_split(fit.load(experiment, root, Path("runs") / "cache"), "test", root)
        results[model_name] = measure(experiment, arrays, onnx_predictor(folder / ONNX_NAME, model_name))
        results[model_name][LEFT_OUT] = by_source(leaks, "test")
        # The streams share a listing, so each pair comes up more than once.
        found.setdefault(experiment.task.capitalize(), {}).update(dict.fromkeys(leaks))
        _log.info("%s measured", model_name)
    out.parent.mkdir(parents=True, exist_ok=True)
    task1 = out.with_name(REPORT_FILE.name)
    paper = json.loads(task1.read_text(encoding="utf-8")) if task1.is_file() else None
    out.write_text(results_markdown(results, provenances, paper), encoding="utf-8")
    out.with_suffix(".json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out.parent / LEAKS_FILE).write_text(
        leaks_markdown({task: list(pairs) for task, pairs in found.items()}), encoding="utf-8"
    )
    return results


def published(repository: Path) -> dict[str, Path]:
    """The newest version folder of every ONNX model of the pipeline, by model.

    Raises:
        DatasetError: If one has no version.
    """
    folders = {}
    for step in pipeline.STEPS:
        if step.backend != "onnxruntime":
            continue
        numbers = versions(repository / step.model)
        if not numbers:
            raise DatasetError(f"expected a published version of {step.model} in {repository}, found none")
        folders[step.model] = repository / step.model / str(numbers[-1])
    return folders
