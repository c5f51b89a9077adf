"""Measures models on the test split: patients and groups that no training run of ours has seen.

Two forms of a model can be measured: a run's Keras weights, and what is published in the model repository, as
ONNX Runtime computes it. `train.publish` writes the second into each version's provenance; ``lungstreams evaluate``
does it again for all that ships and writes ``docs/results.md``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from jaxtyping import Num, UInt8

from serving import pipeline
from serving.errors import DatasetError
from serving.labels import ALL_STREAM, MANIFESTATION_NAMES, STREAM_NAMES
from serving.pipeline import RECOGNITION, segmentation_model
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, versions
from serving.trial_scans import gate_inputs
from train import data, fit, through_triton
from train.batches import Arrays, Predictor, in_batches
from train.callbacks import WEIGHTS_FILE
from train.confounds import FILE_NAME as CONFOUNDS_FILE
from train.confounds import Evidence
from train.confounds import measure as measure_confounds
from train.confounds import populations as read_populations
from train.experiments import EXPERIMENTS, Experiment
from train.failures import WORST_CASES, worst_diagnoses, worst_manifestations, worst_masks
from train.gallery import IMAGES_FOLDER, write_curves, write_panels, write_plots
from train.leaks import LEFT_OUT, Leak, by_source, clean_split
from train.parity import open_session
from train.provenance import FILE_NAME, Provenance
from train.report import leaks_markdown, read_others, results_markdown
from train.report_tta import NAME as TEST_TIME
from train.report_tta import augmented_report
from train.scoring import score_manifestations, score_recognition, score_segmentation
from train.streams import STREAMS_COMPARED, Masks, compare_streams
from train.targets import class_names
from train.tta import geometric, mean_answers

EVALUATION_FILE: Final = "evaluation.json"
LEAKS_FILE: Final = "leaks.md"
RUNS_FOLDER: Final = Path("runs")
CACHE: Final = RUNS_FOLDER / "cache"
"""Of what is measured without a run's folder."""
FIGURES_FOLDER: Final = Path("reports") / "figures"
COPIES: Final = "test_time_copies"
"""Of a run's figures: how many copies of each scan they are the means over."""
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
    record, weights = run / fit.RUN_FILE, run / WEIGHTS_FILE
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


def mean_over_copies(model: Answered, predict: Predictor, copies: int) -> Answered:
    """The same with the answers of `train.tta`, for the scan and so many copies of each."""
    stream = model.experiment.stream
    answers = mean_answers(
        predict,
        model.arrays.images,
        copies,
        geometric(model.experiment.augmentation),
        n_classes=len(class_names(stream)) if stream else None,
    )
    return replace(model, answers=answers)


