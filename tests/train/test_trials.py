from __future__ import annotations

import dataclasses

from train import ablation, paper_task2, paper_task3
from train.experiments import Experiment

pytest_plugins: list[str] = []


def test_every_trial_starts_from_one_before_it():
    for runs in (ablation.TRIALS, paper_task2.TRIALS, paper_task3.TRIALS):
        seen: set[str | None] = {None}
        for trial in runs:
            assert trial.run.init_from in seen
            assert trial.run.publishes is None
            seen.add(trial.run.name)
        assert len(seen) == len(runs) + 1


def test_an_arm_changes_one_thing():
    allowed = {"name", "init_from"}
    arms = {trial.run.name: trial.run for trial in ablation.TRIALS if trial.scored}
    changed = {
        name: {f.name for f in dataclasses.fields(Experiment) if getattr(run, f.name) != getattr(ablation.OURS, f.name)}
        for name, run in arms.items()
    }
    assert changed["ablation_ours"] == set()
    assert changed["ablation_cross_entropy_alone"] - allowed == {"dice_weight"}
    assert changed["ablation_from_nodules"] - allowed == set()
    assert changed["ablation_width_0.5"] - allowed == {"model"}
    assert changed["ablation_other_seed"] - allowed == {"seed"}
    assert changed["ablation_constant_rate"] - allowed == {"schedule"}


def test_protocols_differ_in_nothing_else():
    by_name = {t.run.name: t.run for t in paper_task3.TRIALS}
    for name, run in by_name.items():
        if run.protocol == "paper":
            twin = by_name[name.replace("_paper", "_patients")]
            start = run.init_from and run.init_from.replace("_paper", "_patients")
            assert dataclasses.replace(run, name=twin.name, protocol="patients", init_from=start) == twin
