from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from loadtest import bench
from loadtest.machine import describe
from serving.errors import RequestError


@dataclass(frozen=True)
class Counted:
    calls: int
    share: float


def plot(_: Counted) -> dict[str, Figure]:
    figure = Figure()
    figure.set_label("Nothing yet")
    return {"nothing": figure}


PARTS = {
    "first": bench.Part("The first", lambda settings: Counted(settings.rounds, 1 / 3), lambda r: [f"{r.calls} calls"]),
    "second": bench.Part("The second", lambda _: Counted(0, float("nan")), lambda _: ["none"], plot),
}


ALL = bench.parts


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "parts", lambda: PARTS)


def test_a_report_holds_every_part_its_plots_and_the_machine(tmp_path: Path) -> None:
    bench.main(tmp_path, 3, tmp_path / "new")
    text = (tmp_path / "new" / bench.REPORT_NAME).read_text()
    assert text.index("## The first\n\n3 calls") < text.index("## The second")
    assert describe().cpu in text
    assert "![Nothing yet](images/benchmarks/second-nothing.png)" in text
    assert (tmp_path / "new/images/benchmarks/second-nothing.png").stat().st_size > 0


def test_the_json_holds_what_was_measured_and_no_nan(tmp_path: Path) -> None:
    bench.main(tmp_path, 3, tmp_path)
    document = json.loads((tmp_path / bench.JSON_NAME).read_text())
    assert document["first"]["calls"] == 3
    assert document["first"]["share"] == 0.3333
    assert document["second"]["share"] is None
    assert document["machine"]["cores"] == describe().cores


def test_only_the_parts_asked_for_run_and_in_their_order(tmp_path: Path) -> None:
    bench.main(tmp_path, 3, tmp_path, names=["second"])
    document = json.loads((tmp_path / bench.JSON_NAME).read_text())
    assert "first" not in document
    assert "second" in document


def test_an_unknown_part_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected parts out of first, second, got third"):
        bench.main(tmp_path, 3, tmp_path, names=["first", "third"])
    assert not list(tmp_path.iterdir())


def test_no_round_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected 1 round or more, got 0"):
        bench.main(tmp_path, 0, tmp_path)


def test_every_part_of_the_benchmark_can_be_loaded() -> None:
    assert list(ALL()) == ["full_width", "shipped", "latency", "volumes", "load", "footprint"]
