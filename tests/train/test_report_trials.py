from __future__ import annotations

import copy

from serving.labels import MANIFESTATION_NAMES
from train.ablation import OURS, TRIALS
from train.report_trials import ablation_section, task2_section, task3_section


def _trial(dice: float, *, asks: str = "our recipe", protocol: str = "patients") -> dict[str, object]:
    figures = {
        name: {"dice": dice, "dice_95": [dice - 0.1, dice + 0.1], "n_slices_with_it": 6} for name in MANIFESTATION_NAMES
    }
    return {
        "asks": asks,
        "protocol": protocol,
        "steps": 400,
        "batch_size": 8,
        "validation_losses": [1.5, 0.5, 0.7],
        "figures": figures,
    }


def _row(section: str, start: str) -> list[str]:
    line = next(line for line in section.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_an_arm_stands_with_what_it_gains_over_ours():
    unscored = {key: value for key, value in _trial(0.9, asks="pre-training").items() if key != "figures"}
    trials = {OURS.name: _trial(0.3), "other": _trial(0.25, asks="loss: another"), "pre": unscored}
    section = ablation_section(trials)
    assert _row(section, "our recipe") == ["our recipe", "0.300", "0.300", "0.300", "0.300", "", "0.500"]
    assert _row(section, "loss: another")[-2:] == ["-0.050", "0.500"]
    assert "pre-training" not in section
    assert "400 steps of 8" in section


def test_our_recipe_is_the_first_arm():
    assert TRIALS[0].run == OURS


def test_a_class_without_slices_is_left_out_of_the_mean():
    trial = _trial(0.3)
    trial["figures"]["consolidation"]["dice"] = None
    row = _row(ablation_section({OURS.name: trial}), "our recipe")
    assert row.count("n/a") == 1
    assert row[4] == "0.300"


def test_both_protocols_of_task_3_stand_side_by_side():
    trials = {
        "task3_all_patients": _trial(0.3, asks="all-class stream"),
        "task3_all_paper": _trial(0.8, asks="all-class stream", protocol="paper"),
    }
    row = _row(task3_section(trials), "all-class stream")
    assert row[2:] == ["0.800 [0.700, 0.900]", "0.300 [0.200, 0.400]"]
    alone = copy.deepcopy(trials)
    del alone["task3_all_patients"]
    assert _row(task3_section(alone), "all-class stream")[-1] == "n/a"


def test_task_2_shows_whether_the_loss_went_down():
    trial = _trial(0.0, asks="the paper's recipe", protocol="paper")
    trial["figures"] = {
        **{name: {"auc": 0.75} for name in MANIFESTATION_NAMES},
        "overall": {"accuracy": 0.6, "sensitivity": 0.5},
    }
    row = _row(task2_section({"task2_paper": trial}), "the paper's recipe")
    assert row[1:8] == ["the paper's", "1.500", "0.500", "0.700", "0.750", "0.750", "0.750"]
    assert row[8:10] == ["0.600", "0.500"]
    assert "paper, Table 5" in task2_section({"task2_paper": trial})
