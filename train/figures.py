"""Plots of the figures: confusion matrices, reliability, training curves. They show no scan, so docs may hold them.

Everything is drawn from plain JSON by Matplotlib's objects, without pyplot and its global state. Colours are those of
Okabe and Ito, told apart by people who do not see red and green apart; every cell and line also says what it is.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from serving.labels import DIAGNOSES, MANIFESTATIONS
from serving.pipeline import MANIFESTATION_STEP, RECOGNITION
from train.metrics import CALIBRATION_BINS

Figures = Mapping[str, Any]

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREY: Final = "#767676"
DPI: Final = 120
RESEARCH_ONLY: Final = "Research use only. Not a medical device."
CAPTIONS: Final[Mapping[str, str]] = {
    "recognition-confusion": "Stage 1, true class by predicted class",
    "recognition-reliability": "Stage 1, how often an answer is right, by how sure it was",
    "manifestations-confusion": "Stage 2, a matrix for each label, since labels do not exclude each other",
    "manifestations-reliability": "Stage 2, how often a label is present, by its probability",
}
"""Of the plots that `draw_results` makes, by the stem of their files: what docs say of them."""


def draw_results(results: Mapping[str, Figures]) -> dict[str, Figure]:
    """The plots of stages 1 and 2, by the names in `CAPTIONS`.

    Args:
        results: Figures by model, as ``docs/results.json`` has them; plots of a model that is not there are left out.
    """
    plots: dict[str, Figure] = {}
    if RECOGNITION.model in results:
        plots |= _recognition(results[RECOGNITION.model])
    if MANIFESTATION_STEP.model in results:
        plots |= _manifestations(results[MANIFESTATION_STEP.model])
    return plots


def _recognition(figures: Figures) -> dict[str, Figure]:
    two = [["COVID-19", "Normal"]] * 2
    four = [[label.title for label in DIAGNOSES]] * 2
    matrices = [
        ("Four classes, X-ray", figures["xray"]["four_classes"], four),
        ("COVID-19 or normal, X-ray", figures["xray"]["covid19_against_normal"], two),
        ("COVID-19 or normal, X-ray and CT", figures["both"]["covid19_against_normal"], two),
    ]
    return {
        "recognition-confusion": draw_confusions(
            [(title, entry["confusion_true_by_predicted"], names) for title, entry, names in matrices], width_in=13.5
        ),
        "recognition-reliability": draw_reliability(
            [("X-ray", figures["xray"]["four_classes"]), ("CT", figures["ct"]["four_classes"])],
            across="mean confidence of the answer",
            up="share of right answers",
        ),
    }


def _manifestations(figures: Figures) -> dict[str, Figure]:
    labels = [(label.title, figures[label.name]) for label in MANIFESTATIONS]
    names = [["present", "absent"], ["said present", "said absent"]]
    return {
        "manifestations-confusion": draw_confusions(
            [(title, entry["confusion_true_by_predicted"], names) for title, entry in labels], width_in=11
        ),
        "manifestations-reliability": draw_reliability(
            labels, across="mean predicted probability", up="share of slices with it"
        ),
    }


def draw_confusions(
    matrices: Sequence[tuple[str, Sequence[Sequence[int]], Sequence[Sequence[str]]]], width_in: float
) -> Figure:
    """Confusion matrices side by side, the true class down, the predicted one across (the paper's Figs. 7 and 9).

    Args:
        matrices: Of each: title, counts, and the names of its rows and of its columns.
        width_in: Of the whole, in inches.
    """
    figure = _figure(width_in, width_in / len(matrices) + 0.3)
    for axes, (title, counts, (rows, columns)) in zip(_row_of(figure, len(matrices)), matrices, strict=True):
        matrix = np.asarray(counts)
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), n in np.ndenumerate(matrix):
            colour = "white" if shares[i, j] > 0.55 else "black"
            axes.text(j, i, f"{n}\n{shares[i, j]:.0%}", ha="center", va="center", color=colour)
        axes.set_title(f"{title}\nn = {matrix.sum()}", fontsize=10)
        axes.set_xticks(range(len(columns)), [_in_two_lines(name) for name in columns])
        axes.set_yticks(range(len(rows)), [_in_two_lines(name) for name in rows])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true (percent of the row)")
        axes.tick_params(length=0)
    return figure


def draw_reliability(entries: Sequence[tuple[str, Figures]], across: str, up: str) -> Figure:
    """Reliability plots side by side: on the diagonal, a probability means what it says (Guo et al. 2017).

    Args:
        entries: Of each: title, and figures with ``reliability`` and ``ece``.
        across: What the bins are of.
        up: What is right or present in them.
    """
    figure = _figure(3.9 * len(entries), 5)
    grid = figure.add_gridspec(2, len(entries), height_ratios=(4, 1))
    for column, (title, entry) in enumerate(entries):
        counts, means, shares = np.array(entry["reliability"], dtype=float).reshape(-1, 3).T
        axes = figure.add_subplot(grid[0, column])
        axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
        axes.plot(means, shares, color=BLUE, marker="o", markersize=5, linewidth=1.2, label="bins")
        error = "n/a" if entry["ece"] is None else f"{entry['ece']:.3f}"
        axes.set_title(f"{title}\ncalibration error {error}, n = {counts.sum():.0f}", fontsize=10)
        axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.03), xlabel=across, ylabel=up)
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.legend(loc="upper left", fontsize=8)
        below = figure.add_subplot(grid[1, column], sharex=axes)
        bars = below.bar(means, counts, width=0.6 / CALIBRATION_BINS, color=BLUE)
        below.bar_label(bars, fmt="%d", fontsize=7, padding=1)
        below.set(ylim=(0, 1.3 * counts.max(initial=1)), xlabel=across, ylabel="scans", title="in each bin")
        below.title.set_fontsize(8)
        below.xaxis.label.set_fontsize(8)
    return figure


def read_log(path: Path) -> dict[str, list[float]]:
    """A run's ``log.csv`` by column; cells that are empty are NaN."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    names = rows[0].keys() if rows else ()
    return {name: [float(row[name] or "nan") for row in rows] for name in names}


def draw_curves(run: str, log: Mapping[str, Sequence[float]]) -> Figure:
    """Loss by epoch, and accuracy where the log has it (the paper's Fig. 8).

    Args:
        run: Its name.
        log: From `read_log`: ``epoch``, ``loss``, ``val_loss``, and perhaps ``accuracy``, ``val_accuracy``.
    """
    shown = [name for name in ("loss", "accuracy") if name in log]
    figure = _figure(5.6 * max(len(shown), 1), 4)
    epochs = np.asarray(log.get("epoch", []), dtype=float) + 1
    for axes, name in zip(_row_of(figure, len(shown)), shown, strict=True):
        axes.plot(epochs, log[name], color=BLUE, marker="o", markersize=3, label="training")
        validation = log.get(f"val_{name}")
        if validation is not None:
            axes.plot(epochs, validation, color=ORANGE, marker="s", markersize=3, linestyle="--", label="validation")
            best = int(np.nanargmin(validation) if name == "loss" else np.nanargmax(validation))
            axes.axvline(epochs[best], color=GREY, linewidth=0.8, linestyle=":", label=f"best, epoch {epochs[best]:g}")
        axes.set_title(f"{run}: {name} by epoch")
        axes.set_xlabel("epoch")
        axes.set_ylabel("cross-entropy (nats)" if name == "loss" else "accuracy (share)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(color="#e6e6e6", linewidth=0.7)
        axes.legend()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a plot as SVG or PNG by its suffix; the same plot gives the same file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "lungstreams", "svg.fonttype": "none"}):
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=DPI, metadata=metadata, facecolor="white")


def _figure(width_in: float, height_in: float) -> Figure:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _row_of(figure: Figure, n: int) -> list[Axes]:
    return [figure.add_subplot(1, max(n, 1), i + 1) for i in range(n)]


def _in_two_lines(name: str) -> str:
    return name.replace(" ", "\n", 1)
