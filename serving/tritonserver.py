"""A real Triton on this machine, from the ``nvidia-pytriton`` wheel: start it, wait until it is ready, stop it.

The wheel's server has the Python backend only. `TritonServer` lays out a backend directory in which our
Python-based twin answers for ``onnxruntime``, so the model repository is the one that NVIDIA's container serves.

The binary is of release 24.10 and has known vulnerabilities (see docs/security.md). So it binds to loopback unless
told otherwise, and is for one machine; a deployment runs the container. HTTP and the metrics, which know no TLS and
have the worst of the holes, never leave loopback.
"""

from __future__ import annotations

import http.client
import importlib.util
import ipaddress
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, get_args

from serving.backends.onnxruntime.request_log import JsonLines
from serving.errors import ServerStartError
from serving.process import (
    close_regions,
    end,
    instances_of,
    is_stopped,
    last_word,
    make_work_folder,
    remove_work_folder,
    runs_below,
    spawn,
    sweep,
)
from serving.repository import CONFIG_NAME, DEFAULT_REPOSITORY
from serving.startup import STARTS, DisturbedStart, StartWatch
from serving.tls import ServerTls
from serving.triton_arguments import EXIT_TIMEOUT_S, LOOPBACK, arguments
from serving.triton_wheel import find_wheel, lay_out_backends, stub_environment

START_TIMEOUT_S: Final = 180.0
STOP_GRACE_S: Final = EXIT_TIMEOUT_S + 5.0

ModelControl = Literal["none", "explicit"]


@dataclass(frozen=True)
class ServerConfig:
    """What the embedded server serves, and where.

    Attributes:
        repository: The model repository.
        grpc_port: Port of gRPC; 0 picks a free one, as for the others.
        http_port: Port of HTTP.
        metrics_port: Port of the Prometheus metrics.
        host: IPv4 address that gRPC binds to. HTTP and the metrics are on loopback always.
        tls: Certificate and key of gRPC; None speaks plainly.
        insecure: Lets gRPC leave loopback without TLS.
        admin_key: What opens the calls of `RESTRICTED`, in the header `ADMIN_HEADER`; None lets nobody in. Whoever may
            list this machine's processes can read it.
        model_control: ``explicit`` lets who has `admin_key` load versions while it serves (`serving.publishing`); all
            models are loaded at the start in either case.
        threads: Threads within an operator for each network; None is one for each core.
        accelerator: ``openvino`` computes the networks by OpenVINO instead of ONNX Runtime (extra ``openvino``).
        log_path: Where Triton's log goes. None keeps it beside the server's temporary files, which a clean
            stop removes.
        request_log: File that every step appends a line to for each request, see
            `serving.backends.onnxruntime.request_log`; None logs no requests.
    """

    repository: Path = DEFAULT_REPOSITORY
    grpc_port: int = 8001
    http_port: int = 8000
    metrics_port: int = 8002
    host: str = LOOPBACK
    threads: int | None = None
    accelerator: Literal["openvino"] | None = None
    log_path: Path | None = None
    request_log: Path | None = None
    tls: ServerTls | None = None
    insecure: bool = False
    admin_key: str | None = None
    model_control: ModelControl = "none"

    def __post_init__(self) -> None:
        _check_access(self)
        _check_model_control(self)
        if self.threads is not None and self.threads < 1:
            raise ServerStartError(f"expected at least 1 thread, got {self.threads}")
        if self.accelerator not in (None, "openvino"):
            raise ServerStartError(f"expected the accelerator openvino or none, got {self.accelerator!r}")
        for name, port in self.ports().items():
            if not 0 <= port <= 65535:
                raise ServerStartError(f"{name} port: expected 0 to 65535, got {port}")
        named = [port for port in self.ports().values() if port]
        if len(set(named)) != len(named):
            raise ServerStartError(f"expected different ports, got {self.ports()}")

    def ports(self) -> dict[str, int]:
        """Protocol -> port."""
        return {"gRPC": self.grpc_port, "HTTP": self.http_port, "metrics": self.metrics_port}


