from __future__ import annotations

import keras
import numpy as np
import pytest

from serving.labels import STREAM_NAMES
from train.losses import (
    admissible_accuracy,
    admissible_crossentropy,
    masked_binary_accuracy,
    masked_binary_crossentropy,
    segmentation_loss,
)
from train.targets import Code, admissible_table, class_names


def test_one_admissible_class_is_the_ordinary_crossentropy():
    p = np.array([[0.7, 0.2, 0.1]], np.float32)
    target = np.array([[0, 1, 0]], np.float32)
    assert float(admissible_crossentropy(target, p)[0]) == pytest.approx(-np.log(0.2), rel=1e-5)


def test_several_admissible_classes_ask_only_for_their_sum():
    target = np.array([[0, 1, 1]], np.float32)
    a = admissible_crossentropy(target, np.array([[0.4, 0.6, 0.0]], np.float32))
    b = admissible_crossentropy(target, np.array([[0.4, 0.1, 0.5]], np.float32))
    assert float(a[0]) == pytest.approx(float(b[0]), rel=1e-5)


def test_everything_admissible_costs_nothing():
    p = np.array([[0.3, 0.3, 0.4]], np.float32)
    assert float(admissible_crossentropy(np.ones_like(p), p)[0]) == pytest.approx(0, abs=1e-6)


def test_unlabelled_presence_gives_no_gradient():
    p = np.array([[0.9, 0.5, 0.1]], np.float32)
    q = np.array([[0.9, 0.5, 0.9]], np.float32)
    target = np.array([[1, 0, -1]], np.float32)
    assert float(masked_binary_crossentropy(target, p)[0]) == float(masked_binary_crossentropy(target, q)[0])
    assert float(masked_binary_crossentropy(target, p)[0]) == pytest.approx(-np.log(0.9) - np.log(0.5), rel=1e-4)


def _loss(stream: str, codes: np.ndarray, logits: np.ndarray) -> float:
    return float(segmentation_loss(admissible_table(stream), 2.0)(codes, logits))


@pytest.mark.parametrize("stream", STREAM_NAMES)
def test_a_right_mask_costs_less_than_a_wrong_one(stream):
    codes = np.full((1, 8, 8), Code.HEALTHY, np.uint8)
    lesion = {"all": Code.GROUND_GLASS}.get(stream, Code[stream.upper()] if stream != "all" else None)
    codes[:, :4] = lesion
    right = np.zeros((1, 8, 8, len(class_names(stream))), np.float32)
    right[:, :4, :, 1] = 5
    right[:, 4:, :, 0] = 5
    assert _loss(stream, codes, right) < 0.1 * _loss(stream, codes, -right)


def test_a_stream_ignores_what_says_nothing_of_it():
    codes = np.full((1, 8, 8), Code.MEDSEG_BACKGROUND, np.uint8)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 8, 8, 2)).astype(np.float32)
    # Effusion is not annotated in these slices: any mask of their background costs the same.
    assert _loss("pleural_effusion", codes, a) == pytest.approx(_loss("pleural_effusion", codes, b), abs=1e-6)


@pytest.mark.parametrize(
    ("stream", "drawn"),
    [
        ("pleural_effusion", Code.GROUND_GLASS),
        ("pleural_effusion", Code.CONSOLIDATION),
        ("consolidation", Code.PLEURAL_EFFUSION),
        ("ground_glass", Code.PLEURAL_EFFUSION),
    ],
)
def test_what_was_drawn_as_another_manifestation_is_not_this_one(stream, drawn):
    codes = np.full((1, 8, 8), drawn, np.uint8)
    marked = np.zeros((1, 8, 8, 2), np.float32)
    marked[..., 1] = 5
    assert _loss(stream, codes, -marked) < 0.1 * _loss(stream, codes, marked)


def test_background_of_medseg_does_not_forbid_effusion_as_it_forbids_ground_glass():
    codes = np.full((1, 8, 8), Code.MEDSEG_BACKGROUND, np.uint8)
    effusion, ground_glass = np.zeros((2, 1, 8, 8, 4), np.float32)
    effusion[..., 3] = 8
    ground_glass[..., 1] = 8
    assert _loss("all", codes, effusion) < 0.5 * _loss("all", codes, ground_glass)


def test_infection_asks_for_ground_glass_or_consolidation_not_for_which():
    codes = np.full((1, 8, 8), Code.INFECTION, np.uint8)
    one, other, neither = np.zeros((3, 1, 8, 8, 4), np.float32)
    one[..., 1] = 8
    other[..., 2] = 8
    neither[..., 0] = 8
    assert _loss("all", codes, one) == pytest.approx(_loss("all", codes, other), abs=1e-5)
    assert _loss("all", codes, one) < 0.1 * _loss("all", codes, neither)


def test_the_loss_trains_through_keras_fit():
    model = keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(2, 1)])
    model.compile(keras.optimizers.SGD(0.5), loss=segmentation_loss(admissible_table("ground_glass"), 2.0))
    codes = np.full((4, 16, 16), Code.MEDSEG_BACKGROUND, np.uint8)
    codes[:, :, :8] = Code.GROUND_GLASS
    images = np.repeat((codes == Code.GROUND_GLASS)[..., None], 3, axis=-1).astype(np.float32)
    history = model.fit(images, codes, epochs=30, verbose=0).history["loss"]
    assert history[-1] < 0.5 * history[0]


def test_accuracy_takes_any_admissible_answer():
    admissible = np.array([[1, 0, 0, 0], [0, 1, 1, 1], [0, 1, 1, 1]], np.float32)
    probabilities = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.6, 0.1], [0.7, 0.1, 0.1, 0.1]], np.float32)
    assert np.asarray(admissible_accuracy(admissible, probabilities)).tolist() == [1, 1, 0]


def test_accuracy_of_labels_counts_known_ones():
    target = np.array([[1, 0, -1], [-1, -1, -1], [1, 1, 1]], np.float32)
    probabilities = np.array([[0.9, 0.8, 0.1], [0.1, 0.2, 0.6], [0.7, 0.1, 0.1]], np.float32)
    assert np.asarray(masked_binary_accuracy(target, probabilities)) == pytest.approx([0.5, 1, 1 / 3])


def test_the_papers_loss_has_no_dice():
    codes = np.full((1, 8, 8), Code.HEALTHY, np.uint8)
    codes[:, :4] = Code.GROUND_GLASS
    logits = np.random.default_rng(0).normal(size=(1, 8, 8, 2)).astype(np.float32)
    table = admissible_table("ground_glass")
    both, entropy = (float(segmentation_loss(table, 1.0, w)(codes, logits)) for w in (1.0, 0.0))
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    expected = -np.log(np.where(codes == Code.HEALTHY, p[..., 0], p[..., 1])).sum() / (64 + 1)
    assert entropy == pytest.approx(expected, rel=1e-5)
    assert both > entropy + 0.1
