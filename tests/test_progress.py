"""The bars of a command, as a terminal shows them."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from lungstreams import progress

WIDTH = 80
# What a terminal does other than to write: what rich sends to move, to rub a line out, and to hide its cursor.
ORDERS = re.compile(r"(\r|\n|\x1b\[\d*A|\x1b\[2K|\x1b\[\?25[lh])")


class Screen(io.StringIO):
    """A terminal of so many columns that no line is broken."""

    def lines(self) -> list[str]:
        """What is on it, without empty lines."""
        lines, row, column = [""], 0, 0
        for part in ORDERS.split(self.getvalue()):
            if part == "\r":
                column = 0
            elif part == "\n":
                row, column = row + 1, 0
                lines += [""] * (row == len(lines))
            elif part.endswith("A") and part.startswith("\x1b"):
                row -= int(part[2:-1] or 1)
            elif part == "\x1b[2K":
                lines[row] = ""
            elif not part.startswith("\x1b"):
                lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
                column += len(part)
        return [line for line in lines if line.strip()]


def screen_of(monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool = True) -> Screen:
    screen = Screen()
    console = Console(
        file=screen, force_terminal=is_terminal, force_interactive=is_terminal, width=WIDTH, color_system=None
    )
    monkeypatch.setattr(progress, "err", console)
    return screen


def test_bars_of_cases_and_slices_make_room_for_lines_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with progress.Bars(3) as bars:
        bars.slices(2, 82)
        bars.slices(40, 82)
        with bars.above():
            assert screen.lines() == []
            screen.write("said in the midst of a study\n")
        bars.slices(41, 82)
        bars._progress.refresh()
        said, cases, slices = screen.lines()
        assert said == "said in the midst of a study"
        assert re.fullmatch(r"Cases .* 0/3 .*", cases)
        assert re.fullmatch(r"Slices .* 41/82 .*", slices)
        bars.done()
        bars._progress.refresh()
        _, cases = screen.lines()
        assert re.fullmatch(r"Cases .* 1/3 .*", cases)
        bars.slices(1, 5)
        with bars.above():
            screen.write("stopped\n")
    assert screen.lines() == ["said in the midst of a study", "stopped"]


def test_of_one_case_there_is_no_bar_but_that_of_its_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch)
    with progress.Bars(1) as bars:
        bars.slices(7, 9)
        bars._progress.refresh()
        (slices,) = screen.lines()
        assert re.fullmatch(r"Slices .* 7/9 .*", slices)
    assert screen.lines() == []


def test_where_nobody_watches_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = screen_of(monkeypatch, is_terminal=False)
    with progress.Bars(3) as bars:
        bars.slices(1, 2)
        with bars.above():
            pass
        bars.done()
    assert screen.getvalue() == ""
