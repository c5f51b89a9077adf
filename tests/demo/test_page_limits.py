"""What the page does not take, by HTTP, and what it is launched with."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo import guard
from serving.limits import MAX_FILE_BYTES
from tests.demo.page_process import ask, free_port, served_page, upload
from tests.reliability import ROOT

LOWERED_BYTES = MAX_FILE_BYTES + 2**20
"""In the place of a study's limit, so that nobody has to send 2 GiB."""

SETUP = """
import json
from pathlib import Path
import gradio
from demo import app

launch = gradio.Blocks.launch

def noted(blocks, **options):
    kept = {{name: value for name, value in options.items() if value is None or isinstance(value, (bool, int, str))}}
    kept.update(analytics=blocks.analytics_enabled, waiting=blocks._queue.max_size)
    Path({note!r}).write_text(json.dumps(kept))
    return launch(blocks, **options)

gradio.Blocks.launch, app.MAX_STUDY_BYTES = noted, {limit}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[str]:
    """The address of a page whose Triton is not there, and that says what it was launched with."""
    own = {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "cache"), "GRADIO_ANALYTICS_ENABLED": "True"}
    setup = SETUP.format(note=str(folder / "launched.json"), limit=LOWERED_BYTES)
    with served_page(f"127.0.0.1:{free_port()}", environment=own, setup=setup) as url:
        yield url


@pytest.fixture(scope="module")
def launched(page: str, folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "launched.json").read_text()))


def test_nothing_is_shared_and_nothing_reports_home_whatever_the_environment_says(launched: dict[str, Any]) -> None:
    assert launched["share"] is False
    assert launched["analytics"] is False
    assert launched["mcp_server"] is False
    assert launched["enable_monitoring"] is False


def test_as_many_wait_as_the_document_states(launched: dict[str, Any]) -> None:
    stated = re.search(r"itself reads two cases at a time and lets (\d+) wait", (ROOT / "docs/limits.md").read_text())
    assert stated is not None
    assert launched["waiting"] == int(stated[1])


def test_an_upload_over_the_limit_is_refused_and_the_page_lives(page: str, launched: dict[str, Any]) -> None:
    assert launched["max_file_size"] == LOWERED_BYTES
    refused = upload(page, bytes(LOWERED_BYTES + 1))
    assert refused.status_code == 413
    assert f"maximum allowed size of {LOWERED_BYTES} bytes" in refused.text
    assert httpx.get(f"{page}{guard.HEALTH_PATH}", timeout=60).json() == {"page": "ok"}
    assert upload(page, b"only words").status_code == 200


def test_a_scan_over_64_mib_is_a_clear_error(page: str) -> None:
    sent = upload(page, bytes(MAX_FILE_BYTES + 1))
    assert sent.status_code == 200
    said = ask(page, sent.json()[0], "ct")
    assert said["error"] == {
        "type": "ScanTooLarge",
        "message": f"expected a file of at most {MAX_FILE_BYTES:,} bytes, got {MAX_FILE_BYTES + 1:,} bytes",
    }
