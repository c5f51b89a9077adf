"""The page's headers and users in a real browser: nothing that it needs is forbidden, and what is forbidden is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect

from serving import phantom
from serving.labels import DIAGNOSES
from serving.tritonserver import TritonServer
from tests.browser.pages import DESKTOP, PATIENCE_MS, open_tab, study_zip, upload
from tests.demo.page_process import free_port

pytestmark = [pytest.mark.browser, pytest.mark.triton]

USER, PASSWORD = "reader", "a long password"


@pytest.fixture(scope="module")
def audit_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("audit") / "audit.jsonl"


@pytest.fixture(scope="module")
def guarded_url(toy_triton: TritonServer, audit_log: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page with users and an audit log, as the command serves it."""
    users = tmp_path_factory.mktemp("users") / "users"
    users.write_text(f"{USER}:{PASSWORD}\n")
    users.chmod(0o600)
    command = [sys.executable, "-m", "lungstreams", "demo", "--url", toy_triton.grpc_url, "--port", str(free_port())]
    command += ["--users", str(users), "--audit-log", str(audit_log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().removeprefix("ready page=").strip()
        process.terminate()


class Watched:
    """A page, what its console said, and whom it asked."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self.asked: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def log_in(self, url: str, password: str) -> None:
        self.page.goto(url)
        self.page.get_by_label("username").fill(USER)
        self.page.get_by_label("password").fill(password)
        self.page.get_by_role("button", name="Login").click()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    with browser.new_context(viewport=DESKTOP) as context:  # type: ignore[arg-type]
        yield Watched(context.new_page())


def test_a_user_logs_in_and_reads_a_scan_and_the_policy_is_in_nobodys_way(
    watched: Watched, guarded_url: str, audit_log: Path
) -> None:
    watched.log_in(guarded_url, PASSWORD)
    upload(watched.page, "slice.png", phantom.png_bytes(phantom.ct_slice(seed=1).pixels))
    expect(watched.page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    shown = watched.page.locator("#how code").last.text_content()
    watched.page.locator("#export-csv").click()
    expect(watched.page.locator("#file a")).to_be_visible()
    study = {"name": "study.zip", "mimeType": "application/zip", "buffer": study_zip()}
    open_tab(watched.page, "Volume")
    watched.page.locator("#study input[type=file]").set_input_files(study)  # type: ignore[arg-type]
    expect(watched.page.locator("#burden table")).to_be_visible()
    slider = watched.page.locator("#slice input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    # Moved by the page's own script, which Gradio puts in where it runs.
    expect(watched.page.locator(".ls-field")).to_have_attribute("aria-valuenow", slider.input_value())
    assert watched.said == []
    scan, export, volume = (json.loads(line) for line in audit_log.read_text().splitlines())
    assert {line["user"] for line in (scan, export, volume)} == {USER}
    assert scan["request_id"] == export["request_id"] == shown
    assert (scan["event"], scan["modality"], scan["outcome"]) == ("case", "ct", "ok")
    assert (export["event"], export["format"], export["outcome"]) == ("export", "csv", "ok")
    assert (volume["event"], volume["modality"], volume["outcome"]) == ("case", "ct study", "ok")
    # Nobody else is asked for anything: no analytics, no fonts, no share link.
    assert [url for url in watched.asked if not url.startswith((guarded_url, "data:", "blob:"))] == []


def test_a_wrong_password_shows_nothing(watched: Watched, guarded_url: str) -> None:
    watched.log_in(guarded_url, f"not {PASSWORD}")
    expect(watched.page.get_by_text("Incorrect", exact=False)).to_be_visible()
    expect(watched.page.locator("#go")).to_have_count(0)


@pytest.mark.parametrize("path", ["config", "gradio_api/info", "gradio_api/queue/status", "gradio_api/file=/etc/hosts"])
def test_who_has_not_logged_in_reads_nothing(guarded_url: str, path: str) -> None:
    assert httpx.get(f"{guarded_url}{path}", timeout=60).status_code == 401


def test_who_has_not_logged_in_uploads_nothing(guarded_url: str) -> None:
    files = {"files": ("a.png", b"scan")}
    assert httpx.post(f"{guarded_url}gradio_api/upload", files=files, timeout=60).status_code == 401


def test_a_script_that_got_into_the_page_does_not_run(watched: Watched, guarded_url: str) -> None:
    watched.page.goto(guarded_url)
    expect(watched.page.get_by_label("username")).to_be_visible()
    watched.page.evaluate(
        """() => {
          const intruder = document.createElement("div");
          intruder.innerHTML = '<img src="/nowhere" onerror="window.intruded = true">';
          document.body.append(intruder);
          const script = document.createElement("script");
          script.text = "window.intruded = true";
          document.body.append(script);
        }"""
    )
    watched.page.wait_for_function("document.querySelector('img[src=\"/nowhere\"]').complete")
    assert watched.page.evaluate("window.intruded") is None
    assert any("Content Security Policy" in text for text in watched.said)
