"""Task 2 as the paper did it: Adam at 0.01, 50 epochs, batches of 64 (Table 10), beside a rate that learns.

Both protocols: the paper's bag of augmented copies, and patients apart. An epoch is three batches of our 186 training
slices and their 34 copies, so that 50 epochs show each slice 50 times; the paper does not say what an epoch is.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Final

from train.experiments import EXPERIMENTS, Experiment
from train.trials import Trial, report

REPORT_FILE: Final = Path("docs/paper_task2.json")
_PAPER: Final = EXPERIMENTS["manifestations_paper"]
OURS_RATE: Final = 1e-3


def _run(name: str, **changes: Any) -> Experiment:
    return dataclasses.replace(_PAPER, name=name, publishes=None, **changes)


TRIALS: Final = (
    Trial(_run("task2_patients"), "the paper's recipe, patients apart"),
    Trial(_run("task2_slower_patients", learning_rate=OURS_RATE), "Adam at 0.001, patients apart"),
    Trial(_run("task2_paper", protocol="paper"), "the paper's recipe and protocol"),
    Trial(_run("task2_slower_paper", learning_rate=OURS_RATE, protocol="paper"), "Adam at 0.001, the paper's protocol"),
)


main = partial(report, TRIALS, path=REPORT_FILE, split="test")
"""``main(data_folder, out)``; see `train.trials.report`."""
