"""The page for people who use it otherwise: by the keyboard alone, in the light, on a phone, with a screen reader."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, FileChooser, FilePayload, Page, ViewportSize, expect

from serving import phantom
from serving.labels import DIAGNOSES
from tests.browser.pages import DESKTOP, PHONE, TAKEN_MS, ct_png, open_page, open_tab, tab_to, upload

pytestmark = [pytest.mark.browser, pytest.mark.triton]

SCAN: FilePayload = {"name": "slice.png", "mimeType": "image/png", "buffer": ct_png()}
WORDS: FilePayload = {"name": "words.png", "mimeType": "image/png", "buffer": b"only words"}


def violations(page: Page) -> list[str]:
    """What axe calls serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


def read_a_scan(page: Page) -> None:
    page.get_by_role("button", name="CT slice, DICOM").click()
    expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))


def be_refused(page: Page) -> None:
    page.get_by_role("button", name="Clear").click()
    upload(page, "words.png", b"only words")
    expect(page.locator("#alert [role=alert]")).to_be_visible()


def take_a_study_away(page: Page) -> None:
    page.get_by_role("button", name="CT study, 24 slices").click()
    expect(page.locator("#burden table")).to_be_visible()
    page.locator("#volume-export-json").click()
    expect(page.locator("#volume-file a[href]").first).to_be_visible()


def fill_the_table(page: Page) -> None:
    page.locator("#files input[type=file]").set_input_files([SCAN, WORDS])
    expect(page.locator("#cases .ls-bad")).to_have_count(1)
    expect(page.locator("#folder-csv")).to_be_visible()


def see_the_versions(page: Page) -> None:
    expect(page.locator("#versions tbody tr")).to_have_count(7)


STATES: tuple[tuple[str, Callable[[Page], None]], ...] = (
    ("Scan", read_a_scan),
    ("Volume", take_a_study_away),
    ("Folder", fill_the_table),
    ("About", see_the_versions),
    ("Scan", be_refused),
)


def switch_the_light(page: Page, scheme: Literal["dark", "light"]) -> None:
    colour = "getComputedStyle(document.querySelector('#diagnosis .ls-card')).backgroundColor"
    before = page.evaluate(colour)
    page.emulate_media(color_scheme=scheme)
    page.wait_for_function(f"before => {colour} !== before", arg=before)
    # Colours that Gradio fades.
    page.wait_for_timeout(TAKEN_MS)


# In CI two of the four, and what matters most in all of them.
@pytest.mark.parametrize(
    ("viewport", "scheme", "other"),
    [
        (PHONE, "dark", "light"),
        pytest.param(PHONE, "light", "dark", marks=pytest.mark.long),
        (DESKTOP, "light", "dark"),
        pytest.param(DESKTOP, "dark", "light", marks=pytest.mark.long),
    ],
    ids=["phone-dark", "phone-light", "desktop-light", "desktop-dark"],
)
def test_axe_finds_nothing_serious_and_nothing_is_cut_off(
    browser: Browser,
    toy_page_url: str,
    viewport: ViewportSize,
    scheme: Literal["dark", "light"],
    other: Literal["dark", "light"],
) -> None:
    with browser.new_context(viewport=viewport, color_scheme=scheme) as context:
        page = context.new_page()
        open_page(page, toy_page_url)
        for tab, reach in STATES:
            open_tab(page, tab)
            reach(page)
            assert violations(page) == [], f"{reach.__name__}, {scheme}"
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], tab
            if reach is read_a_scan:
                switch_the_light(page, other)
                assert violations(page) == [], f"{reach.__name__}, {other}"
                switch_the_light(page, scheme)


