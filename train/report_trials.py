"""The parts of `docs/results.md` on runs that only answer a question: the ablation, and the paper's Tasks 2 and 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serving.labels import MANIFESTATIONS
from train import paper
from train.markdown import METRIC_TITLES, interval, metric_cells, number, table
from train.scoring import OVERALL

Figures = Mapping[str, Any]
_PROTOCOLS: Final = {"paper": "the paper's", "patients": "by patient"}
_CHANCE_LOSS: Final = "3 ln 2 = 2.08, the cost of saying 0.5 where all three labels are known"


def ablation_section(trials: Mapping[str, Figures]) -> str:
    """Dice of each arm on the validation slices, and what it gains over our recipe.

    Args:
        trials: What `train.ablation` writes; the first that is scored is our recipe.
    """
    scored = {name: trial for name, trial in trials.items() if "figures" in trial}
    first = next(iter(scored))
    ours = _dice(scored[first])
    rows = []
    for name, trial in scored.items():
        dice = _dice(trial)
        mean, mean_of_ours = _mean(dice), _mean(ours)
        gain = None if mean is None or mean_of_ours is None else mean - mean_of_ours
        rows.append(
            [
                trial["asks"],
                *(number(dice[label.name]) for label in MANIFESTATIONS),
                number(mean),
                "" if name == first or gain is None else f"{gain:+.3f}",
                number(min(trial["validation_losses"])),
            ]
        )
    has_seed = any(trial["asks"].startswith("seed") for trial in scored.values())
    header = ["arm", *(label.title for label in MANIFESTATIONS), "mean", "against ours", "lowest validation loss"]
    steps, batch = scored[first]["steps"], scored[first]["batch_size"]
    slices = {scored[first]["figures"][label.name]["n_slices_with_it"] for label in MANIFESTATIONS}
    return "\n".join(
        [
            "## Ablation of stage 3\n",
            f"The all-class stream at a quarter of the scan's size, {steps} steps of {batch} (`train/ablation.py`), one"
            f" choice changed at a time, Dice on validation: {min(slices)} to {max(slices)} slices with each class, so"
            f" small differences are chance{'; the arm with another seed says how much' if has_seed else ''}."
            " Pre-training comes on top of these steps. Masks are the plain argmax, without the shift of the decision"
            " that the shipped streams have. Losses of different kinds do not compare.\n",
            table(header, rows),
        ]
    )


def _dice(trial: Figures) -> dict[str, float | None]:
    return {label.name: trial["figures"][label.name]["dice"] for label in MANIFESTATIONS}


def _mean(dice: Mapping[str, float | None]) -> float | None:
    values = [value for value in dice.values() if value is not None]
    return sum(values) / len(values) if values else None


def task2_section(trials: Mapping[str, Figures]) -> str:
    """The CNN by the paper's recipe and by a slower one, under both protocols.

    Args:
        trials: What `train.paper_task2` writes.
    """
    rows = []
    for trial in trials.values():
        overall = trial["figures"][OVERALL]
        losses = trial["validation_losses"]
        rows.append(
            [
                trial["asks"],
                _PROTOCOLS[trial["protocol"]],
                number(losses[0]),
                number(min(losses)),
                number(losses[-1]),
                *(number(trial["figures"][label.name]["auc"]) for label in MANIFESTATIONS),
                *metric_cells(overall),
            ]
        )
    rows.append(["paper, Table 5", "the paper's", *["n/a"] * 6, *metric_cells(paper.TABLE_5["overall"])])
    columns = [
        "run",
        "protocol",
        "validation loss, first epoch",
        "lowest",
        "last",
        *(f"AUC, {label.title}" for label in MANIFESTATIONS),
        *METRIC_TITLES.values(),
    ]
    return "\n".join(
        [
            "## The paper's Task 2, its own recipe\n",
            "Adam, 50 epochs, batches of 64 (`train/paper_task2.py`); mean metrics of the labels at 0.5, of the"
            f" weights with the lowest validation loss. Chance is a loss of {_CHANCE_LOSS}; most of our slices know"
            " one or two labels, so there it is lower. Under the paper's protocol validation and test hold copies of"
            " slices that were trained on.\n",
            table(columns, rows),
        ]
    )


def task3_section(trials: Mapping[str, Figures]) -> str:
    """All streams, small and short, under both protocols.

    Args:
        trials: What `train.paper_task3` writes.
    """
    rows = []
    for name in trials:
        trial = trials[name]
        if trial["protocol"] != "paper":
            continue
        twin = trials.get(name.replace("_paper", "_patients"))
        for label in MANIFESTATIONS:
            figures = trial["figures"].get(label.name)
            if figures is None:
                continue
            by_patient = (twin or {}).get("figures", {}).get(label.name)
            rows.append(
                [
                    trial["asks"],
                    label.title,
                    interval(figures["dice"], figures["dice_95"]),
                    "n/a" if by_patient is None else interval(by_patient["dice"], by_patient["dice_95"]),
                ]
            )
    return "\n".join(
        [
            "## The paper's Task 3 under both protocols\n",
            "The ablation's recipe with the paper's augmentation (`train/paper_task3.py`): small and short, so the"
            " figures are to be compared with each other and not with the weights that ship. Dice of held-out copies of"
            " slices that were trained on, and of patients that were not.\n",
            table(["stream", "class", "the paper's protocol", "by patient"], rows),
        ]
    )
