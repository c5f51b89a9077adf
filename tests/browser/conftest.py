"""One browser for all tests of the page, and one page in front of toy networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from serving.tritonserver import TritonServer
from tests.browser.pages import CHROMIUM, CHROMIUM_ARGS, DESKTOP, PATIENCE_MS, open_page
from tests.demo.page_process import served_page


# Not longer: Playwright's event loop runs in this thread, and a test of something else may want its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"expected Debian's chromium at {CHROMIUM}: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def toy_page_url(toy_triton: TritonServer) -> Iterator[str]:
    """The page in front of toy networks, whose gates open and close by the picture."""
    with served_page(toy_triton.grpc_url) as url:
        yield url


@pytest.fixture
def toy_page(browser: Browser, toy_page_url: str) -> Iterator[Page]:
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        open_page(page, toy_page_url)
        yield page