@pytest.mark.parametrize(
    ("viewport", "scheme"), [(PHONE, "dark"), (DESKTOP, "light")], ids=["phone-dark", "desktop-light"]
)
def test_what_is_no_chest_scan_is_flagged_above_its_diagnosis_for_everybody(
    browser: Browser, toy_page_url: str, viewport: dict[str, int], scheme: str
) -> None:
    noise = phantom.png_bytes(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8))
    with browser.new_context(viewport=viewport, color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        open_page(page, toy_page_url)
        expect(page.locator("#doubts")).to_have_count(0)
        upload(page, "noise.png", noise)
        expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
        banner = page.locator("#doubts [role=alert]")
        expect(banner).to_contain_text("This may not be a chest scan that can be read")
        expect(banner).to_contain_text("does not look like a chest")
        above, below = banner.bounding_box(), page.locator("#diagnosis").bounding_box()
        assert above is not None
        assert below is not None
        assert above["y"] + above["height"] <= below["y"]
        assert violations(page) == []
        open_tab(page, "Folder")
        page.locator("#files input[type=file]").set_input_files(
            {"name": "noise.png", "mimeType": "application/octet-stream", "buffer": noise}
        )
        expect(page.locator("#cases .ls-doubtful")).to_contain_text("Doubtful:")
        assert violations(page) == []


def test_the_page_is_light_where_the_system_is_and_the_film_never(browser: Browser, toy_page_url: str) -> None:
    seen = {}
    for scheme in ("dark", "light"):
        with browser.new_context(viewport=DESKTOP, color_scheme=scheme) as context:  # type: ignore[arg-type]
            page = context.new_page()
            open_page(page, toy_page_url)
            colour = "s => getComputedStyle(document.querySelector(s)).backgroundColor"
            seen[scheme] = page.evaluate(colour, "#diagnosis .ls-card"), page.evaluate(colour, "#no-overlay .ls-film")
    assert seen["dark"][0] == "rgb(20, 29, 36)"
    assert seen["light"][0] == "rgb(255, 255, 255)"
    assert seen["dark"][1] == seen["light"][1] == "rgb(5, 8, 10)"


def test_the_keyboard_alone_reads_a_study_and_looks_through_it(toy_page: Page) -> None:
    keys = toy_page.keyboard
    tab_to(toy_page, "[role=tab][data-tab-id=volume]")
    keys.press("Enter")
    tab_to(toy_page, ".ls-example")
    focus = "getComputedStyle(document.activeElement).outlineStyle"
    assert toy_page.evaluate(focus) == "solid"
    keys.press("Enter")
    expect(toy_page.locator("#burden table")).to_be_visible()
    tab_to(toy_page, "#slice input[type=range]")
    assert toy_page.evaluate(focus) == "solid"
    before = toy_page.locator("#slice input[type=range]").input_value()
    keys.press("ArrowRight")
    expect(toy_page.locator("#slice input[type=range]")).not_to_have_value(before)
    tab_to(toy_page, ".ls-field")
    assert toy_page.evaluate(focus) == "solid"
    keys.press("End")
    expect(toy_page.locator("#slice-words")).to_contain_text("Slice 24 of 24")
    layer = toy_page.locator("#volume-layers input[type=checkbox]").first
    tab_to(toy_page, "#volume-layers label")
    checked = layer.is_checked()
    keys.press("Space")
    expect(layer).to_be_checked(checked=not checked)


def choose(page: Page, selector: str, files: Sequence[FilePayload]) -> None:
    """Into the chooser that a key opens where the focus gets to by a key."""
    tab_to(page, selector)
    # On a busy machine the press may be too old for the browser by the time the page acts on it: press again, then.
    opened: list[FileChooser] = []
    page.on("filechooser", lambda chooser: opened.append(chooser))
    for _ in range(10):
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        if opened:
            opened[0].set_files(files)
            return
    pytest.fail(f"no chooser opens from {selector}")


def test_the_keyboard_alone_uploads_and_reads_a_scan(toy_page: Page) -> None:
    choose(toy_page, "#scan", [SCAN])
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    expect(toy_page.locator("#scan")).to_contain_text("slice")
    request_id = toy_page.locator("#how .ls-note code")
    before = request_id.inner_text()
    tab_to(toy_page, "#go")
    toy_page.keyboard.press("Enter")
    expect(request_id).not_to_have_text(before)
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))


def test_the_keyboard_alone_reads_files_again_and_takes_the_table_away(toy_page: Page) -> None:
    tab_to(toy_page, "[role=tab][data-tab-id=folder]")
    toy_page.keyboard.press("Enter")
    choose(toy_page, "#files", [SCAN, WORDS])
    rows, csv = toy_page.locator("#cases tbody tr"), toy_page.locator("#folder-csv")
    expect(rows).to_have_count(2)
    tab_to(toy_page, "#cases th button")
    toy_page.keyboard.press("Enter")
    ordered = toy_page.locator("#cases th[aria-sort]")
    expect(ordered).to_have_count(1)
    expect(csv).to_be_visible()
    tab_to(toy_page, "#folder-go", "Shift+Tab")
    toy_page.keyboard.press("Enter")
    # Another table.
    expect(ordered).to_have_count(0)
    expect(rows).to_have_count(2)
    expect(csv).to_be_visible()
    tab_to(toy_page, "#folder-csv")
    with toy_page.expect_download() as started:
        toy_page.keyboard.press("Enter")
    lines = Path(started.value.path()).read_text().splitlines()
    assert [line.split(",")[1] for line in lines] == ["file", "slice.png", "words.png"]
