"""Task 3 under both protocols, at a size that two cores can train: what splitting augmented slices does to Dice.

The recipe is the ablation's (`train.ablation`): small, short, and our optimizer, since the paper's 50,000 steps of SGD
at 0.0001 take days here (``lungstreams train all_paper``) and 400 of them move nothing.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Final, get_args

from serving.labels import MANIFESTATION_NAMES
from train import paper
from train.ablation import OURS, model_of
from train.experiments import EXPERIMENTS, PAPER_AUGMENTATION, Experiment, Protocol
from train.trials import Trial, report

REPORT_FILE: Final = Path("docs/paper_task3.json")
_STREAM_EPOCHS: Final = 1


def _all(protocol: Protocol) -> Experiment:
    return dataclasses.replace(
        OURS,
        name=f"task3_all_{protocol}",
        augmentation=PAPER_AUGMENTATION,
        copies=paper.COPIES,
        protocol=protocol,
    )


def _specialised(stream: str, protocol: Protocol) -> Experiment:
    all_class, shipped = _all(protocol), EXPERIMENTS[f"{stream}_first"]
    return dataclasses.replace(
        all_class,
        name=f"task3_{stream}_{protocol}",
        model=model_of(stream),
        stream=stream,
        init_from=all_class.name,
        mixture=shipped.mixture,
        learning_rate=shipped.learning_rate,
        epochs=_STREAM_EPOCHS,
    )


TRIALS: Final = tuple(
    trial
    for protocol in get_args(Protocol)
    for trial in (
        Trial(_all(protocol), "all-class stream"),
        *(Trial(_specialised(stream, protocol), f"specialised stream: {stream}") for stream in MANIFESTATION_NAMES),
    )
)


main = partial(report, TRIALS, path=REPORT_FILE, split="test")
"""``main(data_folder, out)``; see `train.trials.report`."""
