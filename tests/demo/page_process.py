"""The page in a process of its own, as a visitor meets it.

Not in the tests' process: Gradio leaves event loops unclosed, whose warnings would turn up in whatever test runs when
they are collected.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import httpx

START_TIMEOUT_S = 180.0
_PROGRAM = """
import json, sys
exec(sys.argv[4], {})
from pathlib import Path
from demo.app import launch
from demo.audit import Audit
options = json.loads(sys.argv[3])
audit = Audit(Path(options.pop("audit_log"))) if "audit_log" in options else None
launch(sys.argv[1], port=int(sys.argv[2]), audit=audit, **options)
"""


def free_port() -> int:
    """A port of this machine that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served_page(
    triton_url: str,
    *,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    setup: str = "",
    **options: int | str,
) -> Iterator[str]:
    """Serve the page on a free port, and end it.

    Args:
        triton_url: ``host:port`` of Triton's gRPC endpoint; need not answer.
        environment: Of its process, beside ours.
        log: Where what it says goes.
        setup: Lines of Python that its process runs first, as to lower a limit.
        options: Of `demo.app.launch`; and ``audit_log``, the path of its audit log.

    Yields:
        The address for a browser.
    """
    port = free_port()
    own = {**os.environ, **(environment or {})}
    with log.open("w+b") if log else tempfile.TemporaryFile() as said:
        command = [sys.executable, "-c", _PROGRAM, triton_url, str(port), json.dumps(options), setup]
        with subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=own) as process:
            try:
                url = f"http://127.0.0.1:{port}"
                if not _answers(url, process):
                    said.seek(0)
                    raise RuntimeError(f"the page did not start:\n{said.read().decode(errors='replace')[-2000:]}")
                yield url
            finally:
                # As from a keyboard: the page then cleans up after itself.
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urlopen(url, timeout=5):
                return True
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
    return False


def upload(page: str, data: bytes, name: str = "scan.png") -> httpx.Response:
    """Send a file as a browser does; the answer is a list with the path that the page keeps it at."""
    return httpx.post(f"{page}/gradio_api/upload", files={"files": (name, data)}, timeout=120)


def send(page: str, path: str, modality: str) -> httpx.Response:
    """Ask `/predict` for an uploaded scan with all gates open; the answer has an ``event_id``, for `said_of`."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return httpx.post(f"{page}/gradio_api/call/predict", json={"data": [file, modality, 0, 0, 0, 0]}, timeout=120)


def said_of(page: str, event_id: str) -> dict[str, Any]:
    """What `/predict` says in the end."""
    events = httpx.get(f"{page}/gradio_api/call/predict/{event_id}", timeout=120).text
    kind, _, data = events.strip().split("\n\n")[-1].partition("\n")
    assert kind == "event: complete", events
    (said,) = json.loads(data.removeprefix("data: "))
    return dict(said)


def ask(page: str, path: str, modality: str) -> dict[str, Any]:
    """`send` and `said_of`."""
    return said_of(page, send(page, path, modality).raise_for_status().json()["event_id"])
