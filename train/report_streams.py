"""The paper's tables of Task 3 beside ours, and whether its claim about the streams holds here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serving.labels import MANIFESTATION_NAMES, MANIFESTATIONS
from serving.pipeline import segmentation_model
from train import paper
from train.leaks import LEFT_OUT
from train.markdown import NOTHING, interval, number, table
from train.scoring import OVERALL
from train.streams import ALL, SPECIALISED

Figures = Mapping[str, Any]
_TITLES = {label.name: label.title for label in MANIFESTATIONS}


def table_6(streams: Figures) -> str:
    """Dice and IoU of each stream, their difference, and what follows from it."""
    rows = []
    for key in ("dice", "iou"):
        name = "DSC" if key == "dice" else "mIoU"
        published = {column: row[key] for column, row in paper.TABLE_6.items()}
        classes = streams["classes"]
        sides: dict[str, list[float | None]] = {
            "paper": [published[ALL], *(published[c] for c in MANIFESTATION_NAMES), published[SPECIALISED]],
            "ours, paper's protocol": [None] * (len(MANIFESTATION_NAMES) + 2),
            "ours, patient-level": [
                streams[OVERALL][ALL][key],
                *(classes[c][SPECIALISED][key] for c in MANIFESTATION_NAMES),
                streams[OVERALL][SPECIALISED][key],
            ],
            "ours, all-class stream, by class": [
                streams[OVERALL][ALL][key],
                *(classes[c][ALL][key] for c in MANIFESTATION_NAMES),
                None,
            ],
        }
        rows += [[name, side, *map(number, values)] for side, values in sides.items()]
    header = ["", "", "all-class", *(f"stream: {_TITLES[c]}" for c in MANIFESTATION_NAMES), "multi-stream average"]
    differences = [
        [
            _TITLES.get(name, "mean of the three"),
            str(entry["n_slices"]),
            str(entry["n_groups"]),
            interval(entry["difference"], entry["difference_95"]),
        ]
        for name, entry in (*streams["classes"].items(), (OVERALL, streams[OVERALL]))
    ]
    return (
        "### Table 6: Task 3, the all-class stream and the specialised ones\n\n"
        + table(header, rows)
        + "\nDice and IoU pooled over pixels, *all-class* the mean over the three manifestations, background not"
        " counted. Difference of Dice, specialised minus all-class, on the same slices and pixels; 95 % bootstrap that"
        " draws groups, the same for both:\n\n"
        + table(["class", "slices", "groups", "difference"], differences)
        + "\n**Do the specialised streams beat the all-class one here, as the paper claims?** "
        + stream_verdict(streams)
        + "\n"
    )


def stream_verdict(streams: Figures) -> str:
    """The answer to the paper's claim about its streams, in words that follow from the figures alone.

    A difference counts where its 95 % interval leaves out 0.
    """
    better: list[str] = []
    worse: list[str] = []
    open_: list[str] = []
    for name in MANIFESTATION_NAMES:
        low, high = streams["classes"][name]["difference_95"]
        known = low is not None and high is not None
        (better if known and low > 0 else worse if known and high < 0 else open_).append(_TITLES[name].lower())
    overall = streams[OVERALL]
    low, high = overall["difference_95"]
    if low is not None and low > 0:
        answer = "Yes, on average"
    elif high is not None and high < 0:
        answer = "No, on average the all-class stream is better"
    else:
        answer = "Not shown: on average the difference can not be told from none"
    parts = [f"{answer} ({interval(overall['difference'], overall['difference_95'])})."]
    for found, what in (
        (better, "The specialised stream is better for"),
        (worse, "The specialised stream is worse for"),
        (open_, "Not told apart:"),
    ):
        if found:
            parts.append(f"{what} {', '.join(found)}.")
    claimed = paper.TABLE_6[SPECIALISED]["dice"] - paper.TABLE_6[ALL]["dice"]
    parts.append(f"The paper's difference is {claimed:+.3f}.")
    return " ".join(parts)


def table_7(results: Mapping[str, Figures]) -> str:
    """Ground-glass and consolidation beside Inf-Net's."""
    rows = []
    counts = []
    for name, published in paper.TABLE_7.items():
        for method, row in published.items():
            rows.append([_TITLES[name], method, number(row["dice"]), number(row["iou"]), NOTHING])
        for stream, title in (("all", "all-class stream"), (name, "specialised stream")):
            entry = results[segmentation_model(stream)][name]
            rows.append(
                [
                    _TITLES[name],
                    f"ours, patient-level, {title}",
                    interval(entry["dice"], entry["dice_95"]),
                    number(entry["iou"]),
                    number(entry["dice_mean_of_slices_with_it"]),
                ]
            )
        rows.append([_TITLES[name], "ours, paper's protocol", *[NOTHING] * 3])
        entry = results[segmentation_model(name)]
        here = entry[name]["slices_by_source"].get(paper.INF_NET_SOURCE, 0)
        left_out = entry.get(LEFT_OUT, {}).get(paper.INF_NET_SOURCE, 0)
        counts.append(f"{_TITLES[name].lower()}: {here} (and {left_out} left out)")
    return (
        "### Table 7: Task 3, by manifestation, beside Inf-Net\n\n"
        + table(["class", "method", "DSC", "mIoU", "DSC, mean of slices"], rows)
        + f"\nFan et al. test on {paper.INF_NET_TEST_SLICES} slices; ours are those of them that we have and that look"
        f" like no scan of another split, {'; '.join(counts)}. The two are not the same test.\n"
    )


def table_8(streams: Figures) -> str:
    """Everything together."""
    rows = [[method, number(row["dice"]), number(row["iou"])] for method, row in paper.TABLE_8.items()]
    rows.append(["ours, paper's protocol", NOTHING, NOTHING])
    infection = streams["infection"]
    for key, what in ((OVERALL, "mean of the three manifestations"), ("infection", "infection as one class")):
        for kind, title in ((ALL, "all-class stream"), (SPECIALISED, "specialised streams")):
            entry = streams[key][kind]
            rows.append([f"ours, patient-level, {what}, {title}", number(entry["dice"]), number(entry["iou"])])
    return (
        "### Table 8: Task 3, overall\n\n"
        + table(["method", "DSC", "mIoU"], rows)
        + "\n*Infection as one class* is ground-glass and consolidation together, as most of the methods above were"
        f" measured: {infection['n_slices']} slices of {infection['n_groups']} groups, with those of volumes in which"
        " nobody told the two apart.\n"
    )
