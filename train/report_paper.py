"""The part of `docs/results.md` that sets the paper's tables beside ours. The paper's are in `train.paper`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.labels import MANIFESTATIONS, STREAM_NAMES
from serving.pipeline import MANIFESTATION_STEP, RECOGNITION, segmentation_model
from train import paper
from train.experiments import EXPERIMENTS, Experiment
from train.fit import optimizer_of
from train.manifestation_cnn import DENSE_DROPOUT, ManifestationCnnConfig
from train.markdown import METRIC_TITLES, metric_cells, number, table
from train.paper_task1 import RECIPES
from train.provenance import Provenance
from train.report_streams import table_6, table_7, table_8
from train.streams import STREAMS_COMPARED

Figures = Mapping[str, Any]
_TITLES = {label.name: label.title for label in MANIFESTATIONS}
_PROTOCOLS = (("paper", "ours, paper's protocol"), ("patients", "ours, patient-level"))

_HEAD = """## Beside the paper

Table by table: the paper | ours under the paper's protocol | ours on patients (or groups) that were not trained on.
The paper splits at random after augmentation, so copies of one scan are on both sides; its figures and ours by patient
are not figures of the same thing. *n/a*: the paper gives none, or we have no run of that kind.
"""


def paper_sections(
    results: Mapping[str, Figures], provenances: Mapping[str, Provenance], task1: Mapping[str, Figures] | None
) -> list[str]:
    """Tables 2 to 10.

    Args:
        results: Figures by model, and `STREAMS_COMPARED`.
        provenances: Of the same models.
        task1: What `train.paper_task1` gives, or None if it was not run.
    """
    return [
        _HEAD,
        _table_2(task1 or {}),
        _table_3(task1 or {}, results[RECOGNITION.model]),
        _table_4(task1 or {}),
        _note_on_task1(task1),
        _table_5(results[MANIFESTATION_STEP.model]),
        table_6(results[STREAMS_COMPARED]),
        table_7(results),
        table_8(results[STREAMS_COMPARED]),
        _table_9(),
        _table_10(provenances),
    ]


def _table_2(task1: Mapping[str, Figures]) -> str:
    columns = {
        "train_accuracy": "training accuracy",
        "validation_accuracy": "validation accuracy",
        "test_accuracy": "test accuracy",
        "train_cross_entropy": "training cross-entropy",
        "validation_cross_entropy": "validation cross-entropy",
    }
    rows = []
    for name, published in paper.TABLE_2.items():
        title = paper.RECIPE_TITLES[name]
        rows.append([title, "paper", *(number(published.get(key)) for key in columns)])
        for protocol, ours in _PROTOCOLS:
            figures = {**task1.get(name, {}).get(protocol, {})}
            figures["test_accuracy"] = figures.get("accuracy")
            rows.append([title, ours, *(number(figures.get(key)) for key in columns)])
    return "### Table 2: Task 1, accuracy and cross-entropy\n\n" + table(["run", "", *columns.values()], rows)


def _table_3(task1: Mapping[str, Figures], recognition: Figures) -> str:
    shipped = {
        "task1_4_xray": recognition["xray"]["four_classes"]["mean_of_classes"],
        "task1_2_xray": recognition["xray"]["covid19_against_normal"],
        "task1_2_both": recognition["both"]["covid19_against_normal"],
    }
    # Of more than two classes the overall accuracy is the paper's, not the mean of one-against-rest.
    shipped["task1_4_xray"] = {**shipped["task1_4_xray"], "accuracy": recognition["xray"]["four_classes"]["accuracy"]}
    rows = []
    for name, published in paper.TABLE_3.items():
        title = paper.RECIPE_TITLES[name]
        rows.append([title, "paper", *metric_cells(published)])
        for protocol, ours in _PROTOCOLS:
            rows.append([title, f"{ours}, paper's recipe", *metric_cells(task1.get(name, {}).get(protocol))])
        rows.append([title, "ours, patient-level, shipped weights", *metric_cells(shipped[name])])
    return (
        "### Table 3: Task 1, all metrics\n\n"
        + table(["run", "", *METRIC_TITLES.values()], rows)
        + "\nOf four classes: the share of right answers, and the means over the classes of the rest. Of two, COVID-19"
        " is the positive one; the shipped network, which knows four, answers with the likelier of the two.\n"
    )


def _table_4(task1: Mapping[str, Figures]) -> str:
    sides = {"paper": [*paper.TABLE_4, paper.TABLE_4_MEAN]}
    for protocol, ours in _PROTOCOLS:
        figures = task1.get(paper.TABLE_4_RECIPE, {}).get(protocol, {})
        # Reports from before the runs were kept one by one have their accuracies alone.
        runs = figures.get("runs") or [{"accuracy": value} for value in figures.get("accuracy_of_runs", [])]
        sides[ours] = [*runs, figures]
    rows = [
        ["mean" if i == len(runs) - 1 else str(i + 1), side, *metric_cells(run)]
        for side, runs in sides.items()
        for i, run in enumerate(runs)
    ]
    title = f"### Table 4: Task 1, {paper.RECIPE_TITLES[paper.TABLE_4_RECIPE]}, run by run\n\n"
    return title + table(["run", "", *METRIC_TITLES.values()], rows)


def _note_on_task1(task1: Mapping[str, Figures] | None) -> str:
    if not task1:
        return "The paper's recipe of Task 1 was not run: `lungstreams train paper_task1`.\n"
    copies = next(iter(task1.values()))["copies"]
    return (
        "*Paper's recipe*: frozen ImageNet Inception-v3, last layer retrained (`train/paper_task1.py`), mean of"
        f" {RECIPES[0].runs} draws. *Paper's protocol* puts each scan and its augmented copies in one bag and tests on"
        f" a random 9 % of it; *patient-level* keeps patients apart. {copies} copies a scan here, 34 in the paper; our"
        " scans are not the paper's, and features end at mixed8, since the weights at hand lack two convolutions after"
        " it.\n"
    )


def _table_5(manifestations: Figures) -> str:
    rows = []
    for name, published in paper.TABLE_5.items():
        title = _TITLES.get(name, "Overall")
        rows += [
            [title, "paper", *metric_cells(published)],
            [title, "ours, paper's protocol", *metric_cells(None)],
            [title, "ours, patient-level", *metric_cells(manifestations.get(name))],
        ]
    return (
        "### Table 5: Task 2\n\n"
        + table(["label", "", *METRIC_TITLES.values()], rows)
        + "\nThe paper's come from a matrix of three exclusive classes (Fig. 9), its overall accuracy is that matrix's"
        " diagonal; ours take each label by itself, since a slice may have several, and *overall* is the mean of the"
        " three.\n"
    )


def _table_9() -> str:
    rows = [[method, time] for method, time in paper.TABLE_9.items()]
    rows.append(["ours", "[docs/loadtest.md](loadtest.md), and `lungstreams bench` on your own machine"])
    return "### Table 9: time for a case\n\n" + table(["method", "time"], rows)


def _table_10(provenances: Mapping[str, Provenance]) -> str:
    rows = []
    models = (RECOGNITION.model, MANIFESTATION_STEP.model, *(segmentation_model(stream) for stream in STREAM_NAMES))
    for task, published in enumerate(paper.TABLE_10, start=1):
        rows.append(
            [
                f"Task {task}",
                "paper",
                published.length,
                f"{published.learning_rate:g}",
                published.optimizer,
                *(
                    "-" if v is None else f"{v:g}"
                    for v in (published.momentum, published.dropout, published.weight_decay)
                ),
                str(published.batch_size),
            ]
        )
        if task == 1:
            recipe = RECIPES[0]
            rows.append(
                [
                    "Task 1",
                    "ours, paper's recipe",
                    f"{recipe.steps:,} steps",
                    f"{recipe.learning_rate:g}",
                    "gradient descent",
                    *["-"] * 3,
                    str(recipe.batch_size),
                ]
            )
        for model in models[task - 1 : task] if task < len(paper.TABLE_10) else models[task - 1 :]:
            rows.append([f"Task {task}", *_hyper_parameters(EXPERIMENTS[provenances[model].experiment])])
    header = [
        "task", "run", "steps or epochs", "learning rate", "optimiser", "momentum", "dropout", "weight decay",
        "batch size",
    ]  # fmt: skip
    return (
        "### Table 10: hyper-parameters\n\n"
        + table(header, rows)
        + "\nOurs warm the learning rate up and bring it to 0 by a cosine; the number given is the highest.\n"
    )


def _hyper_parameters(run: Experiment) -> list[str]:
    config = run.model
    dropout = DENSE_DROPOUT if isinstance(config, ManifestationCnnConfig) else config.dropout
    return [
        run.name,
        f"{run.epochs} epochs of {run.steps_per_epoch} steps",
        f"{run.learning_rate:g}",
        type(optimizer_of(run)).__name__,
        "-",
        f"{dropout:g}",
        f"{run.weight_decay:g}",
        str(run.batch_size),
    ]
