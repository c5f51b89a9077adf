"""The gate on a real Triton. Locust runs in processes of its own, since gevent patches the one that it is in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from loadtest.cases import CASES
from loadtest.run import LOCUSTFILE, run
from loadtest.wire import parse_address
from serving import pipeline
from serving.errors import RequestError
from serving.tritonserver import TritonServer
from tests.loadtest.delay_line import DelayLine
from tests.toy_models import toy_network
from train.gating import add_gate

pytestmark = [pytest.mark.triton, pytest.mark.slow]

NO_BUDGET_S = 25.0
"""Held by any answer at all: where a test is not about slowness, a busy machine must not break it."""


def verdict(out: Path) -> dict[str, Any]:
    document = json.loads((out / "verdict.json").read_text())
    return document | {case["name"]: case for case in document["cases"]}


def locust(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Plain locust, as docs/loadtest.md has it."""
    return subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "-u", "1", *options],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_good_server_passes_and_every_case_is_reported_by_name(toy_triton: TritonServer, tmp_path: Path) -> None:
    assert run(toy_triton.grpc_url, duration_s=3, users=2, budget_s=NO_BUDGET_S, out=tmp_path) == 0
    found = verdict(tmp_path)
    assert found["passed"]
    assert [case["name"] for case in found["cases"]] == list(CASES)
    for case in found["cases"]:
        assert case["requests"] > 0
        assert case["failures"] == 0
        assert 0 < case["p50_ms"] <= case["p95_ms"] <= case["p99_ms"] <= case["max_ms"]
    assert all(name in (tmp_path / "report_stats.csv").read_text() for name in CASES)
    assert "<html" in (tmp_path / "report.html").read_text()[:500]


@pytest.mark.long
def test_a_run_lasts_as_long_as_it_was_asked_to(toy_triton: TritonServer, tmp_path: Path) -> None:
    run(toy_triton.grpc_url, duration_s=3, users=1, cases=["xray"], budget_s=NO_BUDGET_S, out=tmp_path)
    (case,) = verdict(tmp_path)["cases"]
    # A lower bound: drawing the scans once ate most of the time.
    assert case["requests"] / case["rps"] > 2


def test_a_slow_server_breaks_the_budget(toy_triton: TritonServer, tmp_path: Path) -> None:
    with DelayLine(parse_address(toy_triton.grpc_url), delay_s=0.6) as slow:
        assert run(slow.url, duration_s=3, users=2, cases=["ct_open"], budget_s=0.5, out=tmp_path) == 1
    case = verdict(tmp_path)["ct_open"]
    assert case["failures"] == 0
    assert case["p50_ms"] >= 600
    assert case["reasons"] == ["p95 is over the budget of 500 ms"]


def test_an_injected_delay_breaks_the_budget_and_is_owned_up_to(toy_triton: TritonServer, tmp_path: Path) -> None:
    done = locust(
        *("-t", "2s", "--host", toy_triton.grpc_url, "--verdict-json", str(tmp_path / "verdict.json")),
        LUNGSTREAMS_LOADTEST_DELAY_S="0.4",
        LUNGSTREAMS_LOADTEST_BUDGET_S="0.3",
        LUNGSTREAMS_LOADTEST_CASES="xray",
    )
    assert done.returncode == 1, done.stderr
    found = verdict(tmp_path)
    assert found["xray"]["p50_ms"] > 300
    assert found["notes"] == ["0.4 s of delay were added to each request"]
    assert "xray: p50" in done.stderr
    assert "FAIL: p95 is over the budget of 300 ms" in done.stderr


def test_a_server_that_is_down_fails_the_run(tmp_path: Path) -> None:
    with DelayLine(("127.0.0.1", 9), delay_s=0) as gone:
        pass
    assert run(gone.url, duration_s=1, users=1, cases=["xray"], out=tmp_path) == 1
    found = verdict(tmp_path)
    assert "100.0% of all requests failed, the limit is 1%" in found["reasons"]
    assert found["xray"]["failures"] == found["xray"]["requests"] > 0


@pytest.mark.long
def test_a_server_that_does_not_speak_grpc_fails_the_run(toy_triton: TritonServer, tmp_path: Path) -> None:
    assert run(toy_triton.http_url, duration_s=1, users=1, cases=["xray"], out=tmp_path) == 1
    assert verdict(tmp_path)["xray"]["p95_ms"] is None
    assert "UNAVAILABLE" in (tmp_path / "report_failures.csv").read_text()


