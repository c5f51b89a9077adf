"""Who asked for what, and how it ended: a line of JSON for each case and each export, and nothing of a patient.

::

    with site.audit.case(request.username) as case:
        case.report = client.predict(data, request_id=case.request_id)

A line names the user of the page, the case by its random id (under which the server's request log has it, too), the
modality, the models and the time that it took. Neither what was found nor any name, size or hash of a file is in it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serving import wire
from serving.backends.onnxruntime.request_log import OK, JsonLines, now, sayable
from serving.errors import LungstreamsError, RequestError
from serving.results import CaseReport
from serving.study_report import StudyReport

STOPPED: Final = "stopped"
"""Outcome of a case that its visitor, or their browser, left."""

NOBODY: Final = "-"
"""The user of a page that knows none."""

_LOG: Final = logging.getLogger(__name__)


@dataclass
class AuditedCase:
    """A case under way.

    Attributes:
        request_id: Drawn for it.
        report: What was said of it; to be set by whoever reads it.
        error: What ended it early, where that is not raised.
    """

    request_id: str
    report: CaseReport | StudyReport | None = None
    error: LungstreamsError | None = None


class Audit:
    """The audit log of one page.

    Args:
        path: The file, for its owner alone where it is made; None keeps none.

    Raises:
        RequestError: If it can not be written to.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            self._lines = None if path is None else JsonLines(path, _LOG.warning)
        except OSError as error:
            raise RequestError(
                f"audit log: expected a file that can be written at {path}, got: {error.strerror or error}"
            ) from error

    @contextmanager
    def case(self, user: str | None) -> Iterator[AuditedCase]:
        """A case from its beginning to its end, whatever that is: its line is written then.

        Args:
            user: Of the page; None where it knows none.
        """
        case = AuditedCase(wire.new_request_id())
        try:
            yield case
        except BaseException as error:
            if isinstance(error, LungstreamsError):
                error.request_id = case.request_id
            self._write(user, case.request_id, case.report, error)
            raise
        if case.error is not None:
            case.error.request_id = case.request_id
        self._write(user, case.request_id, case.report, case.error)

    def ended(self, user: str | None, outcome: CaseReport | StudyReport | LungstreamsError) -> None:
        """A case that was read elsewhere; the outcome bears its id.

        Args:
            user: See `case`.
            outcome: What was said of it, or why there is nothing to say.
        """
        if isinstance(outcome, LungstreamsError):
            self._write(user, outcome.request_id, None, outcome)
        else:
            self._write(user, outcome.request_id, outcome, None)

    def export(
        self, user: str | None, report: CaseReport | StudyReport, kind: str, error: LungstreamsError | None = None
    ) -> None:
        """A file that was made of a case.

        Args:
            user: See `case`.
            report: Of the case.
            kind: Of `serving.exports.KINDS`.
            error: Why it could not be made.
        """
        self._line("export", user, report.request_id, format=kind, outcome=OK if error is None else _kind(error))

    def _write(
        self, user: str | None, request_id: str, report: CaseReport | StudyReport | None, error: BaseException | None
    ) -> None:
        said: dict[str, object] = {"modality": None, "models": {}, "latency_ms": None}
        if isinstance(report, CaseReport):
            said["modality"] = report.modality
        elif report is not None:
            said["modality"] = "ct study"
        if report is not None:
            said |= {"models": dict(report.models), "latency_ms": round(report.latency_ms, 3)}
        self._line("case", user, request_id, **said, outcome=_outcome(report, error))

    def _line(self, event: str, user: str | None, request_id: str, **said: object) -> None:
        if self._lines is not None:
            head = {"time": now(), "event": event, "request_id": sayable(request_id), "user": user or NOBODY}
            self._lines.write({**head, **said})


def _outcome(report: CaseReport | StudyReport | None, error: BaseException | None) -> str:
    if error is not None:
        return _kind(error)
    if report is None or (isinstance(report, StudyReport) and not report.complete):
        return STOPPED
    return OK


def _kind(error: BaseException) -> str:
    # How a generator learns that nobody waits for it any more.
    return STOPPED if isinstance(error, GeneratorExit) else type(error).__name__
