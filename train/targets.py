"""What the annotations of each dataset say about each class, as tables for `train.losses`.

A mask on disk is turned into *codes*: what was drawn, and by whom. What a code means depends on the stream that is
trained; `admissible_table` says it. "Background" of one dataset is not background of another: in medseg slices
effusion was put to background by the source, and in the effusion slices nobody marked ground-glass.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum

import numpy as np
from jaxtyping import Bool, Float32

from serving.labels import ALL_STREAM, DIAGNOSIS_NAMES, MANIFESTATION_NAMES

UNLABELLED_WEIGHT = 0.1
"""Weight of a class that was not annotated, where background was drawn. Above 0, since it may be there; below 1,
since nothing else would keep the network from calling every such pixel that class."""

NODULE_STREAM = "nodule"
INFECTION_STREAM = "infection"


class Code(IntEnum):
    """What an annotator drew."""

    MEDSEG_BACKGROUND = 0
    GROUND_GLASS = 1
    CONSOLIDATION = 2
    PLEURAL_EFFUSION = 3
    EFFUSION_BACKGROUND = 4
    INFECTION = 5
    INFECTION_BACKGROUND = 6
    NODULE = 7
    NODULE_BACKGROUND = 8
    HEALTHY = 9
    OUTSIDE = 10
    ANNOTATED_BACKGROUND = 11
    """Neither of the three manifestations, where all three were looked for."""


def admissible(names: Collection[str]) -> tuple[float, ...]:
    """A target that leaves these diagnoses open and rules the others out, as `train.losses` takes it."""
    return tuple(float(name in names) for name in DIAGNOSIS_NAMES)


def class_names(stream: str) -> tuple[str, ...]:
    """Classes of a stream's network, background first."""
    if stream == ALL_STREAM.name:
        return ("background", *MANIFESTATION_NAMES)
    return ("background", stream)


_NEGATIVE = (1.0, 0.0)
_POSITIVE = (0.0, 1.0)

_ALL: dict[Code, tuple[float, ...]] = {
    Code.MEDSEG_BACKGROUND: (1, 0, 0, UNLABELLED_WEIGHT),
    Code.GROUND_GLASS: (0, 1, 0, 0),
    Code.CONSOLIDATION: (0, 0, 1, 0),
    Code.PLEURAL_EFFUSION: (0, 0, 0, 1),
    Code.EFFUSION_BACKGROUND: (1, UNLABELLED_WEIGHT, UNLABELLED_WEIGHT, 0),
    Code.INFECTION: (0, 1, 1, 0),
    Code.INFECTION_BACKGROUND: (1, 0, 0, UNLABELLED_WEIGHT),
    Code.HEALTHY: (1, 0, 0, 0),
    Code.ANNOTATED_BACKGROUND: (1, 0, 0, 0),
}

_BINARY: dict[str, dict[Code, tuple[float, ...]]] = {
    "ground_glass": {
        Code.MEDSEG_BACKGROUND: _NEGATIVE,
        Code.GROUND_GLASS: _POSITIVE,
        Code.CONSOLIDATION: _NEGATIVE,
        Code.PLEURAL_EFFUSION: _NEGATIVE,
        Code.INFECTION_BACKGROUND: _NEGATIVE,
        Code.HEALTHY: _NEGATIVE,
        Code.ANNOTATED_BACKGROUND: _NEGATIVE,
    },
    "consolidation": {
        Code.MEDSEG_BACKGROUND: _NEGATIVE,
        Code.GROUND_GLASS: _NEGATIVE,
        Code.CONSOLIDATION: _POSITIVE,
        Code.PLEURAL_EFFUSION: _NEGATIVE,
        Code.INFECTION_BACKGROUND: _NEGATIVE,
        Code.HEALTHY: _NEGATIVE,
        Code.ANNOTATED_BACKGROUND: _NEGATIVE,
    },
    "pleural_effusion": {
        Code.GROUND_GLASS: _NEGATIVE,
        Code.CONSOLIDATION: _NEGATIVE,
        Code.PLEURAL_EFFUSION: _POSITIVE,
        Code.EFFUSION_BACKGROUND: _NEGATIVE,
        Code.HEALTHY: _NEGATIVE,
        Code.ANNOTATED_BACKGROUND: _NEGATIVE,
    },
    INFECTION_STREAM: {
        Code.INFECTION: _POSITIVE,
        Code.INFECTION_BACKGROUND: _NEGATIVE,
        Code.MEDSEG_BACKGROUND: _NEGATIVE,
        Code.GROUND_GLASS: _POSITIVE,
        Code.CONSOLIDATION: _POSITIVE,
        Code.HEALTHY: _NEGATIVE,
        Code.ANNOTATED_BACKGROUND: _NEGATIVE,
    },
    NODULE_STREAM: {Code.NODULE: _POSITIVE, Code.NODULE_BACKGROUND: _NEGATIVE},
}


def admissible_table(stream: str) -> Float32[np.ndarray, "codes classes"]:
    """Admissible weight of each class of a stream, for every code. Codes it knows nothing of are ignored.

    Raises:
        KeyError: If the stream is unknown.
    """
    meaning = _ALL if stream == ALL_STREAM.name else _BINARY[stream]
    n_classes = len(class_names(stream))
    unknown = (1.0,) * n_classes
    return np.array([meaning.get(code, unknown) for code in Code], dtype=np.float32)


def certain_and_known(
    table: Float32[np.ndarray, "codes classes"],
) -> tuple[Bool[np.ndarray, "codes classes"], Bool[np.ndarray, "codes classes"]]:
    """Which codes are certainly a class, and which say for certain whether they are it or not.

    Args:
        table: From `admissible_table`.
    """
    certain = (table == 1) & (table.sum(axis=1, keepdims=True) == 1)
    return certain, certain | (table == 0)