class TritonServer:
    """One embedded server. Use as a context manager, or `start` and `stop`.

    Args:
        config: What to serve and where.
    """

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self._process: subprocess.Popen[bytes] | None = None
        self._work: Path | None = None
        self._models: tuple[str, ...] = ()
        self._backends: frozenset[str] = frozenset()

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def grpc_url(self) -> str:
        """``host:port`` of gRPC on this machine, as `PipelineClient` takes it."""
        host = LOOPBACK if ipaddress.ip_address(self.config.host).is_unspecified else self.config.host
        return f"{host}:{self.config.grpc_port}"

    @property
    def http_url(self) -> str:
        """``host:port`` of HTTP."""
        return f"{LOOPBACK}:{self.config.http_port}"

    @property
    def metrics_url(self) -> str:
        """``host:port`` of the metrics."""
        return f"{LOOPBACK}:{self.config.metrics_port}"

    @property
    def pid(self) -> int:
        """Process id of Triton, which is that of its process group too."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """File that Triton and the stubs log to."""
        if self.config.log_path is not None:
            return self.config.log_path
        if self._work is None:
            raise ServerStartError("expected a started server, got one that was not started")
        return self._work / "triton.log"

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def is_ready(self) -> bool:
        """Whether it answers, and every model of its repository is ready. Never raises."""
        return self.is_alive() and _answers_ready(self.config.http_port, self._models)

    def has_lost_backend(self) -> bool:
        """Whether a backend process that ran when the server became ready has ended, or was stopped (SIGSTOP).

        Triton 24.10 does not start it again: what needs it fails from then on, and the server says that it is ready.
        One that is continued after Triton has missed it brings Triton down.
        """
        if not self.is_alive() or instances_of(self.pid) >= self._backends:
            return False
        # Not if all of them were stopped, and are continued one after the other. And backends whose server has just
        # ended are nobody's children, too.
        return (
            runs_below(self.pid, os.getpid())
            and not is_stopped(self.pid)
            and not instances_of(self.pid) >= self._backends
        )

    def start(self, timeout_s: float = START_TIMEOUT_S) -> TritonServer:
        """Start the server and wait until every model is ready; again, if a start was disturbed (`serving.startup`).

        Args:
            timeout_s: Longest wait for all of it, in seconds.

        Returns:
            This server.

        Raises:
            ServerStartError: If it can not be started, in one line: a port that is taken, a folder that is no
                model repository, no room for temporary files, a missing wheel or libpython, or the error of the model
                that failed to load.
        """
        if self.is_alive():
            raise ServerStartError(f"expected a stopped server, got one that runs as process {self.pid}")
        self._models = _models_of(self.config.repository)
        if self.config.accelerator and importlib.util.find_spec(self.config.accelerator) is None:
            raise ServerStartError(
                f"expected the package {self.config.accelerator}, got an environment without it: "
                f"pip install 'lungstreams[{self.config.accelerator}]'"
            )
        _check_request_log(self.config.request_log)
        wheel = find_wheel()
        sweep()
        self.config = _with_free_ports(self.config)
        environment = stub_environment(wheel, self.config.threads, self.config.accelerator, self.config.request_log)
        deadline_s = time.monotonic() + timeout_s
        for starts_left in reversed(range(STARTS)):
            try:
                work = self._lay_out(wheel, environment)
                self._process = spawn(arguments(self.config, wheel, work), environment, self.log_path)
                self._backends = self._wait_until_ready(timeout_s, deadline_s)
                close_regions(work)
            except DisturbedStart:
                self.stop(grace_s=0)
                if not starts_left:
                    raise
            except BaseException:
                self.stop()
                raise
            else:
                break
        return self

    def stop(self, grace_s: float = STOP_GRACE_S) -> None:
        """Stop the server and every process and file that belongs to it. Does nothing to one that is stopped.

        Args:
            grace_s: How long it may take over the requests that it has, in seconds; 0 ends it at once.
        """
        if self._process is not None:
            end(self._process, grace_s=grace_s)
            self._process = None
        if self._work is not None:
            remove_work_folder(self._work)
            self._work = None

    def wait(self) -> int:
        """Wait until the process ends by itself; returns its exit status."""
        return self._running().wait()

    def _lay_out(self, wheel: Path, environment: dict[str, str]) -> Path:
        try:
            self._work = make_work_folder()
            lay_out_backends(wheel, self._work / "backends", environment)
        except OSError as error:
            place = self._work or tempfile.gettempdir()
            raise ServerStartError(
                f"expected room for the server's temporary files in {place}, got: {error.strerror or error} "
                "(TMPDIR names another folder)"
            ) from error
        return self._work

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServerStartError("expected a started server, got one that was not started")
        return self._process

    def _wait_until_ready(self, timeout_s: float, deadline_s: float) -> frozenset[str]:
        process = self._running()
        watch = StartWatch(process.pid, self.log_path)
        while time.monotonic() < deadline_s:
            if (status := process.poll()) is not None:
                raise watch.ended(status)
            if self.is_ready():
                return watch.ready()
            watch.look()
            time.sleep(0.1)
        raise ServerStartError(
            f"expected Triton to be ready within {timeout_s:g} s; its last word: {last_word(self.log_path)}"
        )


def _check_access(config: ServerConfig) -> None:
    try:
        address = ipaddress.IPv4Address(config.host)
    except ValueError as error:
        raise ServerStartError(f"host: expected an IPv4 address such as {LOOPBACK}, got {config.host!r}") from error
    if not address.is_loopback and config.tls is None and not config.insecure:
        raise ServerStartError(f"expected TLS for gRPC at {address}, which other machines reach, got no certificate")
    if config.admin_key is not None and not re.fullmatch(r"[\w-]{16,}", config.admin_key, re.ASCII):
        raise ServerStartError("admin key: expected 16 letters, digits, - or _ at least, got another")


def _check_model_control(config: ServerConfig) -> None:
    if config.model_control not in get_args(ModelControl):
        raise ServerStartError(
            f"expected a model control of {', '.join(get_args(ModelControl))}, got {config.model_control!r}"
        )
    if config.model_control == "none":
        return
    if config.admin_key is None:
        raise ServerStartError("expected an admin key with explicit model control, got none: nobody could load a model")
    # Whoever may load models may run code here: one lock is too few where other machines knock.
    if not ipaddress.IPv4Address(config.host).is_loopback and (config.tls is None or config.tls.client_ca is None):
        raise ServerStartError(
            f"explicit model control at {config.host}: expected an authority for clients' certificates, got none"
        )


def _models_of(repository: Path) -> tuple[str, ...]:
    if not repository.is_dir():
        raise ServerStartError(f"expected a model repository at {repository}, got no such folder")
    models = sorted(path.parent.name for path in repository.glob(f"*/{CONFIG_NAME}"))
    if not models:
        raise ServerStartError(f"expected a model repository at {repository}, got a folder without any */{CONFIG_NAME}")
    return tuple(models)


def _check_request_log(path: Path | None) -> None:
    if path is None:
        return
    try:
        JsonLines(path, warn=str)
    except OSError as error:
        problem = f"request log: expected a file that can be written at {path}, got: {error.strerror or error}"
        raise ServerStartError(problem) from error


def _with_free_ports(config: ServerConfig) -> ServerConfig:
    """The config with every 0 replaced; raises if a port is taken."""
    sockets: list[socket.socket] = []
    chosen: list[int] = []
    try:
        for name, port in config.ports().items():
            host = config.host if name == "gRPC" else LOOPBACK
            probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            sockets.append(probe)  # Held until all are chosen, so that no two are the same.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                problem = f"{name} port {port} on {host}: expected a free port, got: {error.strerror or error}"
                raise ServerStartError(problem) from error
            chosen.append(probe.getsockname()[1])
    finally:
        for probe in sockets:
            probe.close()
    grpc_port, http_port, metrics_port = chosen
    return replace(config, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port)


def _answers_ready(http_port: int, models: Sequence[str]) -> bool:
    # Model by model: the server as a whole is "not ready" while a new version is loaded beside the old one, and for
    # good after one that could not be (docs/decisions.md).
    # HTTP is on loopback whatever gRPC binds to.
    # Plain http.client: urllib would ask a proxy of the environment for loopback.
    connection = http.client.HTTPConnection(LOOPBACK, http_port, timeout=5)
    try:
        for model in models:
            connection.request("GET", f"/v2/models/{model}/ready")
            answer = connection.getresponse()
            answer.read()
            if answer.status != http.client.OK:
                return False
        return True
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
