"""The record of a batch, and what of it the next run believes."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from lungstreams.cases import CaseResult, failed_case
from lungstreams.ledger import Ledger, fingerprint
from lungstreams.rows import COLUMNS
from lungstreams.sources import Source
from serving import pipeline
from serving.errors import InferenceFailed, RequestError, UnreadableScan
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.results import STATUS_NAMES

NAMES = ("scans/a.png", "scans/b.png", "scans/c")
WANTED = {name: f"made of {name}" for name in NAMES}


def source(name: str) -> Source:
    return Source(name, (Path(name),), is_study=False)


def case(name: str, mask: Path | None = None, **more: Any) -> CaseResult:
    return CaseResult(
        {
            "file": name,
            "modality": "ct",
            "diagnosis": dict.fromkeys(DIAGNOSIS_NAMES, 0.25),
            "manifestations": dict.fromkeys(MANIFESTATION_NAMES),
            "masks": {stream: None if mask is None else str(mask) for stream in STREAM_NAMES},
            "area_fraction": dict.fromkeys(STREAM_NAMES, 0.5),
            "status": dict.fromkeys(STATUS_NAMES, "ran"),
            "models": dict.fromkeys(pipeline.MODEL_NAMES, "1"),
            "latency_ms": 1.5,
            **more,
        }
    )


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "cases.jsonl").read_text().splitlines()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "cases.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A batch of a scan, a failure, and a folder of two series."""
    out = tmp_path / "out"
    with Ledger(out, WANTED) as ledger:
        ledger.add(source(NAMES[0]), [case(NAMES[0])])
        ledger.add(source(NAMES[1]), [failed_case(NAMES[1], UnreadableScan("expected a PNG, got a\nnovel"))])
        ledger.add(source(NAMES[2]), [case(NAMES[2]), case(NAMES[2])])
    return out


def done(folder: Path, wanted: dict[str, str] | None = None, **changed: Any) -> set[str]:
    with Ledger(folder, WANTED if wanted is None else wanted, [Path("scans")], **changed) as ledger:
        return set(ledger.done)


def test_lines_and_rows_say_the_same(folder: Path) -> None:
    assert [line["file"] for line in lines(folder)] == [row["file"] for row in rows(folder)] == [*NAMES, NAMES[2]]
    first, failed, *_ = rows(folder)
    assert tuple(first) == COLUMNS
    assert (first["p_covid19"], first["p_ground_glass"], first["status_all"], first["error"]) == ("0.25", "", "ran", "")
    assert (failed["error"], failed["message"]) == ("UnreadableScan", "expected a PNG, got a novel")


def test_what_holds_is_done_and_counted(folder: Path) -> None:
    before = lines(folder), rows(folder)
    with Ledger(folder, WANTED, [Path("scans")]) as ledger:
        assert ledger.done == set(NAMES)
        assert ledger.outcomes == {False: 3, True: 1}
    assert (lines(folder), rows(folder)) == before


@pytest.mark.parametrize("kept", [0.2, 0.7, 0.95])
def test_a_torn_end_is_dropped_with_all_of_its_source(folder: Path, kept: float) -> None:
    path = folder / "cases.jsonl"
    *whole, last = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole) + last[: int(len(last) * kept)])
    assert done(folder) == set(NAMES[:2])
    assert [line["file"] for line in lines(folder)] == [row["file"] for row in rows(folder)] == list(NAMES[:2])


def test_half_of_a_source_before_another_is_dropped(folder: Path) -> None:
    path = folder / "cases.jsonl"
    first, failed, part, _ = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + part + b"not json\n" + b"[]\n" + failed)
    assert done(folder) == set(NAMES[:2])
    assert len(lines(folder)) == 2


def test_a_source_that_is_there_twice_counts_once(folder: Path) -> None:
    path = folder / "cases.jsonl"
    path.write_bytes(path.read_bytes() * 2)
    assert done(folder) == set(NAMES)
    assert len(lines(folder)) == len(rows(folder)) == 4


