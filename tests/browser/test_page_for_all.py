"""The page for people who use it otherwise: by the keyboard alone, in the light, on a phone, with a screen reader."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, FileChooser, Page, expect

from serving.labels import DIAGNOSES
from tests.browser.pages import DESKTOP, PHONE, open_page, open_tab, tab_to

pytestmark = [pytest.mark.browser, pytest.mark.triton]

TABS = ("Scan", "Volume", "Folder", "About")


def violations(page: Page) -> list[str]:
    """What axe calls serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {node['target']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.parametrize(
    ("viewport", "scheme"),
    [(PHONE, "dark"), pytest.param(PHONE, "light", marks=pytest.mark.long), (DESKTOP, "light")],
    ids=["phone-dark", "phone-light", "desktop-light"],
)
def test_axe_finds_nothing_serious_and_nothing_is_cut_off(
    browser: Browser, toy_page_url: str, viewport: dict[str, int], scheme: str
) -> None:
    with browser.new_context(viewport=viewport, color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        open_page(page, toy_page_url)
        for tab in TABS:
            open_tab(page, tab)
            if tab == "Scan":
                page.get_by_role("button", name="CT slice, DICOM").click()
                expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
            if tab == "Volume":
                page.get_by_role("button", name="CT study, 24 slices").click()
                expect(page.locator("#burden table")).to_be_visible()
            if tab == "About":
                expect(page.locator("#versions tbody tr")).to_have_count(7)
            assert violations(page) == [], f"{tab}, {scheme}"
            assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"], tab


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


def test_the_keyboard_alone_uploads_and_reads_a_scan(toy_page: Page) -> None:
    keys = toy_page.keyboard
    tab_to(toy_page, "#scan")
    # On a busy machine the press may be too old for the browser by the time the page acts on it: press again, then.
    opened: list[FileChooser] = []
    toy_page.on("filechooser", lambda chooser: opened.append(chooser))
    for _ in range(10):
        keys.press("Enter")
        toy_page.wait_for_timeout(500)
        if opened:
            break
    assert opened
    tab_to(toy_page, ".ls-example")
    keys.press("Enter")
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    tab_to(toy_page, "#go")
    keys.press("Enter")
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
