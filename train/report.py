"""`docs/results.md` from the figures of `train.scoring`. Nothing in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from serving.labels import ALL_STREAM, DIAGNOSES, MANIFESTATIONS, STREAMS
from serving.pipeline import MANIFESTATION_STEP, RECOGNITION, segmentation_model
from train.failures import WORST_CASES, failures_markdown
from train.figures import CAPTIONS
from train.gallery import IMAGES_FOLDER
from train.leaks import LEFT_OUT, LOOK_CORRELATION, Leak, by_source
from train.markdown import METRIC_TITLES, interval, metric_cells, number, percent, table
from train.paper_task1 import NAME as PAPER_TASK1
from train.provenance import Provenance
from train.report_confounds import confounds_markdown
from train.report_paper import paper_sections
from train.report_trials import ablation_section, task2_section, task3_section
from train.report_triton import triton_markdown
from train.report_tta import NAME as TEST_TIME
from train.report_tta import augmented_section
from train.scoring import OVERALL
from train.surface import TOLERANCE_PX

Figures = Mapping[str, Any]

_SECTIONS: Final[Mapping[str, Callable[[Any], str]]] = MappingProxyType(
    {
        "paper_task2": task2_section,
        "paper_task3": task3_section,
        "ablation": ablation_section,
        "confounds": confounds_markdown,
        "triton_parity": triton_markdown,
    }
)
"""Sections made of further reports, by the stem of their file: to add one, name its function here."""
OTHERS: Final = (PAPER_TASK1, TEST_TIME, *_SECTIONS)
_MODALITIES: Final = {"xray": "X-ray", "ct": "CT"}
_PIXEL_METRICS: Final = {
    "dice": "Dice",
    "iou": "IoU",
    **{name: title for name, title in METRIC_TITLES.items() if name != "f1"},
}

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


def read_others(folder: Path) -> dict[str, Any]:
    """The other reports that lie beside the results, by the stem of their file: those of `OTHERS` that are there.

    Args:
        folder: As in ``docs``.
    """
    files = {stem: folder / f"{stem}.json" for stem in OTHERS}
    return {stem: json.loads(file.read_text(encoding="utf-8")) for stem, file in files.items() if file.is_file()}


def results_markdown(
    results: Mapping[str, Figures], provenances: Mapping[str, Provenance], others: Mapping[str, Any] | None = None
) -> str:
    """The report on everything that is published.

    Args:
        results: Figures by model, with what `train.evaluate` adds beside the models.
        provenances: Of the same models.
        others: From `read_others`.
    """
    found = others or {}
    parts = [
        _HEAD,
        _recognition(results[RECOGNITION.model]),
        _manifestations(results[MANIFESTATION_STEP.model]),
        _segmentation(results),
        *paper_sections(results, provenances, found.get(PAPER_TASK1)),
        *([augmented_section(found[TEST_TIME], results, provenances)] if TEST_TIME in found else []),
        *(section(found[stem]) for stem, section in _SECTIONS.items() if stem in found),
        failures_markdown(results[WORST_CASES]),
        _left_out(results),
        _models(provenances),
    ]
    return "\n".join(parts)


def _recognition(figures: Figures) -> str:
    rows = []
    for name, title in _MODALITIES.items():
        four, two = figures[name]["four_classes"], figures[name]["covid19_or_not"]
        rows.append(
            [
                title,
                str(four["n_scans"]),
                str(four["n_groups"]),
                interval(four["accuracy"], four["accuracy_95"]),
                number(four["balanced_accuracy"]),
                number(four["majority_class_accuracy"]),
                number(four["ece"]),
                interval(two["auc"], two["auc_95"]),
                number(two["accuracy"]),
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
    return "\n".join(
        [
            "## Stage 1, recognition\n",
            table(header, rows),
            "Every metric of the paper (Eqs. 3 to 8). A class against the other three; *mean* over the classes that"
            " occur; of two classes COVID-19 is the positive one:\n",
            _all_metrics(figures),
            _images(RECOGNITION.model),
            _confusion(figures["xray"]["four_classes"]["confusion_true_by_predicted"]),
            "**Confound.** Viral and bacterial pneumonia come from children of one hospital, COVID-19 mostly from"
            " adults of others: part of the accuracy on X-rays is telling hospitals apart. By source, and on CT, where"
            " the classes share sources:\n",
            _sources(figures),
        ]
    )


def _all_metrics(figures: Figures) -> str:
    rows = []
    for name, title in _MODALITIES.items():
        four = figures[name]["four_classes"]
        for label in DIAGNOSES:
            entry = four["by_class"].get(label.name)
            if entry is not None:
                rows.append([title, f"4: {label.title}", str(entry["n"]), *metric_cells(entry)])
        rows.append([title, "4: mean", str(four["n_scans"]), *metric_cells(four["mean_of_classes"])])
        two = figures[name]["covid19_or_not"]
        rows.append([title, "2: COVID-19 or not", str(two["n_scans"]), *metric_cells(two)])
    for name, title in (*_MODALITIES.items(), ("both", "X-ray and CT")):
        two = figures[name]["covid19_against_normal"]
        rows.append([title, "2: COVID-19 or normal", str(two["n_scans"]), *metric_cells(two)])
    return table(["scans", "classes", "n", *METRIC_TITLES.values()], rows)


def _confusion(matrix: list[list[int]]) -> str:
    rows = [[label.title, *map(str, counts)] for label, counts in zip(DIAGNOSES, matrix, strict=True)]
    return "X-rays, true class by predicted class:\n\n" + table(["", *(label.title for label in DIAGNOSES)], rows)


def _sources(figures: Figures) -> str:
    rows = []
    for name, part in (("xray", "four_classes"), ("ct", "covid19_or_not")):
        what = "4 classes" if part == "four_classes" else "COVID-19 or not"
        for source, entry in figures[name][part]["by_source"].items():
            rows.append([source, what, str(entry["n"]), number(entry["accuracy"])])
    return table(["source", "question", "n", "accuracy"], rows)


def _manifestations(figures: Figures) -> str:
    rows = [
        [
            label.title,
            f"{entry['n_present']} of {entry['n_scans']}",
            str(entry["n_groups"]),
            interval(entry["auc"], entry["auc_95"]),
            f"{number(entry['auc_without_healthy_scans'])} ({entry['n_absent_without_healthy_scans']} negatives)",
            *metric_cells(entry),
            number(entry["ece"]),
        ]
        for label in MANIFESTATIONS
        for entry in [figures[label.name]]
    ]
    rows.append(["Overall (mean)", *[""] * 4, *metric_cells(figures[OVERALL]), ""])
    titles = METRIC_TITLES.values()
    header = ["label", "present", "groups", "AUC", "AUC inside its source", *titles, "calibration error"]
    return (
        "## Stage 2, manifestations\n\n"
        + table(header, rows)
        + "\nEach label is measured where it is annotated. Most negatives are healthy slices of another source, so the"
        " AUC is partly that of telling sources apart; the next column leaves them out.\n\n"
        + _images(MANIFESTATION_STEP.model)
    )


def _images(model: str) -> str:
    """The plots of a stage; `train.gallery` writes them beside the report."""
    lines = [
        f"![{caption}]({IMAGES_FOLDER.as_posix()}/{stem}.svg)\n\n*{caption}.*\n"
        for stem, caption in CAPTIONS.items()
        if stem.startswith(model)
    ]
    return "\n".join(lines)


def _segmentation(results: Mapping[str, Figures]) -> str:
    rows, pixels = [], []
    for stream in STREAMS:
        for label in MANIFESTATIONS:
            entry = results[segmentation_model(stream.name)].get(label.name)
            if entry is None:
                continue
            kind = "all-class" if stream == ALL_STREAM else "specialised"
            rows.append(
                [
                    label.title,
                    kind,
                    f"{entry['n_slices_with_it']} of {entry['n_slices']}",
                    str(entry["n_groups"]),
                    interval(entry["dice"], entry["dice_95"]),
                    number(entry["iou"]),
                    number(entry["dice_mean_of_slices_with_it"]),
                    interval(entry["nsd"], entry["nsd_95"]),
                    interval(entry["hd95_px"], entry["hd95_px_95"], digits=1),
                    number(entry["dice_of_marking_everything"]),
                    percent(entry.get("marked_fraction_of_healthy_slices")),
                ]
            )
            pixels.append([label.title, kind, *(number(entry.get(name)) for name in _PIXEL_METRICS)])
    rows.sort(key=lambda row: row[0])
    pixels.sort(key=lambda row: row[0])
    header = [
        "class", "stream", "slices with it", "groups", "Dice, pooled", "IoU", "Dice, mean of slices",
        f"surface Dice at {TOLERANCE_PX:g} px", "HD95, px", "marking everything", "of a healthy slice",
    ]  # fmt: skip
    overall = results[segmentation_model(ALL_STREAM.name)][OVERALL]
    return (
        "## Stage 3, segmentation\n\n"
        + table(header, rows)
        + "\nPooled over pixels that are annotated for the class. *Marking everything* is what chance would get; *of a"
        " healthy slice* is the part of its pixels marked by mistake.\n\n*Surface Dice* is the part of both"
        " outlines that lies within the tolerance of the other one, *HD95* the 95th percentile of the distance between"
        " them, in pixels of the 512x512 model space (`train/surface.py`). Both are means over the slices in which the"
        " class is annotated or answered; where only one of the two is, they are 0 and the image's diagonal, 724 px."
        "\n\n"
        + "Every metric of the paper (Eqs. 3 to 10), of pixels; F1 is the Dice coefficient:\n\n"
        + table(["class", "stream", *_PIXEL_METRICS.values()], pixels)
        + f"\nAll-class stream, mean over its classes: Dice {number(overall['dice'])}, mIoU {number(overall['iou'])}.\n"
    )


def _left_out(results: Mapping[str, Figures]) -> str:
    rows = [
        [name, source, str(n)] for name, figures in results.items() for source, n in figures.get(LEFT_OUT, {}).items()
    ]
    text = (
        "## Test scans left out\n\nThey look like a scan of another split: a copy, or a slice of the same patient from"
        " a source without patient ids. No figure above counts them; [leaks.md](leaks.md) names them.\n\n"
    )
    return text + (table(["model", "source", "test scans"], rows) if rows else "None.\n")


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
        parts.append(table(["correlation", "scan", "split", "looks like", "split"], rows))
    return "\n".join(parts)


def _models(provenances: Mapping[str, Provenance]) -> str:
    rows = [
        [name, p.experiment, f"{p.parameters:,}", p.precision, p.created, p.data_fingerprint[:12]]
        for name, p in provenances.items()
    ]
    return "## What was measured\n\n" + table(["model", "run", "parameters", "precision", "date", "data"], rows)
