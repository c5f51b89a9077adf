"""The page's pictures of the documents, of drawn phantoms in front of the shipped networks.

``python -m tests.browser.pictures`` writes docs/images/page-*.png. They show times: to be made on a quiet machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, ViewportSize, expect, sync_playwright

from serving.labels import DIAGNOSES
from serving.tritonserver import TritonServer
from tests.browser.pages import CHROMIUM, CHROMIUM_ARGS, DESKTOP, PATIENCE_MS, PHONE, open_page, open_tab
from tests.demo.page_process import served_page

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"
SETTLED_MS = 1_500


def ct(page: Page) -> None:
    """A CT slice and all that is said of it."""
    page.get_by_role("button", name="CT slice, PNG").click()
    expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))


def xray(page: Page) -> None:
    """A radiograph, of which the diagnosis alone is said."""
    page.get_by_role("button", name="Chest X-ray, PNG").click()
    expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))


def study(page: Page) -> None:
    """A CT study, at one of its slices."""
    open_tab(page, "Volume")
    page.get_by_role("button", name="CT study, 24 slices").click()
    expect(page.locator("#burden table")).to_be_visible()


PICTURES: tuple[tuple[str, Callable[[Page], None], ViewportSize], ...] = (
    ("desktop", ct, DESKTOP),
    ("xray", xray, DESKTOP),
    ("volume", study, DESKTOP),
    ("phone", ct, PHONE),
)


def main(folder: Path = IMAGES) -> None:
    """Makes them, each twice: the first reading of a server is slower than those that follow."""
    expect.set_options(timeout=PATIENCE_MS)
    server = TritonServer()  # At the ports that its users see.
    with server, served_page(server.grpc_url) as url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        for name, show, viewport in PICTURES:
            for _ in range(2):
                with chromium.new_context(viewport=viewport, color_scheme="dark") as context:
                    page = context.new_page()
                    open_page(page, url)
                    show(page)
                    page.wait_for_timeout(SETTLED_MS)
                    page.screenshot(path=folder / f"page-{name}.png", full_page=True)
            sys.stdout.write(f"page-{name}.png\n")
        chromium.close()


if __name__ == "__main__":
    main()
