"""What waits in a server's queues, and waiting for something to become true."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol
from urllib.request import urlopen

from serving import pipeline

_PENDING = "nv_inference_pending_request_count{"


class HasMetrics(Protocol):
    """A `TritonServer`, or whatever else knows where the metrics are."""

    @property
    def metrics_url(self) -> str:
        """``host:port``."""


def pending(server: HasMetrics) -> int:
    """Requests that wait for any of the models. Triton has no such count of an ensemble: it stays 0."""
    with urlopen(f"http://{server.metrics_url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    counts = [int(float(line.split()[-1])) for line in lines if line.startswith(_PENDING)]
    assert len(counts) == len(pipeline.MODEL_NAMES)
    return sum(counts)


def eventually(holds: Callable[[], bool], within_s: float = 30) -> bool:
    """Whether something holds, now or within some time."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        if holds():
            return True
        time.sleep(0.1)
    return holds()
