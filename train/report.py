"""`docs/results.md` from the figures of `train.scoring`. Nothing in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serving.labels import DIAGNOSES, MANIFESTATIONS, STREAMS
from serving.pipeline import MANIFESTATION_STEP, RECOGNITION, segmentation_model
from train.leaks import LEFT_OUT, LOOK_CORRELATION, Leak, by_source
from train.markdown import interval as _interval
from train.markdown import number as _number
from train.markdown import table as _table
from train.provenance import Provenance
from train.report_confounds import confounds_markdown
from train.report_triton import triton_markdown
from train.surface import TOLERANCE_PX

Figures = Mapping[str, Any]

_HEAD = """# Results

Written by `lungstreams evaluate`: the published graphs, as ONNX Runtime computes them, on the test split. The split
is by patient or by the smallest group that a source lets us tell (`train/data.py`); the CT sources SARS-CoV-2, MosMed
and `ho` give no patient ids, so there it is by slice. Brackets are 95 % bootstrap intervals over groups.
Research use only.
"""


_LEAKS_HEAD = f"""# Look-alikes across splits

Written by the audit (`train/leaks.py`) over what is listed in `train/data.py`. No group and no file is in two splits.
These pairs are in two splits and look alike: copies, or slices of one patient from sources that give no patient ids.
`lungstreams evaluate` leaves the test scans among them out. *Correlation*: of details, after an affine alignment;
{LOOK_CORRELATION:.2f} and more is listed. Slices of one patient that look less alike are not found.
"""


def results_markdown(
    results: Mapping[str, Figures],
    provenances: Mapping[str, Provenance],
    paper_task1: Mapping[str, Figures] | None = None,
    confounds: Figures | None = None,
    triton: Figures | None = None,
) -> str:
    """The report on everything that is published.

    Args:
        results: Figures by model.
        provenances: Of the same models.
        paper_task1: Figures of `train.paper_task1`, if that was run.
        confounds: Figures of `train.confounds`, if that was run.
        triton: Figures of `train.through_triton`, if that was run.
    """
    parts = [
        _HEAD,
        _recognition(results[RECOGNITION.model]),
        _manifestations(results[MANIFESTATION_STEP.model]),
        _segmentation(results),
        _left_out(results),
        *([_paper_task1(paper_task1)] if paper_task1 else []),
        *([confounds_markdown(confounds)] if confounds else []),
        *([triton_markdown(triton)] if triton else []),
        _models(provenances),
    ]
    return "\n".join(parts)


def _recognition(figures: Figures) -> str:
    rows = []
    for name, title in (("xray", "X-ray"), ("ct", "CT")):
        four, two = figures[name]["four_classes"], figures[name]["covid19_or_not"]
        rows.append(
            [
                title,
                str(four["n_scans"]),
                str(four["n_groups"]),
                _interval(four["accuracy"], four["accuracy_95"]),
                _number(four["balanced_accuracy"]),
                _number(four["majority_class_accuracy"]),
                _number(four["ece"]),
                _interval(two["auc"], two["auc_95"]),
                _number(two["accuracy"]),
            ]
        )
    header = [
        "scans",
        "n",
        "groups",
        "accuracy, 4 classes",
        "balanced",
        "majority class",
        "calibration error",
        "COVID-19 AUC",
        "COVID-19 or not",
    ]
    pair = figures["xray"]["covid19_against_normal"]
    return "\n".join(
        [
            "## Stage 1, recognition\n",
            _table(header, rows),
            f"COVID-19 against normal on X-rays alone (the paper's two classes): "
            f"{_interval(pair['accuracy'], pair['accuracy_95'])} of {pair['n_scans']} scans.\n",
            _confusion(figures["xray"]["four_classes"]["confusion_true_by_predicted"]),
            "**Confound.** Viral and bacterial pneumonia come from children of one hospital, COVID-19 mostly from"
            " adults of others: part of the accuracy on X-rays is telling hospitals apart. By source, and on CT, where"
            " the classes share sources:\n",
            _sources(figures),
        ]
    )


def _confusion(matrix: list[list[int]]) -> str:
    rows = [[label.title, *map(str, counts)] for label, counts in zip(DIAGNOSES, matrix, strict=True)]
    return "X-rays, true class by predicted class:\n\n" + _table(["", *(label.title for label in DIAGNOSES)], rows)


def _sources(figures: Figures) -> str:
    rows = []
    for name, part in (("xray", "four_classes"), ("ct", "covid19_or_not")):
        what = "4 classes" if part == "four_classes" else "COVID-19 or not"
        for source, entry in figures[name][part]["by_source"].items():
            rows.append([source, what, str(entry["n"]), _number(entry["accuracy"])])
    return _table(["source", "question", "n", "accuracy"], rows)


def _manifestations(figures: Figures) -> str:
    rows = [
        [
            label.title,
            f"{entry['n_present']} of {entry['n_scans']}",
            str(entry["n_groups"]),
            _interval(entry["auc"], entry["auc_95"]),
            f"{_number(entry['auc_without_healthy_scans'])} ({entry['n_absent_without_healthy_scans']} negatives)",
            _number(entry["accuracy"]),
            _number(entry["sensitivity"]),
            _number(entry["specificity"]),
            _number(entry["ece"]),
        ]
        for label in MANIFESTATIONS
        for entry in [figures[label.name]]
    ]
    header = [
        "label", "present", "groups", "AUC", "AUC inside its source", "accuracy", "sensitivity", "specificity",
        "calibration error",
    ]  # fmt: skip
    return (
        "## Stage 2, manifestations\n\n"
        + _table(header, rows)
        + "\nEach label is measured where it is annotated. Most negatives are healthy slices of another source, so the"
        " AUC is partly that of telling sources apart; the next column leaves them out.\n"
    )


def _segmentation(results: Mapping[str, Figures]) -> str:
    rows = []
    for stream in STREAMS:
        for label in MANIFESTATIONS:
            entry = results[segmentation_model(stream.name)].get(label.name)
            if entry is None:
                continue
            rows.append(
                [
                    label.title,
                    "all-class" if stream.name == "all" else "specialised",
                    f"{entry['n_slices_with_it']} of {entry['n_slices']}",
                    str(entry["n_groups"]),
                    _interval(entry["dice"], entry["dice_95"]),
                    _number(entry["iou"]),
                    _number(entry["dice_mean_of_slices_with_it"]),
                    _interval(entry["nsd"], entry["nsd_95"]),
                    _interval(entry["hd95_px"], entry["hd95_px_95"], digits=1),
                    _number(entry["dice_of_marking_everything"]),
                    f"{100 * entry['marked_fraction_of_healthy_slices']:.2f} %",
                ]
            )
    rows.sort(key=lambda row: row[0])
    header = [
        "class", "stream", "slices with it", "groups", "Dice, pooled", "IoU", "Dice, mean of slices",
        f"surface Dice at {TOLERANCE_PX:g} px", "HD95, px", "marking everything", "of a healthy slice",
    ]  # fmt: skip
    return (
        "## Stage 3, segmentation\n\n"
        + _table(header, rows)
        + "\nPooled over pixels that are annotated for the class. *Marking everything* is what chance would get; *of a"
        " healthy slice* is the part of its pixels marked by mistake. Inf-Net reports a Dice of 0.646 for ground-glass"
        " and 0.238 for consolidation on the 48 test slices of which 24 are here.\n\n*Surface Dice* is the part of both"
        " outlines that lies within the tolerance of the other one, *HD95* the 95th percentile of the distance between"
        " them, in pixels of the 512x512 model space (`train/surface.py`). Both are means over the slices in which the"
        " class is annotated or answered; where only one of the two is, they are 0 and the image's diagonal, 724 px.\n"
    )


def _paper_task1(results: Mapping[str, Figures]) -> str:
    rows = []
    for name, figures in results.items():
        for key in ("accuracy", "sensitivity", "f1", "mcc"):
            rows.append(
                [
                    name,
                    key.upper() if len(key) < 4 else key,
                    _number(figures["paper_reports"].get(key)),
                    _number(figures["paper"][key]),
                    _number(figures["patients"][key]),
                ]
            )
    header = ["run", "figure", "paper", "ours, paper's protocol", "ours, by patient"]
    copies = next(iter(results.values()))["copies"]
    return (
        "## The paper's Task 1, its own recipe\n\n"
        + _table(header, rows)
        + "\nFrozen ImageNet Inception-v3, last layer retrained (`train/paper_task1.py`; Tables 2 to 4), mean of five"
        " draws. *Paper's protocol* puts each scan and its augmented copies in one bag and tests on a random 9 % of it;"
        f" *by patient* keeps patients apart. {copies} copies a scan here, 34 in the paper; our scans are not the"
        " paper's, and features end at mixed8, since the weights at hand lack two later convolutions.\n"
    )


def _left_out(results: Mapping[str, Figures]) -> str:
    rows = [
        [name, source, str(n)] for name, figures in results.items() for source, n in figures.get(LEFT_OUT, {}).items()
    ]
    text = (
        "## Test scans left out\n\nThey look like a scan of another split: a copy, or a slice of the same patient from"
        " a source without patient ids. No figure above counts them; [leaks.md](leaks.md) names them.\n\n"
    )
    return text + (_table(["model", "source", "test scans"], rows) if rows else "None.\n")


def leaks_markdown(leaks: Mapping[str, Sequence[Leak]]) -> str:
    """`docs/leaks.md`: the report on look-alikes.

    Args:
        leaks: By listing.
    """
    parts = [_LEAKS_HEAD]
    for name, found in leaks.items():
        parts.append(f"## {name}\n")
        if not found:
            parts.append("None.\n")
            continue
        counts = ", ".join(f"{source}: {n}" for source, n in by_source(found, "test").items())
        parts.append(f"{len(found)} pairs. Test scans left out: {counts or 'none'}.\n")
        rows = [[f"{k.correlation:.3f}", k.a.name, k.a.split, k.b.name, k.b.split] for k in found]
        parts.append(_table(["correlation", "scan", "split", "looks like", "split"], rows))
    return "\n".join(parts)


def _models(provenances: Mapping[str, Provenance]) -> str:
    rows = [
        [name, p.experiment, f"{p.parameters:,}", p.precision, p.created, p.data_fingerprint[:12]]
        for name, p in provenances.items()
    ]
    return "## What was measured\n\n" + _table(["model", "run", "parameters", "precision", "date", "data"], rows)
