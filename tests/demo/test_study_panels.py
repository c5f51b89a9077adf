from __future__ import annotations

import re

from demo import study_panels
from demo.axis_plot import CURVES, axis_plot
from serving.labels import STREAM_NAMES
from tests.demo.study_reports import reading, report_of


def test_the_summary_says_of_how_many_slices_it_is() -> None:
    report = report_of([reading(0, 0.1, lung_px=10), reading(1, 0.8), reading(2, 0.6)])
    html = study_panels.diagnosis(report)
    assert "mean of 2 of 3 slices" in html
    assert "Highest score: <strong>COVID-19</strong>" in html
    assert 'aria-valuetext="70.0 %"' in html


def test_a_manifestation_links_to_the_slice_where_it_is_likeliest() -> None:
    report = report_of([reading(0, 0.5, findings=(0.2, 0.1, 0.1)), reading(1, 0.5, findings=(0.9, 0.1, 0.1))])
    html = study_panels.manifestations(report)
    assert 'data-slice="2">slice 2</button>; marked in 1 slice<' in html


def test_closed_gates_are_not_found_nothing() -> None:
    report = report_of([reading(0, 0.1, findings=None)], masks=dict.fromkeys(STREAM_NAMES))
    assert study_panels.manifestations(report).count("not run: the gate was closed on every slice") == 3
    assert "no stream ran" in study_panels.layers_note(report)
    assert "ground-glass opacity not run" in study_panels.slice_words(report, 0)


def test_burden_is_in_millilitres_and_per_cent_of_each_lung() -> None:
    # 64 of 128 lung pixels of half a millilitre, all on the right.
    html = study_panels.burden(report_of([reading(0, 0.5)]))
    row = re.search(r"Ground-glass opacity</th>(.*?)</tr>", html)
    assert row is not None
    assert re.findall(r"<b>(.*?)</b><span>(.*?)</span>", row[1]) == [
        ("50.0 %", "32 ml"),
        ("100.0 %", "32 ml"),
        ("0.0 %", "0 ml"),
    ]
    assert "<td>64 ml</td><td>32 ml</td><td>32 ml</td>" in html


def test_problems_come_first_and_an_incomplete_study_is_one() -> None:
    whole = report_of([reading(0, 0.5)])
    assert study_panels.problems(whole) == ""
    html = study_panels.problems(report_of([reading(0, 0.5)], count=9, problems=("slices <overlap>",)))
    assert html.index("Incomplete: 1 of 9 slices were read") < html.index("Slices &lt;overlap&gt;")


def test_a_slice_that_was_not_read_or_does_not_count_says_so() -> None:
    report = report_of([reading(0, 0.5, lung_px=1), reading(1, 0.5)], count=3)
    assert study_panels.slice_words(report, 0).endswith("does not count: too little lung")
    assert "too little lung" not in study_panels.slice_words(report, 1)
    assert study_panels.slice_words(report, 2) == "Slice 3 of 3: not read"


def test_the_plot_is_a_slider_that_says_its_slice() -> None:
    slices = [reading(0, 0.25), reading(1, 0.5, findings=None), reading(2, 1.0)]
    html = axis_plot(slices, 4, 1, counted=[0, 1, 2])
    assert 'role="slider" tabindex="0"' in html
    assert 'aria-valuemin="1" aria-valuemax="4" aria-valuenow="2"' in html
    assert 'aria-valuetext="slice 2 of 4, COVID-19 50.0 %, Ground-glass opacity not run' in html
    assert "too little lung to count" in html
    paths = re.findall(r'<path d="([^"]+)" style', html)
    # COVID-19 goes on; what did not run is a gap, and a slice alone is a dot.
    assert paths[0] == "M0.5 75h.01L1.5 50L2.5 0"
    assert paths[1] == "M0.5 10h.01M2.5 10h.01"


def test_curves_are_told_apart_without_their_colours() -> None:
    html = axis_plot([reading(0, 0.5), reading(1, 0.5)], 2, 0)
    legend = html[html.index("ls-legend") :]
    assert len(set(re.findall(r'stroke-dasharray="([^"]*)"', legend))) == len(CURVES)
