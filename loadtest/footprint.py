"""What the server takes before and beside its networks: seconds to start, memory, and the parts of preprocessing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np

from loadtest.cases import CASES
from loadtest.layout import BLUE, GREEN, GREY, MIB, ORANGE, mib, new_axes, new_figure, number, table
from loadtest.loops import closed_loop
from loadtest.memory import ProcessMemory, Sampler, of_group, pss_bytes, rss_bytes
from loadtest.wire import connect
from serving.dicom_pixels import LUNG_LEVEL_HU, LUNG_WIDTH_HU, lung_window
from serving.errors import RequestError
from serving.labels import Modality
from serving.phantom import ct_slice, dicom_bytes
from serving.pipeline import MAX_BATCH_SIZE, MODEL_HW, THRESHOLDS
from serving.preprocessing import CLAHE_CLIP_LIMIT, CLAHE_TILES, prepare, resize
from serving.scans import decode
from serving.tritonserver import ServerConfig, TritonServer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

START_AIM_S: Final = 20.0
"""Longest time from the call to a ready server."""

MEMORY_AIM_BYTES: Final = 3 * 10**9
"""Most memory of the whole server, resident."""

LOAD_IN_FLIGHT: Final = MAX_BATCH_SIZE
"""As many as make the largest batch, which takes the most memory."""

WHOLE: Final = "all of it"
WINDOW: Final = "of decode: lung window"
_PART_COLOURS: Final = {"decode": BLUE, "resize": GREY, "CLAHE": ORANGE, "three channels": GREEN}


@dataclass(frozen=True)
class Part:
    """A part of preprocessing, alone.

    Attributes:
        name: What it is; `WHOLE` is `serving.preprocessing.prepare`, and `WINDOW` is contained in ``decode``.
        ms: Median milliseconds.
        share: Of `WHOLE`.
    """

    name: str
    ms: float
    share: float


@dataclass(frozen=True)
class Footprint:
    """A measurement.

    Attributes:
        threads: Threads within an operator that the server was started with; None is one for each core.
        starts_s: Seconds from the call to a ready server, of each start.
        after_start: By process, once ready.
        after_cases: By case, in the order that they were asked, each once it was answered a few times.
        peak_pss_bytes: The highest of the whole server's PSS while it was asked.
        parts: By scan, the parts of preprocessing in their order.
    """

    threads: int | None
    starts_s: tuple[float, ...]
    after_start: tuple[ProcessMemory, ...]
    after_cases: Mapping[str, tuple[ProcessMemory, ...]]
    peak_pss_bytes: int
    parts: Mapping[str, tuple[Part, ...]]


def measure(
    repository: Path, threads: int | None = None, starts: int = 3, seconds: float = 2.0, rounds: int = 30
) -> Footprint:
    """Starts the server some times, looks at its memory, and times preprocessing in this process.

    Args:
        repository: The model repository.
        threads: As `ServerConfig` takes it.
        starts: How often it is started.
        seconds: For how long each case is asked, `LOAD_IN_FLIGHT` at a time.
        rounds: How often each part of preprocessing is timed.

    Raises:
        RequestError: If there is nothing to measure.
        ServerStartError: If the server does not start.
        InferenceFailed: If it leaves requests without any answer.
    """
    if min(starts, rounds) < 1:
        raise RequestError(f"expected 1 start and 1 round or more, got {starts} and {rounds}")
    starts_s: list[float] = []
    after_start: tuple[ProcessMemory, ...] = ()
    after_cases: dict[str, tuple[ProcessMemory, ...]] = {}
    peak_bytes = 0
    for _ in range(starts):
        server = TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, threads=threads))
        began_s = time.perf_counter()
        with server:
            starts_s.append(time.perf_counter() - began_s)
            if len(starts_s) == starts:
                after_start = of_group(server.pid)
                after_cases, peak_bytes = _loaded(server, seconds)
    parts = {name: measure_parts(data, modality, rounds) for name, (data, modality) in scans().items()}
    return Footprint(threads, tuple(starts_s), after_start, after_cases, peak_bytes, parts)


def _loaded(server: TritonServer, seconds: float) -> tuple[dict[str, tuple[ProcessMemory, ...]], int]:
    client = connect(server.grpc_url)
    after = {}
    try:
        with Sampler(server.pid) as sampler:
            for name, case in CASES.items():
                closed_loop(client, (case,), LOAD_IN_FLIGHT, seconds)
                after[name] = of_group(server.pid)
    finally:
        client.close()
    return after, max(sampler.peak_pss_bytes, *(pss_bytes(look) for look in after.values()))


def scans() -> dict[str, tuple[bytes, Modality]]:
    """The files whose preprocessing is measured, with their modality, by what they are."""
    files: dict[str, tuple[bytes, Modality]] = {
        "X-ray, PNG": (CASES["xray"].scans()[0], "xray"),
        "CT slice, PNG": (CASES["ct_open"].scans()[0], "ct"),
        "CT slice, DICOM": (dicom_bytes(ct_slice(0).pixels), "ct"),
    }
    return files


def measure_parts(data: bytes, modality: Modality, rounds: int) -> tuple[Part, ...]:
    """Times each part of `serving.preprocessing.prepare` on a file, with one thread as in the server.

    The parts take turns within a round. What `prepare` does beside them is too little to be called apart.

    Args:
        data: The file.
        modality: What it is.
        rounds: How often.

    Returns:
        In the order of the pipeline; the last is the whole.
    """
    calls = part_calls(data, modality)
    times: dict[str, list[float]] = {name: [] for name in calls}
    with _one_thread():
        for turn in range(-1, rounds):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                if turn >= 0:  # The first touches memory that nobody has touched yet.
                    times[name].append((time.perf_counter() - started) * 1000)
    medians = {name: statistics.median(samples) for name, samples in times.items()}
    return tuple(Part(name, ms, ms / medians[WHOLE]) for name, ms in medians.items())


def part_calls(data: bytes, modality: Modality) -> dict[str, Callable[[], Any]]:
    """By name, what is timed of a file's preprocessing. Each has its input ready.

    Args:
        data: The file.
        modality: What it is.
    """
    scan = decode(data, modality)
    stretched = resize(scan.pixels, MODEL_HW)
    calls: dict[str, Callable[[], Any]] = {"decode": lambda: decode(data, scan.modality)}
    if scan.source_format == "dicom" and scan.modality == "ct":
        # Values of the type that the rescaling of a DICOM gives.
        hu = LUNG_LEVEL_HU + (scan.pixels.astype(np.float64) / 255 - 0.5) * LUNG_WIDTH_HU
        calls[WINDOW] = lambda: lung_window(hu)
    return calls | {
        "resize": lambda: resize(scan.pixels, MODEL_HW),
        "CLAHE": lambda: cv2.createCLAHE(CLAHE_CLIP_LIMIT, CLAHE_TILES).apply(stretched),
        "three channels": lambda: cv2.cvtColor(stretched, cv2.COLOR_GRAY2RGB),
        WHOLE: lambda: prepare(data, scan.modality, [*THRESHOLDS.values()]),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def sections(result: Footprint) -> list[str]:
    """The measurement as Markdown."""
    looks = _looks(result)
    names = list(dict.fromkeys(process.name for process in result.after_start))
    rows = [(_counted(name, result.after_start), *(mib(_of(name, look)) for look in looks.values())) for name in names]
    rows += [
        ("sum of PSS", *(mib(pss_bytes(look)) for look in looks.values())),
        ("sum of RSS, shared pages counted in each", *(mib(rss_bytes(look)) for look in looks.values())),
    ]
    slowest = max(result.starts_s)
    return [
        "### Start and memory",
        f"From the call to ready: {', '.join(number(seconds) for seconds in result.starts_s)} s "
        f"(aim {START_AIM_S:g} s: {_met(slowest <= START_AIM_S)}).",
        table(("process, PSS in MiB", *looks), rows),
        f"Each case asked {LOAD_IN_FLIGHT} at a time, one case after the other. The whole server held "
        f"{result.peak_pss_bytes / 1e9:.2f} GB at most meanwhile "
        f"(aim {MEMORY_AIM_BYTES / 1e9:g} GB: {_met(result.peak_pss_bytes <= MEMORY_AIM_BYTES)}).",
        "### Preprocessing alone, ms and share of the whole",
        table(("part", *result.parts), [(name, *_part_cells(name, result)) for name in _part_names(result)]),
        "Medians, one thread, in this process. The lung window is a part of decoding a CT slice from DICOM.",
    ]


def _looks(result: Footprint) -> dict[str, tuple[ProcessMemory, ...]]:
    return {"after start": result.after_start, **{f"after {case}": look for case, look in result.after_cases.items()}}


def _of(name: str, processes: tuple[ProcessMemory, ...]) -> int:
    return pss_bytes(process for process in processes if process.name == name)


def _counted(name: str, processes: tuple[ProcessMemory, ...]) -> str:
    count = sum(process.name == name for process in processes)
    return name if count == 1 else f"{name} ({count} processes)"


def _met(met: bool) -> str:
    return "met" if met else "missed"


def _part_names(result: Footprint) -> list[str]:
    # The scan with the most parts has them all, in their order.
    return [part.name for part in max(result.parts.values(), key=len)]


def _part_cells(name: str, result: Footprint) -> Iterator[str]:
    for parts in result.parts.values():
        found = [part for part in parts if part.name == name]
        yield f"{found[0].ms:.2f} ({found[0].share:.0%})" if found else "-"


def draw(result: Footprint) -> dict[str, Figure]:
    """Memory by process, and the parts of preprocessing by scan."""
    looks = _looks(result)
    names = list(dict.fromkeys(process.name for process in result.after_start))
    memory = new_figure(7.2, 4.2)
    axes = new_axes(memory, "Memory of the server by process", "PSS, MiB", "")
    height = 0.8 / len(looks)
    for index, ((when, look), colour) in enumerate(zip(looks.items(), (GREY, BLUE, GREEN, ORANGE), strict=False)):
        places = [row + (index - (len(looks) - 1) / 2) * height for row in range(len(names))]
        label = f"{when}: {mib(pss_bytes(look))} MiB"
        axes.barh(places, [_of(name, look) / MIB for name in names], height=height, color=colour, label=label)
    axes.set_yticks(range(len(names)), [_counted(name, result.after_start) for name in names])
    axes.invert_yaxis()
    axes.legend(fontsize=8)
    spent = new_figure(7.2, 2.8)
    axes = new_axes(spent, "Preprocessing alone", "ms, median", "")
    for row, parts in enumerate(result.parts.values()):
        left = 0.0
        for part in parts:
            if part.name in _PART_COLOURS:
                axes.barh(row, part.ms, left=left, color=_PART_COLOURS[part.name], label=None if row else part.name)
                left += part.ms
    axes.set_yticks(range(len(result.parts)), list(result.parts))
    axes.invert_yaxis()
    spent.legend(loc="outside right upper", fontsize=8)
    return {"memory": memory, "preprocessing": spent}
