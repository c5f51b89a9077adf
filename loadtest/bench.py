"""Everything that is claimed of speed, measured in one run: `lungstreams bench`, `make bench`.

Each part is a module with ``measure``, which gives a dataclass; ``sections``, its Markdown; and ``draw``, its plots.
This one runs them in order and writes the report. Nothing in a report is a constant but the paper's own figure.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from loadtest.machine import Machine, describe
from serving.errors import RequestError
from serving.tritonserver import ServerConfig, TritonServer

REPORT_NAME: Final = "benchmarks.md"
JSON_NAME: Final = "benchmarks.json"
PLOTS_FOLDER: Final = Path("images/benchmarks")
DPI: Final = 120

Figures = Mapping[str, Any]
"""`matplotlib.figure.Figure` by a name; matplotlib is not imported here, since not every part draws."""


@dataclass(frozen=True)
class Settings:
    """What the parts are run with.

    Attributes:
        repository: The model repository.
        rounds: Requests of each case that count, where a part takes turns.
        work: Where what takes long to build is kept for the next run.
    """

    repository: Path
    rounds: int
    work: Path


@dataclass(frozen=True)
class Part:
    """One part of the benchmark.

    Attributes:
        title: Its heading.
        measure: Gives a dataclass that `dataclasses.asdict` makes JSON of.
        sections: Paragraphs and tables of what was measured.
        draw: Plots of it, by name.
    """

    title: str
    measure: Callable[[Settings], Any]
    sections: Callable[[Any], list[str]]
    draw: Callable[[Any], Figures] = lambda _: {}


def parts() -> dict[str, Part]:
    """All parts by name, in the order in which they run. Importing them takes what they need."""
    from loadtest import (
        footprint,
        full_width,
        knee,
        latency,
        side_by_side,
        side_by_side_plot,
        side_by_side_report,
        volumes,
    )

    def at_full_width(settings: Settings) -> Any:
        built = full_width.build(settings.work / "full_width")
        return side_by_side.measure(
            built.repositories,
            settings.rounds,
            title="Full width",
            note=full_width.NOTE,
            keras_models=built.keras_models,
        )

    def as_shipped(settings: Settings) -> Any:
        return side_by_side.measure({"int8": settings.repository}, settings.rounds)

    return {
        "full_width": Part(
            "Side by side at the paper's width", at_full_width, side_by_side_report.sections, side_by_side_plot.draw
        ),
        "shipped": Part(
            "Side by side, the shipped networks", as_shipped, side_by_side_report.sections, side_by_side_plot.draw
        ),
        "latency": Part(
            "Beside the raw sessions", _served(lambda server, s: latency.measure(server, s.rounds)), latency.sections
        ),
        "volumes": Part(
            "A CT volume, every gate open",
            _served(lambda server, _: volumes.measure(server)),
            volumes.sections,
            volumes.draw,
        ),
        "load": Part("Latency against load", _served(lambda server, _: knee.measure(server)), knee.sections, knee.draw),
        "footprint": Part(
            "Start, memory, preprocessing",
            lambda settings: footprint.measure(settings.repository),
            footprint.sections,
            footprint.draw,
        ),
    }


def _served(measure: Callable[[TritonServer, Settings], Any]) -> Callable[[Settings], Any]:
    """A part that needs a server: each gets a fresh one, for a server keeps the memory of its largest batch."""

    def run(settings: Settings) -> Any:
        with TritonServer(ServerConfig(settings.repository, grpc_port=0, http_port=0, metrics_port=0)) as server:
            return measure(server, settings)

    return run


def main(
    repository: Path | None, rounds: int, out: Path, work: Path = Path("reports/bench"), names: Iterable[str] = ()
) -> None:
    """Measures and writes `benchmarks.json` (every sample), `benchmarks.md` and its plots into `out`.

    Args:
        repository: The model repository; None means `serving.repository.DEFAULT_REPOSITORY`.
        rounds: Requests of each case that count.
        out: Made if it is not there.
        work: See `Settings`.
        names: Parts to run; all by default.

    Raises:
        RequestError: If a part is unknown, or `rounds` is below 1.
        ServerStartError: If the embedded server does not start.
        InferenceFailed: If an answer can not be right.
    """
    from serving.repository import DEFAULT_REPOSITORY

    known = parts()
    chosen = list(names) or list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise RequestError(f"expected parts out of {', '.join(known)}, got {', '.join(unknown)}")
    if rounds < 1:
        raise RequestError(f"expected 1 round or more, got {rounds}")
    settings = Settings(repository or DEFAULT_REPOSITORY, rounds, work)
    machine, taken_at = describe(), datetime.now(timezone.utc).isoformat(timespec="seconds")
    console = Console(stderr=True)
    text, results = [], {}
    for name in (name for name in known if name in chosen):
        part = known[name]
        console.print(f"{part.title} ...", markup=False)
        started = time.monotonic()
        result = part.measure(settings)
        results[name] = {**asdict(result), "seconds_taken": time.monotonic() - started}
        text += [f"## {part.title}", *part.sections(result), *_plots(name, part.draw(result), out)]
    out.mkdir(parents=True, exist_ok=True)
    document = _rounded({"taken_at": taken_at, "machine": asdict(machine), **results})
    (out / JSON_NAME).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / REPORT_NAME).write_text(
        "\n\n".join([*_head(taken_at, machine), *_in_short(document), *text]) + "\n", encoding="utf-8"
    )
    console.print(f"Wrote {REPORT_NAME} and {JSON_NAME} into {out}", markup=False, soft_wrap=True)


def _head(taken_at: str, machine: Machine) -> list[str]:
    return [
        "# Benchmarks",
        "Written by `lungstreams bench`; do not edit. Every number is of one run on one machine, and ratios are of "
        "ways that took turns in it.",
        f"Taken {taken_at} on {machine.cpu} ({machine.usable_cores} of {machine.cores} cores, "
        f"{machine.memory_gib} GiB, {', '.join(machine.flags) or 'no telling flags'}; load average "
        f"{machine.load_average} at the start), {machine.system}, Python {machine.python}, "
        + ", ".join(f"{name} {number}" for name, number in machine.packages.items())
        + ".",
    ]


def _in_short(document: Mapping[str, Any]) -> list[str]:
    from loadtest.highlights import highlights

    return ["\n".join(f"- {sentence}" for sentence in highlights(document))]


def _plots(part: str, figures: Figures, out: Path) -> list[str]:
    """Saves the plots of a part; the Markdown that shows them."""
    folder = out / PLOTS_FOLDER
    lines = []
    for name, figure in figures.items():
        folder.mkdir(parents=True, exist_ok=True)
        path = PLOTS_FOLDER / f"{part}-{name}.png"
        figure.savefig(out / path, dpi=DPI, metadata={"Software": None})
        lines.append(f"![{figure.get_label() or name.replace('_', ' ')}]({path.as_posix()})")
    return lines


def _rounded(value: Any) -> Any:
    """JSON with numbers to four places; what is not finite becomes null."""
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
