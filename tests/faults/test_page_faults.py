"""`lungstreams demo` whose own Triton dies: the page finds the next one, and nothing is left of either at the end."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from demo import guard
from serving.client import PipelineClient
from serving.process import children_of
from tests.demo.page_process import free_port
from tests.faults.asking import ask, triton_of
from tests.reliability import Tally, record
from tests.test_cli import Serving
from tests.waiting import eventually

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

# The command itself, with toys to serve, and away from the usual ports: whoever else uses them is no part of this.
PROGRAM = """
import sys
from pathlib import Path
from lungstreams import cli, console
from serving import client, repository

repository.DEFAULT_REPOSITORY, client.DEFAULT_URL = Path(sys.argv.pop(1)), sys.argv.pop(1)
console._is_free = lambda host, port: False
cli.main()
"""


@pytest.fixture
def page(toy_repository: Path) -> Iterator[Serving]:
    nobody = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", PROGRAM, toy_repository, nobody, "demo", "--port", free_port()]
    running = Serving(command=command)
    yield running
    running.kill()


def is_ready(page: str) -> bool:
    try:
        with urlopen(f"{page}{guard.READY_PATH}", timeout=60) as answer:
            return bool(json.load(answer)["ready"])
    except HTTPError as unready:
        unready.close()
        return False


@pytest.mark.long
def test_the_page_finds_its_triton_again_and_both_end_together(page: Serving) -> None:
    url = page.first_line.removeprefix("ready page=").strip().rstrip("/")
    assert eventually(lambda: is_ready(url))
    first = triton_of(page)
    os.kill(first, signal.SIGKILL)
    assert page.process.stderr is not None
    gone, back = page.process.stderr.readline(), page.process.stderr.readline()
    assert "Triton ended by itself (exit status -9" in gone
    assert "Triton is back at " in back
    assert eventually(lambda: is_ready(url))
    tally = Tally()
    with PipelineClient(back.split()[-1]) as client:
        assert ask(client, 0, tally) == ""
    triton = triton_of(page)
    assert triton != first
    left = {triton, *children_of(triton)}
    assert page.stop(signal.SIGTERM) == (0, "", "")
    assert not [pid for pid in left if Path(f"/proc/{pid}").exists()]
    assert record(tally.row("the page's own Triton killed", group="Faults")).answered == 1
