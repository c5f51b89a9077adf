"""Starting and stopping a real Triton: nothing outlives it, and what goes wrong is said in one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from serving import process, triton_wheel, tritonserver
from serving.client import PipelineClient
from serving.errors import ServerStartError
from serving.phantom import ct_slice, png_bytes
from serving.pipeline import SEGMENTATION, THRESHOLDS
from serving.repository import CONFIG_NAME
from serving.triton_wheel import stub_environment
from serving.tritonserver import ServerConfig, TritonServer

MODEL = "recognition"
PATIENCE_S = 20.0


@pytest.fixture
def small_repository(toy_repository: Path, tmp_path: Path) -> Path:
    """One toy network: a server over it starts in two seconds."""
    shutil.copytree(toy_repository / MODEL, tmp_path / "small" / MODEL)
    return tmp_path / "small"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def free_ports(repository: Path, **more: object) -> ServerConfig:
    return ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, **more)  # type: ignore[arg-type]


def children_of(group: int) -> set[int]:
    """Living processes of a process group."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, pgrp = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(pgrp) == group and state != "Z":
            found.add(int(stat.parent.name))
    return found


def left_behind(owner: int) -> list[str]:
    names = [path.name for root in (process.SHM, Path("/tmp")) for path in root.glob(f"{process.WORK_PREFIX}{owner}-*")]
    return sorted(names)


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.triton
def test_sigterm_stops_it_cleanly_and_nothing_is_left(small_repository: Path, tmp_path: Path) -> None:
    before = set(left_behind(os.getpid()))
    server = TritonServer(free_ports(small_repository, log_path=tmp_path / "log")).start()
    group = server.pid
    assert len(children_of(group)) >= 2  # Triton and a stub
    assert len(set(left_behind(os.getpid())) - before) >= 2  # a work folder and shared memory
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait() == 0
    server.stop()
    assert children_of(group) == set()
    assert set(left_behind(os.getpid())) == before
    assert "Signal (15) received" in (tmp_path / "log").read_text()
    server.stop()  # twice is no more than once


