"""The paper's published figures as data: El-bana, Al-Kabbany and Sharkas, PeerJ Computer Science 6:e303 (2020).

Percentages are shares in `[0, 1]` here. Where a table and the text disagree, the table counts. A figure that the paper
does not give is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

Row = Mapping[str, float]
"""Figures by name; names as in `train.metrics`."""


def _row(**figures: float) -> Row:
    return MappingProxyType(figures)


def _percent(**figures: float) -> Row:
    # 98.59 / 100 is 0.9859000000000001 in floats.
    return MappingProxyType({name: round(value / 100, 6) for name, value in figures.items()})


RECIPE_TITLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "task1_4_xray": "4 classes, X-ray",
        "task1_2_xray": "2 classes, X-ray",
        "task1_2_both": "2 classes, CT and X-ray",
    }
)
"""The runs of Task 1, by their names in `train.paper_task1`."""

TABLE_2: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "task1_4_xray": _row(
            train_accuracy=0.9859,
            validation_accuracy=0.9771,
            test_accuracy=0.981,
            train_cross_entropy=0.07687,
            validation_cross_entropy=0.09425,
        ),
        "task1_2_xray": _row(
            train_accuracy=0.9984,
            validation_accuracy=0.9908,
            test_accuracy=0.994,
            train_cross_entropy=0.01626,
            validation_cross_entropy=0.03283,
        ),
    }
)
"""The text gives 99.9 % and 98.84 % as training accuracy where the table has 98.59 % and 99.84 %."""

TABLE_3: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "task1_4_xray": _percent(
            accuracy=98.1, sensitivity=98.02, specificity=98.03, precision=98.2, f1=98.2, false_positive_rate=2
        ),
        "task1_2_xray": _percent(
            accuracy=99.4,
            sensitivity=99.5,
            specificity=99.1,
            precision=99.1,
            f1=99.3,
            false_positive_rate=0.9,
            mcc=98.7,
        ),
        "task1_2_both": _percent(
            accuracy=99.5,
            sensitivity=99.8,
            specificity=98.2,
            precision=99.2,
            f1=99.5,
            false_positive_rate=0.81,
            mcc=99.0,
        ),
    }
)
"""The paper's own rows. Its specificity for CT and X-ray is 98.2 % here and 99.2 % in Table 4."""


def _run(
    accuracy: float, sensitivity: float, specificity: float, precision: float, f1: float, fpr: float, mcc: float
) -> Row:
    return _percent(
        accuracy=accuracy,
        sensitivity=sensitivity,
        specificity=specificity,
        precision=precision,
        f1=f1,
        false_positive_rate=fpr,
        mcc=mcc,
    )


TABLE_4: Final[tuple[Row, ...]] = (
    _run(99.7, 100, 99.4, 99.5, 99.7, 0.57, 99.4),
    _run(99.7, 100, 99.4, 99.5, 99.7, 0.56, 99.5),
    _run(99.4, 100, 98.9, 98.9, 99.4, 1.14, 98.9),
    _run(99.7, 100, 99.4, 99.4, 99.7, 0.64, 99.4),
    _run(99.1, 99.4, 98.9, 98.8, 99.1, 1.16, 98.2),
)
TABLE_4_RECIPE: Final = "task1_2_both"
TABLE_4_MEAN: Final[Row] = _run(99.5, 99.8, 99.2, 99.2, 99.5, 0.81, 99.0)

TABLE_5: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "pleural_effusion": _percent(accuracy=91.31, precision=83, sensitivity=90, f1=86),
        "ground_glass": _percent(accuracy=89.46, precision=91, sensitivity=80, f1=85),
        "consolidation": _percent(accuracy=93.72, precision=88, sensitivity=93, f1=90),
        "overall": _percent(accuracy=87.2, precision=87.3, sensitivity=87.6, f1=87),
    }
)

TABLE_6: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "all_class": _percent(dice=86.04, iou=75.5),
        "pleural_effusion": _percent(dice=91.34, iou=84.06),
        "ground_glass": _percent(dice=90.2, iou=82.15),
        "consolidation": _percent(dice=91.5, iou=84.46),
        "specialised": _percent(dice=91.01, iou=83.5),
    }
)

