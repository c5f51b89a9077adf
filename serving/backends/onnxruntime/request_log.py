"""What each step did of which request: a line of JSON each, appended to one file by all processes of a server.

::

    {"time": "2026-11-27T10:12:13.456+00:00", "step": "recognition", "version": "4",
     "request_id": "6f0c...", "ms": 14.21, "items": 1, "batch": 3, "outcome": "ok"}

Nothing of a file and nothing of an answer is in a line: an error is told by its kind, and an id that is none of the
kind that we draw (a UUID) is not written, since whoever sends one may have made it of a patient's name.

Imports nothing of ours: the ONNX Runtime backend, beside which this lies, runs from a copy of its folder alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

REQUEST_LOG_VARIABLE: Final = "LUNGSTREAMS_REQUEST_LOG"
"""The file. Where it is not set nothing is logged. `ServerConfig.request_log` sets it."""

NO_ID: Final = "-"
OTHER_ID: Final = "other"
OK: Final = "ok"
_UUID: Final = re.compile(r"[0-9a-f]{8}(-?)[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{4}\1[0-9a-f]{12}", re.IGNORECASE)

# Others' lines name requests and users of the page: for the owner's eyes until somebody decides otherwise.
_MODE: Final = 0o600
# A pipe that nobody reads is an error at the start and never a wait; a file does not care.
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC


def now() -> str:
    """The time, UTC, as ISO 8601 with milliseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def sayable(request_id: str) -> str:
    """What a log may say of a request's id: a UUID as it is, `NO_ID` for none, `OTHER_ID` for anything else."""
    if not request_id:
        return NO_ID
    return request_id if _UUID.fullmatch(request_id) else OTHER_ID


class JsonLines:
    """A file of JSON lines that several processes append to.

    What belongs together is one write at the file's end, so that lines of several processes never mix. The file is
    opened for each: one that was renamed or truncated meanwhile (logrotate) is simply begun anew, without a signal.

    Args:
        path: The file; made for its owner alone where there is none.
        warn: Told once when lines can not be written, and not again until they could. It never costs a request.

    Raises:
        OSError: If it can not be written to now.
    """

    def __init__(self, path: Path, warn: Callable[[str], object]) -> None:
        self._path = path
        self._warn = warn
        self._failing = False
        os.close(self._open())

    def write(self, *records: Mapping[str, object]) -> None:
        """Append a line for each record."""
        data = "".join(f"{json.dumps(record)}\n" for record in records).encode()
        try:
            descriptor = self._open()
            try:
                written = os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            self._missed(error.strerror or str(error))
            return
        if written != len(data):
            self._missed("no room")
            return
        self._failing = False

    def _open(self) -> int:
        return os.open(self._path, _FLAGS, _MODE)

    def _missed(self, why: str) -> None:
        if not self._failing:
            self._warn(f"{self._path}: lines of the log are lost: {why}")
        self._failing = True


@dataclass(frozen=True)
class Done:
    """One request of a batch.

    Attributes:
        request_id: As it came.
        items: How many scans it holds.
        outcome: `OK`, or the kind of its error.
    """

    request_id: str
    items: int
    outcome: str = OK

    @classmethod
    def failed(cls, request_id: str, items: int, error: BaseException) -> Done:
        """A request that got an error: of which its kind is told and not its words, which may quote a file."""
        return cls(request_id, items, type(error).__name__)


class StepLog:
    """The lines of one step.

    Args:
        lines: Where they go.
        step: The model's name.
        version: Its version.
    """

    def __init__(self, lines: JsonLines, step: str, version: str) -> None:
        self._lines = lines
        self._step = step
        self._version = version

    @classmethod
    def of_stub(
        cls, args: Mapping[str, Any], environment: Mapping[str, str], warn: Callable[[str], object]
    ) -> StepLog | None:
        """The log that the environment asks for; None where it asks for none.

        Args:
            args: What a stub's `initialize` gets.
            environment: Where `REQUEST_LOG_VARIABLE` is looked up.
            warn: See `JsonLines`.

        Raises:
            OSError: If it can not be written to.
        """
        path = environment.get(REQUEST_LOG_VARIABLE)
        return cls(JsonLines(Path(path), warn), args["model_name"], args["model_version"]) if path else None

    def write(self, requests: Sequence[Done], ms: float) -> None:
        """A line for each request of a batch.

        Args:
            requests: Those that were computed together.
            ms: How long all of them took together, in milliseconds.
        """
        time, batch = now(), sum(request.items for request in requests)
        self._lines.write(
            *(
                {
                    "time": time,
                    "step": self._step,
                    "version": self._version,
                    "request_id": sayable(request.request_id),
                    "ms": round(ms, 3),
                    "items": request.items,
                    "batch": batch,
                    "outcome": request.outcome,
                }
                for request in requests
            )
        )
