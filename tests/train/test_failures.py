from __future__ import annotations

import numpy as np
import pytest

from train.batches import Arrays
from train.data import UNKNOWN, Example
from train.failures import failures_markdown, worst_diagnoses, worst_manifestations, worst_masks
from train.targets import Code


def _example(i: int, target: tuple[float, ...] = (), **others: object) -> Example:
    return Example(f"scan{i}", "ct", f"g{i}", "source", "test", target, **others)  # type: ignore[arg-type]


def test_wrong_diagnoses_come_the_surest_first() -> None:
    examples = [_example(i, t) for i, t in enumerate([(1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 1, 1), (0, 0, 1, 0)])]
    answers = np.array([[0.3, 0.7, 0, 0], [0.1, 0.9, 0, 0], [0.8, 0.2, 0, 0], [0, 0, 0.6, 0.4]])
    cases = worst_diagnoses(examples, answers)
    assert [case["scan"] for case in cases] == ["scan2", "scan0"]
    assert cases[0]["truth"] == "Normal or Viral pneumonia or Bacterial pneumonia"
    assert (cases[0]["answer"], cases[0]["score"]) == ("COVID-19", 0.8)
    assert worst_diagnoses(examples, answers, n=1) == cases[:1]


def test_a_label_that_nobody_annotated_is_no_failure() -> None:
    examples = [_example(0, (1, 0, UNKNOWN)), _example(1, (0, 0, 0))]
    answers = np.array([[0.2, 0.1, 0.99], [0.1, 0.6, 0.1]])
    cases = worst_manifestations(examples, answers)
    assert [(c["scan"], c["truth"], c["answer"], c["score"]) for c in cases] == [
        ("scan0", "Ground-glass opacity", "no ground-glass opacity", 0.8),
        ("scan1", "no consolidation", "Consolidation", 0.6),
    ]


def test_masks_come_the_lowest_dice_first_and_only_where_the_class_is() -> None:
    codes = np.full((3, 10, 10), Code.MEDSEG_BACKGROUND, np.uint8)
    codes[:2, :2] = Code.GROUND_GLASS
    masks = np.zeros_like(codes)
    masks[0, :1] = 1
    masks[2] = 1
    marks = ((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS))
    arrays = Arrays([_example(i, codes=marks) for i in range(3)], codes, codes)
    cases = worst_masks(arrays, masks, "ground_glass")
    assert [case["scan"] for case in cases] == ["scan1", "scan0"]
    assert [case["score"] for case in cases] == pytest.approx([0, 0.6667])
    assert cases[1]["truth"] == "Ground-glass opacity, 20.00 % of the slice"
    assert cases[1]["answer"] == "10.00 % of the slice"


def test_the_section_describes_each_case_and_says_where_there_is_none() -> None:
    cases = worst_diagnoses([_example(0, (1, 0, 0, 0))], np.array([[0.25, 0.75, 0, 0]]))
    page = failures_markdown({"recognition": cases, "manifestations": []})
    assert "| scan0 | source | ct | COVID-19 | Normal | 0.750 |" in page
    assert "### manifestations\n\nNone.\n" in page