_INF_NET: Final = "Fan et al. 2020"
TABLE_7: Final[Mapping[str, Mapping[str, Row]]] = MappingProxyType(
    {
        "ground_glass": MappingProxyType(
            {
                f"DeepLabV3+, stride 8 ({_INF_NET})": _row(dice=0.375, iou=0.230),
                f"DeepLabV3+, stride 16 ({_INF_NET})": _row(dice=0.443, iou=0.284),
                f"FCN8s ({_INF_NET})": _row(dice=0.471, iou=0.308),
                f"Semi-Inf-Net and FCN8s ({_INF_NET})": _row(dice=0.646, iou=0.477),
                "the paper": _row(dice=0.902, iou=0.8215),
            }
        ),
        "consolidation": MappingProxyType(
            {
                f"DeepLabV3+, stride 8 ({_INF_NET})": _row(dice=0.117, iou=0.062),
                f"DeepLabV3+, stride 16 ({_INF_NET})": _row(dice=0.188, iou=0.103),
                f"FCN8s ({_INF_NET})": _row(dice=0.221, iou=0.124),
                f"Semi-Inf-Net and FCN8s ({_INF_NET})": _row(dice=0.238, iou=0.135),
                "the paper": _row(dice=0.915, iou=0.8446),
            }
        ),
    }
)
INF_NET_SOURCE: Final = "medseg100"
"""`Example.source` of the slices that Inf-Net was tested on."""
INF_NET_TEST_SLICES: Final = 48

TABLE_8: Final[Mapping[str, Row]] = MappingProxyType(
    {
        "U-Net + DL (Zhou et al. 2020)": _percent(dice=61.0, iou=43.88),
        "U-Net + FTL (Zhou et al. 2020)": _percent(dice=66.7, iou=50.15),
        "U-Net 512x512 (Amyar et al. 2020)": _percent(dice=67.14, iou=50.53),
        "AU-Net + DL (Zhou et al. 2020)": _percent(dice=68.5, iou=52.09),
        "U-Net 256x256 (Amyar et al. 2020)": _percent(dice=69.09, iou=52.77),
        "AU-Net + FTL (Zhou et al. 2020)": _percent(dice=69.1, iou=52.78),
        "Backbone + PPD + RA + EA (Fan et al. 2020)": _percent(dice=73.9, iou=58.6),
        "JCS (Wu et al. 2020)": _percent(dice=77.5, iou=65.2),
        "JCS' (Wu et al. 2020)": _percent(dice=78.3, iou=66.5),
        "Amine (Amyar et al. 2020)": _percent(dice=78.52, iou=64.6),
        "U-Net (Chen et al. 2020)": _percent(dice=82, iou=69.49),
        "M-A (Chen et al. 2020)": _percent(dice=85, iou=73.91),
        "M-R (Chen et al. 2020)": _percent(dice=84, iou=72.41),
        "the paper": _percent(dice=86.04, iou=75.5),
    }
)

TABLE_9: Final[Mapping[str, str]] = MappingProxyType(
    {"Won et al. 2018": "4 h", "Huang et al. 2020": "21.5 min", "Wu et al. 2020": "19 s", "the paper": "5.33 s"}
)
"""Average time for a case."""


@dataclass(frozen=True)
class HyperParameters:
    """A row of Table 10. None is a dash there.

    Attributes:
        length: Steps or epochs.
        learning_rate: Constant, as far as the paper says.
        optimizer: Its name.
        momentum: Of the optimiser.
        dropout: Of the dense layers.
        weight_decay: Factor.
        batch_size: Scans a step.
    """

    length: str
    learning_rate: float
    optimizer: str
    momentum: float | None
    dropout: float | None
    weight_decay: float | None
    batch_size: int


TABLE_10: Final[tuple[HyperParameters, ...]] = (
    HyperParameters("2,800 steps", 0.01, "gradient descent", None, None, None, 100),
    HyperParameters("50 epochs", 0.01, "Adam", None, 0.5, None, 64),
    HyperParameters("50,000 steps", 0.0001, "SGD", 0.9, None, 0.00004, 8),
)
"""Of Tasks 1 to 3."""
COPIES: Final = 34
"""Augmented copies of a training scan."""
TEST_SHARE: Final = 955 / (9618 + 955)
"""Of the bag of scans and copies of Task 1."""
TEST_COPIES: Final = 51
"""Augmented copies of each validation and test sample ("Preprocessing and data augmentation")."""
