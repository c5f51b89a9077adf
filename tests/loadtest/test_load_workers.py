"""One load from several processes: the master judges every sample that its workers took."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from loadtest.run import LOCUSTFILE
from serving.pipeline import ENSEMBLE_NAME
from serving.tritonserver import TritonServer
from tests.demo.page_process import free_port
from tests.loadtest.test_load_run import NO_BUDGET_S

LOCUST = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE)]
WORKERS = 2


def inferences(server: TritonServer) -> int:
    """How many requests the ensemble has answered."""
    with urlopen(f"http://{server.metrics_url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    start = f'nv_inference_request_success{{model="{ENSEMBLE_NAME}"'
    return int(float(next(line for line in lines if line.startswith(start)).split()[-1]))


def load(url: str, out: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """A master with two workers: its exit code, its verdict and what it said."""
    port = str(free_port())
    worker = [*LOCUST, "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    workers = [subprocess.Popen(worker, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(WORKERS)]
    command = [*LOCUST, "--master", "--headless", "--master-bind-host", "127.0.0.1", "--master-bind-port", port]
    command += ["--expect-workers", str(WORKERS), "--users", "4", "--spawn-rate", "4", "--host", url]
    command += ["--verdict-json", str(out / "verdict.json"), *options]
    try:
        master = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        for each in workers:
            each.wait(60)
    finally:
        for each in workers:
            each.kill()
            each.wait()
    return master.returncode, json.loads((out / "verdict.json").read_text()), master.stderr


@pytest.mark.triton
@pytest.mark.slow
@pytest.mark.long
def test_every_request_of_every_worker_is_judged(toy_triton: TritonServer, tmp_path: Path) -> None:
    before = inferences(toy_triton)
    # Each takes a second at least, so that some are under way in each worker when the time is over.
    options = ("-t", "3s", "--cases", "xray", "--delay-s", "1", "--budget-s", str(NO_BUDGET_S))
    code, verdict, said = load(toy_triton.grpc_url, tmp_path, *options)
    assert code == 0, said
    (case,) = verdict["cases"]
    assert case["requests"] == inferences(toy_triton) - before >= 4
    # The master's options are its workers': without the delay these would be milliseconds.
    assert case["p50_ms"] >= 1000
    assert case["rps"] > 0


def test_samples_travel_as_a_message() -> None:
    message = json.dumps({"samples": {"xray": [[1.5, 2.5], 1]}, "seconds": 3.0})
    done = subprocess.run([sys.executable, "-c", _MERGE, message], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[9.0, 1.5, 2.5], 3, 3.0]


# In a process of its own: locust patches the one that imports it, and wants to come first.
_MERGE = """
import locust
import json, sys
from loadtest.gate import Samples
from loadtest.workers import pack, unpack
message = json.loads(sys.argv[1])
fresh = {}
unpack(message, fresh)
assert pack(fresh, message["seconds"]) == message
kept = {"xray": Samples([9.0], 2)}
seconds = unpack(message, kept)
print(json.dumps([kept["xray"].latencies_ms, kept["xray"].failures, seconds]))
"""
