"""Measures models on the test split: patients and groups that no training run of ours has seen.

Two forms of a model can be measured: a run's Keras weights, and what is published in the model repository, as
ONNX Runtime computes it. `train.publish` writes the second into each version's provenance; ``lungstreams evaluate``
does it again for all that ships and writes ``docs/results.md``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from jaxtyping import Num, UInt8

from serving import pipeline
from serving.errors import DatasetError
from serving.pipeline import RECOGNITION
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, versions
from train import data, fit, through_triton
from train.batches import Arrays, in_batches
from train.confounds import FILE_NAME as CONFOUNDS_FILE
from train.confounds import Evidence
from train.confounds import measure as measure_confounds
from train.confounds import populations as read_populations
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
CACHE: Final = Path("runs") / "cache"
"""Of what is measured without a run's folder."""
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
    return figures_of(experiment, arrays, in_batches(predict, arrays.images, _BATCH))


def figures_of(experiment: Experiment, arrays: Arrays, answers: Num[np.ndarray, "n ..."]) -> dict[str, Any]:
    """Figures of a model's answers: probabilities, or class ids of masks; see `measure`."""
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
    record, weights = run / fit.RUN_FILE, run / fit.WEIGHTS_FILE
    for path in (record, weights):
        if not path.is_file():
            raise DatasetError(f"expected a finished run with {path.name} in {run}, found none")
    experiment = EXPERIMENTS[json.loads(record.read_text(encoding="utf-8"))["experiment"]]
    model = fit.build(experiment)
    model.load_weights(weights)
    return experiment, model


@dataclass(frozen=True)
class Answered:
    """A model's answers for the test split.

    Attributes:
        experiment: Says what they mean.
        arrays: The test split without `leaks`.
        answers: Probabilities, or class ids of masks, one a row of `arrays`.
        leaks: Look-alikes across all splits of the same listing.
    """

    experiment: Experiment
    arrays: Arrays
    answers: Num[np.ndarray, "n ..."]
    leaks: Sequence[Leak]

    def figures(self) -> dict[str, Any]:
        """See `measure`; with what was left out, by source."""
        return {
            **figures_of(self.experiment, self.arrays, self.answers),
            LEFT_OUT: by_source(self.leaks, "test"),
        }


def ask(experiment: Experiment, root: Path, cache: Path, predict: Predictor) -> Answered:
    """A model's answers for the test split of its experiment.

    Raises:
        DatasetError: If data is missing, or a group or a file is in two splits.
    """
    arrays, leaks = clean_split(fit.load(experiment, root, cache), "test", root)
    return Answered(experiment, arrays, in_batches(predict, arrays.images, _BATCH), leaks)


def main(
    runs: Sequence[Path],
    data_folder: Path | None,
    out: Path = Path("docs/results.md"),
    *,
    confounds: bool = False,
    triton: bool = False,
) -> dict[str, Any]:
    """Measure runs, or, without any, everything that is published.

    Args:
        runs: Folders of runs; each gets an ``evaluation.json``.
        data_folder: Root of the scans; None for the default.
        out: Where the report on what is published goes; its JSON and ``leaks.md`` lie beside it. Used without runs.
        confounds: Make the tests of `train.confounds` too, on what is published.
        triton: Ask the embedded Triton too and hold its answers against these, see `train.through_triton`.

    Returns:
        Figures by run or by model.

    Raises:
        DatasetError: If data or a run is missing, a group or a file is in two splits, or tests of what is published
            are asked for of runs.
        ParityError: If Triton's answers are others; after everything was written.
    """
    root = data.data_root(data_folder)
    if runs and (confounds or triton):
        raise DatasetError("confounds and Triton are about what is published: expected no runs beside them")
    if not runs:
        return _evaluate_published(root, out, confounds=confounds, triton=triton)
    results: dict[str, Any] = {}
    for run in runs:
        experiment, model = trained(run)
        predict = keras_predictor(model, masks=experiment.stream is not None)
        figures = ask(experiment, root, run.parent / "cache", predict).figures()
        (run / EVALUATION_FILE).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
        results[experiment.name] = figures
        _log.info("%s: %s", experiment.name, json.dumps(figures))
    return results


def _evaluate_published(root: Path, out: Path, *, confounds: bool, triton: bool) -> dict[str, Any]:
    provenances, answered = {}, {}
    for model_name, folder in published(DEFAULT_REPOSITORY).items():
        provenances[model_name] = Provenance.from_json((folder / FILE_NAME).read_text(encoding="utf-8"))
        experiment = EXPERIMENTS[provenances[model_name].experiment]
        predict = onnx_predictor(folder / ONNX_NAME, model_name)
        answered[model_name] = ask(experiment, root, CACHE, predict)
        _log.info("%s measured", model_name)
    results = {name: model.figures() for name, model in answered.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    _write_json(out.with_suffix(".json"), results)
    if confounds:
        _write_json(out.with_name(CONFOUNDS_FILE), confounds_of(answered[RECOGNITION.model], root))
    compared = through_triton.compare(answered, results, root) if triton else None
    if compared is not None:
        _write_json(out.with_name(through_triton.FILE_NAME), compared)
    out.write_text(results_markdown(results, provenances, **read_others(out.parent)), encoding="utf-8")
    found: dict[str, dict[Leak, None]] = {}
    for model in answered.values():
        # The streams share a listing, so each pair comes up more than once.
        found.setdefault(model.experiment.task.capitalize(), {}).update(dict.fromkeys(model.leaks))
    (out.parent / LEAKS_FILE).write_text(
        leaks_markdown({task: list(pairs) for task, pairs in found.items()}), encoding="utf-8"
    )
    if compared is not None:
        through_triton.refuse(compared)
    return results


def confounds_of(model: Answered, root: Path) -> dict[str, Any]:
    """The tests of `train.confounds` on the recognition model's answers.

    Raises:
        DatasetError: If the scans are not our own, or the ImageNet weights are missing.
    """
    populations = read_populations(root)
    scans = fit.load(model.experiment, root, CACHE)
    row = {example.name: i for i, example in enumerate(scans.examples)}
    test = [row[example.name] for example in model.arrays.examples]
    evidence = Evidence(scans.examples, scans.images, test, model.answers, model.leaks, populations)
    return measure_confounds(evidence, root, CACHE)


def read_others(folder: Path) -> dict[str, Any]:
    """The figures of the other reports that lie beside the results, by their parameter of `results_markdown`.

    Args:
        folder: As in ``docs``.
    """
    files = {
        "paper_task1": REPORT_FILE.name,
        "confounds": CONFOUNDS_FILE,
        "triton": through_triton.FILE_NAME,
    }
    there = {key: folder / name for key, name in files.items() if (folder / name).is_file()}
    return {key: json.loads(path.read_text(encoding="utf-8")) for key, path in there.items()}


def _write_json(path: Path, figures: dict[str, Any]) -> None:
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


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