@pytest.mark.long
def test_many_users_hang_up_at_the_end(toy_triton: TritonServer) -> None:
    # One more close of each channel made gRPC stop serving the others under gevent: the process never ended.
    done = locust("-t", "1s", "-u", "6", "-r", "6", "--cases", "xray", "--host", toy_triton.grpc_url)
    assert "load test: " in done.stderr


def test_wrong_answers_count_as_failures(toy_repository: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(toy_repository, tmp_path / "models")
    step = pipeline.RECOGNITION
    network = toy_network(step)
    white = next(constant for constant in network.graph.initializer if constant.name == "white")
    white.CopyFrom(numpy_helper.from_array(np.array(1, np.float32), "white"))  # "Probabilities" up to 255.
    onnx.save(add_gate(network, step), repository / step.model / "1" / "model.onnx")
    assert run(None, duration_s=1, users=1, cases=["xray"], out=tmp_path, repository=repository) == 1
    case = verdict(tmp_path)["xray"]
    assert case["failures"] == case["requests"] > 0
    assert "expected probabilities in [0, 1] in diagnosis" in (tmp_path / "report_failures.csv").read_text()


@pytest.mark.long
def test_a_case_that_never_got_its_turn_fails_the_run(toy_triton: TritonServer, tmp_path: Path) -> None:
    with DelayLine(parse_address(toy_triton.grpc_url), delay_s=2) as slow:
        assert run(slow.url, duration_s=1, users=1, budget_s=NO_BUDGET_S, out=tmp_path) == 1
    found = verdict(tmp_path)
    # The one under way at the end was waited for, and counts.
    assert found["ct_gated"]["requests"] == 1
    assert found["ct_gated"]["reasons"] == []
    assert found["xray"]["reasons"] == found["ct_open"]["reasons"] == ["no request was made"]


def test_nothing_ran_fails_the_run(toy_triton: TritonServer) -> None:
    done = locust("-t", "1s", "--users", "0", "--cases", "xray", "--host", toy_triton.grpc_url)
    assert done.returncode == 1, done.stderr
    assert "load test: FAIL: nothing ran" in done.stderr


def test_a_host_elsewhere_is_refused_before_anything_is_sent() -> None:
    for host in ("192.0.2.1:8001", "0.0.0.0:8001"):
        done = locust("-t", "1s", "--host", host)
        assert done.returncode == 2
        assert f"expected a host on this machine, got {host.removesuffix(':8001')}" in done.stderr
        assert "Ramping" not in done.stderr


@pytest.mark.long
def test_a_host_elsewhere_is_loaded_when_that_is_said(toy_triton: TritonServer) -> None:
    # 0.0.0.0 is no loopback address, but leads here.
    host = f"0.0.0.0:{parse_address(toy_triton.grpc_url)[1]}"
    options = ("-t", "1s", "--host", host, "--cases", "xray", "--budget-s", str(NO_BUDGET_S))
    done = locust(*options, LUNGSTREAMS_LOADTEST_ANY_HOST="1")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--cases", "mri"), "expected cases out of xray, ct_gated, ct_open, got mri"),
        (("--delay-s", "-1"), "expected a delay of 0 s or more"),
        (("--processes", "2"), "expected workers that are started with --worker"),
    ],
)
def test_plain_locust_refuses_what_it_can_not_judge(options: tuple[str, ...], message: str) -> None:
    done = locust("-t", "1s", *options)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr


def test_a_run_without_a_time_limit_gets_one(toy_triton: TritonServer) -> None:
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", toy_triton.grpc_url]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as it:
        assert it.stderr is not None
        lines = []
        for line in it.stderr:
            lines.append(line.decode())
            if "time limit" in lines[-1]:
                break
        it.send_signal(signal.SIGTERM)
        it.communicate(timeout=60)
    assert "Run time limit set to 60 seconds" in lines[-1]


def test_a_verdict_of_an_earlier_run_does_not_stand(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text('{"lines": ["load test: PASS"]}')
    assert run("192.0.2.1:8001", duration_s=1, out=tmp_path) == 2
    assert not (tmp_path / "verdict.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"duration_s": 0}, "duration of 1 s or more"),
        ({"users": 0}, "1 user or more"),
        ({"spawn_rate": 0}, "spawn rate above 0"),
        ({"cases": ["mri"]}, "expected cases out of"),
        ({"budget_s": 0}, "budget above 0 s"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        run("127.0.0.1:1", out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()
