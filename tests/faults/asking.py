"""Requests whose answers are known, sent while something is done to the server, and what became of them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from serving import phantom, pipeline
from serving.client import PipelineClient
from serving.errors import ServerError
from serving.preprocessing import preprocess
from serving.scans import decode
from tests.reliability import Tally
from tests.test_cli import Serving, children_of
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


def processes_of(serving: Serving, words: str) -> list[int]:
    """The processes below a command whose command line has these words."""
    found = []
    for pid in children_of(serving.process.pid):
        program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if words in os.fsdecode(b" ".join(program[:2])):
            found.append(pid)
    return found


def triton_of(serving: Serving) -> int:
    """The Triton below a command."""
    (pid,) = processes_of(serving, "bin/tritonserver")
    return pid