def main(
    runs: Sequence[Path],
    data_folder: Path | None,
    out: Path = Path("docs/results.md"),
    *,
    figures: Path = FIGURES_FOLDER,
    copies: int = 0,
    confounds: bool = False,
    triton: bool = False,
) -> dict[str, Any]:
    """Measure runs, or, without any, everything that is published.

    Args:
        runs: Folders of runs; each gets an ``evaluation.json``.
        data_folder: Root of the scans; None for the default.
        out: Where the report on what is published goes; its JSON, ``leaks.md`` and plots lie beside it. Used without
            runs.
        figures: Where plots and panels go. Panels show scans: a folder that git ignores. Runs get one each in it.
        copies: Test-time augmentation: moved copies of each scan to average over. A run's figures are then those of
            the means; of what is published they go to a JSON of their own.
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
        return _evaluate_published(root, out, figures, copies, confounds=confounds, triton=triton)
    results: dict[str, Any] = {}
    for run in runs:
        experiment, model = trained(run)
        predict = keras_predictor(model, masks=experiment.stream is not None)
        answered = ask(experiment, root, run.parent / "cache", predict)
        if copies:
            answered = mean_over_copies(answered, predict, copies)
        measured = {**answered.figures(), COPIES: copies}
        write_json(run / EVALUATION_FILE, measured)
        write_plots({experiment.publishes or "": measured}, figures / run.name, ".png")
        write_curves([run], figures / run.name)
        results[experiment.name] = measured
        _log.info("%s: %s", experiment.name, json.dumps(measured))
    return results


def _evaluate_published(
    root: Path, out: Path, figures: Path, copies: int, *, confounds: bool, triton: bool
) -> dict[str, Any]:
    provenances, predictors, answered, means = {}, {}, {}, {}
    for model_name, folder in published(DEFAULT_REPOSITORY).items():
        provenances[model_name] = Provenance.from_json((folder / FILE_NAME).read_text(encoding="utf-8"))
        experiment = EXPERIMENTS[provenances[model_name].experiment]
        predict = predictors[model_name] = onnx_predictor(folder / ONNX_NAME, model_name)
        answered[model_name] = ask(experiment, root, CACHE, predict)
        if copies:
            means[model_name] = mean_over_copies(answered[model_name], predict, copies)
        _log.info("%s measured", model_name)
    results = results_of(answered)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), results)
    if means:
        write_json(out.with_name(f"{TEST_TIME}.json"), augmented_report(results_of(means), provenances, copies))
    if confounds:
        write_json(out.with_name(CONFOUNDS_FILE), confounds_of(answered[RECOGNITION.model], root))
    compared = through_triton.compare(answered, results, root) if triton else None
    if compared is not None:
        write_json(out.with_name(through_triton.FILE_NAME), compared)
    out.write_text(results_markdown(results, provenances, read_others(out.parent)), encoding="utf-8")
    (out.parent / LEAKS_FILE).write_text(leaks_markdown(leaks_of(answered)), encoding="utf-8")
    write_plots(results, out.parent / IMAGES_FOLDER, ".svg")
    write_plots(results, figures, ".png")
    write_curves([RUNS_FOLDER / p.experiment for p in provenances.values()], figures)
    draw_panels(answered, predictors, figures)
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


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Figures as JSON; made whole, then put in place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    partial.rename(path)


def results_of(answered: Mapping[str, Answered]) -> dict[str, Any]:
    """Everything that `docs/results.md` is made of.

    Args:
        answered: Of every published model, by its name.
    """
    results: dict[str, Any] = {name: model.figures() for name, model in answered.items()}
    results[STREAMS_COMPARED] = compare_streams(*_masks(answered))
    results[WORST_CASES] = {name: _worst_cases(model) for name, model in answered.items()}
    return results


def draw_panels(answered: Mapping[str, Answered], predictors: Mapping[str, Predictor], folder: Path) -> None:
    """Some test slices with the masks of every stream; see `train.gallery.write_panels`.

    Args:
        answered: Of every published model, by its name.
        predictors: Of the same models.
        folder: One that git ignores: it shows scans.
    """
    streams = {stream: predictors[segmentation_model(stream)] for stream in MANIFESTATION_NAMES}
    write_panels(_masks(answered)[0], streams, folder)


def _masks(answered: Mapping[str, Answered]) -> tuple[Masks, dict[str, Masks]]:
    """Of the all-class stream, and of the specialised ones by manifestation."""
    models = {stream: answered[segmentation_model(stream)] for stream in STREAM_NAMES}
    masks = {stream: (model.arrays, model.answers) for stream, model in models.items()}
    return masks.pop(ALL_STREAM.name), masks


def _worst_cases(model: Answered) -> list[Any]:
    examples = model.arrays.examples
    if model.experiment.task == "recognition":
        return worst_diagnoses(examples, model.answers)
    if model.experiment.task == "manifestations":
        return worst_manifestations(examples, model.answers)
    return worst_masks(model.arrays, model.answers, model.experiment.stream or "")


def leaks_of(answered: Mapping[str, Answered]) -> dict[str, list[Leak]]:
    """Look-alikes by task; the streams share a listing, so each pair comes up more than once and is kept once."""
    found: dict[str, dict[Leak, None]] = {}
    for model in answered.values():
        found.setdefault(model.experiment.task.capitalize(), {}).update(dict.fromkeys(model.leaks))
    return {task: list(pairs) for task, pairs in found.items()}


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
