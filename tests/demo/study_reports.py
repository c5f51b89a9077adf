"""Reports of studies that nobody read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from serving.burden import Tally
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.mask_stacks import MaskStack
from serving.pipeline import THRESHOLDS
from serving.results import STATUS_NAMES
from serving.study_report import SliceReading, StudyReport


def reading(
    index: int, covid19: float, *, lung_px: int = 1000, findings: Sequence[float] | None = (0.9, 0.2, 0.1)
) -> SliceReading:
    ran = "not_run" if findings is None else "ran"
    return SliceReading(
        index=index,
        diagnosis={
            "covid19": covid19,
            "normal": 1 - covid19,
            "viral_pneumonia": 0.0,
            "bacterial_pneumonia": 0.0,
        },
        manifestations=dict(zip(MANIFESTATION_NAMES, findings or (None,) * 3, strict=True)),
        status=dict.fromkeys(STATUS_NAMES, ran),  # type: ignore[arg-type]
        area_fraction=dict.fromkeys(STREAM_NAMES, 0.1 if findings else None),
        lung_px=lung_px,
    )


def report_of(
    slices: Sequence[SliceReading],
    count: int | None = None,
    problems: tuple[str, ...] = (),
    masks: Mapping[str, MaskStack | None] | None = None,
) -> StudyReport:
    """A report of 64 x 64 slices: in each the lungs are 8 x 16 mm of which the right half is ground glass."""
    tally = Tally()
    lungs = np.zeros((64, 64), np.uint8)
    lungs[:8, :8], lungs[:8, 8:16] = 1, 2
    found = {name: (lungs == 1 if name == "ground_glass" else lungs > 2) for name in MANIFESTATION_NAMES}
    for _ in slices:
        tally.add(lungs, found, np.full((1, 1), 0.5))
    shape = count or len(slices), 64, 64
    marked = MaskStack(shape)
    marked.put(0, np.ones((64, 64), np.uint8))
    return StudyReport(
        shape=shape,
        spacing_mm=(5.0, 10.0, 10.0),
        problems=problems,
        slices=tuple(slices),
        masks=masks or dict.fromkeys(STREAM_NAMES, marked),
        burden=tally.burden(),
        thresholds=THRESHOLDS,
        models={"recognition": "3"},
        latency_ms=1500.0,
    )
