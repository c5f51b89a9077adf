from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import Row, Tally, document, record, recorded


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


def test_the_document_has_a_table_for_each_group() -> None:
    rows = [Row("Faults", "killed", 1200, 1000, 200, 0, 0, 5 * 2**20, 1.25), Row("Overload", "burst", 2, 2, 0, 0, 0)]
    text = document(rows)
    assert "## Faults" in text
    assert "## Overload" in text
    assert "| killed | 1,200 | 1,000 | 200 | 0 | 0 | 5 MiB | 1.25 s |" in text
    assert "| burst | 2 | 2 | 0 | 0 | 0 |  |  |" in text
