"""What tests of hostile input, overload and faults counted, and the table of it: docs/reliability.md.

A test counts, asserts, and records a row::

    @pytest.mark.reliability
    def test_...(...):
        tally = Tally()
        tally.refuse(seconds)                # one request after the other: `answer`, `refuse`, `lose`, `mistake`
        record(tally.row("What was done to it", group="Faults", peak_bytes=...))

`make reliability` runs the tests with that mark, and then `python -m tests.reliability`, which writes the document from
the rows that are there. A row replaces the one of the same group and name, so that a single test can be run again. One
whose test failed says so (tests/conftest.py). What the short form counts, as in `make test`, is kept elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
ROWS: Final = ROOT / "reports" / "reliability"
DOCUMENT: Final = ROOT / "docs" / "reliability.md"

SHORT_ROWS: Final = ROOT / "reports" / "reliability-short"

IS_LONG: Final = os.environ.get("LUNGSTREAMS_LONG_TESTS") == "1"
"""`make reliability` says so: tests send as much as they promise, and not only what the suite has time for."""

_HEAD: Final = """# Reliability

Written by the tests themselves (`make reliability`): every row is what a test counted while it ran, and each of these
tests fails if anything was lost or wrong. *Refused* is an error that says what was expected and what came, or that the
server is busy; *lost* is no answer at all, a crash among them; *wrong* is an answer that belongs to another request.
Memory is the highest that the test saw (of what, its row says); times are of one run and are no promise. A test that
failed for another reason, as for time or memory beyond its limit, is marked as **failed**.
"""
_COLUMNS: Final = ("what", "requests", "answered", "refused", "lost", "wrong", "peak memory", "slowest")


@dataclass(frozen=True)
class Row:
    """What one test counted.

    Attributes:
        group: The heading that it is listed under, as in "Hostile input".
        what: What was done, in a few words; what the memory is of, where there is one.
        requests: Inputs or requests.
        answered: How many of them were answered as they should be.
        refused: How many got a clear error.
        lost: How many got no answer.
        wrong: How many got an answer that is not theirs, or an error that does not say what is the matter.
        peak_bytes: Highest memory seen; None if none was measured.
        slowest_s: The longest that one of them took, in seconds; None if none was measured.
        failed: Whether its test failed, for whatever reason.
        note: What else there is to say, and is another each time.

    Raises:
        ValueError: If the parts do not sum up to the requests.
    """

    group: str
    what: str
    requests: int
    answered: int
    refused: int
    lost: int
    wrong: int
    peak_bytes: int | None = None
    slowest_s: float | None = None
    failed: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        parts = self.answered, self.refused, self.lost, self.wrong
        if min(parts) < 0 or sum(parts) != self.requests:
            raise ValueError(f"expected parts that sum up to {self.requests} requests, got {parts}")

    @property
    def file_name(self) -> str:
        """Where the row is kept, under `ROWS`."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.group} {self.what}".lower()).strip("-")[:120] + ".json"


class Tally:
    """Counts of a test under way. Safe to share between threads."""

    def __init__(self) -> None:
        self.answered = self.refused = self.lost = self.wrong = 0
        self.slowest_s: float | None = None
        self._lock = threading.Lock()

    def answer(self, seconds: float | None = None) -> None:
        """One more was answered, after so many seconds."""
        self._count("answered", seconds)

    def refuse(self, seconds: float | None = None) -> None:
        """One more was refused with a clear error."""
        self._count("refused", seconds)

    def lose(self, seconds: float | None = None) -> None:
        """One more got no answer."""
        self._count("lost", seconds)

    def mistake(self, seconds: float | None = None) -> None:
        """One more got a wrong answer, or an error that says nothing."""
        self._count("wrong", seconds)

    def row(self, what: str, *, group: str, peak_bytes: int | None = None) -> Row:
        """The counts so far, see `Row`."""
        requests = self.answered + self.refused + self.lost + self.wrong
        return Row(
            group, what, requests, self.answered, self.refused, self.lost, self.wrong, peak_bytes, self.slowest_s
        )

    def _count(self, kind: str, seconds: float | None) -> None:
        with self._lock:
            setattr(self, kind, getattr(self, kind) + 1)
            if seconds is not None:
                self.slowest_s = max(self.slowest_s or 0.0, seconds)


_of_this_test: list[tuple[Row, Path]] = []


def record(row: Row, rows: Path | None = None) -> Row:
    """Keep a row for the document, in place of an earlier one of the same name; returns it, to be asserted on.

    Args:
        row: What was counted.
        rows: Where it is kept; by default `ROWS`, and `SHORT_ROWS` for the short form.
    """
    rows = rows or (ROWS if IS_LONG else SHORT_ROWS)
    _of_this_test.append((row, rows))
    rows.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: tests may run side by side.
    partial = rows / f".{row.file_name}.{os.getpid()}"
    partial.write_text(json.dumps(asdict(row), indent=1) + "\n", encoding="utf-8")
    partial.replace(rows / row.file_name)
    return row


def ended(*, failed: bool) -> None:
    """Marks the rows that were recorded since the last call, if their test failed."""
    kept = _of_this_test.copy()
    for row, rows in kept if failed else ():
        record(replace(row, failed=True), rows)
    _of_this_test.clear()


def recorded(rows: Path = ROWS) -> list[Row]:
    """The rows that are kept, by group and name."""
    found = [Row(**json.loads(path.read_text(encoding="utf-8"))) for path in rows.glob("*.json")]
    return sorted(found, key=lambda row: (row.group, row.what))


def document(rows: Iterable[Row]) -> str:
    """The document, in Markdown."""
    lines, group = [_HEAD], ""
    for row in rows:
        if row.group != group:
            group = row.group
            header = " | ".join(_COLUMNS)
            lines.append(f"\n## {group}\n\n| {header} |\n|{'---|' * len(_COLUMNS)}\n")
        memory = "" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:,.0f} MiB"
        slowest = "" if row.slowest_s is None else f"{row.slowest_s:.2f} s"
        counts = (row.requests, row.answered, row.refused, row.lost, row.wrong)
        cells = (
            f"{row.what}{row.note and f'; {row.note}'}{' **failed**' if row.failed else ''}",
            *(f"{count:,}" for count in counts),
            memory,
            slowest,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    DOCUMENT.write_text(document(recorded()), encoding="utf-8")
