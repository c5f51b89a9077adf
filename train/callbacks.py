"""What a run does between epochs: checkpoints, logs, early stopping, and random numbers that outlive a kill."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from train.batches import TrainingBatches
from train.experiments import Experiment

WEIGHTS_FILE: Final = "best.weights.h5"
LOG_FILE: Final = "log.csv"
BACKUP_FOLDER: Final = "backup"
TENSORBOARD_FOLDER: Final = "tensorboard"


def logged(folder: Path, column: str) -> list[float]:
    """A column of a run's log, one value for each finished epoch, also of those before a resume."""
    log = folder / LOG_FILE
    if not log.is_file():
        return []
    with log.open(newline="", encoding="utf-8") as stream:
        return [float(row[column]) for row in csv.DictReader(stream)]


def validation_losses(folder: Path) -> list[float]:
    """The validation loss of each finished epoch."""
    return logged(folder, "val_loss")


def best_so_far(folder: Path, column: str) -> float | None:
    """The lowest of ``val_loss``, or the highest of another column; None before the first epoch."""
    values = logged(folder, column)
    best = min if column == "val_loss" else max
    return best(values, default=None)


class _SeedOfEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Makes the random numbers of an epoch, in the batches and in dropout, follow from its number.

    So an epoch that is begun again after a resume is the one that was broken off.
    """

    def __init__(self, batches: TrainingBatches, seed: int) -> None:
        super().__init__()
        self._batches = batches
        self._seed = seed

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._batches.epoch = epoch
        for i, layer in enumerate(self.model.layers):
            generator = getattr(layer, "seed_generator", None)
            if generator is not None:
                generator.state.assign(np.array([self._seed + i, epoch], dtype=generator.state.dtype))


def _worn_out(losses: list[float], patience: int) -> bool:
    """Whether so many epochs have passed since the lowest validation loss."""
    return bool(losses) and len(losses) - 1 - losses.index(min(losses)) >= patience


class _EarlyStopping(keras.callbacks.Callback):  # type: ignore[misc]
    """Stops a run after so many epochs without a lower validation loss.

    Unlike Keras's own it counts the epochs before a resume too: it reads them from the log.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        super().__init__()
        self._losses = validation_losses(folder)
        self._patience = patience

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        # A finished run that is started again begins at epoch 0 beside its old log.
        self._losses[epoch:] = [float((logs or {})["val_loss"])]
        if _worn_out(self._losses, self._patience):
            self.model.stop_training = True


def epochs_of(folder: Path, run: Experiment) -> int:
    """Of the run, or those it has done if it was killed when it was about to stop early."""
    backup = folder / BACKUP_FOLDER / "training_metadata.json"
    if run.patience is None or not backup.is_file():
        return run.epochs
    done = int(json.loads(backup.read_text(encoding="utf-8"))["epoch"])
    return done if _worn_out(validation_losses(folder)[:done], run.patience) else run.epochs


def callbacks_of(folder: Path, batches: TrainingBatches, run: Experiment) -> list[keras.callbacks.Callback]:
    """All that a run calls back, in the order in which Keras calls it.

    Args:
        folder: Of the run.
        batches: Of its training; their epoch is set.
        run: Says the seed, what is kept, and when it stops early.
    """
    callbacks = [
        keras.callbacks.BackupAndRestore(str(folder / BACKUP_FOLDER), save_freq="epoch"),
        _SeedOfEpoch(batches, run.seed),
        keras.callbacks.ModelCheckpoint(
            str(folder / WEIGHTS_FILE),
            monitor=run.keeps_best_of,
            mode="min" if run.keeps_best_of == "val_loss" else "max",
            save_best_only=True,
            save_weights_only=True,
            # A resumed run must not take its first epoch for the best one.
            initial_value_threshold=best_so_far(folder, run.keeps_best_of),
        ),
        keras.callbacks.CSVLogger(str(folder / LOG_FILE), append=True),
        keras.callbacks.TerminateOnNaN(),
    ]
    if run.patience is not None:
        callbacks.append(_EarlyStopping(folder, run.patience))
    # Keras writes these logs by TensorFlow, which in turn needs this package.
    if keras.backend.backend() == "tensorflow" and importlib.util.find_spec("tensorboard") is not None:
        callbacks.append(keras.callbacks.TensorBoard(str(folder / TENSORBOARD_FOLDER), write_graph=False))
    return callbacks
