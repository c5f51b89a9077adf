"""The part of `docs/results.md` on test-time augmentation, if that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serving.labels import MANIFESTATIONS, STREAMS
from serving.pipeline import MANIFESTATION_STEP, RECOGNITION, segmentation_model
from train.markdown import number, table
from train.paper import TEST_COPIES
from train.provenance import Provenance
from train.scoring import OVERALL

NAME: Final = "results_tta"
"""Stem of its JSON, beside ``results.json``."""
_TITLE: Final = "## Test-time augmentation\n\n"


def weights_of(provenances: Mapping[str, Provenance]) -> dict[str, list[str]]:
    """What tells a model's weights from later ones."""
    return {name: [p.experiment, p.created, p.code_version] for name, p in provenances.items()}


def augmented_report(results: Mapping[str, Any], provenances: Mapping[str, Provenance], copies: int) -> dict[str, Any]:
    """What goes into the JSON.

    Args:
        results: Figures by model, of mean answers.
        provenances: Of the same models.
        copies: Of each test scan.
    """
    return {"copies": copies, "weights": weights_of(provenances), "results": dict(results)}


def augmented_section(
    report: Mapping[str, Any], results: Mapping[str, Any], provenances: Mapping[str, Provenance]
) -> str:
    """The main figures with and without; a line instead where the weights have changed since.

    Args:
        report: From `augmented_report`.
        results: Figures by model, of the scans by themselves.
        provenances: Of the models that are published now.
    """
    if report["weights"] != weights_of(provenances):
        command = "`lungstreams evaluate --test-time-augmentation N`"
        return f"{_TITLE}Measured on earlier weights, so not shown: {command}.\n"
    plain, augmented = _figures(results), _figures(report["results"])
    rows = [[name, number(plain[name]), number(augmented[name])] for name in plain]
    return (
        _TITLE
        + table(["figure", "the scan alone", f"mean with {report['copies']} copies"], rows)
        + f"\nMoved copies of each scan, as in training; the paper makes {TEST_COPIES}. Probabilities are averaged;"
        " masks are warped back and vote, pixel by pixel.\n"
    )


def _figures(results: Mapping[str, Any]) -> dict[str, float | None]:
    stage_1, stage_2 = results[RECOGNITION.model], results[MANIFESTATION_STEP.model]
    found: dict[str, float | None] = {
        "4 classes, X-ray: accuracy": stage_1["xray"]["four_classes"]["accuracy"],
        "COVID-19 or normal, X-ray: accuracy": stage_1["xray"]["covid19_against_normal"]["accuracy"],
        "COVID-19 or normal, X-ray and CT: accuracy": stage_1["both"]["covid19_against_normal"]["accuracy"],
        "COVID-19 or not, CT: AUC": stage_1["ct"]["covid19_or_not"]["auc"],
    }
    for label in MANIFESTATIONS:
        found[f"{label.title}: accuracy"] = stage_2[label.name]["accuracy"]
        found[f"{label.title}: AUC"] = stage_2[label.name]["auc"]
    for stream in STREAMS:
        figures = results[segmentation_model(stream.name)]
        for label in MANIFESTATIONS:
            if label.name in figures:
                found[f"stream {stream.title.lower()}, {label.title.lower()}: Dice"] = figures[label.name]["dice"]
    found["all-class stream, mean: Dice"] = results[segmentation_model("all")][OVERALL]["dice"]
    return found
