"""Writes the plots and panels of an evaluation: `train.figures` and `train.panels` into files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serving.labels import MANIFESTATION_NAMES
from train.batches import Predictor
from train.callbacks import LOG_FILE
from train.figures import draw_curves, draw_results, read_log, save
from train.panels import draw_panel
from train.streams import Masks

IMAGES_FOLDER: Final = Path("images") / "results"
"""Beside the report: plots that it links. They show no scan."""
_log = logging.getLogger(__name__)


def write_plots(results: Mapping[str, Any], folder: Path, suffix: str) -> list[Path]:
    """Confusion matrices and reliability plots of the models that are there.

    Args:
        results: Figures by model.
        folder: Made if it is not there.
        suffix: ``.png`` or ``.svg``.
    """
    paths = []
    for stem, figure in draw_results(results).items():
        paths.append(folder / f"{stem}{suffix}")
        save(figure, paths[-1])
    return paths


def write_curves(runs: Sequence[Path], folder: Path) -> list[Path]:
    """Training curves of the runs whose folders hold a log; the others are passed over."""
    paths = []
    for run in runs:
        log = read_log(run / LOG_FILE) if (run / LOG_FILE).is_file() else {}
        if log:
            paths.append(folder / f"curves-{run.name}.png")
            save(draw_curves(run.name, log), paths[-1])
        else:
            _log.info("no curves of %s: expected %s, found none", run.name, run / LOG_FILE)
    return paths


def write_panels(all_class: Masks, streams: Mapping[str, Predictor], folder: Path) -> list[Path]:
    """Scans with masks, a file for each manifestation; see `train.panels.draw_panel`.

    They show scans: the folder must be one that git ignores.
    """
    paths = []
    for name in MANIFESTATION_NAMES:
        paths.append(folder / f"panels-{name}.png")
        save(draw_panel(name, all_class, streams), paths[-1])
    return paths
