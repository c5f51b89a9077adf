from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from serving import phantom
from train import data, frozen, paper_task1, transfer
from train.data import Example
from train.metrics import CLASSIFICATION_METRICS
from train.paper_task1 import RECIPES, Recipe, balanced_rows, retrain_last_layer, run, split

_TARGETS = {"covid19": (1.0, 0, 0, 0), "normal": (0, 1.0, 0, 0)}
_TINY = dataclasses.replace(RECIPES[1], runs=2, steps=800, learning_rate=0.5)


def _examples(n: int, modality: str = "xray") -> list[Example]:
    rng = np.random.default_rng(0)
    names = rng.permutation(["covid19", "normal"] * (n // 2))
    return [
        Example(str(i), modality, f"p{i}", "s", "test" if i % 4 == 0 else "train", _TARGETS[name])  # type: ignore[arg-type]
        for i, name in enumerate(names)
    ]


def test_the_last_layer_is_that_of_logistic_regression() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(4000, 5)).astype(np.float32)
    truth = (features @ [1.0, -2, 0, 0.5, 0] + rng.logistic(size=4000) > 0).astype(int)
    recipe = dataclasses.replace(_TINY, steps=6000, learning_rate=0.05)
    kernel, bias = retrain_last_layer(features, truth, 2, recipe, seed=0)
    trusted = LogisticRegression(C=1e6).fit(features, truth)
    np.testing.assert_allclose(kernel[:, 1] - kernel[:, 0], trusted.coef_[0], atol=0.15)
    assert bias[1] - bias[0] == pytest.approx(trusted.intercept_[0], abs=0.15)


def test_the_papers_protocol_praises_what_has_learned_nothing_but_who_it_is() -> None:
    # Features that say which scan it is and nothing of its class: copies are alike, scans are not.
    rng = np.random.default_rng(2)
    identity = np.repeat(rng.normal(size=(120, 1, 300)), 4, axis=1)
    features = (identity + rng.normal(0, 0.05, identity.shape)).astype(np.float32)
    figures = run(_TINY, _examples(120), features)
    assert figures["paper"]["accuracy"] > 0.95
    assert figures["patients"]["accuracy"] < 0.75
    assert figures["patients"]["n_test"] == 30
    assert figures["patients"]["n_train"] == 90 * 4


def test_what_tells_the_classes_apart_is_found_under_both() -> None:
    examples = _examples(80)
    signal = np.array([[e.target[0]] for e in examples])[:, None]
    features = np.repeat(signal, 2, axis=1).astype(np.float32)
    figures = run(_TINY, examples, features)
    for protocol in ("paper", "patients"):
        assert figures[protocol]["accuracy"] == figures[protocol]["mcc"] == 1
        assert figures[protocol]["false_positive_rate"] == 0
        assert len(figures[protocol]["accuracy_of_runs"]) == 2


def test_a_patients_scans_and_copies_are_on_one_side() -> None:
    examples = _examples(40)
    examples[1] = dataclasses.replace(examples[1], split="val")
    parts = split(examples, 3, "patients", np.random.default_rng(0))
    for name, pairs in parts.items():
        assert {examples[i].split for i in pairs[:, 0]} == {name}
        assert set(pairs[:, 1].tolist()) == ({0, 1, 2} if name == "train" else {0})


def test_the_papers_test_set_is_its_share_of_all_copies() -> None:
    parts = split(_examples(100), 10, "paper", np.random.default_rng(0))
    assert len(parts["test"]) == len(parts["val"]) == round(1000 * 955 / 10573)
    assert len({tuple(pair) for pair in np.concatenate([*parts.values()]).tolist()}) == 1000


def test_each_run_says_how_well_it_fits_what_it_was_trained_on_and_what_it_was_not() -> None:
    examples = [dataclasses.replace(e, split="val") if i % 4 == 1 else e for i, e in enumerate(_examples(80))]
    signal = np.array([[e.target[0]] for e in examples])[:, None]
    figures = run(_TINY, examples, np.repeat(signal, 2, axis=1).astype(np.float32))
    for protocol in ("paper", "patients"):
        side = figures[protocol]
        assert side["train_accuracy"] == side["validation_accuracy"] == 1
        assert 0 < side["train_cross_entropy"] < 0.2
        assert [r["accuracy"] for r in side["runs"]] == side["accuracy_of_runs"]
        mean = np.mean([r["validation_cross_entropy"] for r in side["runs"]])
        assert side["validation_cross_entropy"] == pytest.approx(mean, abs=1e-3)
        assert set(CLASSIFICATION_METRICS) <= set(side["runs"][0])


def test_what_was_not_kept_apart_has_no_figures() -> None:
    figures = run(_TINY, _examples(40), np.ones((40, 1, 2), np.float32))
    assert figures["patients"]["validation_accuracy"] is None
    assert figures["patients"]["n_validation"] == 0


def test_modalities_give_as_many_scans_each() -> None:
    examples = [*_examples(40), *_examples(10, "ct")]
    drawn = [balanced_rows(examples, ("xray", "ct"), np.random.default_rng(seed)) for seed in (0, 1)]
    for rows in drawn:
        assert (
            sum(examples[i].modality == "xray" for i in rows) == sum(examples[i].modality == "ct" for i in rows) == 10
        )
        assert len(set(rows.tolist())) == 20
    assert not np.array_equal(drawn[0], drawn[1])


def test_features_are_of_the_scan_and_its_seeded_copies() -> None:
    image = keras.Input((299, 299, 3), dtype="uint8")
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1.0)(image)))
    scans = np.stack([phantom.chest_xray(size_px=512, seed=s) for s in (1, 2)])
    features = frozen.bottleneck(scans, network, copies=2)
    assert features.shape == (2, 3, 3)
    np.testing.assert_allclose(features[:, 0, 0], scans.mean(axis=(1, 2)), atol=1)
    assert len(np.unique(features[:, :, 0])) == 6
    np.testing.assert_array_equal(frozen.bottleneck(scans[:1], network, copies=2), features[:1])


