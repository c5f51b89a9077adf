"""Many files of a visitor, one after the other: a row each, and a table of them."""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from demo.panels import error_json
from demo.rows import sentence
from serving.client import PipelineClient
from serving.errors import GeometryError, InferenceFailed, LungstreamsError, RequestError, ScanError, ScanTooLarge
from serving.exports.tables import Cell, harmless
from serving.labels import DIAGNOSES, DIAGNOSIS_NAMES, MANIFESTATION_NAMES, MANIFESTATIONS, STREAM_NAMES
from serving.limits import check_file_size
from serving.results import CaseReport
from serving.studies import is_study_file, open_volume
from serving.study_reading import StudyReading
from serving.study_report import StudyReport
from serving.tls import ClientTls
from serving.wire import new_request_id

Outcome = CaseReport | StudyReport | LungstreamsError
"""What came of a file."""


@dataclass(frozen=True)
class Row:
    """One file. Masks are not kept: a folder of slices would not fit into memory.

    Attributes:
        number: Its place among the files, from 1.
        name: What the visitor calls it; for nobody else.
        said: `CaseReport.to_json`, `StudyReport.to_json`, or an ``error`` as `demo.panels.error_json`.
    """

    number: int
    name: str
    said: Mapping[str, Any]

    @classmethod
    def of(cls, number: int, name: str, outcome: Outcome) -> Row:
        """The row of what came of a file."""
        return cls(number, name, error_json(outcome) if isinstance(outcome, LungstreamsError) else outcome.to_json())

    def to_json(self) -> dict[str, object]:
        """What `json.dumps` takes."""
        return {"number": self.number, "file": self.name, **self.said}


def read_folder(
    url: str,
    paths: Sequence[Path],
    thresholds: Mapping[str, float],
    stop: threading.Event,
    *,
    tls: ClientTls | None = None,
    ended: Callable[[Outcome], None] = lambda outcome: None,
) -> Iterator[Row]:
    """Read many files: single scans first, then the studies among them. One that fails is a row with its error.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint.
        paths: The files.
        thresholds: By name.
        stop: Ends it after the files that are under way.
        tls: For a Triton that speaks TLS.
        ended: Called with what came of each file that was sent, also where nobody waits for its row any more.

    Raises:
        ServerError: If the server can not be asked at all.
        RequestError: If a threshold is none.
    """
    scans = [i for i, path in enumerate(paths) if not is_study_file(path)]
    studies = sorted(set(range(len(paths))) - set(scans))
    with PipelineClient(url, tls=tls, drain_in_background=True) as client:
        client.check()
        # Fewer outcomes than scans where it is stopped.
        outcomes = zip(scans, client.predict_many(_until(stop, paths, scans), thresholds=thresholds), strict=False)
        try:
            for i, outcome in outcomes:
                said = _of_file(paths[i], outcome)
                ended(said)
                yield Row.of(i + 1, paths[i].name, said)
        except GeneratorExit:
            # Nobody looks any more. What is under way is read all the same, and so is a case.
            stop.set()
            with suppress(LungstreamsError):
                for i, outcome in outcomes:
                    ended(_of_file(paths[i], outcome))
            raise
        for i in studies:
            if stop.is_set():
                return
            study = _study(client, paths[i], thresholds, stop)
            ended(study)
            if stop.is_set() and isinstance(study, StudyReport) and not study.complete:
                return
            yield Row.of(i + 1, paths[i].name, study)


