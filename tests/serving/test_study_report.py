from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from serving import pipeline
from serving.burden import Tally
from serving.errors import ServerMismatch
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.mask_stacks import MaskStack
from serving.results import STATUS_NAMES
from serving.study_report import SliceReading, StudyReport


def reading(
    index: int, lung_px: int, covid: float = 0.25, findings: Mapping[str, float | None] | None = None
) -> SliceReading:
    ran = findings is not None
    rest = (1 - covid) / 3
    return SliceReading(
        index=index,
        diagnosis={name: covid if name == "covid19" else rest for name in DIAGNOSIS_NAMES},
        manifestations=dict(findings) if findings is not None else dict.fromkeys(MANIFESTATION_NAMES),
        status={name: "ran" if ran else "not_run" for name in STATUS_NAMES},
        area_fraction=dict.fromkeys(STREAM_NAMES, 0.5 if ran else None),
        lung_px=lung_px,
    )


def found(ground_glass: float = 0.1, consolidation: float = 0.1, effusion: float = 0.1) -> dict[str, float | None]:
    return dict(zip(MANIFESTATION_NAMES, (ground_glass, consolidation, effusion), strict=True))


def report(*slices: SliceReading, n: int = 5, **changed: Any) -> StudyReport:
    ran = any(one.status["all"] == "ran" for one in slices)
    given: dict[str, Any] = {
        "shape": (n, 60, 70),
        "spacing_mm": (5.0, 0.7, 0.7),
        "problems": ("a gap",),
        "slices": slices,
        "masks": {name: MaskStack((n, 60, 70)) if ran else None for name in STREAM_NAMES},
        "burden": Tally().burden(),
        "thresholds": dict(pipeline.THRESHOLDS),
        "models": {"recognition": "3"},
        "latency_ms": 12.5,
    }
    return StudyReport(**given | changed)


def test_slices_with_little_lung_are_shown_and_do_not_count() -> None:
    study = report(
        reading(0, 199, covid=0.97, findings=found(ground_glass=0.9)),
        reading(1, 200, covid=0.4, findings=found(ground_glass=0.3)),
        reading(2, 1000, covid=0.7, findings=found(consolidation=0.6)),
        reading(3, 0, covid=0.91, findings=found(effusion=0.99)),
        reading(4, 500, covid=0.4, findings=found()),
    )
    assert [one.index for one in study.counted] == [1, 2, 4]
    assert study.diagnosis["covid19"] == pytest.approx(0.5)
    assert sum(study.diagnosis.values()) == pytest.approx(1)
    assert study.manifestations == {"ground_glass": 0.3, "consolidation": 0.6, "pleural_effusion": 0.1}
    assert study.likeliest("consolidation") == (2, 0.6)


def test_without_any_lung_every_slice_counts() -> None:
    study = report(reading(0, 0, covid=0.2), reading(1, 0, covid=0.4))
    assert len(study.counted) == 2
    assert study.diagnosis["covid19"] == pytest.approx(0.3)


def test_of_equal_slices_the_first_is_the_likeliest() -> None:
    assert report(*(reading(i, 10, findings=found(0.4)) for i in range(3))).likeliest("ground_glass") == (0, 0.4)


def test_closed_gates_are_not_run_and_count_as_nothing_marked_beside_open_ones() -> None:
    closed = report(reading(0, 10), reading(1, 10))
    assert set(closed.manifestations.values()) == {None}
    assert closed.likeliest("ground_glass") is None
    assert set(closed.area_fraction.values()) == {None}
    assert set(closed.status.values()) == {"not_run"}
    mixed = report(reading(0, 10), reading(1, 10, findings=found(0.4)))
    assert mixed.manifestations["ground_glass"] == 0.4
    assert mixed.likeliest("ground_glass") == (1, 0.4)
    assert mixed.area_fraction["all"] == 0.25
    assert set(mixed.status.values()) == {"ran"}


def test_a_study_is_complete_when_every_slice_was_read() -> None:
    assert not report(*(reading(i, 10) for i in range(4))).complete
    assert report(*(reading(i, 10) for i in range(5))).complete


def test_it_is_json_without_masks() -> None:
    study = report(reading(0, 10, findings=found()), reading(1, 1), spacing_mm=None)
    data = json.loads(json.dumps(study.to_json(), allow_nan=False))
    assert data["modality"] == "ct"
    assert data["shape"] == [5, 60, 70]
    assert data["spacing_mm"] is None
    assert data["problems"] == ["a gap"]
    assert data["doubts"] == []
    assert report(reading(0, 10), doubts=("Why.",)).to_json()["doubts"] == ["Why."]
    assert data["complete"] is False
    assert data["slices_counted"] == [0]
    assert data["status"]["manifestations"] == "ran"
    assert [one["index"] for one in data["slices"]] == [0, 1]
    assert data["slices"][1]["manifestations"] == dict.fromkeys(MANIFESTATION_NAMES)
    assert set(data["burden"]) == {"lung", "found"}
    assert "masks" not in data


def test_what_says_nothing_of_any_slice_or_lacks_a_stream_is_refused() -> None:
    with pytest.raises(ServerMismatch, match="expected a study with a slice that was read, got none"):
        report()
    with pytest.raises(ServerMismatch, match=r"masks: expected all, .*, got none"):
        report(reading(0, 1), masks={})
