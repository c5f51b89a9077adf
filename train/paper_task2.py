"""Task 2 as the paper did it: Adam at 0.01, 50 epochs, batches of 64 (Table 10), beside a rate that learns.

Both protocols: the paper's bag of augmented copies, and patients apart. An epoch is three batches of our 186 training
slices and their 34 copies, so that 50 epochs show each slice 50 times; the paper does not say what an epoch is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

from train.experiments import EXPERIMENTS, Experiment
from train.trials import Trial, report

NAME: Final = "paper_task2"
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


def main(data_folder: Path | None, out: Path, path: Path = REPORT_FILE) -> dict[str, Any]:
    """Train and score under both protocols.

    Args:
        data_folder: Root of the scans; None for the default.
        out: Where runs live.
        path: Where the figures go.

    Returns:
        Figures by run; see `train.trials.carry_out`.

    Raises:
        DatasetError: If data are missing.
    """
    return report(TRIALS, data_folder, out, path, "test")
