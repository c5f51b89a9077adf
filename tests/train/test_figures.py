from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from train.figures import CAPTIONS, draw_confusions, draw_curves, draw_reliability, draw_results, read_log, save
from train.gallery import write_curves, write_plots

DOCS = Path(__file__).resolve().parents[2] / "docs"


def _texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_confusion_has_its_counts_and_shares_by_row() -> None:
    figure = draw_confusions([("Two", [[3, 1], [0, 0]], [["a", "b"], ["said a", "said b"]])], width_in=4)
    assert _texts(figure) == ["3\n75%", "1\n25%", "0\n0%", "0\n0%"]
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_title()) == ("predicted", "Two\nn = 4")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_reliability_is_drawn_at_each_bins_mean() -> None:
    entry = {"reliability": [[4, 0.2, 0.25], [6, 0.9, 0.5]], "ece": 0.26}
    axes, below = draw_reliability([("X-ray", entry)], "confidence", "right").axes
    np.testing.assert_allclose(axes.lines[1].get_xydata(), [[0.2, 0.25], [0.9, 0.5]])
    assert [bar.get_height() for bar in below.patches] == [4, 6]
    assert "0.260, n = 10" in axes.get_title()
    assert "n/a" in draw_reliability([("CT", {"reliability": [], "ece": None})], "x", "y").axes[0].get_title()


def test_curves_are_those_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("epoch,loss,val_loss\n0,0.9,0.7\n1,0.6,0.65\n2,0.4,0.8\n")
    columns = read_log(log)
    figure = draw_curves("run", columns)
    assert len(figure.axes) == 1
    training, validation, best = figure.axes[0].lines
    assert training.get_ydata().tolist() == [0.9, 0.6, 0.4]
    assert validation.get_xdata().tolist() == [1, 2, 3]
    assert best.get_label() == "best, epoch 2"
    both = draw_curves("run", {**columns, "accuracy": [0.5, 0.6, 0.7], "val_accuracy": [0.5, 0.7, 0.6]})
    assert [axes.get_ylabel() for axes in both.axes] == ["cross-entropy (nats)", "accuracy (share)"]


def test_runs_without_a_log_have_no_curves(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "with" / "log.csv").write_text("epoch,loss,val_loss\n0,0.9,0.7\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.csv").write_text("")
    written = write_curves([tmp_path / name for name in ("with", "empty", "without")], tmp_path / "figures")
    assert [path.name for path in written] == ["curves-with.png"]
    assert written[0].read_bytes().startswith(b"\x89PNG")


def test_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save(draw_confusions([("Two", [[3, 1], [0, 2]], [["a", "b"]] * 2)], width_in=4), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_page_links_every_plot_and_each_is_there_and_small() -> None:
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    for stem, caption in CAPTIONS.items():
        assert f"![{caption}](images/results/{stem}.svg)" in page
        assert (DOCS / "images" / "results" / f"{stem}.svg").stat().st_size < 100_000


def test_committed_plots_are_those_of_the_committed_figures(tmp_path: Path) -> None:
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    for path in write_plots(results, tmp_path, ".svg"):
        committed = (DOCS / "images" / "results" / path.name).read_text(encoding="utf-8")
        # Another Matplotlib may place things otherwise; the text is the figures'.
        for text in {t for figure in [draw_results(results)[path.stem]] for t in _texts(figure)}:
            for line in text.split("\n"):
                assert f">{line}<" in committed


def test_a_model_that_is_not_there_is_not_drawn() -> None:
    results = json.loads((DOCS / "results.json").read_text(encoding="utf-8"))
    drawn = draw_results({"recognition": results["recognition"]})
    assert set(drawn) == {"recognition-confusion", "recognition-reliability"}
    assert draw_results({}) == {}


@pytest.mark.parametrize("stem", CAPTIONS)
def test_every_plot_names_its_axes(stem: str) -> None:
    figure = draw_results(json.loads((DOCS / "results.json").read_text(encoding="utf-8")))[stem]
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.get_title() for axes in figure.axes)
