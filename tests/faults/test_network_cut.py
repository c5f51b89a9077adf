"""The network in front of Triton goes silent or breaks: the page says so in words, and goes on once it is mended."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

from demo import guard
from serving import phantom
from serving.calls import MOST_FALLS
from serving.client import PipelineClient
from serving.errors import InferenceFailed, ServerUnreachable
from serving.tritonserver import TritonServer
from tests.demo.page_process import served_page
from tests.faults.asking import ALL_OPEN, WANTED, ask
from tests.faults.cable import Cable
from tests.loadtest.delay_line import DelayLine
from tests.reliability import Tally, record
from tests.waiting import eventually

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

GROUP = "Faults"
SHORT_S = 1.0
HANGS_S = 25.0
"""Longer than anything here may take, and shorter than `serving.calls.DRAIN_S`."""

NOISE = phantom.png_bytes(np.random.default_rng(0).integers(0, 256, (512, 512), dtype=np.uint8))
"""A file that does not compress: a request that the cable is cut in the middle of."""

# In a process of its own, as the page is: Gradio's client leaves its event loop to the garbage collector.
VISITOR = """
import json, sys
from gradio_client import Client, handle_file

page = Client(sys.argv[1], verbose=False)
print(flush=True)
for line in sys.stdin:
    answer = page.predict(handle_file(line.strip()), "ct", 0, 0, 0, 0, api_name="/predict")
    print(json.dumps(answer), flush=True)
"""


class Visitor:
    """Somebody who sends scans to a page, one after the other."""

    def __init__(self, page: str, process: subprocess.Popen[str]) -> None:
        self.page = page
        self._process = process
        assert self._line() == ""

    def read(self, path: Path) -> dict[str, Any]:
        """What the page says of a file."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._line())
        return answer

    def ready(self) -> bool:
        """Whether the page says that Triton can be asked."""
        try:
            with urlopen(f"{self.page}{guard.READY_PATH}", timeout=60) as answer:
                said = json.load(answer)
        except HTTPError as unready:
            with unready:
                said = json.load(unready)
        assert said["ready"] or said["triton"] == "Triton is not reachable"
        return bool(said["ready"])

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the visitor's process has ended"
        return line.strip()


@contextmanager
def visiting(page: str) -> Iterator[Visitor]:
    command = [sys.executable, "-W", "ignore", "-c", VISITOR, page]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Visitor(page, process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def cable(toy_triton: TritonServer) -> Iterator[Cable]:
    with Cable(toy_triton.grpc_url) as cable:
        yield cable


@pytest.fixture(scope="module")
def visitor(cable: Cable) -> Iterator[Visitor]:
    with served_page(cable.url) as page, visiting(page) as visitor:
        yield visitor


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "scan.png"
    path.write_bytes(phantom.png_bytes(phantom.ct_slice(0, 128).pixels))
    return path


def counted(visitor: Visitor, scan: Path, tally: Tally) -> dict[str, Any]:
    started_s = time.monotonic()
    answer = visitor.read(scan)
    seconds = time.monotonic() - started_s
    if "error" in answer:
        (tally.refuse if "nothing answers" in answer["error"]["message"] else tally.mistake)(seconds)
    else:
        right = np.allclose(list(answer["diagnosis"].values()), WANTED[0], atol=1e-3)
        (tally.answer if right else tally.mistake)(seconds)
    return answer


@pytest.mark.long
def test_the_page_says_that_the_network_is_cut_and_goes_on_once_it_is_mended(
    visitor: Visitor, cable: Cable, scan: Path
) -> None:
    tally = Tally()
    assert "diagnosis" in counted(visitor, scan, tally)
    for cut in (cable.silence, cable.break_off):
        cut()
        error = counted(visitor, scan, tally)["error"]
        assert error["type"] == "ServerUnreachable"
        assert error["message"].startswith(f"nothing answers at {cable.url}")
        assert eventually(lambda: not visitor.ready())
        cable.mend()
        # At once, and by a page that nobody has started anew.
        assert "diagnosis" in counted(visitor, scan, tally)
        assert eventually(visitor.ready)
    row = record(tally.row("the network between page and Triton cut (silent, then broken) and mended", group=GROUP))
    assert (row.answered, row.refused, row.lost, row.wrong) == (3, 2, 0, 0)


def test_a_scan_whose_connection_breaks_in_the_middle_is_sent_again(
    visitor: Visitor, cable: Cable, tmp_path: Path
) -> None:
    noise = tmp_path / "noise.png"
    noise.write_bytes(NOISE)
    expected = visitor.read(noise)
    cable.break_after(len(NOISE) // 2)
    answer = visitor.read(noise)
    tally = Tally()
    (tally.answer if answer.get("diagnosis") == expected["diagnosis"] else tally.mistake)()
    assert record(tally.row("a connection broken in mid-request, through the page", group=GROUP)).answered == 1, answer


def test_a_scan_that_may_be_what_breaks_it_is_given_up(toy_triton: TritonServer) -> None:
    tally = Tally()
    with Cable(toy_triton.grpc_url) as cable, PipelineClient(cable.url) as client:
        cable.break_after(len(NOISE) // 2, times=MOST_FALLS)
        with pytest.raises(ServerUnreachable, match=f"nothing answers at {cable.url}"):
            client.predict(NOISE, "ct", ALL_OPEN)
        tally.refuse()
        # The cable is good again: one try more would have been answered.
        assert ask(client, 0, tally) == ""
    record(tally.row("three connections broken by the same request", group=GROUP))


def test_silence_in_the_middle_costs_the_deadline_and_nothing_hangs(cable: Cable) -> None:
    tally = Tally()
    try:
        with PipelineClient(cable.url, timeout_s=SHORT_S, drain_in_background=True) as client:
            cable.silence(after_bytes=len(NOISE) // 2)
            started_s = time.monotonic()
            with pytest.raises(InferenceFailed, match="within 1 s, got none"):
                client.predict(NOISE, "ct", ALL_OPEN)
        tally.refuse(time.monotonic() - started_s)
        assert time.monotonic() - started_s < HANGS_S
    finally:
        cable.mend()
    with PipelineClient(cable.url) as client:
        assert ask(client, 0, tally) == ""
    row = record(tally.row("the network silent in mid-request, and mended", group=GROUP))
    assert (row.answered, row.refused) == (1, 1)


@pytest.mark.long
def test_silence_in_the_middle_of_a_visitors_scan_is_said_at_the_pages_deadline(
    visitor: Visitor, cable: Cable, tmp_path: Path
) -> None:
    noise = tmp_path / "noise.png"
    noise.write_bytes(NOISE)
    cable.silence(after_bytes=len(NOISE) // 2)
    started_s = time.monotonic()
    try:
        error = visitor.read(noise)["error"]
    finally:
        cable.mend()
    tally = Tally()
    tally.refuse(time.monotonic() - started_s)
    assert "within 30 s, got none" in error["message"]
    assert time.monotonic() - started_s < 30 + HANGS_S
    assert "diagnosis" in visitor.read(noise)
    tally.answer()
    record(tally.row("the network silent in mid-request, through the page", group=GROUP))


def test_a_slow_network_is_not_taken_for_none(toy_triton: TritonServer) -> None:
    host, _, port = toy_triton.grpc_url.rpartition(":")
    with DelayLine((host, int(port)), 0.5) as line, PipelineClient(line.url) as client:
        assert client.versions()
