from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import reliability
from tests.reliability import ROOT, Row, Tally, document, ended, record, recorded


def test_a_row_whose_parts_do_not_sum_up_is_refused() -> None:
    with pytest.raises(ValueError, match="sum up to 3 requests"):
        Row("Faults", "a thing", requests=3, answered=1, refused=1, lost=0, wrong=0)


def test_a_tally_counts_each_outcome_and_keeps_the_slowest() -> None:
    tally = Tally()
    tally.answer(0.5)
    tally.answer(2.0)
    tally.refuse(1.0)
    tally.lose()
    tally.mistake()
    row = tally.row("a thing", group="Faults", peak_bytes=3 * 2**20)
    assert (row.requests, row.answered, row.refused, row.lost, row.wrong) == (5, 2, 1, 1, 1)
    assert row.slowest_s == 2.0


def test_a_test_that_ran_again_replaces_its_row(tmp_path: Path) -> None:
    record(Row("Faults", "a thing", 2, 1, 1, 0, 0), tmp_path)
    record(Row("Faults", "another thing", 1, 1, 0, 0, 0), tmp_path)
    again = record(Row("Faults", "a thing", 7, 3, 4, 0, 0, 2**20, 1.5), tmp_path)
    assert recorded(tmp_path) == [again, Row("Faults", "another thing", 1, 1, 0, 0, 0)]


def test_a_row_whose_test_failed_says_so_and_the_others_do_not(tmp_path: Path) -> None:
    ended(failed=False)
    record(Row("Faults", "a good thing", 1, 1, 0, 0, 0), tmp_path)
    ended(failed=False)
    record(Row("Faults", "a slow thing", 1, 1, 0, 0, 0), tmp_path)
    ended(failed=True)
    ended(failed=True)
    assert {row.what: row.failed for row in recorded(tmp_path)} == {"a good thing": False, "a slow thing": True}
    assert "| a slow thing **failed** |" in document(recorded(tmp_path))


def test_a_test_that_fails_is_told_to_its_row(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from pathlib import Path\nfrom tests.reliability import Row, record\n"
        "def test_it(): assert record(Row('Faults', 'a thing', 1, 1, 0, 0, 0), Path(__file__).parent / 'rows').lost\n"
        "def test_other(): record(Row('Faults', 'another', 1, 1, 0, 0, 0), Path(__file__).parent / 'rows')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", tmp_path, tmp_path]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 1
    assert {row.what: row.failed for row in recorded(tmp_path / "rows")} == {"a thing": True, "another": False}


@pytest.mark.parametrize("is_long", [True, False])
def test_what_the_short_form_counts_is_not_for_the_document(
    is_long: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reliability, "IS_LONG", is_long)
    monkeypatch.setattr(reliability, "ROWS", tmp_path / "long")
    monkeypatch.setattr(reliability, "SHORT_ROWS", tmp_path / "short")
    row = record(Row("Faults", "a thing", 1, 1, 0, 0, 0))
    assert recorded(tmp_path / "long") == [row][: int(is_long)]
    assert recorded(tmp_path / "short") == [row][int(is_long) :]


def test_the_document_has_a_table_for_each_group() -> None:
    rows = [Row("Faults", "killed", 1200, 1000, 200, 0, 0, 5 * 2**20, 1.25), Row("Overload", "burst", 2, 2, 0, 0, 0)]
    text = document(rows)
    assert "## Faults" in text
    assert "## Overload" in text
    assert "| killed | 1,200 | 1,000 | 200 | 0 | 0 | 5 MiB | 1.25 s |" in text
    assert "| burst | 2 | 2 | 0 | 0 | 0 |  |  |" in text
    assert "| soak; it grew | 1 | 1 |" in document([Row("Soak", "soak", 1, 1, 0, 0, 0, note="it grew")])
