from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import volumes
from loadtest.cases import PAPER_CASE_S
from loadtest.fit import Line, fit_line
from loadtest.slices import batches, write_volume
from loadtest.volumes import Growth, Trial, Volumes
from serving.errors import RequestError
from serving.scans import decode
from serving.tritonserver import TritonServer

SIZES = (5, 1, 3)


@pytest.fixture(scope="module")
def measured(toy_triton: TritonServer) -> Volumes:
    return volumes.measure(toy_triton, sizes=SIZES, ways=((1, 2), (2, 2)), raw_batches=(1, 3), probe=3, turns=1)


@pytest.mark.triton
def test_every_way_is_tried_and_the_best_is_taken(measured: Volumes) -> None:
    assert [(trial.batch, trial.in_flight) for trial in measured.ways] == [(1, 2), (2, 2)]
    assert [(trial.batch, trial.in_flight) for trial in measured.raw_ways] == [(1, 1), (3, 1)]
    assert measured.way.slices_per_s == max(trial.slices_per_s for trial in measured.ways)
    assert measured.raw_way.slices_per_s == max(trial.slices_per_s for trial in measured.raw_ways)


@pytest.mark.triton
def test_both_ways_take_each_volume_as_often_and_agree(measured: Volumes) -> None:
    assert [growth.slices for growth in measured.growth] == sorted(SIZES)
    for growth in measured.growth:
        assert len(growth.ours_s) == len(growth.raw_s) == max(1, 10 // growth.slices)
        assert growth.largest_difference < 1e-5
        assert growth.server_peak_bytes >= growth.server_before_bytes > 0


@pytest.mark.triton
def test_the_sections_and_plots_show_every_size(measured: Volumes) -> None:
    text = "\n\n".join(volumes.sections(measured))
    for size in SIZES:
        assert f"\n| {size} | " in text
    for figure in volumes.draw(measured).values():
        assert list(figure.axes[0].lines[0].get_xdata()) == sorted(SIZES)
    json.dumps(asdict(measured))


def growth_of(slices: int, ours_s: float, raw_s: float) -> Growth:
    return Growth(slices, (ours_s,), (raw_s,), 2**30, 2**30, 0, 0.0)


def volumes_of(*growth: Growth) -> Volumes:
    trial = Trial(1, 2, 10.0)
    lines = [fit_line([(g.slices, s) for g, (s,) in ((g, times(g)) for g in growth)]) for times in (ours, raw)]
    return Volumes(2**30, (trial,), (trial,), trial, trial, growth, *lines)


def ours(growth: Growth) -> tuple[float, ...]:
    return growth.ours_s


def raw(growth: Growth) -> tuple[float, ...]:
    return growth.raw_s


def test_a_case_in_time_is_said_to_be() -> None:
    text = "\n".join(volumes.sections(volumes_of(growth_of(1, 0.1, 0.1), growth_of(40, 4.0, 3.8))))
    assert "runs at 0.95 of raw (aim 0.9: met) and takes 4.00 s, within the paper's 5.33 s" in text


def test_a_case_that_is_late_says_what_it_would_take() -> None:
    text = "\n".join(volumes.sections(volumes_of(growth_of(1, 0.2, 0.1), growth_of(40, 8.0, 4.0))))
    assert "runs at 0.50 of raw (aim 0.9: missed) and takes 8.00 s" in text
    assert f"{40 / PAPER_CASE_S:.1f} slices/s, {8 / PAPER_CASE_S:.2f} times" in text
    assert "26 slices fit in" in text


@pytest.mark.parametrize(
    "wrong",
    [
        {"sizes": (40,)},
        {"sizes": (40, 40)},
        {"sizes": (0, 40)},
        {"turns": 0},
        {"probe": 0},
        {"ways": ((9, 2),)},
        {"ways": ((1, 0),)},
        {"raw_batches": (0,)},
    ],
)
def test_what_can_not_be_measured_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="expected "):
        volumes.measure(TritonServer(), **wrong)


def test_no_two_slices_of_a_volume_are_the_same(tmp_path: Path) -> None:
    paths = write_volume(tmp_path, 40)
    pixels = [decode(path.read_bytes(), "ct").pixels for path in paths]
    assert {slice_.shape for slice_ in pixels} == {(512, 512)}
    assert len({slice_.tobytes() for slice_ in pixels}) == 40
    # Still slices: the body is as large as before, not a stripe or nothing.
    shares = [np.count_nonzero(slice_ > 60) / slice_.size for slice_ in pixels]
    assert max(shares) < 1.3 * min(shares)


def test_files_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    paths[0].write_bytes(b"a")
    paths[1].write_bytes(b"b")
    taken = batches(paths, 2)
    assert next(taken) == [b"a", b"b"]
    paths[2].write_bytes(b"c")
    assert list(taken) == [[b"c"]]


def test_a_line_says_how_much_of_the_points_it_explains() -> None:
    assert fit_line([(0, 1), (1, 3), (2, 5)]) == Line(pytest.approx(1), pytest.approx(2), pytest.approx(1))
    assert fit_line([(0, 1), (1, 3), (2, 1)]).r2 == pytest.approx(0)
    assert fit_line([(0, 1), (2, 1)]).r2 == 0


def test_a_line_needs_two_places() -> None:
    with pytest.raises(RequestError, match="two places"):
        fit_line([(1, 1), (1, 2)])