@pytest.mark.triton
def test_it_dies_with_a_parent_that_is_killed_even_if_another_thread_started_it(
    small_repository: Path, tmp_path: Path
) -> None:
    code = f"""
import threading, time
from pathlib import Path
from serving.tritonserver import ServerConfig, TritonServer
server = TritonServer(ServerConfig(Path({str(small_repository)!r}), 0, 0, 0))
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
print(server.pid, flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    try:
        assert len(children_of(group)) >= 2
        parent.kill()
        parent.wait()
        assert eventually(lambda: not children_of(group))
        # What it could not remove itself, the next start does.
        process.sweep()
        assert left_behind(parent.pid) == []
    finally:
        parent.stdout.close()
        if children_of(group):
            os.killpg(group, signal.SIGKILL)


@pytest.mark.triton
def test_a_model_that_does_not_load_is_named_in_one_line(small_repository: Path) -> None:
    (small_repository / MODEL / "1" / "model.onnx").write_bytes(b"garbage")
    before = left_behind(os.getpid())
    server = TritonServer(free_ports(small_repository))
    with pytest.raises(
        ServerStartError, match=r"failed to load '?recognition.*recognition: .*(Protobuf|INVALID)"
    ) as caught:
        server.start()
    assert "\n" not in str(caught.value)
    assert not server.is_alive()
    assert left_behind(os.getpid()) == before


@pytest.mark.triton
def test_a_start_that_takes_too_long_is_given_up(small_repository: Path) -> None:
    server = TritonServer(free_ports(small_repository))
    with pytest.raises(ServerStartError, match=r"expected Triton to be ready within 0\.01 s"):
        server.start(timeout_s=0.01)
    assert not server.is_alive()


@pytest.mark.triton
def test_two_servers_share_nothing(small_repository: Path, toy_triton: TritonServer) -> None:
    with TritonServer(free_ports(small_repository)) as server:
        urls = {s.grpc_url for s in (server, toy_triton)} | {s.http_url for s in (server, toy_triton)}
        assert len(urls) == 4
        assert server.log_path != toy_triton.log_path
    assert toy_triton.is_alive()
    assert toy_triton.is_ready()


@pytest.mark.parametrize("protocol", ["gRPC", "HTTP", "metrics"])
def test_a_taken_port_is_named(toy_repository: Path, taken_port: int, protocol: str) -> None:
    ports = {"gRPC": 0, "HTTP": 0, "metrics": 0, protocol: taken_port}
    config = ServerConfig(toy_repository, ports["gRPC"], ports["HTTP"], ports["metrics"])
    with pytest.raises(ServerStartError, match=f"{protocol} port {taken_port} on 127.0.0.1: expected a free port"):
        TritonServer(config).start()


def test_one_port_for_two_protocols_is_refused(toy_repository: Path, taken_port: int) -> None:
    with pytest.raises(ServerStartError, match="expected different ports"):
        ServerConfig(toy_repository, taken_port, taken_port, 0)


def test_ports_of_zero_become_different_free_ones(tmp_path: Path) -> None:
    config = tritonserver._with_free_ports(free_ports(tmp_path))
    assert len(set(config.ports().values())) == 3
    assert 0 not in config.ports().values()


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=r"expected a model repository at .*nowhere, got no such folder"):
        TritonServer(free_ports(tmp_path / "nowhere")).start()


def test_a_folder_that_is_no_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match=rf"without any \*/{CONFIG_NAME}"):
        TritonServer(free_ports(tmp_path)).start()


@pytest.mark.parametrize("changes", [{"threads": 0}, {"threads": -1}, {"grpc_port": 65536}, {"http_port": -1}])
def test_a_config_that_cannot_be_is_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ServerStartError, match="expected"):
        ServerConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [None, ModuleSpec("pytriton", None)], ids=["no package", "another pytriton"])
def test_a_missing_wheel_is_named(
    toy_repository: Path, monkeypatch: pytest.MonkeyPatch, found: ModuleSpec | None
) -> None:
    monkeypatch.setattr(triton_wheel, "find_spec", lambda name: found)
    with pytest.raises(ServerStartError, match="expected the wheel nvidia-pytriton"):
        TritonServer(free_ports(toy_repository)).start()


@pytest.fixture
def fake_wheel(tmp_path: Path) -> Path:
    """The layout of the wheel, with a stub that the loader would not load."""
    wheel = tmp_path / "pytriton" / "tritonserver"
    stub = wheel / "python_backend_stubs" / f"3.{sys.version_info.minor}" / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.write_text("#!/bin/sh\necho 'libpython: cannot open shared object file' >&2\nexit 127\n")
    stub.chmod(0o755)
    return wheel


def test_an_interpreter_without_libpython_is_told_which_package_to_install(fake_wheel: Path, tmp_path: Path) -> None:
    package = f"libpython3.{sys.version_info.minor}"
    with pytest.raises(ServerStartError, match=f"Install Debian's package {package}") as caught:
        triton_wheel.lay_out_backends(fake_wheel, tmp_path / "backends", dict(os.environ))
    assert "cannot open shared object file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interpreter_that_the_wheel_has_no_stub_for_is_told(fake_wheel: Path, tmp_path: Path) -> None:
    stubs = fake_wheel / "python_backend_stubs"
    (stubs / f"3.{sys.version_info.minor}").rename(stubs / "3.7")
    with pytest.raises(ServerStartError, match=r"expected CPython 3\.7, got 3\."):
        triton_wheel.lay_out_backends(fake_wheel, tmp_path / "backends", dict(os.environ))


def test_threads_travel_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNGSTREAMS_THREADS", "7")
    assert stub_environment(tmp_path, 3)["LUNGSTREAMS_THREADS"] == "3"
    assert "LUNGSTREAMS_THREADS" not in stub_environment(tmp_path, None)


def test_the_stub_finds_this_interpreter_first(tmp_path: Path) -> None:
    assert stub_environment(tmp_path, None)["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_streams_share_the_cores_unless_the_caller_says_how_many_threads(tmp_path: Path) -> None:
    by_model = stub_environment(tmp_path, None)["LUNGSTREAMS_THREADS_BY_MODEL"].split(",")
    half = max(1, len(os.sched_getaffinity(0)) // 2)
    assert by_model == [f"{step.model}={half}" for step in SEGMENTATION]
    assert "LUNGSTREAMS_THREADS_BY_MODEL" not in stub_environment(tmp_path, 3)


def test_freed_pages_are_kept_unless_the_caller_says_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    assert int(stub_environment(tmp_path, None)["MALLOC_TRIM_THRESHOLD_"]) > 2**20
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "4096")
    assert stub_environment(tmp_path, None)["MALLOC_TRIM_THRESHOLD_"] == "4096"


def test_a_server_that_was_not_started_says_so() -> None:
    server = TritonServer(ServerConfig())
    assert not server.is_alive()
    for ask in (lambda: server.pid, lambda: server.log_path, server.wait):
        with pytest.raises(ServerStartError, match="not started"):
            ask()


@pytest.mark.parametrize(
    ("log", "word"),
    [
        ("", "nothing in its log"),
        ("I1124 04:02:06.6 1 server.cc:6] fine\nlast line\n", "last line"),
        (
            'E1124 04:02:06.6 1 a.cc:6] "first"\nE1124 04:02:06.7 1 b.cc:6] "failed to load \'x\'"\n',
            "failed to load 'x'",
        ),
        ('E1124 04:02:06.6 1 a.cc:6] "one\\ntwo"\nlast\n', "one"),
    ],
    ids=["empty", "no error", "a model's error before others", "first line only"],
)
def test_the_log_is_put_into_one_line(tmp_path: Path, log: str, word: str) -> None:
    (tmp_path / "log").write_text(log)
    assert process.last_word(tmp_path / "log") == word


def test_sweeping_spares_the_living_and_the_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    mine, dead, other = (
        tmp_path / name
        for name in (f"{process.WORK_PREFIX}{os.getpid()}-a", f"{process.WORK_PREFIX}{ended.pid}-a", "lungstreams-b")
    )
    for folder in (mine, dead, other):
        folder.mkdir()
    process.sweep()
    assert sorted(tmp_path.iterdir()) == sorted([mine, other])


@pytest.mark.triton
@pytest.mark.slow
def test_openvino_answers_in_the_place_of_onnx_runtime(toy_triton: TritonServer, toy_repository: Path) -> None:
    config = ServerConfig(toy_repository, grpc_port=0, http_port=0, metrics_port=0, threads=1, accelerator="openvino")
    scan = png_bytes(ct_slice(0).pixels)
    with TritonServer(config) as server, PipelineClient(server.grpc_url) as fast:
        got = fast.tensors(scan, "ct", dict.fromkeys(THRESHOLDS, 0.0))
        log = server.log_path.read_text()
    with PipelineClient(toy_triton.grpc_url) as plain:
        expected = plain.tensors(scan, "ct", dict.fromkeys(THRESHOLDS, 0.0))
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-4)
    assert f"{MODEL}: computed by OpenVinoSession" in log


def test_an_accelerator_that_is_not_installed_is_said_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ServerStartError, match=r"expected the package openvino, .* pip install 'lungstreams\[openvino\]'"
    ):
        TritonServer(ServerConfig(accelerator="openvino", grpc_port=0, http_port=0, metrics_port=0)).start()


def test_an_unknown_accelerator_is_refused() -> None:
    with pytest.raises(ServerStartError, match="expected the accelerator openvino or none, got 'fpga'"):
        ServerConfig(accelerator="fpga")  # type: ignore[arg-type]
