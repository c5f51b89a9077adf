"""How far a command is, on standard error, where a terminal watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from lungstreams.console import err


class Bars:
    """A bar of cases, and one of the slices of the study that is being read; gone when done.

    Args:
        cases: How many there are; of one, no bar is shown.
    """

    def __init__(self, cases: int) -> None:
        self._cases = cases
        self._study: TaskID | None = None
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        # What goes to standard output is not its business: `above` makes room where both are one terminal.
        self._progress = Progress(*columns, console=err, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._all = self._progress.add_task("Cases", total=cases, visible=cases > 1)

    def __enter__(self) -> Bars:
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self._hide()

    @contextmanager
    def above(self) -> Iterator[None]:
        """Room for lines of other streams to the same terminal."""
        # Bars of two lines would come back a line too high, over the last of what was written meanwhile.
        self._show_study(False)
        self._hide()
        try:
            yield
        finally:
            self._show()
            self._show_study(True)

    def done(self, cases: int = 1) -> None:
        """So many more cases are done, and the study is."""
        self._progress.advance(self._all, cases)
        if self._study is not None:
            self._progress.remove_task(self._study)
            self._study = None

    def slices(self, done: int, of: int) -> None:
        """So many slices of the study are read."""
        if self._study is None:
            self._study = self._progress.add_task("Slices", total=of)
        self._progress.update(self._study, total=of, completed=done)

    def _show_study(self, visible: bool) -> None:
        if self._study is not None:
            self._progress.update(self._study, visible=visible)

    def _show(self) -> None:
        if err.is_interactive:
            self._progress.start()

    def _hide(self) -> None:
        # Where nobody watches, rich would end a bar that was never shown by an empty line.
        if err.is_interactive:
            self._progress.stop()
