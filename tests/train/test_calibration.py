from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression

from train.batches import Arrays, in_three_channels
from train.calibration import fit_platt, fit_temperature, fold_platt, fold_temperature
from train.data import UNKNOWN, Example


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    drawn = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert fit_temperature(logits * temperature, np.eye(4)[drawn]) == pytest.approx(temperature, rel=0.05)


def test_a_scan_with_several_admissible_answers_counts_their_sum() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 2, (20_000, 4))
    drawn = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    admissible = np.where((drawn == 0)[:, None], np.eye(4)[0], 1 - np.eye(4)[0])
    assert fit_temperature(logits * 2, admissible) == pytest.approx(2, rel=0.05)


def test_platt_is_logistic_regression_where_there_is_plenty() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, 5000)
    present = (rng.random(5000) < expit(0.4 * logits - 1.5)).astype(float)
    slope, intercept = fit_platt(logits, present)
    trusted = LogisticRegression(C=1e6).fit(logits[:, None], present)
    assert slope == pytest.approx(trusted.coef_[0, 0], abs=0.01)
    assert intercept == pytest.approx(trusted.intercept_[0], abs=0.02)


def test_platt_stays_finite_where_the_classes_separate() -> None:
    # Ten of each: the targets are 11/12 and 1/12, and nothing more confident fits them better.
    logits = np.r_[np.full(10, -4.0), np.full(10, -2.0)]
    present = np.r_[np.zeros(10), np.ones(10)]
    slope, intercept = fit_platt(logits, present)
    np.testing.assert_allclose(expit(slope * np.array([-4.0, -2.0]) + intercept), [1 / 12, 11 / 12], atol=1e-3)


@pytest.mark.parametrize(
    ("logits", "present"), [([1.0, 2.0], [1.0, 1.0]), ([1.0, 2.0], [0.0, 0.0]), ([2.0, -2.0] * 9, [0.0, 1.0] * 9)]
)
def test_what_can_not_be_calibrated_is_left_alone(logits: list[float], present: list[float]) -> None:
    assert fit_platt(np.array(logits), np.array(present)) == (1.0, 0.0)


def _linear_model(n: int, activation: str) -> keras.Model:
    image = keras.Input((8, 8, 3), dtype="uint8")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    logits = keras.layers.Dense(n, name="logits")(x)
    return keras.Model(image, keras.layers.Activation(activation)(logits))


def _arrays(targets: np.ndarray) -> Arrays:
    rng = np.random.default_rng(3)
    examples = [Example(str(i), "ct", str(i), "s", "val", tuple(t)) for i, t in enumerate(targets.tolist())]
    return Arrays(examples, rng.integers(0, 256, (len(targets), 8, 8), dtype=np.uint8), None)


def test_a_folded_temperature_divides_the_logits() -> None:
    keras.utils.set_random_seed(0)
    model = _linear_model(4, "softmax")
    arrays = _arrays(np.eye(4)[np.random.default_rng(4).integers(0, 4, 40)])
    images = in_three_channels(arrays.images)
    before = np.log(np.asarray(model.predict_on_batch(images)))
    temperature = fold_temperature(model, arrays)
    assert temperature > 1.2  # random weights know nothing: every confidence is too much
    expected = softmax(before / temperature, axis=1)
    np.testing.assert_allclose(np.asarray(model.predict_on_batch(images)), expected, atol=1e-5)


def test_folded_platt_looks_at_known_labels_alone() -> None:
    keras.utils.set_random_seed(0)
    model = _linear_model(2, "sigmoid")
    targets = np.random.default_rng(5).integers(0, 2, (40, 2)).astype(float)
    targets[:30, 1] = UNKNOWN
    arrays = _arrays(targets)
    images = in_three_channels(arrays.images)
    scores = np.asarray(model.predict_on_batch(images)).astype(np.float64)
    logits = np.log(scores / (1 - scores))
    fitted = fold_platt(model, arrays)
    np.testing.assert_allclose(fitted[1], fit_platt(logits[30:, 1], targets[30:, 1]), atol=0.05)
    expected = expit(logits * [f[0] for f in fitted] + [f[1] for f in fitted])
    np.testing.assert_allclose(np.asarray(model.predict_on_batch(images)), expected, atol=1e-4)
