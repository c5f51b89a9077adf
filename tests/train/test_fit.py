from __future__ import annotations

import csv
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import cv2
import keras
import nibabel
import numpy as np
import pytest

from serving import phantom
from serving.errors import DatasetError
from train import experiments, fit, transfer
from train.callbacks import TENSORBOARD_FOLDER, validation_losses
from train.deeplab import CLASSIFIER_LAYER, DeepLabConfig, build_deeplab
from train.evaluate import trained
from train.manifestation_cnn import ManifestationCnnConfig
from train.publish import data_sources
from train.targets import class_names
from train.trials import Trial, report

_SEGMENTATION = (
    "image", "mask", "subset", "patient_id", "group_hint", "source_split", "px_ggo", "px_consolidation", "px_effusion",
)  # fmt: skip


def _write(path: Path, fields: tuple[str, ...], rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fields, restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root drawn by the phantom, with manifests as the real one has them."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "ct_segmentation").mkdir()
    (folder / "ct_classification").mkdir()
    (folder / "xray").mkdir()
    slices, healthy = [], []
    sides = {"medseg_idx_00": "train", "medseg_idx_01": "train", "medseg_idx_03": "train", "medseg_idx_05": "test"}
    for i, (hint, split) in enumerate(sides.items()):
        drawn = phantom.ct_slice(i, 128, consolidation=i % 2 == 0, pleural_effusion=False)
        cv2.imwrite(str(folder / f"ct_segmentation/{i}.png"), drawn.pixels)
        cv2.imwrite(str(folder / f"ct_segmentation/{i}_mask.png"), drawn.mask)
        counts = {"px_ggo": int((drawn.mask == 1).sum()), "px_consolidation": int((drawn.mask == 2).sum())}
        slices.append(
            {"image": f"{i}.png", "mask": f"{i}_mask.png", "subset": "medseg100_infnet", "group_hint": hint}
            | {"source_split": split} | counts
        )  # fmt: skip
    for i in range(20):
        name = f"normal{i}.png"
        cv2.imwrite(
            str(folder / "ct_classification" / name),
            phantom.ct_slice(50 + i, 128, ground_glass=False, consolidation=False, pleural_effusion=False).pixels,
        )
        healthy.append({"file": name, "label": "normal", "group_id": f"h{i}", "source_dataset": "drawn"})
    _write(folder / "ct_segmentation/manifest.csv", _SEGMENTATION, slices)
    fields = ("file", "label", "group_id", "patient_id", "source_dataset")
    _write(folder / "ct_classification/manifest.csv", fields, healthy)
    _write(folder / "xray/manifest.csv", fields, [])
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> experiments.Experiment:
    run = experiments.Experiment(
        name="tiny",
        task="manifestations",
        model=ManifestationCnnConfig(n_blocks=2, n_kernels=2, downsample=16),
        publishes="manifestations",
        epochs=3,
        steps_per_epoch=2,
        batch_size=4,
        learning_rate=1e-3,
        warmup_steps=1,
    )
    monkeypatch.setattr(fit, "EXPERIMENTS", {"tiny": run})
    monkeypatch.setattr("train.evaluate.EXPERIMENTS", {"tiny": run})
    return run


def _weights(run: Path) -> list[np.ndarray]:
    return list(trained(run)[1].get_weights())


def test_a_run_leaves_what_an_export_needs(root, tiny, tmp_path):
    run = fit.main("tiny", root, tmp_path, verbose=0)
    record = json.loads((run / fit.RUN_FILE).read_text())
    losses = validation_losses(run)
    assert record["experiment"] == "tiny"
    assert len(losses) == 3
    assert record["best_val_loss"] == min(losses)
    assert sum(record["n_examples"].values()) == 24
    assert trained(run)[0] == tiny


def test_the_same_seed_gives_the_same_weights(root, tiny, tmp_path):
    a, b = (fit.main("tiny", root, tmp_path / name, verbose=0) for name in "ab")
    assert all(np.array_equal(x, y) for x, y in zip(_weights(a), _weights(b), strict=True))


# What is killed closes no files.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(root, tiny, tmp_path, monkeypatch):
    whole = fit.main("tiny", root, tmp_path / "whole", verbose=0)

    class _Killed(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.optimizer.iterations.numpy() == 3:
                raise KeyboardInterrupt

    original = fit.callbacks_of
    monkeypatch.setattr(fit, "callbacks_of", lambda *a: [*original(*a), _Killed()])
    with pytest.raises(KeyboardInterrupt):
        fit.main("tiny", root, tmp_path / "broken", verbose=0)
    assert len(validation_losses(tmp_path / "broken" / "tiny")) == 1
    monkeypatch.setattr(fit, "callbacks_of", original)
    broken = fit.main("tiny", root, tmp_path / "broken", verbose=0)
    assert validation_losses(broken) == pytest.approx(validation_losses(whole), rel=1e-6)
    assert all(np.allclose(x, y, atol=1e-7) for x, y in zip(_weights(whole), _weights(broken), strict=True))


def test_what_is_kept_is_the_best_by_what_the_run_names(root, tiny, tmp_path, monkeypatch):
    run = dataclasses.replace(tiny, keeps_best_of="val_accuracy")
    monkeypatch.setattr(fit, "EXPERIMENTS", {"tiny": run})
    monkeypatch.setattr("train.evaluate.EXPERIMENTS", {"tiny": run})
    original = fit.callbacks_of

    class _Figures(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            logs["val_accuracy"] = [0.5, 0.9, 0.7][epoch]
            seen.append(self.model.get_weights())

    seen: list[list[np.ndarray]] = []
    monkeypatch.setattr(fit, "callbacks_of", lambda *a: [_Figures(), *original(*a)])
    folder = fit.main("tiny", root, tmp_path, verbose=0)
    assert json.loads((folder / fit.RUN_FILE).read_text())["best_epoch"] == 2
    assert all(np.array_equal(x, y) for x, y in zip(_weights(folder), seen[1], strict=True))


@pytest.mark.long
def test_starting_anew_forgets_the_old_run(root, tiny, tmp_path):
    fit.main("tiny", root, tmp_path, verbose=0)
    run = fit.main("tiny", root, tmp_path, resume=False, verbose=0)
    assert len(validation_losses(run)) == 3


@pytest.fixture
def impatient(tiny, monkeypatch: pytest.MonkeyPatch) -> experiments.Experiment:
    """A run that gets worse from its third epoch on, and stops two epochs later."""
    run = dataclasses.replace(tiny, epochs=9, patience=2)
    monkeypatch.setattr(fit, "EXPERIMENTS", {"tiny": run})
    monkeypatch.setattr("train.evaluate.EXPERIMENTS", {"tiny": run})
    original = fit.callbacks_of

    class _Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs):
            logs["val_loss"] = [5.0, 4.0, 6.0, 7.0, 1.0, 1.0, 1.0, 1.0, 1.0][epoch]

    # Keras hands one dictionary of figures to all callbacks.
    monkeypatch.setattr(fit, "callbacks_of", lambda *a: [_Losses(), *original(*a)])
    return run


def test_a_run_stops_after_its_patience(root, impatient, tmp_path):
    run = fit.main("tiny", root, tmp_path, verbose=0)
    assert validation_losses(run) == [5, 4, 6, 7]
    assert json.loads((run / fit.RUN_FILE).read_text())["best_epoch"] == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("killed_after", [3, pytest.param(4, marks=pytest.mark.long)])
def test_patience_outlives_a_resume(root, impatient, tmp_path, monkeypatch, killed_after):
    whole = fit.main("tiny", root, tmp_path / "whole", verbose=0)

    class _Killed(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch + 1 == killed_after:
                raise KeyboardInterrupt

    original = fit.callbacks_of
    monkeypatch.setattr(fit, "callbacks_of", lambda *a: [*original(*a), _Killed()])
    with pytest.raises(KeyboardInterrupt):
        fit.main("tiny", root, tmp_path / "broken", verbose=0)
    monkeypatch.setattr(fit, "callbacks_of", original)
    broken = fit.main("tiny", root, tmp_path / "broken", verbose=0)
    assert validation_losses(broken) == validation_losses(whole) == [5, 4, 6, 7]
    assert all(np.allclose(x, y, atol=1e-7) for x, y in zip(_weights(whole), _weights(broken), strict=True))


@pytest.mark.long
def test_without_patience_a_run_ends_with_its_last_epoch(root, impatient, tmp_path, monkeypatch):
    monkeypatch.setattr(fit, "EXPERIMENTS", {"tiny": dataclasses.replace(impatient, patience=None)})
    assert len(validation_losses(fit.main("tiny", root, tmp_path, verbose=0))) == 9


def test_no_shipped_run_stops_early():
    assert {run.patience for run in experiments.EXPERIMENTS.values()} == {None}


def test_logs_for_tensorboard_are_written_where_it_is_installed(root, tiny, tmp_path):
    run = fit.main("tiny", root, tmp_path, verbose=0)
    installed = importlib.util.find_spec("tensorboard") is not None
    assert (run / TENSORBOARD_FOLDER).is_dir() == installed
    if installed:
        assert {f.parent.name for f in (run / TENSORBOARD_FOLDER).rglob("events.*")} == {"train", "validation"}


def test_a_scan_in_two_splits_stops_a_run(root, tiny, tmp_path, monkeypatch):
    listed = fit.examples_of(tiny, root)
    moved = dataclasses.replace(listed[0], split="val" if listed[0].split != "val" else "test")
    monkeypatch.setattr(fit, "examples_of", lambda *_: [*listed, moved])
    with pytest.raises(DatasetError, match=re.escape(listed[0].path)):
        fit.main("tiny", root, tmp_path, verbose=0)


def test_an_unknown_experiment_lists_the_known_ones(tmp_path):
    with pytest.raises(DatasetError, match="recognition_first"):
        fit.main("nonsense", None, tmp_path)


def test_a_run_without_its_starting_point_says_so(root, tiny, tmp_path, monkeypatch):
    orphan = dataclasses.replace(tiny, init_from="parent")
    monkeypatch.setattr(fit, "EXPERIMENTS", {"tiny": orphan})
    with pytest.raises(DatasetError, match="starts from parent"):
        fit.main("tiny", root, tmp_path, verbose=0)


def test_transfer_copies_what_fits_and_names_the_rest():
    def network(classes: int) -> keras.Model:
        image = keras.Input((4,))
        hidden = keras.layers.Dense(3, name="hidden")(image)
        return keras.Model(image, keras.layers.Dense(classes, name="head")(hidden))

    source, target = network(2), network(4)
    assert transfer.transfer(target, source) == ["head"]
    assert np.array_equal(target.get_layer("hidden").get_weights()[0], source.get_layer("hidden").get_weights()[0])


def test_a_stream_takes_over_the_classes_that_it_shares_with_what_it_starts_from():
    source = build_deeplab(DeepLabConfig(n_classes=4, input_hw=(32, 32), width=0.05))
    target = build_deeplab(DeepLabConfig(n_classes=2, input_hw=(32, 32), width=0.05))
    before = target.get_layer(CLASSIFIER_LAYER).get_weights()
    assert transfer.transfer(target, source) == [CLASSIFIER_LAYER]
    assert transfer.transfer_classes(target, ("background", "nodule"), source, class_names("all")) == ["nodule"]
    kernel, bias = target.get_layer(CLASSIFIER_LAYER).get_weights()
    source_kernel, source_bias = source.get_layer(CLASSIFIER_LAYER).get_weights()
    assert np.array_equal(kernel[..., 0], source_kernel[..., 0])
    assert np.array_equal(kernel[..., 1], before[0][..., 1])
    assert transfer.transfer_classes(target, class_names("consolidation"), source, class_names("all")) == []
    kernel, bias = target.get_layer(CLASSIFIER_LAYER).get_weights()
    consolidation = class_names("all").index("consolidation")
    assert np.array_equal(kernel[..., 1], source_kernel[..., consolidation])
    assert np.array_equal(bias, source_bias[[0, consolidation]])


def test_every_experiment_starts_from_one_that_comes_before_it():
    seen = {None, experiments.IMAGENET}
    for name, run in experiments.EXPERIMENTS.items():
        assert run.init_from in seen
        seen.add(name)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of medicalsegmentation.com, drawn: three blocks of neighbours."""
    folder = tmp_path_factory.mktemp("medseg")
    drawn = [phantom.ct_slice(i, 96, consolidation=i % 2 == 0, pleural_effusion=i % 3 == 0) for i in range(30)]
    hu = [-1350 + s.pixels.T.astype(np.float32) / 255 * 1500 for s in drawn]
    for name, planes in (("tr_im", hu), ("tr_mask", [s.mask.T.astype(np.float32) for s in drawn])):
        nibabel.save(nibabel.Nifti1Image(np.stack(planes, axis=-1), np.eye(4)), folder / f"{name}.nii.gz")
    return folder


def test_a_run_takes_a_dataset_as_its_origin_gives_it(volumes, tiny, tmp_path, caplog):
    run = fit.main("tiny", volumes, tmp_path, verbose=0)
    record = json.loads((run / fit.RUN_FILE).read_text())
    assert record["n_examples"] == {"train": 10, "val": 10, "test": 10}
    assert "names no patients" in caplog.text
    arrays = fit.load(tiny, volumes, tmp_path / "cache")
    assert [source.name for source in data_sources(arrays, volumes)] == ["medseg100"]


def test_a_run_refuses_a_dataset_of_another_task(volumes, tmp_path):
    with pytest.raises(DatasetError, match="expected scans for recognition"):
        fit.main("recognition_first", volumes, tmp_path)


def test_a_mixture_is_of_our_own_sources(volumes, root):
    streams = [run for run in experiments.EXPERIMENTS.values() if run.task == "segmentation"]
    for run in streams:
        assert fit.mixture_of(run, root) == run.mixture
        assert fit.mixture_of(run, volumes) == {}
        assert len(fit.examples_of(run, volumes)) == 30


def test_imagenet_weights_lie_beside_our_own_scans(volumes, root, monkeypatch):
    monkeypatch.setenv("LUNGSTREAMS_DATA", str(root))
    with pytest.raises(DatasetError, match=r"expected the ImageNet weights at .* or under LUNGSTREAMS_DATA"):
        transfer.imagenet_file(volumes)
    ours = root / transfer.IMAGENET_FILE
    ours.parent.mkdir(exist_ok=True)
    ours.touch()
    assert transfer.imagenet_file(volumes) == ours


def test_precision_is_recorded_and_changes_what_layers_compute_in(root, tiny, tmp_path):
    runs = {p: fit.main("tiny", root, tmp_path / p, verbose=0, precision=p) for p in ("float32", "mixed_bfloat16")}
    for precision, run in runs.items():
        record = json.loads((run / fit.RUN_FILE).read_text())
        assert (record["precision"], record["n_devices"]) == (precision, 1)
    exact, coarse = (_weights(run) for run in runs.values())
    assert not all(np.array_equal(x, y) for x, y in zip(exact, coarse, strict=True))
    assert all(np.allclose(x, y, atol=0.02) for x, y in zip(exact, coarse, strict=True))
    assert {w.dtype for w in coarse} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("changes", "kind", "rate"),
    [
        ({"optimizer": "sgd", "schedule": "constant", "learning_rate": 1e-4}, keras.optimizers.SGD, 1e-4),
        ({"optimizer": "adam", "schedule": "constant", "learning_rate": 0.01}, keras.optimizers.Adam, 0.01),
        (
            {"learning_rate": 1e-3, "warmup_steps": 10, "epochs": 10, "steps_per_epoch": 10},
            keras.optimizers.AdamW,
            1e-5,
        ),
    ],
)
def test_an_experiment_gets_the_optimizer_that_it_names(tiny, changes, kind, rate):
    optimizer = fit.optimizer_of(dataclasses.replace(tiny, **changes))
    assert type(optimizer) is kind
    assert float(optimizer.learning_rate) == pytest.approx(rate)


def test_a_cosine_ends_at_zero(tiny):
    optimizer = fit.optimizer_of(dataclasses.replace(tiny, epochs=10, steps_per_epoch=10, warmup_steps=10))
    assert float(optimizer._learning_rate(10)) == pytest.approx(tiny.learning_rate)
    assert float(optimizer._learning_rate(100)) == pytest.approx(0, abs=1e-9)


def test_sgd_decays_as_the_papers_penalty_does():
    """Without a gradient the decay is left. A penalty of 0.5 d w^2 has the gradient d w, and goes through momentum."""
    run = dataclasses.replace(
        experiments.EXPERIMENTS["all_paper"], learning_rate=0.01, weight_decay=0.01, optimizer="sgd"
    )
    w, penalised, velocity = keras.Variable([1.0]), 1.0, 0.0
    optimizer = fit.optimizer_of(run)
    optimizer.build([w])
    for _ in range(500):
        optimizer.apply_gradients([(keras.ops.zeros(1), w)])
        velocity = fit.MOMENTUM * velocity - run.learning_rate * run.weight_decay * penalised
        penalised += velocity
    assert float(w[0]) == pytest.approx(penalised, rel=0.02)


def test_the_papers_protocol_puts_every_scan_into_training(root, tiny, tmp_path):
    run = dataclasses.replace(tiny, protocol="paper", copies=4)
    arrays = fit.load(run, root, tmp_path / "cache")
    training, validation = fit.batches_of(run, arrays, root)
    held_out = sum(len(validation[i][0]) for i in range(len(validation)))
    assert held_out == round(len(arrays.examples) * 5 * 955 / (9618 + 955))
    assert (training._weights > 0).sum() >= len(arrays.examples) - 1
    patients = fit.batches_of(dataclasses.replace(tiny, copies=4), arrays, root)[0]
    assert len(patients._weights) == sum(e.split == "train" for e in arrays.examples)


def test_the_papers_runs_are_those_of_its_table_10():
    runs = experiments.EXPERIMENTS
    second = runs["manifestations_paper"]
    assert (second.optimizer, second.learning_rate, second.epochs, second.batch_size) == ("adam", 0.01, 50, 64)
    third = [runs[f"{name}_paper"] for name in ("nodules", "all", "ground_glass", "consolidation", "pleural_effusion")]
    for run in third:
        assert (run.optimizer, run.schedule, run.learning_rate) == ("sgd", "constant", 1e-4)
        assert (run.weight_decay, run.epochs * run.steps_per_epoch, run.batch_size) == (4e-5, 50_000, 8)
        assert (run.model.width, run.model.atrous_rates, run.model.output_stride) == (1.0, (6, 12, 18), 16)
        assert run.init_from == (None if run.name == "nodules_paper" else "nodules_paper")


@pytest.mark.long
def test_trials_are_trained_once_and_scored_by_their_protocol(root, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("train.scoring.BOOTSTRAP_ROUNDS", 10)
    start = dataclasses.replace(tiny, name="start", publishes=None)
    bag = dataclasses.replace(start, name="bag", protocol="paper", copies=4, init_from="start")
    both = (
        Trial(start, "patients", scored=False),
        Trial(bag, "copies"),
        Trial(dataclasses.replace(start, name="by"), ""),
    )
    path = tmp_path / "report.json"
    results = report(both, root, tmp_path, path=path, split="test")
    assert json.loads(path.read_text()) == results
    assert "figures" not in results["start"]
    assert (results["bag"]["protocol"], results["bag"]["steps"]) == ("paper", 6)
    test_scans = [e for e in fit.examples_of(tiny, root) if e.split == "test"]
    assert results["by"]["figures"]["ground_glass"]["n_scans"] == len(test_scans)
    # A bag's test set is copies of any scan, as many as the paper's share.
    assert results["bag"]["figures"]["ground_glass"]["n_scans"] == round(24 * 5 * 955 / (9618 + 955))
    monkeypatch.setattr(fit, "perform", lambda *_, **__: pytest.fail("trained again"))
    assert report(both, root, tmp_path, path=path, split="test") == results
