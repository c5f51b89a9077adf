"""Load on the ensemble, judged by case. Also underneath `lungstreams loadtest`.

::

    locust -f loadtest/locustfile.py --headless -u 4 -t 60s --host 127.0.0.1:8001

Exit codes: 0 all held, 1 a budget broke, failures reached 1 % or something did not run, 2 it refused to run at all.
Each user asks for the next case of one shared round, waits for its answer, and asks again (a closed loop); latency is
what the user waits, from the call to the decoded reply, server-side queueing included.
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import gevent
import grpc.experimental.gevent as grpc_gevent
from locust import User, events, task
from locust.runners import MasterRunner, WorkerRunner

from loadtest import wire, workers
from loadtest.cases import LoadCase, schedule, select
from loadtest.gate import Samples, judge
from serving.errors import InferenceFailed, RequestError, TlsError
from serving.tls import ClientTls

# gRPC's core blocks in C, where gevent can not switch. Must come before the first channel, and in this process alone.
grpc_gevent.init_gevent()

DEFAULT_HOST: Final = "127.0.0.1:8001"
DEFAULT_RUN_TIME_S: Final = 60
STOP_TIMEOUT_S: Final = wire.REQUEST_TIMEOUT_S + 5
"""Requests under way at the end are waited for: dropping them would drop the slowest ones."""

WORKER_GRACE_S: Final = 5
"""In which a worker's samples reach its master, after its requests have ended."""

FAILURE_PAUSE_S: Final = 0.2
"""Outside the measured time; a server that is down is not hammered."""

REFUSED_EXIT_CODE: Final = 2
ANY_HOST_VARIABLE: Final = "LUNGSTREAMS_LOADTEST_ANY_HOST"

_log = logging.getLogger("lungstreams.loadtest")


class _Run:
    """What the users of this process share."""

    def __init__(self) -> None:
        self.cases: tuple[LoadCase, ...] = ()
        self.requests: Iterator[tuple[LoadCase, bytes]] = iter(())
        self.samples: defaultdict[str, Samples] = defaultdict(Samples)
        self.delay_s = 0.0
        self.tls: ClientTls | None = None
        self.started_s: float | None = None
        self.ended_s = 0.0
        self.crew: workers.Crew | None = None

    def plan(self, cases: tuple[LoadCase, ...], delay_s: float) -> None:
        scans = {case.name: itertools.cycle(case.scans()) for case in cases}
        self.cases = cases
        self.requests = ((case, next(scans[case.name])) for case in itertools.cycle(schedule(cases)))
        self.delay_s = delay_s

    @property
    def seconds(self) -> float:
        own_s = 0.0 if self.started_s is None else self.ended_s - self.started_s
        return own_s if self.crew is None else self.crew.seconds

    def notes(self) -> tuple[str, ...]:
        delay = (f"{self.delay_s:g} s of delay were added to each request",) if self.delay_s else ()
        lost = (f"{self.lost} workers were lost, and their requests with them",) if self.lost else ()
        return delay + lost

    @property
    def lost(self) -> int:
        return 0 if self.crew is None else self.crew.lost


_run = _Run()


class ScanUser(User):  # type: ignore[misc]
    """Someone who sends one scan after another."""

    host = DEFAULT_HOST

    def on_start(self) -> None:
        """Connects."""
        self._client = wire.connect(self.host, _run.tls)

    def on_stop(self) -> None:
        """Hangs up."""
        self._client.close()

    @task  # type: ignore[untyped-decorator]
    def send_case(self) -> None:
        """Sends the round's next case and reports it under the case's name."""
        case, scan = next(_run.requests)
        error: Exception | None = None
        answer: wire.Answer = {}
        started = time.perf_counter()
        try:
            answer = wire.infer(self._client, case, scan)
            gevent.sleep(_run.delay_s)
        # Whatever goes wrong is a failed request; locust would log it beside the statistics and go on.
        except Exception as exception:
            error = exception
        latency_ms = (time.perf_counter() - started) * 1000
        try:
            if error is None:
                wire.check_answer(case, answer)
        except InferenceFailed as exception:
            error = exception
        events.request.fire(
            request_type="grpc",
            name=case.name,
            response_time=latency_ms,
            response_length=wire.answer_bytes(answer),
            exception=error,
            context={},
        )
        if error is not None:
            gevent.sleep(FAILURE_PAUSE_S)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_options(parser: Any) -> None:
    """Adds our options to locust's; each can be given by environment as well."""
    # locust's own parser, not a group of it: only that can keep an option off locust's web page.
    add = partial(parser.add_argument, include_in_web_ui=False)
    add("--cases", default="", env_var="LUNGSTREAMS_LOADTEST_CASES", help="Names by commas; all if left out.")
    add(
        "--budget-s",
        type=float,
        env_var="LUNGSTREAMS_LOADTEST_BUDGET_S",
        help="p95 of each case may be this at most, in seconds; the cases' own budgets if left out.",
    )
    add(
        "--delay-s",
        type=float,
        default=0.0,
        env_var="LUNGSTREAMS_LOADTEST_DELAY_S",
        help="Adds this to each request's time, in seconds, to see the gate fail.",
    )
    add("--verdict-json", default="", env_var="LUNGSTREAMS_LOADTEST_VERDICT_JSON", help="Writes the verdict there too.")


