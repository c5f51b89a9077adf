"""Starts that are disturbed from outside, as by a machine that is paused: the next one works."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serving import startup, tritonserver
from serving.errors import ServerStartError
from serving.process import children_of, instances_of, processor_s
from serving.startup import DisturbedStart, StartWatch
from serving.tritonserver import ServerConfig, TritonServer

Disturbing = Callable[[subprocess.Popen[bytes]], None]


class Starts:
    """The starts of servers, the first of which are disturbed."""

    def __init__(self, disturb: Disturbing, times: int) -> None:
        self.count = 0
        self._disturb = disturb
        self._times = times
        self._spawn = tritonserver.spawn

    def __call__(self, *arguments: Any) -> subprocess.Popen[bytes]:
        process = self._spawn(*arguments)
        self.count += 1
        if self.count <= self._times:
            threading.Thread(target=self._disturb, args=[process]).start()
        return process


@pytest.fixture
def server(toy_repository: Path, tmp_path: Path) -> TritonServer:
    shutil.copytree(toy_repository / "recognition", tmp_path / "small" / "recognition")
    return TritonServer(ServerConfig(tmp_path / "small", grpc_port=0, http_port=0, metrics_port=0))


@pytest.fixture
def disturbed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Disturbing, int], Starts]:
    def set_up(disturb: Disturbing, times: int) -> Starts:
        starts = Starts(disturb, times)
        monkeypatch.setattr(tritonserver, "spawn", starts)
        return starts

    return set_up


def kill_the_backend(process: subprocess.Popen[bytes]) -> None:
    while not instances_of(process.pid):
        time.sleep(0.01)
    # Seen by the watch, too, which looks ten times a second.
    time.sleep(0.3)
    for child in children_of(process.pid):
        os.kill(child, signal.SIGKILL)


def stop_it(process: subprocess.Popen[bytes]) -> None:
    # Its group is its own only once the launcher runs.
    while not children_of(process.pid):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGSTOP)


def crash_it(process: subprocess.Popen[bytes]) -> None:
    os.kill(process.pid, signal.SIGSEGV)


@pytest.mark.triton
@pytest.mark.parametrize("disturb", [kill_the_backend, stop_it, crash_it])
def test_a_start_that_is_disturbed_is_made_again(
    disturb: Disturbing,
    server: TritonServer,
    disturbed: Callable[[Disturbing, int], Starts],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(startup, "IDLE_WINDOW_S", 2.0)
    starts = disturbed(disturb, 1)
    with server:
        assert server.is_ready()
        assert not server.has_lost_backend()
    assert starts.count == 2


@pytest.mark.triton
def test_a_start_that_is_disturbed_each_time_is_an_error_in_one_line(
    server: TritonServer, disturbed: Callable[[Disturbing, int], Starts]
) -> None:
    starts = disturbed(crash_it, startup.STARTS)
    with pytest.raises(ServerStartError, match=r"^Triton ended while starting: ") as caught:
        server.start()
    assert "\n" not in str(caught.value)
    assert starts.count == startup.STARTS
    assert not server.is_alive()


@pytest.mark.triton
def test_a_start_that_can_not_work_is_not_made_again(
    server: TritonServer, disturbed: Callable[[Disturbing, int], Starts]
) -> None:
    starts = disturbed(kill_the_backend, 0)
    (server.config.repository / "recognition" / "1" / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(ServerStartError, match="failed to load"):
        server.start()
    assert starts.count == 1


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text('E1124 03:57:13.745349 8539 backend.cc:1] "the word"\n')
    return path


def test_who_works_is_left_to_work_and_who_waits_is_not(
    clock: Clock, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent_s = 0.0
    monkeypatch.setattr(startup, "processor_s", lambda group: spent_s)
    watch = StartWatch(os.getpid(), log, clock)
    for _ in range(10):
        clock.now_s += startup.IDLE_WINDOW_S / 2 + 1
        spent_s += 0.1 * startup.IDLE_WINDOW_S
        watch.look()
    clock.now_s += startup.IDLE_WINDOW_S + 1
    spent_s += 0.01 * startup.IDLE_WINDOW_S
    with pytest.raises(DisturbedStart, match="hangs while starting; its last word: the word"):
        watch.look()


def test_one_that_ends_is_lost_unless_triton_says_why(clock: Clock, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = frozenset({"one", "two"})
    monkeypatch.setattr(startup, "instances_of", lambda server: running)
    watch = StartWatch(os.getpid(), log, clock)
    watch.look()
    running = frozenset({"one"})
    watch.look()
    clock.now_s += startup.LOST_S + 1
    said = log.read_text()
    log.write_text(f"{said}E1124 03:57:13.745349 8539 model_lifecycle.cc:654] \"failed to load 'two': why\"\n")
    watch.look()
    log.write_text(said)
    with pytest.raises(DisturbedStart, match="lost two while starting: the word"):
        watch.look()
    with pytest.raises(DisturbedStart, match="lost two while starting, and is ready without"):
        watch.ready()
    running = frozenset({"one", "two"})
    assert watch.ready() == running


@pytest.mark.parametrize(
    ("status", "word", "disturbed"),
    [
        (1, "failed to load 'two': Stub process 'two_0_0' is not healthy.", True),
        (1, "failed to load 'two': INVALID_PROTOBUF", False),
        (-11, "anything", True),
    ],
)
def test_an_end_is_a_disturbance_or_a_reason(status: int, word: str, disturbed: bool, log: Path) -> None:
    log.write_text(f'E1124 03:57:13.745349 8539 model_lifecycle.cc:654] "{word}"\n')
    error = StartWatch(os.getpid(), log).ended(status)
    assert str(error) == f"Triton ended while starting: {word}"
    assert isinstance(error, DisturbedStart) == disturbed


def test_processor_time_is_that_of_the_whole_group() -> None:
    spin = "import time, os\nif os.fork() == 0:\n while True: pass\ntime.sleep(60)"
    process = subprocess.Popen(["python3", "-c", spin], start_new_session=True)
    try:
        deadline_s = time.monotonic() + 60
        while processor_s(process.pid) < 0.5:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