def test_all_recipes_are_run_and_their_figures_written_down(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    examples = [*_examples(40), *_examples(20, "ct")]
    # A scan's brightness is its diagnosis.
    images = np.stack([np.full((64, 64), 220 if e.target[0] else 30, np.uint8) for e in examples])
    image = keras.Input((299, 299, 3), dtype="uint8")
    network = keras.Model(image, keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 127.5, -1)(image)))
    monkeypatch.setattr(frozen, "frozen_network", lambda _: network)
    monkeypatch.setattr(frozen, "sha256_of", lambda _: "digest")
    monkeypatch.setattr(transfer, "imagenet_file", lambda root: root / transfer.IMAGENET_FILE)
    monkeypatch.setattr(data, "recognition", lambda _: examples)
    monkeypatch.setattr(data, "load_all", lambda *_, **__: (images, None))
    monkeypatch.setattr(data, "fingerprint", lambda *_: "fingerprint")
    (tmp_path / "cache").mkdir()
    figures = paper_task1.main(tmp_path, tmp_path, tmp_path / "docs" / "task1.json")
    assert json.loads((tmp_path / "docs" / "task1.json").read_text()) == figures
    assert set(figures) == {recipe.name for recipe in RECIPES}
    assert figures["task1_2_both"]["patients"]["accuracy"] > 0.9
    assert figures["task1_2_xray"]["patients"]["n_test"] == 10
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["bottleneck-fingerprint-digest-2.npy"]


def test_recipes_are_the_papers() -> None:
    assert {(r.steps, r.batch_size, r.learning_rate, r.runs) for r in RECIPES} == {(2800, 100, 0.01, 5)}
    assert len({r.name for r in RECIPES}) == len(RECIPES)
    assert all(isinstance(r, Recipe) for r in RECIPES)
