"""From a finished run to a published version: measure, export, measure again, write down."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np
from jaxtyping import UInt8

from serving.errors import ExportError
from serving.labels import MANIFESTATION_NAMES
from train import data, fit, origins
from train.batches import Arrays, in_three_channels
from train.calibration import fold_platt, fold_temperature
from train.data import fingerprint
from train.decision import fold_decision
from train.evaluate import CACHE, keras_predictor, measure, trained
from train.experiments import EXPERIMENTS, Experiment
from train.export import export
from train.leaks import LEFT_OUT, by_source, clean_split
from train.provenance import DataSource, Precision, Provenance

CALIBRATION_SCANS: Final = 64
GOLDEN_SCANS: Final = 48
"""Of the validation split. A lesion is rare: in 12 scans so little of one was left that a few pixels decided."""
TEST_SPLIT: Final = "test split: groups (patients where the source names them) that no run of ours was trained on"
_SEED: Final = 7


def main(run: Path, repository: Path, data_folder: Path | None = None, precision: Precision = "int8") -> Path:
    """Publish a run's best weights as the newest and only version of its model.

    Args:
        run: Folder of a finished run.
        repository: The model repository.
        data_folder: Root of the scans; None for the default.
        precision: ``int8``, calibrated on training scans, or ``fp32``.

    Returns:
        The version's folder.

    Raises:
        ExportError: If the run publishes nothing, or a check refuses it.
        DatasetError: If data or the run is missing.
    """
    experiment, model = trained(run)
    if experiment.publishes is None:
        raise ExportError(f"expected a run that publishes a model, got {experiment.name}, which others start from")
    root = data.data_root(data_folder)
    arrays = fit.load(experiment, root, run.parent / "cache")
    test, leaks = clean_split(arrays, "test", root)
    masks = experiment.stream is not None
    fitted = {"fitted_on_validation": _fold(model, experiment, arrays.of_split("val"))}
    provenance = Provenance(
        model=experiment.publishes,
        experiment=experiment.name,
        data_fingerprint=fingerprint(arrays.examples, root),
        data_sources=data_sources(arrays, root),
        metrics={
            "split": TEST_SPLIT,
            LEFT_OUT: by_source(leaks, "test"),
            **fitted,
            "keras_fp32": measure(experiment, test, keras_predictor(model, masks=masks)),
        },
    )
    return export(
        model,
        experiment.publishes,
        repository,
        provenance=provenance,
        golden=_sample(arrays.of_split("val"), GOLDEN_SCANS),
        calibration=_sample(arrays.of_split("train"), CALIBRATION_SCANS),
        precision=precision,
        measure=lambda predict: measure(experiment, test, predict),
        keep=1,
    )


def calibration_scans(
    experiment_name: str, data_folder: Path | None = None, cache: Path = CACHE
) -> UInt8[np.ndarray, "n 512 512 3"]:
    """The training scans that a run of an experiment is calibrated with when it is published.

    Args:
        experiment_name: As in a version's provenance.
        data_folder: Root of the scans; None for the default.
        cache: Where prepared scans are kept.

    Returns:
        Preprocessed, `[0, 255]`; `CALIBRATION_SCANS` of them where there are as many.

    Raises:
        ExportError: If there is no such experiment.
        DatasetError: If data is missing.
    """
    if experiment_name not in EXPERIMENTS:
        raise ExportError(f"expected the experiment of a published version, got {experiment_name!r}")
    arrays = fit.load(EXPERIMENTS[experiment_name], data.data_root(data_folder), cache)
    return _sample(arrays.of_split("train"), CALIBRATION_SCANS)


def _fold(model: keras.Model, experiment: Experiment, validation: Arrays) -> dict[str, Any]:
    """Fit the last layer's calibration, or a stream's decision, on the validation split and put it into the weights."""
    if experiment.task == "recognition":
        return {"temperature": fold_temperature(model, validation)}
    if experiment.task == "manifestations":
        fitted = zip(MANIFESTATION_NAMES, fold_platt(model, validation), strict=True)
        return {"platt_slope_and_intercept": {name: list(pair) for name, pair in fitted}}
    return {"logit_bias": fold_decision(model, validation, experiment.stream or "")}


def _sample(arrays: Arrays, n: int) -> UInt8[np.ndarray, "n 512 512 3"]:
    rows = np.random.default_rng(_SEED).permutation(len(arrays.examples))[:n]
    return in_three_channels(arrays.images[np.sort(rows)])


def data_sources(arrays: Arrays, root: Path) -> tuple[DataSource, ...]:
    """The datasets of a run with the licences that their manifests, or what is known of their origins, note."""
    if not origins.is_curated(root):
        licence = origins.licences(root)
        return tuple(DataSource(name, licence[name]) for name in sorted({e.source for e in arrays.examples}))
    used = {name for example in arrays.examples for name in (example.path, example.mask) if name}
    licences: dict[str, set[str]] = {}
    for folder in sorted({name.split("/")[0] for name in used}):
        with (root / folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                path = f"{folder}/{row.get('file') or row.get('image')}"
                if path in used:
                    name = row.get("source_dataset") or row.get("subset") or row["source_repo"]
                    licences.setdefault(f"{folder}: {name}", set()).add(row["licence"] or "not stated")
    return tuple(DataSource(name, "; ".join(sorted(notes))) for name, notes in sorted(licences.items()))
