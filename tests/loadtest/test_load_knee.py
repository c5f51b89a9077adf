from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import knee
from loadtest.cases import CASES, SCANS_PER_CASE, LoadCase
from loadtest.instances import copy_repository, with_instances
from loadtest.loops import Ended, Loop, closed_loop, open_loop, poisson_arrivals
from loadtest.rising import MIX, Plan, Saturation, rise, saturate, summarise
from loadtest.wire import connect, parse_address
from serving.errors import InferenceFailed, RepositoryError, RequestError
from serving.pipeline import MODEL_NAMES, PREPROCESS
from serving.repository import CONFIG_NAME, parse_config
from serving.tritonserver import ServerConfig, TritonServer
from tests.loadtest.counting_client import CountingClient
from tests.loadtest.delay_line import DelayLine

XRAY = CASES["xray"]


class Unreadable(LoadCase):
    """A case whose scans nobody can read."""

    def scans(self) -> tuple[bytes, ...]:
        return (b"no scan",) * SCANS_PER_CASE


@pytest.fixture(scope="module")
def client(toy_triton: TritonServer) -> Iterator[Any]:
    client = connect(toy_triton.grpc_url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def narrow(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server that lets one request wait and refuses the next."""

    def change(config: Any) -> None:
        if config.name == PREPROCESS.model:
            config.dynamic_batching.default_queue_policy.max_queue_size = 1
            config.instance_group[0].count = 1

    repository = copy_repository(toy_repository, tmp_path_factory.mktemp("narrow") / "model_repository", change)
    with TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, threads=1)) as server:
        client = connect(server.grpc_url)
        yield client
        client.close()


def test_arrivals_are_those_of_the_seed() -> None:
    assert poisson_arrivals(7, 10, 3) == poisson_arrivals(7, 10, 3)
    assert poisson_arrivals(7, 10, 3) != poisson_arrivals(7, 10, 4)


def test_arrivals_come_at_the_rate_and_as_irregularly_as_by_chance() -> None:
    times = np.array(poisson_arrivals(50, 40, 0))
    assert len(times) == 2000
    assert times[0] >= 0
    assert times[-1] < 40
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    # Gaps of a Poisson process are exponential: as much spread as mean.
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.02)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    # And the numbers in equal times vary as much as they are large.
    counts = np.bincount(times.astype(int))
    assert 0.5 < counts.var() / counts.mean() < 1.6


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (1, 0), (-1, 1), (float("nan"), 1)])
def test_arrivals_need_a_rate_and_a_time(rate: float, seconds: float) -> None:
    with pytest.raises(RequestError, match="expected a rate and a time above 0"):
        poisson_arrivals(rate, seconds, 0)


@pytest.mark.triton
def test_latency_counts_from_when_a_request_was_due_not_from_when_it_was_sent(client: Any) -> None:
    class SlowToSend:
        def async_infer(self, *arguments: Any, **named: Any) -> None:
            time.sleep(0.4)
            client.async_infer(*arguments, **named)

    loop = open_loop(SlowToSend(), (XRAY,), [0.0, 0.01, 0.02])
    assert [request.due_s for request in loop.requests] == [0.0, 0.01, 0.02]
    latencies = loop.latencies_s()
    assert all(latency >= 0.4 * (1 + turn) - 0.02 for turn, latency in enumerate(latencies))
    assert loop.late_s >= 1.1


@pytest.mark.triton
def test_requests_are_sent_whether_or_not_others_were_answered(toy_triton: TritonServer) -> None:
    with DelayLine(parse_address(toy_triton.grpc_url), 1.0) as line:
        slow = connect(line.url)
        counting = CountingClient(slow)
        loop = open_loop(counting, tuple(CASES.values()), [0.0, 0.01, 0.02, 0.03])
        slow.close()
    assert counting.sent_at_first_answer == 4
    assert [request.case for request in loop.requests] == ["xray", "ct_gated", "ct_open", "xray"]
    assert loop.count("answered") == 4
    assert min(loop.latencies_s()) >= 1.0


@pytest.mark.triton
def test_no_request_is_sent_before_it_is_due(client: Any) -> None:
    # Its answer would come before it was due.
    assert min(open_loop(client, (XRAY,), [0.0, 0.8]).latencies_s()) > 0


@pytest.mark.triton
def test_a_closed_loop_keeps_as_many_under_way_as_it_is_told(client: Any) -> None:
    counting = CountingClient(client)
    loop = closed_loop(counting, (XRAY, CASES["ct_open"]), 3, 0.5)
    assert counting.most == 3
    assert counting.now == 0
    assert loop.count("answered") == len(loop.requests) == counting.sent
    assert loop.answered_per_s == pytest.approx(len(loop.requests) / loop.seconds)
    assert len(loop.latencies_s("xray")) + len(loop.latencies_s("ct_open")) == len(loop.requests)


@pytest.mark.parametrize("wrong", [((), 1), ((XRAY,), 0)])
def test_a_closed_loop_needs_cases_and_requests(wrong: tuple[Any, int]) -> None:
    with pytest.raises(RequestError, match="expected cases and 1 or more in flight"):
        closed_loop(None, *wrong, seconds=1)


@pytest.mark.triton
@pytest.mark.slow
def test_refusals_are_counted_apart_from_failures(narrow: Any) -> None:
    crowd = open_loop(narrow, (XRAY,), [0.0] * 40)
    assert crowd.count("refused") > 0
    assert crowd.count("answered") > 0
    assert crowd.count("failed") == 0
    broken = Unreadable("broken", "", "xray", XRAY.thresholds, weight=1)
    loop = open_loop(narrow, (broken, XRAY), [0.0, 0.3, 0.6, 0.9])
    assert [request.ending for request in loop.requests] == ["failed", "answered"] * 2
    assert [request.latency_s is None for request in loop.requests] == [True, False] * 2


@pytest.mark.triton
@pytest.mark.slow
def test_the_load_rises_until_the_server_is_busy_and_no_further(narrow: Any) -> None:
    plan = Plan(step_s=0.5)
    mix = Saturation(MIX, {1: 1.0}, None, 60.0)
    server = rise(narrow, 1, mix, [2.0, 200.0, 400.0], plan)
    assert [step.rate_per_s for step in server.steps] == [2.0, 200.0]
    assert [step.holds for step in server.steps] == [True, False]
    assert server.steps[1].refused > 0
    assert server.steps[1].answered + server.steps[1].refused == 100
    assert server.knee_per_s == server.steady_per_s == server.easy_per_s == 2.0


@pytest.mark.triton
@pytest.mark.slow
def test_a_refusal_is_no_throughput(narrow: Any) -> None:
    with pytest.raises(InferenceFailed, match="expected answers to"):
        saturate(narrow, "xray", (XRAY,), Plan(in_flight=(16,), saturation_s=0.5), None)


def ended(due_s: float, latency_s: float | None = 1.0, case: str = "xray") -> Ended:
    return Ended(case, due_s, latency_s, "answered" if latency_s is not None else "failed")


def step_of(*requests: Ended) -> Any:
    return summarise(5.0, Loop(10.0, 0.0, requests))


def test_a_queue_that_grows_says_how_long_until_the_budget_breaks() -> None:
    step = step_of(*(ended(due, 0.33 + 0.25 * due) for due in range(10)))
    assert step.holds
    assert step.growth_s_per_s == pytest.approx(0.25)
    assert step.breaks_after_s == pytest.approx((5.33 - 0.33) / 0.25)


def test_latencies_that_do_not_grow_never_break() -> None:
    step = step_of(*(ended(due, 0.3 + 0.1 * (due % 2)) for due in range(10)))
    assert step.growth_s_per_s is None
    assert step.breaks_after_s is None
    falling = step_of(*(ended(due, 3 - 0.2 * due) for due in range(10)))
    assert falling.breaks_after_s is None


@pytest.mark.parametrize(
    "requests",
    [
        [ended(0), ended(1, None)],
        [ended(0), ended(1, 5.4)],
        # One case's p95 breaks, and all requests' together do not.
        [*(ended(due) for due in range(39)), ended(39, 5.4, "ct_open")],
        [],
    ],
)
def test_a_step_holds_only_if_every_case_does(requests: list[Ended]) -> None:
    assert not step_of(*requests).holds
    assert step_of(*(ended(request.due_s) for request in requests), ended(50)).holds


@pytest.fixture(scope="module")
def measured(toy_triton: TritonServer) -> knee.Load:
    plan = Plan(in_flight=(1, 2), saturation_s=0.2, fractions=(0.1, 0.2), step_s=0.6)
    return knee.measure(toy_triton, plan)


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_every_case_the_mix_and_both_servers_are_measured(measured: knee.Load) -> None:
    assert [saturation.workload for saturation in measured.cases] == [*CASES, MIX]
    for saturation in measured.cases:
        assert set(saturation.by_in_flight) == {1, 2}
        assert saturation.ratio == pytest.approx(saturation.best_per_s / (saturation.raw_per_s or 0))
    one, two = measured.servers
    assert [one.instances, two.instances] == [1, 2]
    assert one.steps[0].rate_per_s == two.steps[0].rate_per_s == pytest.approx(0.1 * measured.cases[-1].best_per_s)
    json.dumps(asdict(measured))


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_the_sections_and_the_plot_show_every_rate(measured: knee.Load) -> None:
    text = "\n\n".join(knee.sections(measured))
    for saturation in measured.cases:
        assert f"\n| {saturation.workload} | " in text
    (figure,) = knee.draw(measured).values()
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    for server in measured.servers:
        for step in server.steps:
            assert f"\n| {step.rate_per_s:.2f} | " in text
        label = f"p95, {server.instances} instance{'s' if server.instances > 1 else ''}"
        assert list(lines[label].get_xdata()) == [step.rate_per_s for step in server.steps]
        assert list(lines[label].get_ydata()) == [step.p95_s for step in server.steps]


@pytest.mark.parametrize("wrong", [{"in_flight": ()}, {"fractions": (0.5, 0.2)}, {"fractions": (0.0,)}])
def test_a_plan_without_a_rise_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="expected"):
        Plan(**wrong)


def test_a_second_instance_is_all_that_changes(toy_repository: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in toy_repository.rglob("*") if path.is_file()}
    copy = with_instances(toy_repository, tmp_path / "copy", 2)
    for model in MODEL_NAMES:
        ours, theirs = (parse_config(repository / model / CONFIG_NAME) for repository in (copy, toy_repository))
        assert [group.count for group in ours.instance_group] == [2] * len(theirs.instance_group)
        for group, original in zip(ours.instance_group, theirs.instance_group, strict=True):
            group.count = original.count
        assert ours == theirs
    others = {path for path in before if path.name != CONFIG_NAME}
    assert {copy / path.relative_to(toy_repository) for path in others} == {
        path for path in copy.rglob("*") if path.is_file() and path.name != CONFIG_NAME
    }
    for path in others:
        assert (copy / path.relative_to(toy_repository)).read_bytes() == before[path]
        assert not (copy / path.relative_to(toy_repository)).is_symlink()
    assert all(path.read_bytes() == content for path, content in before.items())


def test_what_can_not_be_copied_is_refused(toy_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected 1 instance or more, got 0"):
        with_instances(toy_repository, tmp_path / "copy", 0)
    with pytest.raises(RepositoryError, match="without any"):
        with_instances(tmp_path, tmp_path / "copy", 2)
    with_instances(toy_repository, tmp_path / "copy", 2)
    with pytest.raises(RepositoryError, match="expected a new folder"):
        with_instances(toy_repository, tmp_path / "copy", 2)
