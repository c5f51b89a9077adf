"""What the tests of the page in a browser share: how it is opened, filled in and looked at."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from serving import phantom
from serving.phantom_volume import ct_volume, series_zip_bytes
from serving.tritonserver import TritonServer

CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}
TAKEN_MS = 1_000
"""In which the page has taken what was typed, or lost it."""
PATIENCE_MS = 90_000
"""For everything that is waited for: a busy machine draws pages slowly. Nothing waits this long when it works."""


def open_page(page: Page, url: str) -> None:
    page.set_default_timeout(PATIENCE_MS)
    page.goto(url)
    expect(page.locator("#go")).to_be_visible()
    # The answer to the page's first event: from here on its other events are connected too.
    expect(page.locator("#server")).to_contain_text("Triton")


def upload(page: Page, name: str, data: bytes) -> None:
    page.locator("#scan input[type=file]").set_input_files(
        {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )


def shown_image(page: Page) -> bytes:
    """The file behind the picture that is shown."""
    source = page.locator("#overlay img").get_attribute("src")
    assert source is not None
    with urlopen(source) as answer:
        return bytes(answer.read())


def wait_for_another_image(page: Page, before: bytes) -> bytes:
    digest = hashlib.sha256(before).hexdigest()
    for _ in range(PATIENCE_MS // 100):
        after = shown_image(page)
        if hashlib.sha256(after).hexdigest() != digest:
            return after
        page.wait_for_timeout(100)
    pytest.fail("the picture did not change")


def inferences_of(server: TritonServer) -> list[str]:
    with urlopen(f"http://{server.metrics_url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return [line for line in lines if line.startswith("nv_inference_count")]


def ct_png() -> bytes:
    return phantom.png_bytes(phantom.ct_slice(seed=1).pixels)


def study_zip(slices: int = 6, *, series: int = 1, description: str = "") -> bytes:
    """A drawn study that is read within a second; of more than six slices it is the same six again and again."""
    drawn = ct_volume(2, 6, 64)
    volume = drawn if slices == len(drawn) else np.resize(drawn, (slices, *drawn.shape[1:]))
    return series_zip_bytes(volume, series=series, description=description)


def open_tab(page: Page, title: str) -> None:
    page.get_by_role("tab", name=title, exact=True).click()
    expect(page.get_by_role("tab", name=title, exact=True)).to_have_attribute("aria-selected", "true")


def tab_to(page: Page, selector: str, key: str = "Tab") -> None:
    """Press a key until the focus is in what a selector names."""
    for _ in range(80):
        if page.evaluate("s => document.activeElement.closest(s) !== null", selector):
            return
        page.keyboard.press(key)
    pytest.fail(f"the focus does not get to {selector}")
