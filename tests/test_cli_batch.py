"""`lungstreams predict FOLDER --out DIR`: thousands of files, killed and gone on with."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import phantom
from serving.tritonserver import TritonServer
from tests.test_cli import COMMAND, cases_of, lungstreams, only_line

pytestmark = pytest.mark.triton

FILES = 2000
EVERY = 8
"""One in so many of the files can be read; the others take a line all the same."""


def lines_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "cases.jsonl").read_text().splitlines()]


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "cases.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def count(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def eventually(holds: Callable[[], bool], within_s: float = 120) -> bool:
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return holds()


class Batch:
    """A run of its own, that can be stopped; what it says goes to files, since nobody empties its pipes meanwhile."""

    def __init__(self, said: Path, *arguments: object) -> None:
        self.out, self.err = said.with_suffix(".out"), said.with_suffix(".err")
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=out, stderr=err)

    def end(self) -> tuple[int, int]:
        """Exit status, and the most memory that it had, in KiB."""
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return self.process.returncode, usage.ru_maxrss

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def batch(tmp_path: Path) -> Iterator[Callable[..., Batch]]:
    running: list[Batch] = []

    def start(*arguments: object) -> Batch:
        running.append(Batch(tmp_path / f"said{len(running)}", *arguments))
        return running[-1]

    yield start
    for each in running:
        each.kill()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for i in range(FILES):
        path = folder / f"{i % 7}" / f"{i:04d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(phantom.png_bytes(np.full((48, 48), i % 256, np.uint8)) if i % EVERY == 0 else b"\x89PNG")
    return folder


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for i in range(3):
        path = folder / f"patient{i}" / "slice.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(phantom.png_bytes(phantom.ct_slice(i, 64).pixels))
    (folder / "notes.txt").write_text("no scan")
    return folder


@pytest.mark.slow
def test_a_batch_that_is_killed_goes_on_and_nothing_is_lost_or_twice(
    many: Path, tmp_path: Path, toy_triton: TritonServer, batch: Callable[..., Batch]
) -> None:
    out, asked = tmp_path / "out", ("--json", "--modality=xray", "--url", toy_triton.grpc_url)
    killed = batch("predict", many, "--out", out, *asked)
    assert eventually(lambda: count(out / "cases.jsonl") > FILES // 4)
    killed.kill()
    kept = count(out / "cases.jsonl")
    assert FILES // 4 < kept < FILES // 2
    with (out / "cases.jsonl").open("a") as torn:
        torn.write('{"file": "torn')
    resumed = batch("predict", many, "--out", out, *asked)
    code, peak_kib = resumed.end()
    assert code == 1
    assert f"done by an earlier run: {kept:,}" in only_line(resumed.err.read_text())
    assert count(resumed.out) == FILES - kept
    expected = sorted(str(path) for path in many.rglob("*.png"))
    # One process wrote them in their order, and so did the other.
    assert [line["file"] for line in lines_of(out)] == [row["file"] for row in rows_of(out)] == expected
    read = [line for line in lines_of(out) if "error" not in line]
    assert {int(Path(line["file"]).stem) for line in read} == set(range(0, FILES, EVERY))

    # A thirtieth of the files takes as much memory as half of them and the record of all.
    few = sorted(path for path in (many / "0").iterdir())[: FILES // 30]
    (tmp_path / "few").mkdir()
    for path in few:
        (tmp_path / "few" / path.name).write_bytes(path.read_bytes())
    code, few_peak_kib = batch("predict", tmp_path / "few", "--out", tmp_path / "few.out", *asked).end()
    assert code == 1
    assert peak_kib - few_peak_kib < 24 * 1024


def test_a_folder_has_lines_a_table_and_masks(scans: Path, tmp_path: Path, toy_triton: TritonServer) -> None:
    out = tmp_path / "out"
    given = ("predict", scans, "--out", out, "--json", "--modality=ct", "--url", toy_triton.grpc_url)
    first = lungstreams(*given, "--threshold=ground_glass=0")
    assert first.returncode == 0
    assert only_line(first.stderr).startswith("lungstreams: cases: 3, failed: 0; files left out, which are no scans: 1")
    cases = cases_of(first)
    assert [case["file"] for case in cases] == [str(scans / f"patient{i}" / "slice.png") for i in range(3)]
    for i, (case, line, row) in enumerate(zip(cases, lines_of(out), rows_of(out), strict=True)):
        assert case == {key: value for key, value in line.items() if key != "resume"}
        assert case["masks"]["ground_glass"] == str(out / "masks" / f"patient{i}" / "slice.png.ground_glass.png")
        assert Path(row["mask_ground_glass"]).exists()
        assert float(row["p_covid19"]) == case["diagnosis"]["covid19"]

    (scans / "patient1" / "slice.png").write_bytes(phantom.png_bytes(phantom.ct_slice(9, 64).pixels))
    again = lungstreams(*given, "--threshold=ground_glass=0")
    assert "done by an earlier run: 2" in again.stderr
    changed = cases_of(again)
    assert [case["file"] for case in changed] == [str(scans / "patient1" / "slice.png")]
    assert changed[0]["diagnosis"] != cases[1]["diagnosis"]

    closed = cases_of(lungstreams(*given, "--threshold=covid19=1"))
    assert len(closed) == 3
    assert [line["status"]["manifestations"] for line in lines_of(out)] == ["not_run"] * 3


def test_a_line_a_case_for_people(scans: Path, toy_triton: TritonServer) -> None:
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    run = lungstreams("predict", scans, "--modality=ct", "--url", toy_triton.grpc_url)
    assert run.returncode == 1
    assert [line.partition(": ")[0] for line in run.stdout.splitlines()] == [
        str(scans / f"patient{i}" / "slice.png") for i in range(3)
    ]
    assert "ground-glass opacity" in run.stdout
    complaint, summary = run.stderr.splitlines()
    assert "broken.png: UnreadableScan" in complaint
    assert summary == "lungstreams: cases: 4, failed: 1; files left out, which are no scans: 1"


def test_ctrl_c_keeps_what_is_done(
    many: Path, tmp_path: Path, toy_triton: TritonServer, batch: Callable[..., Batch]
) -> None:
    out = tmp_path / "out"
    running = batch("predict", many, "--out", out, "--modality=xray", "--url", toy_triton.grpc_url)
    assert eventually(lambda: count(out / "cases.jsonl") > 20)
    running.process.send_signal(signal.SIGINT)
    assert running.end()[0] == 130
    errors = running.err.read_text()
    assert "Traceback" not in errors
    kept = len(lines_of(out))
    assert f"stopped; {kept:,} cases were done and are kept" in errors.splitlines()[-1]
    assert len(rows_of(out)) == kept < FILES


def test_a_folder_without_scans_is_one_line(tmp_path: Path, toy_triton: TritonServer) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    run = lungstreams("predict", tmp_path, "--url", toy_triton.grpc_url)
    assert run.returncode == 2
    assert "got none in 1 files" in only_line(run.stderr)


def test_no_name_of_a_file_is_a_formula_in_the_table(toy_triton: TritonServer, tmp_path: Path) -> None:
    names = ["=1+1.png", "+cmd.png", "-2.png", "@sum.png", "\ttab.png", "plain.png"]
    pixels = phantom.png_bytes(phantom.ct_slice(seed=1, size_px=64).pixels)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in names:
        # One that can not be read has its name in the table, too.
        (scans / name).write_bytes(b"broken" if name == "@sum.png" else pixels)
    command = [*COMMAND, "predict", ".", "--out", str(tmp_path / "out"), "--url", toy_triton.grpc_url]
    run = subprocess.run(command, cwd=scans, capture_output=True, check=False, timeout=240)
    assert run.returncode == 1
    rows = {row["file"].lstrip("'"): row for row in rows_of(tmp_path / "out")}
    assert set(rows) == set(names)
    assert rows["@sum.png"]["error"] == "UnreadableScan"
    for row in rows.values():
        assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]
    assert rows["plain.png"]["file"] == "plain.png"
    assert {line["file"] for line in lines_of(tmp_path / "out")} == set(names)
