from __future__ import annotations

import csv
import io
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demo import folder
from demo.folder import Row
from serving import phantom
from serving.errors import ServerUnreachable, UnreadableScan
from serving.phantom_volume import ct_volume, series_zip_bytes
from serving.studies import is_study_file
from serving.tritonserver import TritonServer
from tests.demo.study_reports import reading, report_of
from tests.demo.test_app import report_of as scan_report
from tests.serving.test_study_reading import hu_of
from tests.serving.volume_files import dicom_frames, dicom_slice, file_of, zipped


def test_text_that_a_spreadsheet_would_compute_is_quoted() -> None:
    rows = [Row.of(1, '=HYPERLINK("http://x")', UnreadableScan("expected a scan, got none"))]
    line = next(csv.DictReader(folder.csv_text(rows).splitlines()))
    assert line["file"] == '\'=HYPERLINK("http://x")'
    assert (line["error"], line["message"]) == ("UnreadableScan", "expected a scan, got none")
    assert list(line) == folder.columns()


@pytest.mark.parametrize("name", ["=1+1.png", "+cmd.png", "-2.png", "@sum.png", "\ttab.png", "\rreturn.png"])
def test_no_name_of_a_file_is_a_formula(name: str) -> None:
    text = folder.csv_text([Row.of(1, name, report_of([reading(0, 0.5)])), Row.of(2, name, UnreadableScan("=x"))])
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [line["file"] for line in lines] == [f"'{name}"] * 2
    assert lines[1]["message"] == "'=x"


def test_lines_are_in_the_order_of_the_files() -> None:
    report = report_of([reading(0, 0.75)])
    rows = [Row.of(2, "b", report), Row.of(1, "a", UnreadableScan("x"))]
    lines = list(csv.DictReader(folder.csv_text(rows).splitlines()))
    assert [line["number"] for line in lines] == ["1", "2"]
    assert lines[1]["covid19"] == "0.750000"
    assert lines[1]["modality"] == "ct study"


def test_names_are_escaped_in_the_table_and_each_row_has_all_cells() -> None:
    html = folder.table([Row.of(1, "<b>.png", UnreadableScan("x")), Row.of(2, "b", report_of([reading(0, 0.5)]))])
    assert "&lt;b&gt;.png" in html
    first, second = html.split("<tbody>")[1].split("</tr>")[:2]
    assert first.count("<td") == second.count("<td") == html.count("<th ")


def test_a_doubtful_scan_says_so_before_its_highest_score() -> None:
    noise = replace(scan_report("xray"), doubts=("This is <no> chest X-ray.",))
    bad, fine = folder.table([Row.of(1, "noise.png", noise), Row.of(2, "b.png", scan_report("xray"))]).split("</tr>")[
        1:3
    ]
    said = "<strong>Doubtful:</strong> This is &lt;no&gt; chest X-ray."
    assert bad.index("X-ray") < bad.index(said) < bad.index("<td>Normal</td>")
    assert bad.index('class="ls-doubtful"') < bad.index("noise.png")
    assert "oubtful" not in fine
    lines = list(csv.DictReader(folder.csv_text([Row.of(1, "a", noise), Row.of(2, "b", scan_report())]).splitlines()))
    assert [(line["doubts"], line["problems"]) for line in lines] == [("This is <no> chest X-ray.", ""), ("", "")]


def test_a_study_says_its_doubt_what_is_missing_and_its_problems() -> None:
    gaps = ("slices <overlap>", "no volumes in ml")
    study = replace(report_of([reading(0, 0.5)], count=9, problems=gaps), doubts=("No lung was found.",))
    rows = [Row.of(1, "a", study), Row.of(2, "b", report_of([reading(0, 0.5)], problems=gaps))]
    doubtful, noted = folder.table(rows).split("</tr>")[1:3]
    where = [doubtful.index(text) for text in ("9 slices", "No lung was found.", "Incomplete: 1 of 9 slices were read")]
    assert where == sorted(where)
    assert where[-1] < doubtful.index("COVID-19</td>")
    assert "(and 2 more, see the CSV)" in doubtful
    assert "<p>Slices &lt;overlap&gt; (and 1 more, see the CSV)</p>" in noted
    assert "oubtful" not in noted
    first, second = csv.DictReader(folder.csv_text(rows).splitlines())
    assert first["doubts"] == "No lung was found."
    assert first["problems"] == "incomplete: 1 of 9 slices were read; slices <overlap>; no volumes in ml"
    assert second["problems"] == "slices <overlap>; no volumes in ml"


def test_columns_that_came_later_are_the_last() -> None:
    assert folder.columns()[-5:] == ["error", "message", "request_id", "doubts", "problems"]


