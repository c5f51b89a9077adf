"""What a reader wants to know of a benchmark first, as sentences made of its JSON: for the report and the README."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from loadtest.cases import PAPER_CASE_S
from loadtest.gate import percentile
from loadtest.volumes import CASE_SLICES

Json = Mapping[str, Any]
GIB: Final = 2**30
_OURS: Final = "lungstreams int8"
_PLAIN: Final = "FastAPI + ONNX Runtime int8"


def highlights(document: Json) -> list[str]:
    """A sentence for each part that was measured, in the order of `loadtest.bench.parts`.

    Args:
        document: ``benchmarks.json``.
    """
    makers = {
        "full_width": _full_width,
        "shipped": _shipped,
        "latency": _latency,
        "volumes": _volumes,
        "load": _load,
        "footprint": _footprint,
    }
    return [maker(document[name]) for name, maker in makers.items() if name in document]


def _median(part: Json, contender: str, case: str) -> float:
    (samples,) = (o["samples_ms"] for o in part["outcomes"] if (o["contender"], o["case"]) == (contender, case))
    return _p50(samples)


def _p50(samples: Sequence[float]) -> float:
    return percentile(samples, 0.5) or float("nan")


def _full_width(part: Json) -> str:
    ours, plain, fp32 = (_median(part, name, "ct_open") for name in (_OURS, _PLAIN, "ONNX Runtime fp32"))
    return (
        f"At the paper's width, a CT slice with every gate open takes {ours:.0f} ms (p50) where the paper takes "
        f"{PAPER_CASE_S * 1000:,.0f} ms on a GTX 1080 Ti; a plain FastAPI server takes {plain:.0f} ms with the same "
        f"int8 networks, ONNX Runtime in process {fp32:,.0f} ms with fp32."
    )


def _shipped(part: Json) -> str:
    slice_ms, plain_slice_ms = (_median(part, name, "ct_open") for name in (_OURS, _PLAIN))
    xray_ms, plain_xray_ms = (_median(part, name, "xray") for name in (_OURS, _PLAIN))
    return (
        f"The shipped networks take {slice_ms:.0f} ms for such a slice and {xray_ms:.0f} ms for an X-ray; behind "
        f"FastAPI {plain_slice_ms:.0f} ms and {plain_xray_ms:.0f} ms."
    )


def _latency(part: Json) -> str:
    cases = part["cases"]
    ratios = (_p50(case["ensemble_ms"]) / _p50(case["raw_ms"]) for case in cases.values())
    return (
        "The ensemble takes "
        + ", ".join(f"{ratio:.2f} ({name})" for name, ratio in zip(cases, ratios, strict=True))
        + " times the raw sessions in one process."
    )


def _volumes(part: Json) -> str:
    sizes = {row["slices"]: row for row in part["growth"]}
    slices = CASE_SLICES if CASE_SLICES in sizes else max(sizes)
    ours_s, raw_s = (_p50(sizes[slices][side]) for side in ("ours_s", "raw_s"))
    return (
        f"A CT volume of {slices} slices, every gate open, takes {ours_s:.1f} s, at {raw_s / ours_s:.2f} of the raw "
        "sessions' throughput."
    )


def _load(part: Json) -> str:
    shares = [max(case["by_in_flight"].values()) / case["raw_per_s"] for case in part["cases"]]
    one = next(server for server in part["servers"] if server["instances"] == 1)
    held = [step["rate_per_s"] for step in one["steps"] if step["p95_s"] <= PAPER_CASE_S and not step["refused"]]
    return (
        f"At saturation it answers {min(shares):.2f} to {max(shares):.2f} times what the raw sessions do one after the "
        f"other; p95 of a mix of cases stays under the paper's {PAPER_CASE_S:g} s up to {max(held, default=0):.0f} "
        "arrivals a second."
    )


def _footprint(part: Json) -> str:
    most = max(sum(process["pss_bytes"] for process in processes) for processes in part["after_cases"].values())
    return f"The server is ready after {max(part['starts_s']):.1f} s and holds {most / GIB:.1f} GiB after all cases."