def table(rows: Sequence[Row]) -> str:
    """The rows as a table that sorts itself by `demo.script`."""
    titles = ["No.", "File", "What", "Highest score", *(label.title for label in (DIAGNOSES[0], *MANIFESTATIONS))]
    head = "".join(f'<th scope="col"><button type="button">{title}</button></th>' for title in titles)
    body = "".join(_row(row) for row in sorted(rows, key=lambda row: row.number))
    return (
        '<div class="ls-scroll ls-card" tabindex="0" role="region" aria-label="Table: cases"><table class="ls-cases">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as CSV, a line a case: see `columns`. Text that a spreadsheet would take for a formula is quoted."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns())
    writer.writeheader()
    for row in sorted(rows, key=lambda row: row.number):
        writer.writerow({name: _plain(value) for name, value in _record(row).items()})
    return stream.getvalue()


def columns() -> list[str]:
    """The names of the columns, in their order. Probabilities and areas are in `[0, 1]`, empty where not computed.

    What comes to be known of a case later is appended: scripts may count columns.
    """
    areas = [f"area_{stream}" for stream in STREAM_NAMES]
    return [
        "number",
        "file",
        "modality",
        *DIAGNOSIS_NAMES,
        *MANIFESTATION_NAMES,
        *areas,
        "error",
        "message",
        "request_id",
        "doubts",
        "problems",
    ]


def _record(row: Row) -> dict[str, Cell]:
    record: dict[str, Cell] = {"number": row.number, "file": row.name, "request_id": row.said.get("request_id", "")}
    if "error" in row.said:
        return {**record, "error": row.said["error"]["type"], "message": row.said["error"]["message"]}
    areas = {f"area_{stream}": area for stream, area in row.said["area_fraction"].items()}
    modality = "ct study" if "shape" in row.said else row.said["modality"]
    record |= {"doubts": " ".join(row.said["doubts"]), "problems": "; ".join(_problems(row.said))}
    return {**record, "modality": modality, **row.said["diagnosis"], **row.said["manifestations"], **areas}


def _plain(value: Cell) -> Cell:
    return f"{value:.6f}" if isinstance(value, float) else harmless(value)


def _row(row: Row) -> str:
    name = f'<td>{row.number}</td><td class="ls-filename">{escape(row.name)}</td>'
    if "error" in row.said:
        why = escape(row.said["error"]["message"])
        # A cell for each column: a row that spans some would be in the way of sorting by those.
        return f'<tr class="ls-bad">{name}<td>error</td><td>{why}</td>{_cell(None) * 4}</tr>'
    top = max(DIAGNOSES, key=lambda label: float(row.said["diagnosis"][label.name]))
    scores = [row.said["diagnosis"][DIAGNOSES[0].name], *(row.said["manifestations"][m] for m in MANIFESTATION_NAMES)]
    cells = "".join(_cell(score) for score in scores)
    doubtful = ' class="ls-doubtful"' if row.said["doubts"] else ""
    return f"<tr{doubtful}>{name}<td>{_what(row.said)}{_warnings(row.said)}</td><td>{top.title}</td>{cells}</tr>"


def _what(said: Mapping[str, Any]) -> str:
    if "shape" in said:
        return f"CT study, {said['shape'][0]:,} slices"
    return "CT slice" if said["modality"] == "ct" else "X-ray"


def _warnings(said: Mapping[str, Any]) -> str:
    """What to know before the scores that follow; the longest list of problems is in the CSV."""
    first, *more = _problems(said) or ("",)
    problem = f"{first} (and {len(more):,} more, see the CSV)" if more else first
    doubts = "".join(f"<p><strong>Doubtful:</strong> {escape(doubt)}</p>" for doubt in said["doubts"])
    return doubts + (f"<p>{sentence(problem)}</p>" if problem else "")


def _problems(said: Mapping[str, Any]) -> tuple[str, ...]:
    """Of a study, what matters most first; a scan has none."""
    if "shape" not in said:
        return ()
    read, of = len(said["slices"]), said["shape"][0]
    return (*(() if said["complete"] else (f"incomplete: {read:,} of {of:,} slices were read",)), *said["problems"])


def _cell(score: float | None) -> str:
    if score is None:
        return '<td data-key="" class="ls-number">—</td>'
    return f'<td data-key="{score:.6f}" class="ls-number">{100 * score:.1f} %</td>'


def _study(
    client: PipelineClient, path: Path, thresholds: Mapping[str, float], stop: threading.Event
) -> StudyReport | LungstreamsError:
    """The report of a study, or of a part of it if it was stopped."""
    request_id = new_request_id()
    try:
        with StudyReading(client, open_volume(path), thresholds, request_id=request_id) as reading:
            for _ in reading:
                if stop.is_set():
                    break
            return reading.report()
    except (ScanError, RequestError, GeometryError, InferenceFailed) as error:
        error.request_id = request_id
        return error


def _of_file(path: Path, outcome: Outcome) -> Outcome:
    try:
        check_file_size(path)
    except ScanTooLarge as error:
        error.request_id = outcome.request_id
        return error
    return outcome


def _until(stop: threading.Event, paths: Sequence[Path], scans: Sequence[int]) -> Iterator[bytes]:
    for i in scans:
        if stop.is_set():
            return
        yield _bytes(paths[i])


def _bytes(path: Path) -> bytes:
    # Of one that is too large nothing is read: it fails as an empty file does, and `_of_file` says why.
    try:
        check_file_size(path)
    except ScanTooLarge:
        return b""
    return path.read_bytes()