@pytest.mark.triton
def test_noise_is_doubted_and_a_study_with_a_broken_slice_is_a_row_that_stops_nothing(
    tmp_path: Path, toy_triton: TritonServer
) -> None:
    hu = np.stack([hu_of(phantom.ct_slice(seed, 72).pixels) for seed in range(4)])
    slices = [file_of(dicom_slice(plane, (0.0, 0.0, 5.0 * i))) for i, plane in enumerate(hu)]
    slices[2] = slices[2][:-1000]
    (tmp_path / "broken.zip").write_bytes(zipped(slices))
    (tmp_path / "whole.zip").write_bytes(series_zip_bytes(ct_volume(1, 3, 64)))
    noise = np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)
    (tmp_path / "noise.png").write_bytes(phantom.png_bytes(noise))
    paths = [tmp_path / name for name in ("broken.zip", "whole.zip", "noise.png")]
    rows = list(folder.read_folder(toy_triton.grpc_url, paths, {}, threading.Event()))
    assert [row.name for row in rows] == ["noise.png", "broken.zip", "whole.zip"]
    assert "does not look like a chest" in next(csv.DictReader(folder.csv_text(rows[:1]).splitlines()))["doubts"]
    assert "Doubtful:" in folder.table(rows[:1])
    assert "Incomplete: 3 of 4 slices were read" in folder.table(rows[1:2])


def test_no_server_is_nobody_s_row(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(phantom.png_bytes(phantom.ct_slice().pixels))
    with pytest.raises(ServerUnreachable):
        list(folder.read_folder("127.0.0.1:1", [path], {}, threading.Event()))


@pytest.mark.triton
def test_scans_and_studies_and_what_is_neither(tmp_path: Path, toy_triton: TritonServer) -> None:
    files = {
        "study.zip": series_zip_bytes(ct_volume(1, 3, 64)),
        "words.png": b"only words",
        "slice.png": phantom.png_bytes(phantom.ct_slice(size_px=128).pixels),
        "empty.zip": b"PK\x05\x06" + bytes(18),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in files]
    ended: list[folder.Outcome] = []
    reading = folder.read_folder(toy_triton.grpc_url, paths, {}, threading.Event(), ended=ended.append)
    rows = {row.name: row for row in reading}
    ids = [str(row.to_json()["request_id"]) for row in rows.values()]
    assert all(ids)
    assert sorted(ids) == sorted({outcome.request_id for outcome in ended})
    assert {row.number for row in rows.values()} == {1, 2, 3, 4}
    assert rows["study.zip"].to_json()["shape"] == [3, 64, 64]
    assert rows["words.png"].to_json()["error"]["type"] == "UnreadableScan"  # type: ignore[index]
    assert rows["slice.png"].to_json()["modality"] == "ct"
    assert "error" in rows["empty.zip"].to_json()


@pytest.mark.triton
def test_a_file_of_several_frames_is_a_study_and_a_damaged_one_says_why(
    tmp_path: Path, toy_triton: TritonServer
) -> None:
    frames = file_of(dicom_frames(ct_volume(1, 3, 64)))
    files = {"frames": frames, "torn.dcm": frames[: frames.index(b"MONOCHROME2") - 20], "head.dcm": frames[:140]}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert [name for name in files if is_study_file(tmp_path / name)] == ["frames"]
    assert not is_study_file(tmp_path / "none")
    paths = [tmp_path / name for name in files]
    rows = {row.name: row for row in folder.read_folder(toy_triton.grpc_url, paths, {}, threading.Event())}
    assert rows["frames"].to_json()["shape"] == [3, 64, 64]
    for name in ("torn.dcm", "head.dcm"):
        assert rows[name].to_json()["error"]["type"] == "UnreadableScan"  # type: ignore[index]


@pytest.mark.triton
def test_stopping_ends_after_the_files_that_are_under_way(tmp_path: Path, toy_triton: TritonServer) -> None:
    path = tmp_path / "slice.png"
    path.write_bytes(phantom.png_bytes(phantom.ct_slice(size_px=128).pixels))
    stop = threading.Event()
    ended: list[folder.Outcome] = []
    rows = folder.read_folder(toy_triton.grpc_url, [path] * 50, {}, stop, ended=ended.append)
    next(rows)
    stop.set()
    assert 0 < len(list(rows)) < 20
    assert len({outcome.request_id for outcome in ended}) == len(ended) < 20


@pytest.mark.triton
def test_whoever_leaves_has_cases_that_were_read_all_the_same(tmp_path: Path, toy_triton: TritonServer) -> None:
    path = tmp_path / "slice.png"
    path.write_bytes(phantom.png_bytes(phantom.ct_slice(size_px=128).pixels))
    ended: list[folder.Outcome] = []
    rows = folder.read_folder(toy_triton.grpc_url, [path] * 50, {}, threading.Event(), ended=ended.append)
    next(rows)
    assert isinstance(rows, Generator)
    rows.close()
    assert 1 < len(ended) < 20
    assert not any(isinstance(outcome, Exception) for outcome in ended)
