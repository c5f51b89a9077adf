"""The load test as a function: locust in a process of its own, against a server that is there or that it starts.

In a process of its own because gevent patches the whole process that it runs in, sockets and threads included.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.cases import PAPER_CASE_S, select
from loadtest.wire import REQUEST_TIMEOUT_S
from serving.errors import RequestError
from serving.tls import ClientTls

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
VERDICT_FILE: Final = "verdict.json"
LOG_FILE: Final = "locust.log"
GRACE_S: Final = 2 * REQUEST_TIMEOUT_S + 30
"""After the asked duration locust may wait for requests under way, and it takes time to import; then it hangs."""

CRASHED_EXIT_CODE: Final = 2
_LOG_TAIL_LINES = 20


def run(
    url: str | None,
    duration_s: float = 60,
    users: int = 2,
    cases: Sequence[str] = (),
    budget_s: float = PAPER_CASE_S,
    out: Path = Path("reports/loadtest"),
    spawn_rate: float | None = None,
    repository: Path | None = None,
    tls: ClientTls | None = None,
) -> int:
    """Loads a server with cases and judges each of them.

    Writes into `out`: `report.html`, `report_*.csv`, `verdict.json` (exact percentiles) and `locust.log`. Progress and
    the verdict go to standard error.

    Args:
        url: Address of Triton's gRPC, as in `127.0.0.1:8001`; None starts an embedded server for the run.
        duration_s: How long to load it, in seconds; requests under way are waited for.
        users: How many ask at the same time.
        cases: Names out of `loadtest.cases.CASES`; empty means all.
        budget_s: What p95 of each case may be at most, in seconds.
        out: Folder of the reports; made if it is not there.
        spawn_rate: Users started per second; None starts all at once.
        repository: The embedded server's models; None means `serving.repository.DEFAULT_REPOSITORY`.
        tls: For a server at `url` that speaks TLS.

    Returns:
        0 if every case held, 1 if a budget broke, failures reached 1 % or something did not run, 2 if it was refused.

    Raises:
        RequestError: If an argument is out of its range.
        ServerStartError: If the embedded server does not start.
    """
    _validate(duration_s, users, spawn_rate)
    names = [case.name for case in select(cases, budget_s)]
    out.mkdir(parents=True, exist_ok=True)
    # A verdict of an earlier run must not stand for this one.
    (out / VERDICT_FILE).unlink(missing_ok=True)
    console = Console(stderr=True)
    with ExitStack() as stack:
        if url is None:
            with console.status("Starting the embedded Triton"):
                url = _start_embedded(stack, repository)
        command = [
            *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
            *("--users", str(users), "--spawn-rate", str(spawn_rate or users), "--run-time", f"{round(duration_s)}s"),
            *("--host", url, "--cases", ",".join(names), "--budget-s", str(budget_s)),
            *("--html", str(out / "report.html"), "--csv", str(out / "report")),
            *("--verdict-json", str(out / VERDICT_FILE)),
        ]
        code = _run_locust(command, out / LOG_FILE, duration_s, console, _environment(tls))
    _report(out, console)
    return code


def _validate(duration_s: float, users: int, spawn_rate: float | None) -> None:
    # locust counts whole seconds.
    if not 1 <= duration_s < float("inf"):
        raise RequestError(f"expected a duration of 1 s or more, got {duration_s}")
    if users < 1:
        raise RequestError(f"expected 1 user or more, got {users}")
    if spawn_rate is not None and not spawn_rate > 0:
        raise RequestError(f"expected a spawn rate above 0 users/s, got {spawn_rate}")


def _start_embedded(stack: ExitStack, repository: Path | None) -> str:
    from serving.repository import DEFAULT_REPOSITORY
    from serving.tritonserver import ServerConfig, TritonServer

    config = ServerConfig(repository or DEFAULT_REPOSITORY, grpc_port=0, http_port=0, metrics_port=0)
    return str(stack.enter_context(TritonServer(config)).grpc_url)


def _run_locust(
    command: Sequence[str], log: Path, duration_s: float, console: Console, environment: dict[str, str]
) -> int:
    # locust writes a table every few seconds and reads keys from a terminal: neither is for this one.
    with (
        log.open("w", encoding="utf-8") as sink,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=environment) as process,
        Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as progress,
    ):
        bar = progress.add_task("Loading the server", total=duration_s)
        started = time.monotonic()
        try:
            while process.poll() is None:
                elapsed = time.monotonic() - started
                if elapsed > duration_s + GRACE_S:
                    process.kill()
                progress.update(bar, completed=min(elapsed, duration_s))
                time.sleep(0.1)
            progress.update(bar, completed=duration_s)
        except KeyboardInterrupt:
            # A terminal has told locust as well: it stops, judges what it has, and exits.
            process.wait(GRACE_S)
        finally:
            if process.poll() is None:
                process.kill()
    return process.returncode if process.returncode in (0, 1) else CRASHED_EXIT_CODE


def _environment(tls: ClientTls | None) -> dict[str, str]:
    # locust takes options from here as well, and one such as LOCUST_PROCESSES would make it another test. What of TLS
    # counts is what we were given: an embedded server speaks plainly, whatever the environment says.
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LOCUST_", "LUNGSTREAMS_TLS_"))}
    return kept | (tls.to_environment() if tls is not None else {})


def _report(out: Path, console: Console) -> None:
    try:
        lines = json.loads((out / VERDICT_FILE).read_text(encoding="utf-8"))["lines"]
    except FileNotFoundError:
        log = (out / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
        lines = ["locust ended without a verdict; the end of its log:", *log[-_LOG_TAIL_LINES:]]
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"Reports are in {out}", markup=False, highlight=False, soft_wrap=True)
