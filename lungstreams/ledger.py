"""``cases.jsonl`` and ``cases.csv``: what a batch has done, so that the next run goes on from there.

The lines are the truth; the table is made anew of them whenever a run begins, and grows with them. The cases of one
source are written together, and only whole: a run that is killed in mid-write leaves a torn end, which the next run
drops and does again. A line also says what it was made of (``resume.of``): files, sizes, times, what was asked, and
the versions of the models. Where any of these is another today, the case is done again.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Final

from lungstreams.cases import EXPLANATION, CaseResult
from lungstreams.rows import COLUMNS, row_of
from lungstreams.sources import Source
from serving.errors import InferenceFailed, RequestError

LINES_NAME: Final = "cases.jsonl"
TABLE_NAME: Final = "cases.csv"
RESUME_KEY: Final = "resume"

# The server's or the disk's trouble of that time, not the file's.
_PASSING: Final = (InferenceFailed.__name__, OSError.__name__, *(kind.__name__ for kind in OSError.__subclasses__()))


def fingerprint(source: Source, asked: Mapping[str, object]) -> str:
    """What a source's cases follow from.

    Args:
        source: Its files are looked at, not read.
        asked: What is asked of them, as what `json.dumps` takes.
    """
    files: list[tuple[str, int, int]] = []
    for path in source.paths:
        try:
            stat = path.stat()
            files.append((str(path), stat.st_size, stat.st_mtime_ns))
        except OSError:
            files.append((str(path), -1, -1))
    said = json.dumps([files, asked], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


class Ledger:
    """The record of a batch, open for more.

    Args:
        folder: Where it is; made if it is not there. Locked against another run while this is open.
        wanted: By name of each source of this run, its `fingerprint`.
        searched: The folders of this run: what is recorded below them and is not wanted any more is dropped. What
            another run has recorded of other folders stays.
        resume: Whether what is recorded counts.

    Raises:
        RequestError: If another run has it open, or it can not be written.
    """

    def __init__(
        self, folder: Path, wanted: Mapping[str, str], searched: Sequence[Path] = (), *, resume: bool = True
    ) -> None:
        self.folder = folder
        self.outcomes: Counter[bool] = Counter()
        """How many cases of this run's sources an earlier run has done, by whether they failed."""
        self.done: set[str] = set()
        """Names of the sources that an earlier run has done."""
        self._wanted = wanted
        self._searched = tuple(searched)
        self._open = ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._rewrite(resume=resume)
            self._lines = self._opened(folder / LINES_NAME, "a")
            self._table = self._opened(folder / TABLE_NAME, "a")
        except OSError as error:
            self._open.close()
            raise RequestError(f"--out: {folder} can not be written: {error.strerror or error}") from None
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        # `add` has written all that there is, or has raised: what it could not write, closing can not either.
        with suppress(OSError):
            self._open.close()

    def add(self, source: Source, cases: Sequence[CaseResult]) -> None:
        """Record what came of a source.

        Raises:
            OSError: If it can not be written.
        """
        said = [
            {**case.data, RESUME_KEY: {"of": self._wanted[source.name], "part": part, "parts": len(cases)}}
            for part, case in enumerate(cases)
        ]
        self._lines.write("".join(f"{json.dumps(one, allow_nan=False)}\n" for one in said))
        self._lines.flush()
        self._write_rows(self._table, said)
        self._table.flush()

    def _lock(self) -> None:
        held = os.open(self.folder, os.O_RDONLY)
        self._open.callback(os.close, held)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RequestError(f"--out: expected {self.folder} for this run alone, got one that is in use") from None

    def _rewrite(self, *, resume: bool) -> None:
        """Keep the lines that still hold, in new files in the place of the old ones."""
        old, lines, table = self.folder / LINES_NAME, self.folder / f".{LINES_NAME}", self.folder / f".{TABLE_NAME}"
        with lines.open("w", encoding="utf-8") as kept, self._text(table, "w") as rows:
            csv.DictWriter(rows, COLUMNS).writeheader()
            for said in _groups(old) if old.exists() else ():
                if self._holds(said, resume=resume):
                    kept.write("".join(f"{json.dumps(one, allow_nan=False)}\n" for one in said))
                    self._write_rows(rows, said)
        lines.replace(old)
        table.replace(self.folder / TABLE_NAME)

    def _holds(self, said: Sequence[Mapping[str, Any]], *, resume: bool) -> bool:
        name = said[0]["file"]
        if name not in self._wanted:
            return not any(Path(name).is_relative_to(folder) for folder in self._searched)
        fits = said[0][RESUME_KEY]["of"] == self._wanted[name]
        if not (resume and fits) or name in self.done or any(_is_passing(one) or _is_gone(one) for one in said):
            return False
        self.done.add(name)
        self.outcomes.update("error" in one or "export_errors" in one for one in said)
        return True

    def _opened(self, path: Path, mode: str) -> IO[str]:
        return self._open.enter_context(self._text(path, mode))

    @staticmethod
    def _text(path: Path, mode: str) -> IO[str]:
        # File names need not be UTF-8; JSON escapes what is not, a table keeps the bytes.
        return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="")

    @staticmethod
    def _write_rows(table: IO[str], said: Sequence[Mapping[str, Any]]) -> None:
        csv.DictWriter(table, COLUMNS, restval="").writerows(row_of(one) for one in said)


def _groups(lines: Path) -> Iterator[list[dict[str, Any]]]:
    """The lines of each source that are all there."""
    group: list[dict[str, Any]] = []
    with lines.open("rb") as stream:
        for line in stream:
            said = _parsed(line)
            if said is None or (group and said[RESUME_KEY]["of"] != group[0][RESUME_KEY]["of"]):
                group = []
            if said is None or said[RESUME_KEY]["part"] != len(group):
                continue
            group.append(said)
            if len(group) == said[RESUME_KEY]["parts"]:
                yield group
                group = []


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of ours; None for a torn one, or another's."""
    if not line.endswith(b"\n"):
        return None
    try:
        said = json.loads(line)
        resume = said[RESUME_KEY]
        ours = all(isinstance(resume[key], int) for key in ("part", "parts")) and isinstance(said["file"], str)
        return said if ours and isinstance(resume["of"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


def _is_passing(said: Mapping[str, Any]) -> bool:
    return "error" in said and said["error"]["type"] in _PASSING


def _is_gone(said: Mapping[str, Any]) -> bool:
    """Whether a file that the case wrote is no longer there."""
    written = [path for path in (*said.get("masks", {}).values(), said.get(EXPLANATION)) if path is not None]
    written += [path for paths in said.get("exports", {}).values() for path in paths]
    return not all(Path(path).exists() for path in written)
