"""Requests whose answers are known, sent while something is done to the server, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from serving import phantom, pipeline
from serving.client import PipelineClient
from serving.errors import ServerError
from serving.preprocessing import preprocess
from serving.process import children_of, command_of, instance_of
from serving.scans import decode
from tests.processes import is_triton
from tests.reliability import Tally
from tests.test_cli import Serving
from tests.toy_models import QUADRANTS, expected_means
from tests.waiting import eventually

ALL_OPEN = dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0)
CALLERS = 4
REQUESTS = 60
FIRST = 4
"""Answers that are waited for before something is done: from then on there are always requests under way."""

SCANS = [phantom.png_bytes(phantom.ct_slice(seed, 128).pixels) for seed in range(4)]
WANTED = [expected_means(preprocess(decode(scan, "ct")), QUADRANTS) for scan in SCANS]


def ask(client: PipelineClient, number: int, tally: Tally) -> str:
    """Send one scan with all gates open, and count what comes: the error's text, or nothing."""
    started_s = time.monotonic()
    try:
        report = client.predict(SCANS[number % len(SCANS)], "ct", ALL_OPEN)
    except ServerError as error:
        clear = client.url in str(error)
        (tally.refuse if clear else tally.mistake)(time.monotonic() - started_s)
        return str(error)
    except Exception as error:
        tally.lose(time.monotonic() - started_s)
        return repr(error)
    right = np.allclose(list(report.diagnosis.values()), WANTED[number % len(WANTED)], atol=1e-3)
    (tally.answer if right else tally.mistake)(time.monotonic() - started_s)
    return ""


@contextmanager
def asked(client: PipelineClient, tally: Tally, requests: int = REQUESTS) -> Iterator[list[Future[str]]]:
    """Requests that are under way in the block, from its begin to its end."""
    with ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(ask, client, number, tally) for number in range(requests)]
        assert eventually(lambda: sum(future.done() for future in futures) >= FIRST)
        assert not futures[-1].done()
        yield futures


def triton_of(serving: Serving) -> int:
    """The Triton below a command."""
    (triton,) = (pid for pid in children_of(serving.process.pid) if is_triton(pid))
    return triton


def backend_of(serving: Serving, model: str) -> int:
    """A process in which the Triton below a command computes a model."""
    instance = f"{model}_0_0"
    return next(pid for pid in children_of(triton_of(serving)) if instance_of(command_of(pid)) == instance)
