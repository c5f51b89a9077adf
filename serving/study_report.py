"""What the system says about a CT study: each slice, all of it in a few numbers, masks, and the burden.

The networks read slices. What is said of the study is a summary of theirs and not a network's answer:

- its **diagnosis** is the mean over the slices that show enough lung (`LUNG_SHARE`); slices through the neck or the
  liver are asked, too, and shown, but do not count;
- a **manifestation** is as likely as in the slice where it is likeliest, among those slices;
- a slice whose gate was closed counts as one in which nothing was marked;
- the **burden** is of the lungs in all slices, and of what was marked in those that count: below the lungs the streams
  mark what is none. The masks and the area fraction are of all slices, so that nothing at the edge of a lung is hidden;
- what is marked beside the body is in none of them, see `serving.lungs.within_body`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from serving.burden import Burden
from serving.errors import ServerMismatch
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.mask_stacks import MaskStack
from serving.results import STATUS_NAMES, CaseReport, StageStatus

LUNG_SHARE: Final = 0.2
"""A slice counts for the study's summary if its lungs have at least this part of the largest slice's."""


@dataclass(frozen=True)
class SliceReading:
    """What was said of one slice.

    Attributes:
        index: Which slice of the volume, from 0 at the feet.
        diagnosis: As `CaseReport.diagnosis`.
        manifestations: As `CaseReport.manifestations`; None where stage 2 did not run.
        status: As `CaseReport.status`.
        area_fraction: As `CaseReport.area_fraction`, of the slice's pixels.
        lung_px: Pixels of lung in it.
    """

    index: int
    diagnosis: Mapping[str, float]
    manifestations: Mapping[str, float | None]
    status: Mapping[str, StageStatus]
    area_fraction: Mapping[str, float | None]
    lung_px: int

    @classmethod
    def of(cls, index: int, report: CaseReport, lung_px: int) -> SliceReading:
        """What is kept of a slice's report once its masks are packed."""
        return cls(index, report.diagnosis, report.manifestations, report.status, report.area_fraction, lung_px)

    def to_json(self) -> dict[str, object]:
        """What `json.dumps` takes."""
        return {
            "index": self.index,
            "diagnosis": dict(self.diagnosis),
            "manifestations": dict(self.manifestations),
            "status": dict(self.status),
            "area_fraction": dict(self.area_fraction),
            "lung_px": self.lung_px,
        }


def those_that_count(slices: Sequence[SliceReading]) -> tuple[SliceReading, ...]:
    """The slices with at least `LUNG_SHARE` of the most lung that one has; all of them where no lung was found."""
    most = max((one.lung_px for one in slices), default=0)
    enough = tuple(one for one in slices if most and one.lung_px >= LUNG_SHARE * most)
    return enough or tuple(slices)


@dataclass(frozen=True, eq=False)
class StudyReport:
    """What the system says about a CT study.

    Attributes:
        shape: Slices, rows, columns of the volume.
        spacing_mm: As `serving.volumes.Volume.spacing_mm`.
        problems: What whoever reads the study should know of it, in words that name nobody.
        slices: Of those that were read, in their order: all of them, unless the reading was stopped.
        masks: By stream, in axial order, at the slices' own size; None where the stream ran on no slice.
        burden: Of what was read; see above.
        thresholds: What the gates were asked to open at.
        models: Version of each model that was asked.
        latency_ms: From the first slice's leaving to the last answer's being there.
        request_id: As `CaseReport.request_id`: one for the study, which each of its slices bears.
        doubts: Why it may be no study of the chest, as sentences for a reader; empty when it is one. Not the doubts of
            its slices: those above and below the lungs belong to a study.

    Raises:
        ServerMismatch: If there is no slice, or names do not fit.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float] | None
    problems: tuple[str, ...]
    slices: tuple[SliceReading, ...]
    masks: Mapping[str, MaskStack | None]
    burden: Burden
    thresholds: Mapping[str, float]
    models: Mapping[str, str]
    latency_ms: float
    request_id: str = ""
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.slices:
            raise ServerMismatch("expected a study with a slice that was read, got none")
        if set(self.masks) != set(STREAM_NAMES):
            raise ServerMismatch(f"masks: expected {', '.join(STREAM_NAMES)}, got {', '.join(self.masks) or 'none'}")

    @property
    def complete(self) -> bool:
        """Whether every slice was read."""
        return len(self.slices) == self.shape[0]

    @property
    def counted(self) -> tuple[SliceReading, ...]:
        """The slices that the summary is of, see `those_that_count`."""
        return those_that_count(self.slices)

    @property
    def diagnosis(self) -> dict[str, float]:
        """The mean probability of each diagnosis, in `[0, 1]`, over `counted`."""
        return {name: float(np.mean([one.diagnosis[name] for one in self.counted])) for name in DIAGNOSIS_NAMES}

    @property
    def manifestations(self) -> dict[str, float | None]:
        """The highest probability of each manifestation over `counted`; None if stage 2 ran on none of them."""
        return {name: None if (top := self.likeliest(name)) is None else top[1] for name in MANIFESTATION_NAMES}

    def likeliest(self, manifestation: str) -> tuple[int, float] | None:
        """The slice of `counted` in which a manifestation is likeliest and its probability there."""
        found = [(p, -one.index) for one in self.counted if (p := one.manifestations[manifestation]) is not None]
        if not found:
            return None
        p, negative = max(found)
        return -negative, p

    @property
    def status(self) -> dict[str, StageStatus]:
        """Of stage 2 and of each stream: ``ran`` if it ran on any slice that was read."""
        ran = {name for one in self.slices for name, status in one.status.items() if status == "ran"}
        return {name: "ran" if name in ran else "not_run" for name in STATUS_NAMES}

    @property
    def area_fraction(self) -> dict[str, float | None]:
        """By stream, the marked part of all voxels that were read; None where it ran on no slice."""
        return {stream: None if mask is None else self._marked(stream) for stream, mask in self.masks.items()}

    def _marked(self, stream: str) -> float:
        return sum(one.area_fraction[stream] or 0.0 for one in self.slices) / len(self.slices)

    def to_json(self) -> dict[str, object]:
        """Everything but the masks, as what `json.dumps` takes."""
        return {
            "modality": "ct",
            "diagnosis": self.diagnosis,
            "manifestations": self.manifestations,
            "area_fraction": self.area_fraction,
            "status": self.status,
            "thresholds": dict(self.thresholds),
            "models": dict(self.models),
            "latency_ms": self.latency_ms,
            "request_id": self.request_id,
            "shape": list(self.shape),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "doubts": list(self.doubts),
            "problems": list(self.problems),
            "complete": self.complete,
            "slices_counted": [one.index for one in self.counted],
            "burden": self.burden.to_json(),
            "slices": [one.to_json() for one in self.slices],
        }
