"""What the commands share: two consoles, one-line failures, signals that stop cleanly, an embedded server at hand."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import typer
from rich.console import Console

if TYPE_CHECKING:
    from serving.tritonserver import TritonServer

PROGRAM: Final = "lungstreams"
URL_VARIABLE: Final = "LUNGSTREAMS_URL"
RESEARCH_ONLY: Final = "Research use only, not a medical device."
EXIT_SOME_FAILED: Final = 1
EXIT_REFUSED: Final = 2

_STOPPING: Final = (signal.SIGTERM, signal.SIGINT)

out: Final = Console()
err: Final = Console(stderr=True)


def complain(message: object) -> None:
    """Write one line to standard error, whatever the message has of lines and of rich's markup."""
    typer.echo(f"{PROGRAM}: {' '.join(str(message).split())}", err=True)


def drop_output() -> None:
    """Let go of what standard output could not take: Python would try again at its end, and say so at length."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def fail(message: object, code: int = EXIT_REFUSED) -> NoReturn:
    """End the command with one line on standard error."""
    complain(message)
    raise typer.Exit(code)


def spinner(text: str) -> AbstractContextManager[object]:
    """A spinner on standard error while something takes long; nothing where nobody watches."""
    return err.status(text) if err.is_terminal else nullcontext()


def examples(*lines: str) -> str:
    """The epilog of a command: what one would type, a line each."""
    return "\n\n".join(["[bold]Examples[/bold]", *(f"  [cyan]$ {line}[/cyan]" for line in lines)])


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the block as its own end would; those that follow do not disturb the cleaning up."""

    def stop(number: int, frame: object) -> NoReturn:
        for each in _STOPPING:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in _STOPPING}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def unstoppable() -> Iterator[None]:
    """What belongs together is done whole: SIGTERM and SIGINT wait until the block ends."""
    came: list[int] = []
    before = {each: signal.signal(each, lambda number, _: came.append(number)) for each in _STOPPING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def embedded_server(repository: Path | None = None, request_log: Path | None = None) -> Iterator[TritonServer]:
    """A started server, on the usual ports where they are free.

    Raises:
        ServerStartError: If it can not be started.
    """
    from serving.repository import DEFAULT_REPOSITORY
    from serving.tritonserver import ServerConfig, TritonServer

    usual = ServerConfig(repository or DEFAULT_REPOSITORY)
    grpc_port, http_port, metrics_port = (
        port if _is_free(usual.host, port) else 0 for port in (usual.grpc_port, usual.http_port, usual.metrics_port)
    )
    config = ServerConfig(
        usual.repository,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        request_log=request_log,
    )
    server = TritonServer(config)
    try:
        with spinner("Starting the embedded Triton ..."):
            server.start()
        yield server
    finally:
        server.stop()


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True