def test_what_was_made_of_something_else_is_done_again(folder: Path) -> None:
    assert done(folder, {**WANTED, NAMES[2]: "other files"}) == set(NAMES[:2])
    assert len(lines(folder)) == 2


def test_nothing_counts_without_resume(folder: Path) -> None:
    assert done(folder, resume=False) == set()
    assert lines(folder) == rows(folder) == []


def test_cases_of_files_that_are_gone_are_dropped_and_other_folders_stay(folder: Path) -> None:
    other = {"elsewhere/x.png": "x"}
    with Ledger(folder, other, [Path("elsewhere")]) as ledger:
        ledger.add(source("elsewhere/x.png"), [case("elsewhere/x.png")])
    assert len(lines(folder)) == 5
    assert done(folder, {NAMES[1]: WANTED[NAMES[1]]}) == {NAMES[1]}
    assert [line["file"] for line in lines(folder)] == [NAMES[1], "elsewhere/x.png"]


@pytest.mark.parametrize(
    "error", [InferenceFailed("overloaded"), FileNotFoundError(2, "No such file"), OSError("disk")]
)
def test_what_the_server_or_the_disk_failed_at_is_tried_again(tmp_path: Path, error: Exception) -> None:
    with Ledger(tmp_path, WANTED) as ledger:
        ledger.add(source(NAMES[0]), [failed_case(NAMES[0], error)])  # type: ignore[arg-type]
    assert done(tmp_path) == set()


def test_a_case_whose_mask_is_gone_is_done_again(tmp_path: Path) -> None:
    mask = tmp_path / "mask.png"
    mask.touch()
    with Ledger(tmp_path, WANTED) as ledger:
        ledger.add(source(NAMES[0]), [case(NAMES[0], mask)])
    assert done(tmp_path) == {NAMES[0]}
    mask.unlink()
    assert done(tmp_path) == set()


def test_a_case_whose_explanation_is_gone_is_done_again(tmp_path: Path) -> None:
    picture = tmp_path / "scan.why.normal.png"
    picture.touch()
    with Ledger(tmp_path, WANTED) as ledger:
        ledger.add(source(NAMES[0]), [case(NAMES[0], explanation=str(picture))])
    assert done(tmp_path) == {NAMES[0]}
    picture.unlink()
    assert done(tmp_path) == set()


def test_names_that_are_not_utf_8_are_kept(tmp_path: Path) -> None:
    name = os.fsdecode(b"scans/\xff.png")
    with Ledger(tmp_path, {name: "x"}) as ledger:
        ledger.add(source(name), [case(name)])
    assert done(tmp_path, {name: "x"}) == {name}
    assert b"scans/\xff.png" in (tmp_path / "cases.csv").read_bytes()
    assert case(name).sentence.encode().startswith(rb"scans/\udcff.png: ct, COVID-19 25%")


def test_one_run_at_a_time_writes_to_a_folder(folder: Path) -> None:
    with Ledger(folder, WANTED), pytest.raises(RequestError, match="got one that is in use"):
        Ledger(folder, WANTED)
    done(folder)


def test_a_folder_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match=r"--out: .* can not be written"):
        Ledger(tmp_path / "file", WANTED)


def test_a_fingerprint_follows_from_files_and_from_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"1")
    one = Source("a", (path,), is_study=False)
    seen = {fingerprint(one, {"thresholds": {"covid19": 0.0}})}
    assert fingerprint(one, {"thresholds": {"covid19": 0.0}}) in seen
    seen.add(fingerprint(one, {"thresholds": {"covid19": 0.1}}))
    os.utime(path, ns=(1, 1))
    seen.add(fingerprint(one, {"thresholds": {"covid19": 0.0}}))
    path.write_bytes(b"22")
    os.utime(path, ns=(1, 1))
    seen.add(fingerprint(one, {"thresholds": {"covid19": 0.0}}))
    path.unlink()
    seen.add(fingerprint(one, {"thresholds": {"covid19": 0.0}}))
    assert len(seen) == 5
