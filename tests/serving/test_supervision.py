"""A real Triton that is killed, stopped and kept from its port: it comes back by itself, where it was."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.errors import ServerStartError
from serving.supervision import Patience, keep_up
from serving.tritonserver import ServerConfig, TritonServer

MODEL = "recognition"
PATIENCE_S = 30.0
SOON = Patience(poll_s=0.05, hung_s=1.5, first_pause_s=0.05, starts=2)


class Leave(BaseException):
    """What a signal would raise."""


@pytest.fixture
def server(toy_repository: Path, tmp_path: Path) -> Iterator[TritonServer]:
    """One toy network: it starts in a second or two."""
    shutil.copytree(toy_repository / MODEL, tmp_path / "small" / MODEL)
    with TritonServer(ServerConfig(tmp_path / "small", grpc_port=0, http_port=0, metrics_port=0)) as started:
        yield started


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def looked_after(server: TritonServer, lines: list[str]) -> Iterator[list[BaseException]]:
    leaving = threading.Event()
    ended: list[BaseException] = []

    def said(line: str) -> None:
        lines.append(line)

    def look() -> None:
        try:
            keep_up(_leaving_when(server, leaving), said, SOON)
        except (Leave, ServerStartError) as error:
            ended.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield ended
    finally:
        leaving.set()
        thread.join(PATIENCE_S)


def _leaving_when(server: TritonServer, leaving: threading.Event) -> TritonServer:
    alive = server.is_alive

    def is_alive() -> bool:
        if leaving.is_set():
            raise Leave
        return alive()

    server.is_alive = is_alive  # type: ignore[method-assign]
    return server


def test_a_killed_server_is_back_where_it_was_and_says_why(server: TritonServer) -> None:
    lines: list[str] = []
    url, pid = server.grpc_url, server.pid
    with looked_after(server, lines):
        for _ in range(2):
            seen = len(lines)
            os.kill(server.pid, signal.SIGKILL)
            wait_for(lambda seen=seen: len(lines) >= seen + 2)  # type: ignore[misc]
            assert server.is_ready()
            assert (server.grpc_url, server.pid != pid) == (url, True)
    assert "exit status -9" in lines[0]
    assert lines[1] == f"Triton is back at {url}"


def test_a_stopped_server_counts_as_hung_and_is_replaced(server: TritonServer) -> None:
    lines: list[str] = []
    with looked_after(server, lines):
        os.killpg(server.pid, signal.SIGSTOP)
        wait_for(lambda: len(lines) >= 2)
        assert server.is_ready()
    assert "no sign of readiness for 1.5 s" in lines[0]


def test_a_server_whose_port_was_taken_meanwhile_gives_up_in_one_line(server: TritonServer) -> None:
    lines: list[str] = []
    host, port = server.grpc_url.split(":")
    with looked_after(server, lines) as ended:
        os.killpg(server.pid, signal.SIGSTOP)
        os.kill(server.pid, signal.SIGKILL)
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wait_for(lambda: _binds(thief, host, int(port)))
            thief.listen()
            wait_for(lambda: bool(ended))
    assert isinstance(ended[0], ServerStartError)
    assert f"gRPC port {port}" in str(ended[0])
    assert len([line for line in lines if "trying again" in line]) == SOON.starts - 1


def _binds(thief: socket.socket, host: str, port: int) -> bool:
    try:
        thief.bind((host, port))
    except OSError:
        return False
    return True


def test_a_server_whose_grpc_is_elsewhere_is_ready_too(toy_repository: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_repository / MODEL, tmp_path / "small" / MODEL)
    config = ServerConfig(tmp_path / "small", grpc_port=0, http_port=0, metrics_port=0, host="127.0.0.2")
    server = TritonServer(config)
    assert not server.is_ready()
    with server:
        assert server.grpc_url.startswith("127.0.0.2:")
        assert server.is_ready()
