"""``lungstreams predict``: files in, a line of JSON or a table for each out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from rich.markup import escape
from rich.progress import track
from rich.table import Table

from lungstreams.console import EXIT_SOME_FAILED, RESEARCH_ONLY, complain, err, out
from lungstreams.masks import MaskFolder
from serving.client import PipelineClient
from serving.errors import InferenceFailed, LungstreamsError, RequestError, ScanError, ScanTooLarge, ServerUnreachable
from serving.labels import DIAGNOSES, MANIFESTATIONS, REQUESTED_MODALITIES, STREAM_NAMES, STREAMS, RequestedModality
from serving.limits import MAX_FILE_BYTES
from serving.results import CaseReport, resolve_thresholds
from serving.tls import ClientTls

_STATUS_TEXT: Final = {"ran": "", "not_run": "not run", "not_applicable": "not applicable"}
# What is wrong with one file; anything else is wrong with all of them.
_OF_ONE_FILE: Final = (ScanError, RequestError, InferenceFailed, OSError)


def parse_thresholds(given: Sequence[str]) -> dict[str, float]:
    """``NAME=VALUE`` pairs as thresholds.

    Raises:
        RequestError: If one is no such pair, or is not one that the pipeline has.
    """
    thresholds = {}
    for pair in given:
        name, separator, value = pair.partition("=")
        try:
            thresholds[name.strip()] = float(value)
        except ValueError:
            separator = ""
        if not separator:
            raise RequestError(f"threshold: expected NAME=VALUE, as in ground_glass=0.3, got {pair!r}")
    resolve_thresholds(thresholds)
    return thresholds


def parse_modality(given: str) -> RequestedModality:
    """A modality by its name.

    Raises:
        RequestError: If there is no such modality.
    """
    for modality in REQUESTED_MODALITIES:
        if given == modality:
            return modality
    raise RequestError(f"modality: expected one of {', '.join(REQUESTED_MODALITIES)}, got {given!r}")


def predict_files(
    files: Sequence[Path],
    url: str,
    modality: RequestedModality,
    thresholds: Mapping[str, float],
    *,
    as_json: bool,
    masks: MaskFolder | None,
    tls: ClientTls | None = None,
) -> int:
    """Ask for each file and write what came: the exit code.

    Raises:
        ServerError: If the server can not be asked at all.
    """
    failed = False
    with PipelineClient(url, tls=tls) as client:
        try:
            client.check()
        except ServerUnreachable as error:
            raise ServerUnreachable(
                f"{error}; start a server with `lungstreams serve`, or name one with --url"
            ) from error
        for file in _progress(files):
            try:
                report = client.predict(_read(file), modality, thresholds)
                paths = masks.write(file, report) if masks is not None else dict.fromkeys(STREAM_NAMES)
            except _OF_ONE_FILE as error:
                failed = True
                _write_error(file, error, as_json=as_json)
                continue
            if as_json:
                _write_line(case_json(file, report, paths))
            else:
                _write_table(file, report, paths)
    return EXIT_SOME_FAILED if failed else 0


def case_json(file: Path, report: CaseReport, masks: Mapping[str, str | None]) -> dict[str, object]:
    """One case as ``--json`` writes it; stable, users script against it."""
    everything = report.to_json()
    return {
        "file": str(file),
        "modality": report.modality,
        "diagnosis": everything["diagnosis"],
        "manifestations": everything["manifestations"],
        "masks": dict(masks),
        "area_fraction": everything["area_fraction"],
        "status": everything["status"],
        "models": everything["models"],
        "latency_ms": round(report.latency_ms, 3),
    }


def _progress(files: Sequence[Path]) -> Iterator[Path]:
    # Where the cases themselves go to a terminal, they show how far it is, and a bar would run through them.
    wanted = len(files) > 1 and err.is_terminal and not out.is_terminal
    yield from track(files, "Reading scans", console=err, transient=True) if wanted else files


def _read(file: Path) -> bytes:
    # Held against the limit before reading: nobody wants a disk image in memory to be told that it is too large.
    size = file.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ScanTooLarge(f"expected a file of at most {MAX_FILE_BYTES:,} bytes, got {size:,} bytes")
    return file.read_bytes()


def _write_line(data: Mapping[str, object]) -> None:
    out.file.write(f"{json.dumps(data, allow_nan=False)}\n")
    out.file.flush()


def _write_error(file: Path, error: LungstreamsError | OSError, *, as_json: bool) -> None:
    message = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    if as_json:
        _write_line({"file": str(file), "error": {"type": type(error).__name__, "message": message}})
    else:
        complain(f"{file}: {type(error).__name__}: {message}")


def _write_table(file: Path, report: CaseReport, masks: Mapping[str, str | None]) -> None:
    height, width = report.size_hw
    table = Table(
        title=escape(str(file)),
        caption=f"{report.modality}, {width} x {height} pixels, {report.latency_ms:.0f} ms. {RESEARCH_ONLY}",
        title_justify="left",
        caption_justify="left",
    )
    for heading, justify in (("", "left"), ("probability", "right"), ("area", "right"), ("mask", "left")):
        table.add_column(heading, justify="right" if justify == "right" else "left", overflow="fold")
    for label in DIAGNOSES:
        table.add_row(label.title, f"{report.diagnosis[label.name]:.1%}", "", "")
    table.add_section()
    scores = {label.name: report.manifestations[label.name] for label in MANIFESTATIONS}
    for label in (*MANIFESTATIONS, *(stream for stream in STREAMS if stream.name not in scores)):
        score, area = scores.get(label.name), report.area_fraction[label.name]
        stage_2 = _STATUS_TEXT[report.status["manifestations"]] if label.name in scores else ""
        table.add_row(
            label.title,
            stage_2 if score is None else f"{score:.1%}",
            _STATUS_TEXT[report.status[label.name]] if area is None else f"{area:.2%}",
            escape(masks[label.name] or ""),
        )
    out.print(table)
