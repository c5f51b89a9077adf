"""Single choices of the segmentation recipe, each changed alone, scored on validation slices.

The runs are short and small (`_STEPS` steps at a quarter of the scan's size), so that two cores do all of them in half
an hour: they rank choices, they do not reach what the shipped weights reach. The same recipe with two seeds says how
much of a difference is chance.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any, Final

from train.deeplab import DeepLabConfig
from train.experiments import EXPERIMENTS, NODULE_PX, NODULE_SCALE, Experiment
from train.targets import INFECTION_STREAM, NODULE_STREAM, class_names
from train.trials import Trial, report

REPORT_FILE: Final = Path("docs/ablation.json")
_EPOCHS, _STEPS_PER_EPOCH = 4, 100
_PRETRAINING_EPOCHS: Final = 3
_DOWNSAMPLE: Final = 4

_ALL: Final = EXPERIMENTS["all_first"]


def model_of(stream: str, **changes: Any) -> DeepLabConfig:
    """The shipped stream's network at a quarter of the scan's size."""
    fixed: dict[str, Any] = {"n_classes": len(class_names(stream)), "input_downsample": _DOWNSAMPLE}
    shipped = _ALL.model
    if not isinstance(shipped, DeepLabConfig):
        raise TypeError(f"expected a DeepLab, got {shipped}")
    return dataclasses.replace(shipped, **(fixed | changes))


def _arm(name: str, **changes: Any) -> Experiment:
    fixed: dict[str, Any] = {
        "publishes": None,
        "model": model_of(_ALL.stream or ""),
        "epochs": _EPOCHS,
        "loss_stride_px": _DOWNSAMPLE,
        "steps_per_epoch": _STEPS_PER_EPOCH,
    }
    return dataclasses.replace(_ALL, name=f"ablation_{name}", **(fixed | changes))


def _pretraining(stream: str, **changes: Any) -> Experiment:
    return _arm(f"on_{stream}", model=model_of(stream), stream=stream, epochs=_PRETRAINING_EPOCHS, **changes)


_ON_NODULES: Final = _pretraining(
    NODULE_STREAM,
    task="nodules",
    mixture={},
    augmentation=dataclasses.replace(_ALL.augmentation, base_scale=NODULE_SCALE),
    crop_px=NODULE_PX,
    batch_size=16,
)
_ON_INFECTION: Final = _pretraining(INFECTION_STREAM, mixture={"covid19_ct_seg": 0.8, "healthy": 0.2})

OURS: Final = _arm("ours")
TRIALS: Final = (
    Trial(OURS, "our recipe"),
    Trial(_arm("cross_entropy_alone", dice_weight=0.0), "loss: no soft Dice"),
    Trial(_ON_NODULES, "pre-training on LIDC nodules", scored=False),
    Trial(_arm("from_nodules", init_from=_ON_NODULES.name), "pre-training: LIDC nodules, as the paper"),
    Trial(_ON_INFECTION, "pre-training on binary infection", scored=False),
    Trial(_arm("from_infection", init_from=_ON_INFECTION.name), "pre-training: binary infection slices"),
    Trial(
        _arm("longer", epochs=_EPOCHS + _PRETRAINING_EPOCHS),
        "length: as many steps as pre-training and training together",
    ),
    Trial(_arm("width_0.5", model=model_of("all", width=0.5)), "width: 0.5 instead of 0.25"),
    Trial(_arm("other_seed", seed=21), "seed: another one, nothing else"),
    Trial(
        _arm("medseg_and_effusion_alone", mixture={"medseg100": 0.6, "nsclc_plethora": 0.4}),
        "data: no infection slices, no healthy ones",
    ),
    Trial(_arm("constant_rate", schedule="constant"), "schedule: constant learning rate"),
    Trial(
        _arm("sgd", optimizer="sgd", schedule="constant", learning_rate=1e-4, foreground_weight=1.0, dice_weight=0.0),
        "optimizer and loss: the paper's (SGD at 0.0001, cross-entropy)",
    ),
)


main = partial(report, TRIALS, path=REPORT_FILE, split="val")
"""``main(data_folder, out)``; see `train.trials.report`."""
