"""Every training run by name, with what it costs and what to expect of it.

``lungstreams train NAME`` runs one; ``lungstreams train --list`` shows this table. Costs are hours of a plain machine
with two cores and no GPU. Runs named ``*_paper`` are the paper's recipes as its Table 10 gives them; those of
segmentation take days on such a machine and were not run to their end. `docs/decisions.md` says what else was tried,
`train.ablation` compares single choices, and `train.paper_task1` is Task 1, which needs no run of this kind.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

from serving.labels import STREAM_NAMES
from serving.pipeline import segmentation_model
from train import paper
from train.augmentation import Augmentation
from train.data import Task
from train.deeplab import DeepLabConfig
from train.inception import InceptionV3Config
from train.manifestation_cnn import ManifestationCnnConfig
from train.targets import INFECTION_STREAM, NODULE_STREAM, class_names

IMAGENET: Final = "imagenet"
Protocol = Literal["patients", "paper"]


@dataclass(frozen=True)
class Experiment:
    """One training run.

    Attributes:
        name: How it is called.
        task: Which data and which loss.
        model: Configuration of the network.
        publishes: The pipeline's model that it gives weights to, or None for a pre-training run.
        stream: What a segmentation run segments.
        init_from: ``imagenet``, the name of another run, or None for random weights.
        mixture: Share of each source (prefix of `Example.source`) in a batch. Empty: by the square root of the
            number of examples with the same modality, source and target.
        crop_px: Side of a training crop. At 384 the atrous rate of 18 (288 pixels) still meets the image; in a crop
            of 256 its outer taps would never be trained and then run on 512.
        foreground_weight: Weight of a lesion's pixel in the cross-entropy.
        dice_weight: Weight of the soft Dice beside the cross-entropy.
        loss_stride_px: Every how many pixels the loss of a segmentation looks.
        optimizer: AdamW and plain Adam and SGD are Keras' own; SGD has a momentum of 0.9.
        schedule: Of the learning rate: a warm-up and a cosine to zero, or none.
        copies: Augmented copies of a scan, made once, as the paper does; None: each draw is a new one.
        protocol: ``patients`` splits patients; ``paper`` splits augmented copies (`train.copies`).
        keeps_best_of: What the weights that are kept are best by, on validation.
        patience: Stop after this many epochs without a lower validation loss, or None to run them all.
        expect: What a run gave, in words.
        cost: Roughly, on two cores.
    """

    name: str
    task: Task
    model: InceptionV3Config | ManifestationCnnConfig | DeepLabConfig
    epochs: int
    steps_per_epoch: int
    batch_size: int
    learning_rate: float
    publishes: str | None = None
    stream: str | None = None
    init_from: str | None = None
    mixture: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    augmentation: Augmentation = field(default_factory=Augmentation)
    crop_px: int = 512
    foreground_weight: float = 2.0
    warmup_steps: int = 50
    weight_decay: float = 4e-5
    dice_weight: float = 1.0
    loss_stride_px: int = 1
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"
    copies: int | None = None
    protocol: Protocol = "patients"
    seed: int = 20
    keeps_best_of: Literal["val_loss", "val_accuracy"] = "val_loss"
    patience: int | None = None
    expect: str = ""
    cost: str = ""


COMPACT_WIDTH: Final = 0.25
BATCH_NORM_MOMENTUM: Final = 0.9
"""A run of a few hundred steps is too short for the moving statistics to settle at 0.99."""
_CT: Final = Augmentation(rotation_deg=12, translation=0.05, zoom=0.15, shear_deg=6, flip=True)


def _deeplab(stream: str) -> DeepLabConfig:
    return DeepLabConfig(
        n_classes=len(class_names(stream)),
        width=COMPACT_WIDTH,
        batch_norm_momentum=BATCH_NORM_MOMENTUM,
        input_downsample=2,
    )


def _stream(
    stream: str,
    mixture: dict[str, float],
    epochs: int,
    steps: int,
    init_from: str | None,
    learning_rate: float,
    *,
    expect: str,
    suffix: str = "first",
    augmentation: Augmentation = _CT,
    cost: str | None = None,
) -> Experiment:
    return Experiment(
        name=f"{stream}_{suffix}",
        task="segmentation",
        model=_deeplab(stream),
        publishes=segmentation_model(stream) if stream in STREAM_NAMES else None,
        stream=stream,
        init_from=init_from,
        mixture=MappingProxyType(mixture),
        augmentation=augmentation,
        epochs=epochs,
        steps_per_epoch=steps,
        batch_size=8,
        learning_rate=learning_rate,
        warmup_steps=20,
        expect=expect,
        cost=cost or ("0.7 h" if init_from is None else "0.1 h"),
    )


PAPER_AUGMENTATION: Final = Augmentation(rotation_deg=15, translation=0.1, zoom=0.1, shear_deg=8, gain=0, gamma=0)
"""Rotation, translation, zoom and shear, as the paper names them; it gives no amounts."""
NODULE_PX: Final = 128
NODULE_SCALE: Final = NODULE_PX / 512
"""LIDC crops of 128 pixels come enlarged to 512: back to their own scale."""


def _paper_stream(stream: str, mixture: dict[str, float], init_from: str | None) -> Experiment:
    """The paper's Task 3: full width, output stride 16, SGD, 50,000 steps of 8."""
    nodules = stream == NODULE_STREAM
    return Experiment(
        name=f"{'nodules' if nodules else stream}_paper",
        task="nodules" if nodules else "segmentation",
        model=DeepLabConfig(n_classes=len(class_names(stream))),
        publishes=segmentation_model(stream) if stream in STREAM_NAMES else None,
        stream=stream,
        init_from=init_from,
        mixture=MappingProxyType(mixture),
        augmentation=dataclasses.replace(PAPER_AUGMENTATION, base_scale=NODULE_SCALE if nodules else 1.0),
        crop_px=NODULE_PX if nodules else 512,
        # The paper makes the copies first; crops of nodules are drawn anew, since a copy 0 in their scale there is not.
        copies=None if nodules else paper.COPIES,
        epochs=100,
        steps_per_epoch=500,
        batch_size=8,
        optimizer="sgd",
        schedule="constant",
        learning_rate=1e-4,
        weight_decay=4e-5,
        foreground_weight=1.0,
        dice_weight=0.0,
        expect="not run to its end here",
        cost="20 h" if nodules else "250 h",
    )


