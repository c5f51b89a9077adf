"""Throughput at saturation beside raw ONNX Runtime, and where latency breaks when load rises: one instance, and two."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from loadtest.cases import CASES, PAPER_CASE_S, LoadCase, schedule
from loadtest.instances import with_instances
from loadtest.layout import BLUE, GREEN, GREY, ORANGE, new_axes, new_figure, number, table
from loadtest.raw import RawPipeline, served_parameters
from loadtest.rising import MIX, Plan, Saturation, Server, Step, rise, saturate, warm_up
from loadtest.wire import connect
from serving.tritonserver import ServerConfig, TritonServer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATIO_AIM: Final = 0.90
"""Least share of the raw throughput at saturation."""


@dataclass(frozen=True)
class Load:
    """A measurement.

    Attributes:
        plan: What was asked for.
        cases: At saturation, one instance, by case and for the mix.
        servers: By instances, in the plan's order.
    """

    plan: Plan
    cases: tuple[Saturation, ...]
    servers: tuple[Server, ...]


def measure(server: TritonServer, plan: Plan | None = None) -> Load:
    """Takes closed loops beside raw, then open ones at rising rates, and those again with other instance counts.

    Args:
        server: A started one, which is left running.
        plan: What is measured.

    Raises:
        RepositoryError: If the repository can not be copied.
        ServerStartError: If the server with other instance counts does not start.
        InferenceFailed: If a server leaves requests without any answer.
    """
    plan = plan or Plan()
    every = schedule(tuple(CASES.values()))
    client = connect(server.grpc_url)
    try:
        raw = RawPipeline(server.config.repository, served_parameters(client))
        warm_up(client, plan)
        workloads: dict[str, Sequence[LoadCase]] = {name: (case,) for name, case in CASES.items()} | {MIX: every}
        cases = tuple(saturate(client, name, round_, plan, raw) for name, round_ in workloads.items())
        rates = [fraction * cases[-1].best_per_s for fraction in plan.fractions]
        servers = [rise(client, plan.instances[0], cases[-1], rates, plan)]
    finally:
        client.close()
    for count in plan.instances[1:]:
        with tempfile.TemporaryDirectory(prefix="lungstreams-instances-") as folder:
            copy = with_instances(server.config.repository, Path(folder) / "model_repository", count)
            config = ServerConfig(copy, grpc_port=0, http_port=0, metrics_port=0, threads=server.config.threads)
            with TritonServer(config) as other:
                servers.append(_rise_again(other, count, rates, plan))
    return Load(plan, cases, tuple(servers))


def _rise_again(server: TritonServer, instances: int, rates: Sequence[float], plan: Plan) -> Server:
    client = connect(server.grpc_url)
    try:
        warm_up(client, plan)
        mix = saturate(client, MIX, schedule(tuple(CASES.values())), plan, None)
        return rise(client, instances, mix, rates, plan)
    finally:
        client.close()


def sections(result: Load) -> list[str]:
    """The measurement as Markdown."""
    counts = result.plan.in_flight
    return [
        "### Throughput at saturation, requests/s",
        table(
            ("workload", *(f"{count} in flight" for count in counts), "raw, one after the other", "best / raw"),
            [_saturation_row(saturation, counts) for saturation in result.cases],
        ),
        f"Closed loop, {result.plan.saturation_s:g} s for each cell. {_aim(result)}",
        "### Open loop",
        f"Open loop: Poisson arrivals of the mix, {result.plan.step_s:g} s at each rate; latency counts from when a "
        f"request was due. A step breaks when a case's p95 is over {PAPER_CASE_S} s, or a request is refused or fails. "
        "Above what the server can do latency grows for as long as the step lasts: *breaks after* is how long the rate "
        "could be kept up, by the line through the latencies, where there is one.",
        *(part for server in result.servers for part in _server(server)),
        *_compared(result.servers),
    ]


def _saturation_row(saturation: Saturation, counts: Sequence[int]) -> tuple[str, ...]:
    reached = (number(saturation.by_in_flight[count], 1) for count in counts)
    return saturation.workload, *reached, number(saturation.raw_per_s, 1), number(saturation.ratio)


def _aim(result: Load) -> str:
    missed = [s.workload for s in result.cases if s.ratio is not None and s.ratio < RATIO_AIM]
    return f"Aim: {RATIO_AIM:.2f} of raw; {'missed by ' + ', '.join(missed) if missed else 'met by all'}."


def _server(server: Server) -> list[str]:
    head = (
        *("requests/s", "answered/s", "p50, s", "p95, s", *(f"{case} p95, s" for case in CASES)),
        *("answered", "refused", "failed", "sent late by, s", "breaks after, s", "holds"),
    )
    return [
        f"#### Instances of each model: {server.instances}",
        table(head, [_step_row(step) for step in server.steps]),
        f"Closed loop: {server.mix.best_per_s:.1f} requests/s of the mix. {_knee(server)}",
    ]


def _step_row(step: Step) -> tuple[str, ...]:
    return (
        *(number(rate) for rate in (step.rate_per_s, step.served_per_s)),
        *(number(seconds) for seconds in (step.p50_s, step.p95_s, *(step.case_p95_s[case] for case in CASES))),
        *(str(count) for count in (step.answered, step.refused, step.failed)),
        number(step.late_s, 3),
        number(step.breaks_after_s, 0),
        "yes" if step.holds else "no",
    )


def _knee(server: Server) -> str:
    if server.knee_per_s is None:
        return f"The budget broke at the lowest rate, {server.steps[0].rate_per_s:.2f} requests/s."
    broken = [step for step in server.steps if not step.holds]
    until = f"broke at {broken[0].rate_per_s:.2f}" if broken else "did not break"
    alone = "-" if server.mix.alone_p95_s is None else f"{server.mix.alone_p95_s:.2f}"
    return (
        f"Knee: {server.knee_per_s:.2f} requests/s held the budget for a step; it {until}. Without latency growing "
        f"over the step: {number(server.steady_per_s)}. With p95 within twice that of a request alone ({alone} s): "
        f"{number(server.easy_per_s)}."
    )


def _compared(servers: Sequence[Server]) -> list[str]:
    one, *others = servers
    return [
        f"{other.instances} instances against {one.instances}: closed loop {other.mix.best_per_s:.1f} against "
        f"{one.mix.best_per_s:.1f} requests/s; steady at {number(other.steady_per_s)} against "
        f"{number(one.steady_per_s)}; within twice p95 alone at {number(other.easy_per_s)} against "
        f"{number(one.easy_per_s)}."
        for other in others
    ]


def draw(result: Load) -> dict[str, Figure]:
    """Latency against the rate of arrivals, on a logarithmic scale."""
    figure = new_figure(7.2, 4.6)
    axes = new_axes(figure, "Latency against load, mix of cases", "arrivals, requests/s", "latency, s")
    for server, colour, marker in zip(result.servers, (BLUE, ORANGE, GREEN), "os^", strict=False):
        for quantile, style in (("p50", "--"), ("p95", "-")):
            values = [step.p50_s if quantile == "p50" else step.p95_s for step in server.steps]
            rates = [step.rate_per_s for step, value in zip(server.steps, values, strict=True) if value is not None]
            label = f"{quantile}, {server.instances} instance{'s' if server.instances > 1 else ''}"
            shown = [value for value in values if value is not None]
            axes.plot(rates, shown, color=colour, marker=marker, markersize=5, linestyle=style, label=label)
        axes.axvline(server.mix.best_per_s, color=colour, linewidth=0.8, linestyle="-.", alpha=0.6)
    axes.axhline(PAPER_CASE_S, color=GREY, linestyle=":", label=f"the paper's {PAPER_CASE_S} s a case")
    axes.plot([], [], color=GREY, linewidth=0.8, linestyle="-.", label="closed loop at its best")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlim(0, None)
    axes.legend(fontsize=8)
    return {"load-latency": figure}
