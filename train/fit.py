"""Runs an experiment: data, network, loss, checkpoints, and what came of it.

A run's folder holds ``best.weights.h5`` (lowest validation loss), ``run.json`` (the experiment, the data's fingerprint,
the best epoch), ``log.csv`` (a row an epoch), ``tensorboard/`` (if that package is there) and, until it is finished,
``backup/`` to resume from.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import keras
import numpy as np

from serving.errors import DatasetError
from serving.labels import ALL_STREAM
from train import data, devices, origins
from train.batches import Arrays, PlainBatches, TrainingBatches
from train.callbacks import (
    BACKUP_FOLDER,
    LOG_FILE,
    TENSORBOARD_FOLDER,
    WEIGHTS_FILE,
    best_so_far,
    callbacks_of,
    epochs_of,
    logged,
    validation_losses,
)
from train.copies import TRAIN, VAL, bag, materialise, rescaled
from train.deeplab import CLASSIFIER_LAYER, DeepLabConfig, build_deeplab
from train.devices import Precision, precision_of
from train.experiments import EXPERIMENTS, IMAGENET, Experiment
from train.imagenet import AUTO, load_imagenet
from train.inception import InceptionV3Config, build_inception_v3
from train.leaks import refuse_mistakes
from train.losses import (
    admissible_accuracy,
    admissible_crossentropy,
    masked_binary_accuracy,
    masked_binary_crossentropy,
    segmentation_loss,
)
from train.manifestation_cnn import ManifestationCnnConfig, build_manifestation_cnn
from train.targets import admissible_table, class_names
from train.transfer import transfer, transfer_classes

RUN_FILE: Final = "run.json"
MOMENTUM: Final = 0.9

_log = logging.getLogger(__name__)


def build(experiment: Experiment, *, training: bool = False) -> keras.Model:
    """The network of an experiment, with random weights.

    Args:
        experiment: Which.
        training: Sized for the training crop instead of the whole scan. The weights fit both.
    """
    config = experiment.model
    if isinstance(config, InceptionV3Config):
        return build_inception_v3(config)
    if isinstance(config, ManifestationCnnConfig):
        return build_manifestation_cnn(config)
    return build_deeplab(dataclasses.replace(config, input_hw=(None, None)) if training else config)


def examples_of(experiment: Experiment, root: Path) -> list[data.Example]:
    """All splits of the data of an experiment: of our own folder those of its mixture, of any other what fits its task.

    Raises:
        DatasetError: If the folder is laid out in no known way, or does not fit the task.
    """
    examples = origins.examples_for(experiment.task, root)
    prefixes = tuple(mixture_of(experiment, root))
    return [e for e in examples if e.source.startswith(prefixes)] if prefixes else examples


def mixture_of(experiment: Experiment, root: Path) -> Mapping[str, float]:
    """Share of each source in a batch. A mixture is one of our own sources: any other folder is drawn from as it is."""
    return experiment.mixture if origins.is_curated(root) else {}


def load(experiment: Experiment, root: Path, cache: Path) -> Arrays:
    """Images and annotations of an experiment, prepared by `serving.preprocessing`."""
    examples = examples_of(experiment, root)
    images, codes = data.load_all(examples, root, cache, masks=isinstance(experiment.model, DeepLabConfig))
    return Arrays(examples, images, codes)


def loss_of(experiment: Experiment) -> Callable[[Any, Any], Any]:
    """The loss of an experiment; see `train.losses`."""
    if experiment.task == "recognition":
        return admissible_crossentropy
    if experiment.task == "manifestations":
        return masked_binary_crossentropy
    return segmentation_loss(
        admissible_table(experiment.stream or ALL_STREAM.name),
        experiment.foreground_weight,
        experiment.dice_weight,
        experiment.loss_stride_px,
    )


def metrics_of(experiment: Experiment) -> list[keras.metrics.Metric]:
    """``accuracy`` of a classification, logged beside the loss; segmentation is judged after training."""
    functions = {"recognition": admissible_accuracy, "manifestations": masked_binary_accuracy}
    function = functions.get(experiment.task)
    return [keras.metrics.MeanMetricWrapper(function, name="accuracy")] if function else []


def initialise(
    model: keras.Model,
    experiment: Experiment,
    root: Path,
    runs: Path,
    known: Mapping[str, Experiment] | None = None,
    imagenet: str = AUTO,
) -> None:
    """Give the network what the experiment starts from.

    Args:
        model: The network; changed in place.
        experiment: Which.
        root: Of the scans.
        runs: Where runs live.
        known: Runs that it may start from, by name; None for `EXPERIMENTS`.
        imagenet: Where ImageNet's weights come from; see `train.imagenet.load_imagenet`.

    Raises:
        DatasetError: If that is not there.
    """
    if experiment.init_from is None:
        return
    if experiment.init_from == IMAGENET:
        report = load_imagenet(model, root, imagenet)
        _log.info("ImageNet weights: %s", report)
        return
    weights = runs / experiment.init_from / WEIGHTS_FILE
    if not weights.is_file():
        raise DatasetError(f"{experiment.name} starts from {experiment.init_from}: expected {weights}, found none")
    earlier = (EXPERIMENTS if known is None else known)[experiment.init_from]
    source = build(earlier, training=True)
    source.load_weights(weights)
    fresh = transfer(model, source)
    if fresh == [CLASSIFIER_LAYER] and experiment.stream and earlier.stream:
        fresh = transfer_classes(model, class_names(experiment.stream), source, class_names(earlier.stream))
    _log.info("from %s; fresh: %s", experiment.init_from, fresh or "none")


def optimizer_of(experiment: Experiment) -> keras.optimizers.Optimizer:
    """The optimizer of an experiment; a cosine has a linear warm-up and ends at zero."""
    rate: Any = experiment.learning_rate
    if experiment.schedule == "cosine":
        total = experiment.epochs * experiment.steps_per_epoch
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=experiment.learning_rate / 100,
            warmup_target=experiment.learning_rate,
            warmup_steps=experiment.warmup_steps,
            decay_steps=max(total - experiment.warmup_steps, 1),
        )
    if experiment.optimizer == "sgd":
        # Keras takes the decay off the weights directly. As the penalty in the loss that the paper's framework has, it
        # would go through the momentum, which makes it that much stronger.
        decay = experiment.weight_decay / (1 - MOMENTUM)
        return keras.optimizers.SGD(rate, momentum=MOMENTUM, weight_decay=decay)
    if experiment.optimizer == "adam":
        return keras.optimizers.Adam(rate)
    return keras.optimizers.AdamW(rate, weight_decay=experiment.weight_decay, clipnorm=5.0)


def batches_of(run: Experiment, arrays: Arrays, root: Path) -> tuple[TrainingBatches, PlainBatches]:
    """What a run trains on and what it is validated on, by its protocol; see `train.copies`."""
    copies = None
    if run.protocol == "paper":
        sides = bag(len(arrays.examples), run.copies or 0, run.seed)
        training = arrays.select(range(len(arrays.examples)))
        validation = materialise(arrays, sides == VAL, run.augmentation, run.seed)
        copies = sides == TRAIN
    else:
        training, validation = arrays.of_split("train"), arrays.of_split("val")
        if run.augmentation.base_scale != 1:
            validation = rescaled(validation, run.augmentation.base_scale, run.crop_px)
        if run.copies is not None:
            copies = np.ones((len(training.examples), 1 + run.copies), dtype=bool)
    batches = TrainingBatches(
        training,
        batch_size=run.batch_size,
        steps=run.steps_per_epoch,
        augmentation=run.augmentation,
        crop_px=run.crop_px,
        mixture=mixture_of(run, root),
        seed=run.seed,
        copies=copies,
    )
    return batches, PlainBatches(validation, batch_size=4)


def main(
    experiment: str,
    data_folder: Path | None,
    out: Path,
    *,
    resume: bool = True,
    verbose: int | None = None,
    precision: Precision = "auto",
    n_devices: int | None = None,
    imagenet: str = AUTO,
) -> Path:
    """Run one experiment.

    Args:
        experiment: Its name in `EXPERIMENTS`.
        data_folder: Root of the scans; None for the default of `train.data.data_root`.
        out: Where runs live; the cache of prepared scans is `out/cache`.
        resume: Go on from the last epoch that was saved; otherwise start anew.
        verbose: As for `keras.Model.fit`; by default a progress bar on a terminal and a line an epoch elsewhere.
        precision: What layers compute in; see `train.devices.precision_of`.
        n_devices: Accelerators that share a batch; None for all of them.
        imagenet: Where ImageNet's weights come from; see `train.imagenet.load_imagenet`.

    Returns:
        The run's folder.

    Raises:
        DatasetError: If the experiment, the data, what it starts from or a device is missing, or a group or a file is
            in two splits.
    """
    if experiment not in EXPERIMENTS:
        raise DatasetError(f"expected one of {', '.join(EXPERIMENTS)}, got {experiment!r}")
    root = data.data_root(data_folder)
    run = EXPERIMENTS[experiment]
    return perform(
        run, root, out, resume=resume, verbose=verbose, precision=precision, n_devices=n_devices, imagenet=imagenet
    )


def perform(
    run: Experiment,
    root: Path,
    out: Path,
    *,
    resume: bool = True,
    verbose: int | None = None,
    precision: Precision = "auto",
    n_devices: int | None = None,
    known: Mapping[str, Experiment] | None = None,
    imagenet: str = AUTO,
) -> Path:
    """Run an experiment that need not be one of `EXPERIMENTS`; as `main`, which see.

    Args:
        run: The experiment.
        root: Of the scans.
        out: Where runs live.
        resume: Go on from the last epoch that was saved.
        verbose: As for `keras.Model.fit`.
        precision: What layers compute in.
        n_devices: Accelerators that share a batch.
        known: Runs that it may start from, by name; None for `EXPERIMENTS`.
        imagenet: Where ImageNet's weights come from.

    Returns:
        The run's folder.
    """
    folder = out / run.name
    folder.mkdir(parents=True, exist_ok=True)
    if not resume:
        for old in (folder / WEIGHTS_FILE, folder / LOG_FILE, folder / RUN_FILE):
            old.unlink(missing_ok=True)
        for old in (folder / BACKUP_FOLDER, folder / TENSORBOARD_FOLDER):
            shutil.rmtree(old, ignore_errors=True)

    keras.utils.set_random_seed(run.seed)
    arrays = load(run, root, out / "cache")
    refuse_mistakes(arrays.examples, root)
    computes_in = precision_of(run, precision)
    with devices.distributed(n_devices, run.batch_size) as n_sharing, devices.policy(computes_in):
        _fit(run, arrays, root, out, known, imagenet, verbose)
    _write_run(folder, run, arrays, root, {"precision": computes_in, "n_devices": n_sharing})
    return folder


def _fit(
    run: Experiment,
    arrays: Arrays,
    root: Path,
    out: Path,
    known: Mapping[str, Experiment] | None,
    imagenet: str,
    verbose: int | None,
) -> None:
    folder = out / run.name
    model = build(run, training=True)
    initialise(model, run, root, out, known, imagenet)
    optimizer = optimizer_of(run)
    # Building the slots eagerly: inside TensorFlow's traced first step the same took minutes.
    optimizer.build(model.trainable_variables)
    # XLA on a CPU compiles for a minute and then runs slower than oneDNN's kernels.
    jit_compile = "auto" if keras.backend.backend() == "jax" else False
    model.compile(optimizer, loss=loss_of(run), metrics=metrics_of(run), jit_compile=jit_compile)
    batches, validation = batches_of(run, arrays, root)
    model.fit(
        batches,
        epochs=epochs_of(folder, run),
        validation_data=validation,
        callbacks=callbacks_of(folder, batches, run),
        # Keras would shuffle the steps by Python's global generator, which a resume does not restore.
        shuffle=False,
        verbose=verbose if verbose is not None else (1 if sys.stdout.isatty() else 2),
    )


def _write_run(folder: Path, run: Experiment, arrays: Arrays, root: Path, device: Mapping[str, Any]) -> None:
    losses, kept = validation_losses(folder), logged(folder, run.keeps_best_of)
    best = best_so_far(folder, run.keeps_best_of)
    record = {
        "experiment": run.name,
        "configuration": repr(run),
        "data_fingerprint": data.fingerprint(arrays.examples, root),
        "n_examples": {s: sum(e.split == s for e in arrays.examples) for s in ("train", "val", "test")},
        "best_epoch": None if best is None else kept.index(best) + 1,
        "kept": run.keeps_best_of,
        "best_val_loss": min(losses, default=None),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        **device,
    }
    (folder / RUN_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