_LESION_MIX: Final = {"medseg100": 0.7, "covid19_ct_seg": 0.15, "healthy": 0.15}

_CT_FURTHER: Final = Augmentation(rotation_deg=18, translation=0.08, zoom=0.22, shear_deg=8, flip=True)
"""Further in shape, not in grey: what tells ground-glass from consolidation is how bright it is."""


def _transferred(
    stream: str, mixture: dict[str, float], epochs: int, init_from: str | None, rate: float, expect: str, cost: str
) -> Experiment:
    """Pre-trained on what `train.ablation` found to help, then on everything, then on the stream's own."""
    return _stream(
        stream,
        mixture,
        epochs,
        60,
        init_from,
        rate,
        expect=expect,
        suffix="transferred",
        augmentation=_CT_FURTHER,
        cost=cost,
    )


_LESIONS_AND_NEGATIVES: Final = {"medseg100": 0.6, "nsclc_plethora": 0.15, "covid19_ct_seg": 0.1, "healthy": 0.15}

_RECOGNITION_FIRST: Final = Experiment(
    name="recognition_first",
    task="recognition",
    model=InceptionV3Config(n_classes=4, backbone_hw=(256, 256), batch_norm=False),
    publishes="recognition",
    init_from=IMAGENET,
    augmentation=Augmentation(rotation_deg=8, translation=0.05, zoom=0.1, shear_deg=4, gain=0.2, gamma=0.3),
    epochs=6,
    steps_per_epoch=80,
    batch_size=16,
    learning_rate=1e-4,
    warmup_steps=70,
    expect="X-ray accuracy 0.79 of four classes, CT AUC 0.85",
    cost="0.4 h",
)

