"""What the system can say: diagnoses, manifestations and streams, in the order of every tensor.

The order of these tuples is the order of the last axis of the tensors of the same name, on the wire
and in training. Changing it changes the meaning of every published model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

Modality = Literal["ct", "xray"]
"""What kind of scan a case is. A request may also say ``auto``; a `Scan` never does."""

RequestedModality = Literal["auto", "ct", "xray"]

MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
REQUESTED_MODALITIES: Final[tuple[RequestedModality, ...]] = get_args(RequestedModality)


@dataclass(frozen=True)
class Label:
    """One thing that a stage can say.

    Attributes:
        name: Its key in JSON, on the wire and in file names.
        title: Its name for people.
        colour_rgb: Its colour in masks and overlays, three values in `[0, 255]`.
    """

    name: str
    title: str
    colour_rgb: tuple[int, int, int]


DIAGNOSES: Final[tuple[Label, ...]] = (
    Label("covid19", "COVID-19", (214, 69, 65)),
    Label("normal", "Normal", (46, 139, 87)),
    Label("viral_pneumonia", "Viral pneumonia", (230, 145, 56)),
    Label("bacterial_pneumonia", "Bacterial pneumonia", (111, 87, 176)),
)
"""The four classes of stage 1 (paper, Task 1)."""

# Okabe-Ito hues: told apart by people who do not see red and green apart.
MANIFESTATIONS: Final[tuple[Label, ...]] = (
    Label("ground_glass", "Ground-glass opacity", (240, 228, 66)),
    Label("consolidation", "Consolidation", (213, 94, 0)),
    Label("pleural_effusion", "Pleural effusion", (0, 158, 115)),
)
"""The three labels of stage 2. Class id of manifestation `i` in a class mask is `i + 1`; 0 is background."""

ALL_STREAM: Final = Label("all", "All manifestations", (86, 180, 233))

STREAMS: Final[tuple[Label, ...]] = (ALL_STREAM, *MANIFESTATIONS)
"""The four streams of stage 3: one DeepLab for all manifestations, and one for each."""

BACKGROUND_CLASS: Final = 0

DIAGNOSIS_NAMES: Final = tuple(label.name for label in DIAGNOSES)
MANIFESTATION_NAMES: Final = tuple(label.name for label in MANIFESTATIONS)
STREAM_NAMES: Final = tuple(label.name for label in STREAMS)
