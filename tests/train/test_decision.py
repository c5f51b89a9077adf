from __future__ import annotations

import numpy as np

from train.decision import choose_biases
from train.targets import Code


def _case() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    codes = np.full((1, 32, 32), Code.MEDSEG_BACKGROUND, np.uint8)
    codes[:, :8] = Code.GROUND_GLASS
    logits = np.zeros((1, 32, 32, 2))
    # It ranks right, but never dares: all its foreground logits are below the background's.
    logits[..., 1] = np.where(codes == Code.GROUND_GLASS, -2.0, -4.0) + rng.normal(0, 0.1, codes.shape)
    return logits, codes


def test_a_timid_network_that_ranks_right_is_made_to_answer():
    logits, codes = _case()
    biases = choose_biases(logits, codes, "ground_glass")
    assert biases[0] == 0
    assert np.array_equal((logits + biases).argmax(-1) == 1, codes == Code.GROUND_GLASS)


def test_a_network_that_is_right_already_stays_right():
    logits, codes = _case()
    logits[..., 1] += 3.0
    biases = choose_biases(logits, codes, "ground_glass")
    assert np.array_equal((logits + biases).argmax(-1) == 1, codes == Code.GROUND_GLASS)


def test_a_class_that_nobody_annotated_keeps_its_bias():
    logits, codes = _case()
    four = np.concatenate([logits, np.full((*logits.shape[:3], 2), -9.0)], axis=-1)
    assert choose_biases(four, codes, "all")[3] == 0
