"""Runs that answer a question and publish nothing: trained like any other, scored on a split, written down."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from train import data, fit
from train.callbacks import WEIGHTS_FILE, validation_losses
from train.copies import TEST, bag, materialise
from train.data import Split
from train.evaluate import keras_predictor, measure, write_json
from train.experiments import Experiment
from train.leaks import LEFT_OUT, by_source, clean_split

MAX_COPIES_SCORED: Final = 300
"""Of the paper's test set of copies, drawn at random."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One run and what it is to tell.

    Attributes:
        run: How it is trained; `init_from` may name another trial.
        asks: What differs from what it is compared with, in words.
        scored: Whether figures are wanted, or others only start from it.
    """

    run: Experiment
    asks: str
    scored: bool = True


def carry_out(trials: Sequence[Trial], root: Path, out: Path, split: Split) -> dict[str, Any]:
    """Train what is not trained yet, and score.

    Args:
        trials: In an order in which each finds what it starts from.
        root: Of the scans.
        out: Where runs live.
        split: Scored by patient: ``val`` for choices, ``test`` for reports. A run under the paper's protocol is scored
            on its own held-out copies.

    Returns:
        By name: what it asks, steps taken, the validation losses, and ``figures`` as `train.scoring` gives them.

    Raises:
        DatasetError: If data are missing.
    """
    known: Mapping[str, Experiment] = {trial.run.name: trial.run for trial in trials}
    results: dict[str, Any] = {}
    for trial in trials:
        run = trial.run
        if not (out / run.name / fit.RUN_FILE).is_file():
            fit.perform(run, root, out, known=known)
        losses = validation_losses(out / run.name)
        results[run.name] = {
            "asks": trial.asks,
            "protocol": run.protocol,
            "steps": len(losses) * run.steps_per_epoch,
            "batch_size": run.batch_size,
            "validation_losses": [round(loss, 4) for loss in losses],
        }
        if trial.scored:
            results[run.name]["figures"] = score(run, root, out, split)
        _log.info("%s: %s", run.name, json.dumps(results[run.name]))
    return results


def score(run: Experiment, root: Path, out: Path, split: Split) -> dict[str, Any]:
    """Figures of a trained run's best weights; see `carry_out`."""
    model = fit.build(run)
    model.load_weights(out / run.name / WEIGHTS_FILE)
    arrays = fit.load(run, root, out / "cache")
    left_out: dict[str, int] = {}
    if run.protocol == "paper":
        sides = bag(len(arrays.examples), run.copies or 0, run.seed)
        scored = materialise(arrays, sides == TEST, run.augmentation, run.seed, MAX_COPIES_SCORED)
    elif split == "test":
        scored, leaks = clean_split(arrays, "test", root)
        left_out = by_source(leaks, "test")
    else:
        scored = arrays.of_split(split)
    figures = measure(run, scored, keras_predictor(model, masks=run.stream is not None))
    return {**figures, LEFT_OUT: left_out} if left_out else figures


def report(trials: Sequence[Trial], data_folder: Path | None, out: Path, *, path: Path, split: Split) -> dict[str, Any]:
    """Train every trial that is not trained yet, score all, and write the figures down.

    Args:
        trials: See `carry_out`.
        data_folder: Root of the scans; None for the default.
        out: Where runs live.
        path: Where the figures go.
        split: Scored; see `carry_out`.

    Returns:
        Figures by trial.

    Raises:
        DatasetError: If data are missing.
    """
    results = carry_out(trials, data.data_root(data_folder), out, split)
    write_json(path, results)
    return results
