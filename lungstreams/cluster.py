"""``lungstreams predict --engine ray``: each source a task on a Ray cluster, done by `lungstreams.cluster_task`.

The driver, this process, lists the sources, keeps the record and shows how far it is; it reads no file. A task has no
state, so Ray may run it anywhere, and again where a worker died. Cases come in the order in which they are done.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lungstreams.cases import CaseResult, failed_case
from lungstreams.cluster_task import Job, Mark, marked, read_case
from lungstreams.console import complain
from lungstreams.extras import extra
from lungstreams.masks import MaskFolder
from lungstreams.reading import Ask
from lungstreams.sources import Source
from serving.calls import DRAIN_S
from serving.errors import InferenceFailed, LungstreamsError, RequestError, ServerError
from serving.tls import ClientTls

Done = tuple[Source, tuple[CaseResult, ...]]

TASKS_A_CORE: Final = 2
"""How many tasks there are at most for each of the cluster's cores: one that runs, and one that is ready to."""
RETRIES: Final = 3
"""How often a case is done again whose worker died."""

_CONNECT_S: Final = 10.0
_LOOPBACK: Final = ("localhost", "127.", "[::1]", "::1")
# Below what Ray takes by default, a third of the memory: what passes through it here is lines of JSON.
_STORE_BYTES: Final = 80 * 1024 * 1024


class Cluster:
    """Reads sources on a Ray cluster, which is started or joined with the first of them.

    Args:
        address: HOST:PORT of the head of a cluster that this machine is part of; None: one of this machine alone, for
            this run.
        url: Triton's gRPC address.
        ask: What is asked.
        tls: For a server that speaks TLS.
    """

    def __init__(self, address: str | None, url: str, ask: Ask, tls: ClientTls | None = None) -> None:
        self._address = address
        self._ray = _import_ray(address)
        self._url, self._ask, self._tls = url, ask, tls
        self._waiting: dict[Any, tuple[int, Source]] = {}
        self._open = ExitStack()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read(self, sources: Iterable[Source], masks: MaskFolder | None, *, in_order: bool = False) -> Iterator[Done]:
        """Cases of each source; one that can not be read is a case with an error.

        Args:
            sources: Listed as they are needed.
            masks: Where masks and exports go, for every machine; None for nowhere.
            in_order: Whether cases come in the order of the sources, and not as they are done.

        Raises:
            RequestError: If there is no such cluster, or it can not reach the server or the folder.
            ServerError: If a worker can not ask the server at all.
        """
        done = self._done(sources, masks)
        if in_order:
            yield from _in_order(done)
        else:
            yield from (one for _, one in done)

    def _done(self, sources: Iterable[Source], masks: MaskFolder | None) -> Iterator[tuple[int, Done]]:
        task = job = None
        for number, given in enumerate(sources):
            if task is None:
                job = Job(self._url, self._ask, self._tls, self._marked(masks), Path.cwd())
                task = self._started()
            while len(self._waiting) >= self._at_most():
                yield self._next()
            source = given if masks is None or given.place else replace(given, place=Path(masks.prefix(given.stem)))
            there = all(path.exists() for path in source.paths)
            self._waiting[task.remote(job, source, there)] = number, source
        while self._waiting:
            yield self._next()

    def _next(self) -> tuple[int, Done]:
        ready, _ = self._ray.wait(list(self._waiting), num_returns=1)
        number, source = self._waiting.pop(ready[0])
        return number, (source, self._cases(ready[0], source))

    def _cases(self, ready: Any, source: Source) -> tuple[CaseResult, ...]:
        try:
            cases: tuple[CaseResult, ...] = self._ray.get(ready)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LungstreamsError):
                raise ServerError(f"a worker of the cluster: {error.cause}") from None
            kind = type(error.cause).__name__
            raise ServerError(f"expected workers with lungstreams as it is here, got {kind}: {error.cause}") from error
        except self._ray.exceptions.RayError as error:
            why = f"expected a worker to read it, got {RETRIES + 1} that died over it ({type(error).__name__})"
            return (failed_case(source.name, InferenceFailed(why)),)
        return cases

    def _at_most(self) -> int:
        # Asked each time: machines come and go.
        return max(1, int(self._ray.cluster_resources().get("CPU", 0))) * TASKS_A_CORE

    def _marked(self, masks: MaskFolder | None) -> Mark | None:
        if masks is None:
            return None
        try:
            return self._open.enter_context(marked(masks.folder))
        except OSError as error:
            raise RequestError(f"--out: {masks.folder} can not be written: {error.strerror or error}") from None

    def _started(self) -> Any:
        how = self._alone() if self._address is None else _joined(self._address)
        before = signal.getsignal(signal.SIGTERM)
        # Ray 2.60 writes of workers that died to standard output, `log_to_driver` or not: into lines of JSON.
        self._ray._private.worker.print_to_stdstream = _say_nothing
        self._open.callback(self._stop)
        try:
            self._ray.init(**how, log_to_driver=False, configure_logging=False, logging_level="ERROR")
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error).strip().partition("\n")[0]
            raise RequestError(
                f"--engine ray: expected a cluster at {self._address or 'this machine'}, got: {why}"
            ) from None
        finally:
            # Ray sets its own, which ends the process at once.
            signal.signal(signal.SIGTERM, before)
        check_reach(self._url, self._ray.nodes())
        if not self._ray.cluster_resources().get("CPU"):
            complain("the cluster has no cores: waiting for some")
        return self._ray.remote(num_cpus=1, max_retries=RETRIES)(read_case)

    def _alone(self) -> dict[str, Any]:
        # A short name, since Ray puts sockets below it. It holds Ray's logs, and goes with them.
        folder = tempfile.mkdtemp(prefix="ls-")
        self._open.callback(shutil.rmtree, folder, ignore_errors=True)
        return {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            "_temp_dir": folder,
        }

    def _stop(self) -> None:
        """Take back what waits, let what runs close its connection, and leave the cluster."""
        if self._waiting:
            for ready in self._waiting:
                self._ray.cancel(ready)
            self._ray.wait(list(self._waiting), num_returns=len(self._waiting), timeout=DRAIN_S)
            self._waiting.clear()
        self._ray.shutdown()


def check_reach(url: str, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Hold a server's address against the machines that are to call it.

    Args:
        url: The server's.
        nodes: As `ray.nodes` gives them.

    Raises:
        RequestError: If it is loopback, and there are several machines.
    """
    machines = {str(node["NodeManagerAddress"]) for node in nodes if node["Alive"]}
    if len(machines) > 1 and url.startswith(_LOOPBACK):
        raise RequestError(
            f"--url: expected an address that the {len(machines)} machines of the cluster reach, got {url}: serve with "
            "--public, or in a container"
        )


def _say_nothing(data: Any, ignore_prefix: bool) -> None:
    pass


def _joined(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would try for minutes.
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except (OSError, ValueError) as error:
        raise RequestError(
            f"--ray-address: expected the HOST:PORT of a cluster's head, got {address}: {error}"
        ) from None
    return {"address": address}


def _import_ray(address: str | None) -> Any:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))  # For ever, if it had its way.
    if address is None or address.startswith(_LOOPBACK):
        # Else loopback is this machine's address in a network to Ray, to listen at and to call.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    if address is None:
        # Whoever reaches its ports runs code as this user: who does not know the word may not.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return extra("ray")


def _in_order(done: Iterable[tuple[int, Done]]) -> Iterator[Done]:
    held: dict[int, Done] = {}
    turn = 0
    for number, one in done:
        held[number] = one
        while turn in held:
            yield held.pop(turn)
            turn += 1
