"""The section of `docs/results.md` on confounds, from the figures of `train.confounds`. Its words follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from serving.labels import DIAGNOSES
from train.markdown import NOTHING, interval, number, table

Figures = Mapping[str, Any]

_QUESTIONS: Final = {
    "xray_four_classes": "X-ray, 4 classes",
    "xray_covid19_against_normal": "X-ray, COVID-19 against normal",
    "ct_covid19_or_not": "CT, COVID-19 or not",
}
_MODALITIES: Final = {"xray": "X-ray", "ct": "CT"}
_TITLES: Final = {label.name: label.title for label in DIAGNOSES}


def confounds_markdown(figures: Figures) -> str:
    """A section.

    Args:
        figures: As `train.confounds.measure` gives them.
    """
    return "\n".join(
        [
            "## Confounds: how much is telling sources apart\n",
            "Written by `lungstreams evaluate --confounds` (`train/confounds.py`), on the same test scans.\n",
            _source_only(figures["source_only"]),
            _probes(figures),
            _left_out(figures["leave_one_source_out"], figures["settings"]),
            _within(figures["within"]),
        ]
    )


def _accuracy(entry: Figures) -> str:
    return interval(entry["accuracy"], entry["accuracy_95"])


def _auc(entry: Figures) -> str:
    return NOTHING if entry.get("auc") is None else interval(entry["auc"], entry["auc_95"])


_MORE: Final = "more often"
_LESS: Final = "less often"
_AS_OFTEN: Final = "as often, within the interval"


def _side(bounds: list[float | None]) -> str:
    """What the interval of a difference of accuracies says."""
    low, high = bounds
    if low is not None and low > 0:
        return _MORE
    return _LESS if high is not None and high < 0 else _AS_OFTEN


def _source_only(parts: Figures) -> str:
    rows, words = [], []
    for name, title in _QUESTIONS.items():
        entry = parts[name]
        model, source, gain = entry["model"], entry["source"], entry["gain"]
        population = _accuracy(entry["population"]) if "population" in entry else NOTHING
        rows.append(
            [
                title,
                str(model["n_scans"]),
                number(model["majority_class_accuracy"]),
                population,
                _accuracy(source),
                _accuracy(model),
                interval(gain["difference"], gain["difference_95"]),
            ]
        )
        words.append(f"{title}, {_side(gain['difference_95'])} ({gain['difference']:+.3f})")
    header = [
        "question", "n", "most frequent class", "population alone", "source alone", "shipped model",
        "model minus source",
    ]  # fmt: skip
    return (
        "### The source alone, without looking at the scan\n\n"
        + table(header, rows)
        + "\nAccuracy. *Source alone* names the most frequent diagnosis of the scan's source among the training scans,"
        " *population alone* that of children or of adults. Beside the source alone the shipped model is right: "
        + "; ".join(words)
        + ". What accuracy it has up to there, the source alone would explain too.\n"
    )


def _probes(figures: Figures) -> str:
    rows = []
    for modality, parts in figures["source_probe"].items():
        for which, entry in parts.items():
            scans = "all scans" if which == "all" else f"{_TITLES[which.removesuffix('_alone')]} alone"
            rows.append([f"{_MODALITIES[modality]}: the source, {scans}", "whole scan", *_probe_cells(entry)])
    words = []
    for name, parts in figures["border_probe"].items():
        title = _QUESTIONS[f"xray_{name}"]
        rows += [[title, what, *_probe_cells(parts[what])] for what in ("whole", "border")]
        whole, border = (
            parts[what]["accuracy"] - parts[what]["majority_class_accuracy"] for what in ("whole", "border")
        )
        share = f", {100 * border / whole:.0f} % of what the whole X-ray gets above it" if whole > 0 else ""
        words.append(f"{title}: {border:+.3f} over the most frequent class{share}")
    settings = figures["settings"]
    return (
        "### What frozen features tell\n\n"
        + table(["told", "from", "n", "accuracy", "balanced", "most frequent", "AUC"], rows)
        + "\nLogistic regression on the pooled features of ImageNet's Inception-v3, which was never trained on a scan,"
        " fitted on the training and validation splits. *Source*: copies of one collection count as one. The closer"
        " its accuracy is to 1, the better a model can use the source for the diagnosis; among scans of one diagnosis"
        f" the diagnosis can not help it. *Border*: only the outer {100 * settings['border_share']:.0f} % of each side"
        " is left, most of the lungs is black. What is told from there is position, collimation, markers and the body's"
        " outline: " + "; ".join(words) + ".\n"
    )


def _probe_cells(entry: Figures) -> list[str]:
    return [
        str(entry["n_scans"]),
        _accuracy(entry),
        number(entry["balanced_accuracy"]),
        number(entry["majority_class_accuracy"]),
        number(entry.get("auc")),
    ]


def _left_out(parts: Figures, settings: Figures) -> str:
    rows, impossible, differences = [], [], []
    for name, title in _QUESTIONS.items():
        for source, entry in parts[name].items():
            if "only_here" in entry:
                classes = " and ".join(_TITLES.get(c, c) for c in entry["only_here"])
                impossible.append(f"{source} ({title}: no other source has {classes})")
                continue
            unseen, usual = entry["left_out"], entry["in_distribution"]
            differences.append(_side(entry["difference_95"]))
            rows.append(
                [
                    title,
                    source,
                    str(unseen["n_scans"]),
                    _accuracy(usual),
                    _accuracy(unseen),
                    interval(entry["difference"], entry["difference_95"]),
                    f"{number(usual['balanced_accuracy'])}, {number(unseen['balanced_accuracy'])}",
                    f"{number(usual.get('auc'))}, {_auc(unseen)}",
                ]
            )
    header = [
        "question", "source", "n", "accuracy, trained on too", "accuracy, never seen", "difference",
        "balanced, on and never", "AUC, on and never",
    ]  # fmt: skip
    less, more = differences.count(_LESS), differences.count(_MORE)
    cannot = f" It can not be done for {'; '.join(impossible)}." if impossible else ""
    return (
        "### A source that was never seen\n\n"
        + table(header, rows)
        + "\nThe same features and regression, on all scans of a source with enough of them. *Trained on too*: each"
        f" scan by the one of {settings['folds']} regressions that saw no scan of its group. *Never seen*: by one that"
        " was trained on the other sources alone, without scans of the same groups and known look-alikes. An AUC is n/a"
        f" where the source has one of the two classes only. Of {len(differences)} sources and questions, {less} are"
        f" answered right less often when the source was never seen, {more} more often, the others as often, within"
        f" their intervals.{cannot}\n"
    )


def _within(parts: Figures) -> str:
    rows, words = [], []
    for modality, title in _MODALITIES.items():
        part = parts[modality]
        what = "COVID-19 against normal" if modality == "xray" else "COVID-19 or not"
        named = {"all": part["all"], **({"adults alone": part["adults"]} if "adults" in part else {})}
        rows += [
            [f"{title}, {what}", scans, str(entry["n_scans"]), _auc(entry), _accuracy(entry)]
            for scans, entry in {**named, **part["by_source"]}.items()
        ]
        inside = part["auc_within_sources"]
        words.append(f"{title}: {number(part['all']['auc'])} over all scans, {number(inside)} within sources")
    return (
        "### The shipped model where the source tells less\n\n"
        + table(["question", "scans", "n", "AUC", "accuracy"], rows)
        + "\nSources whose test scans have both classes. How likely a scan of COVID-19 gets the higher score than one"
        " without: " + "; ".join(words) + " (pairs of one source only). The difference of the two is what telling"
        " sources apart adds to the first.\n"
    )