_RUNS: Final = (
    _RECOGNITION_FIRST,
    dataclasses.replace(
        _RECOGNITION_FIRST,
        name="recognition_finetuned",
        epochs=12,
        steps_per_epoch=130,
        warmup_steps=100,
        expect="best after 5 of 12 epochs, then overfits",
        cost="0.6 h",
    ),
    dataclasses.replace(
        _RECOGNITION_FIRST,
        name="recognition_annealed",
        init_from="recognition_finetuned",
        augmentation=Augmentation(rotation_deg=12, translation=0.08, zoom=0.15, shear_deg=6, gain=0.3, gamma=0.4),
        epochs=4,
        steps_per_epoch=130,
        learning_rate=5e-5,
        warmup_steps=20,
        keeps_best_of="val_accuracy",
        expect="X-ray accuracy 0.82 of four classes, CT AUC 0.90",
        cost="0.2 h",
    ),
    Experiment(
        name="manifestations_first",
        task="manifestations",
        model=ManifestationCnnConfig(n_blocks=5, downsample=2),
        publishes="manifestations",
        augmentation=_CT,
        epochs=50,
        steps_per_epoch=20,
        batch_size=16,
        learning_rate=1e-3,
        expect="AUC 1.00 / 0.98 / 0.99",
        cost="0.15 h",
    ),
    Experiment(
        name="manifestations_paper",
        task="manifestations",
        model=ManifestationCnnConfig(n_blocks=5, downsample=2),
        publishes="manifestations",
        augmentation=PAPER_AUGMENTATION,
        copies=paper.COPIES,
        epochs=50,
        steps_per_epoch=3,
        batch_size=64,
        optimizer="adam",
        schedule="constant",
        learning_rate=0.01,
        expect="diverges: the loss goes to 16 and stays",
        cost="0.2 h",
    ),
    _paper_stream(NODULE_STREAM, {}, None),
    _paper_stream("all", {"medseg100": 0.5, "nsclc_plethora": 0.5}, "nodules_paper"),
    _paper_stream("ground_glass", {"medseg100": 1.0}, "nodules_paper"),
    _paper_stream("consolidation", {"medseg100": 1.0}, "nodules_paper"),
    _paper_stream("pleural_effusion", {"nsclc_plethora": 1.0}, "nodules_paper"),
    _stream(
        "all",
        {"medseg100": 0.5, "nsclc_plethora": 0.25, "covid19_ct_seg": 0.15, "healthy": 0.1},
        36,
        60,
        None,
        1.5e-3,
        expect="Dice 0.60 / 0.43 / 0.41 (ground-glass / consolidation / effusion)",
    ),
    _stream("ground_glass", _LESION_MIX, 4, 50, "all_first", 5e-4, expect="Dice 0.66"),
    _stream("consolidation", _LESION_MIX, 4, 50, "all_first", 5e-4, expect="Dice 0.36"),
    _stream(
        "pleural_effusion", {"nsclc_plethora": 0.85, "healthy": 0.15}, 4, 50, "all_first", 5e-4, expect="Dice 0.35"
    ),
    _transferred(
        INFECTION_STREAM,
        {"covid19_ct_seg": 0.55, "medseg100": 0.3, "healthy": 0.15},
        12,
        None,
        1.5e-3,
        "a start for the streams",
        "0.3 h",
    ),
    _transferred(
        "all",
        {"medseg100": 0.5, "nsclc_plethora": 0.25, "covid19_ct_seg": 0.15, "healthy": 0.1},
        40,
        "infection_transferred",
        1e-3,
        "Dice 0.61 / 0.33 / 0.40",
        "0.7 h",
    ),
    _transferred("ground_glass", _LESIONS_AND_NEGATIVES, 5, "all_transferred", 2e-4, "Dice 0.62", "0.1 h"),
    _transferred("consolidation", _LESIONS_AND_NEGATIVES, 5, "all_transferred", 2e-4, "Dice 0.37", "0.1 h"),
    _transferred(
        "pleural_effusion",
        {"nsclc_plethora": 0.7, "medseg100": 0.15, "healthy": 0.15},
        5,
        "all_transferred",
        2e-4,
        "Dice 0.46",
        "0.1 h",
    ),
)

EXPERIMENTS: Final[Mapping[str, Experiment]] = MappingProxyType({run.name: run for run in _RUNS})
"""All runs; the order is one in which each finds what it starts from."""