@events.init.add_listener  # type: ignore[untyped-decorator]
def prepare(environment: Any, **_: Any) -> None:
    """Draws the scans, and refuses what may not or can not be run."""
    options = environment.parsed_options
    environment.host = environment.host or DEFAULT_HOST
    try:
        _require_no_fork(options)
        _require_allowed(environment.host)
        if not 0 <= options.delay_s < float("inf"):
            raise RequestError(f"expected a delay of 0 s or more, got {options.delay_s}")
        names = [name.strip() for name in options.cases.split(",") if name.strip()]
        _run.plan(select(names, options.budget_s), options.delay_s)
        _run.tls = ClientTls.of_environment(os.environ)
    except (RequestError, TlsError) as error:
        _log.error("refused: %s", error)
        sys.exit(REFUSED_EXIT_CODE)
    options.run_time = options.run_time or DEFAULT_RUN_TIME_S
    # gevent counts from the last time that its loop looked at the clock, which was before the scans were drawn: without
    # this a run is shorter by that.
    gevent.get_hub().loop.update_now()
    environment.stop_timeout = max(environment.stop_timeout, STOP_TIMEOUT_S)
    if isinstance(environment.runner, WorkerRunner):
        workers.answer(environment.runner, _run)
    elif isinstance(environment.runner, MasterRunner):
        _run.crew = workers.Crew(environment.runner, _run.samples)


def _require_no_fork(options: Any) -> None:
    # gRPC does not survive the fork by which locust makes these: start each worker as a program of its own.
    if options.processes:
        raise RequestError("expected workers that are started with --worker, got --processes")


def _require_allowed(url: str) -> None:
    host, _ = wire.parse_address(url)
    if not wire.is_loopback(host) and os.environ.get(ANY_HOST_VARIABLE) != "1":
        raise RequestError(
            f"expected a host on this machine, got {host}: a load test can take a server down. "
            f"Set {ANY_HOST_VARIABLE}=1 if {host} is yours to load"
        )


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def begin(environment: Any, **_: Any) -> None:
    """Starts the clock, which stops a run from locust's web page as well."""
    # The page lets its user change the host, after `prepare` has looked at it.
    try:
        _require_allowed(environment.host)
    except RequestError as error:
        _log.error("refused: %s", error)
        environment.process_exit_code = REFUSED_EXIT_CODE
        environment.runner.quit()
        return
    if isinstance(environment.runner, WorkerRunner):
        # The master's, which came with its order to start.
        options = environment.parsed_options
        names = [name.strip() for name in options.cases.split(",") if name.strip()]
        _run.plan(select(names, options.budget_s), options.delay_s)
    environment.process_exit_code = None
    _run.samples.clear()
    if _run.crew is not None:
        _run.crew.begin()
    _run.started_s = _run.ended_s = time.perf_counter()
    if environment.web_ui is not None:
        gevent.spawn_later(environment.parsed_options.run_time, environment.runner.stop)


@events.request.add_listener  # type: ignore[untyped-decorator]
def collect(name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
    """Keeps each request's own latency, which locust itself rounds."""
    samples = _run.samples[name]
    if exception is None:
        samples.latencies_ms.append(response_time)
    else:
        samples.failures += 1
    _run.ended_s = time.perf_counter()


@events.test_stopping.add_listener  # type: ignore[untyped-decorator]
def gather(environment: Any, **_: Any) -> None:
    """Collects the workers' samples, as the master."""
    if _run.crew is not None:
        _run.crew.finish(environment.stop_timeout + WORKER_GRACE_S)


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def decide(environment: Any, **_: Any) -> None:
    """Says for each case whether it held, and sets the exit code."""
    if environment.process_exit_code == REFUSED_EXIT_CODE:
        return
    if isinstance(environment.runner, WorkerRunner):
        # The master judges.
        environment.process_exit_code = 0
        return
    judgement = judge(_run.cases, _run.samples, _run.seconds, _run.notes())
    for line in judgement.lines():
        _log.info(line)
    if environment.parsed_options.verdict_json:
        judgement.write(Path(environment.parsed_options.verdict_json))
    environment.process_exit_code = 0 if judgement.passed and not _run.lost else 1
