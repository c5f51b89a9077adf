"""The page in a real browser, in front of a real Triton."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from demo import guard
from demo.panels import RESEARCH_USE
from serving import phantom
from serving.labels import DIAGNOSES, STREAMS
from serving.tritonserver import ServerConfig, TritonServer
from tests.browser.pages import (
    DESKTOP,
    PATIENCE_MS,
    PHONE,
    TAKEN_MS,
    ct_png,
    inferences_of,
    open_page,
    shown_image,
    upload,
    wait_for_another_image,
)
from tests.demo.page_process import free_port, served_page

pytestmark = [pytest.mark.browser, pytest.mark.triton]


def set_threshold(page: Page, name: str, value: str) -> None:
    """Into the open accordion; waits until the page has taken it: an upload before that sends the old value.

    What is typed in the moment in which the accordion draws its fields is lost, as it would be to a person, who then
    types it again.
    """
    field = page.locator(f"#threshold-{name} input[type=number]")
    slider = page.locator(f"#threshold-{name} input[type=range]")
    for _ in range(PATIENCE_MS // TAKEN_MS):
        field.fill(value)
        field.press("Tab")
        page.wait_for_timeout(TAKEN_MS)
        if slider.input_value() == value and field.input_value() == value:
            return
    pytest.fail(f"the page did not take {value} for {name}")


def open_every_gate(page: Page) -> None:
    page.get_by_role("button", name="Thresholds of the gates").click()
    for name in ("ground_glass", "consolidation", "pleural_effusion"):
        set_threshold(page, name, "0")


def test_a_scan_goes_in_and_an_overlay_comes_out(browser: Browser, triton: TritonServer) -> None:
    with served_page(triton.grpc_url) as url, browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        open_page(page, url)
        open_every_gate(page)
        upload(page, "slice.png", ct_png())
        expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
        expect(page.locator("#layers input[type=checkbox]")).to_have_count(len(STREAMS))
        expect(page.get_by_text(RESEARCH_USE)).to_be_visible()
        assert shown_image(page).startswith(b"\x89PNG")


def test_uploading_a_slice_shows_scores_masks_areas_times_and_versions(toy_page: Page) -> None:
    open_every_gate(toy_page)
    upload(toy_page, "slice.png", ct_png())
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    for label in DIAGNOSES:
        expect(toy_page.locator("#diagnosis")).to_contain_text(label.title)
    expect(toy_page.locator("#manifestations .ls-found")).to_have_count(len(STREAMS))
    expect(toy_page.locator("#manifestations")).to_contain_text(re.compile(r"\d+\.\d+ % of the slice"))
    # Each manifestation, any of them, the network of all, and the lung.
    expect(toy_page.locator("#slice-burden tbody tr")).to_have_count(6)
    expect(toy_page.locator("#slice-burden")).to_contain_text(re.compile(r"Right.*[\d.]+ %.*Lung[\d,]+ px", re.DOTALL))
    expect(toy_page.locator("#how tbody tr")).to_have_count(7)
    expect(toy_page.locator("#how")).to_contain_text(re.compile(r"\d ms in all"))
    expect(toy_page.get_by_text(RESEARCH_USE)).to_be_visible()
    assert shown_image(toy_page).startswith(b"\x89PNG")


def test_layers_opacity_and_heat_change_the_picture_without_another_inference(
    toy_page: Page, toy_triton: TritonServer
) -> None:
    open_every_gate(toy_page)
    before = inferences_of(toy_triton)
    upload(toy_page, "slice.png", ct_png())
    expect(toy_page.locator("#layers input[type=checkbox]")).to_have_count(len(STREAMS))
    inferences = inferences_of(toy_triton)
    assert inferences != before
    first = shown_image(toy_page)
    toy_page.locator('#layers input[name="pleural_effusion"]').uncheck()
    second = wait_for_another_image(toy_page, first)
    toy_page.locator('#layers input[name="all"]').check()
    third = wait_for_another_image(toy_page, second)
    opacity = toy_page.locator("#opacity input[type=number]")
    opacity.fill("1")
    opacity.press("Tab")
    fourth = wait_for_another_image(toy_page, third)
    toy_page.locator("#why").get_by_label("COVID-19").check()
    heat = wait_for_another_image(toy_page, fourth)
    toy_page.locator("#why").get_by_label("Off").check()
    assert wait_for_another_image(toy_page, heat) == fourth
    assert inferences_of(toy_triton) == inferences


def test_a_ct_slice_of_hounsfield_units_is_shown_through_windows(toy_page: Page) -> None:
    toy_page.get_by_role("button", name="CT slice, DICOM").click()
    expect(toy_page.locator("#window")).to_be_visible()
    lung = shown_image(toy_page)
    toy_page.get_by_label("Mediastinal (40 / 400)").check()
    mediastinal = wait_for_another_image(toy_page, lung)
    toy_page.get_by_label("Custom").check()
    # The lung window, until something else is chosen.
    assert wait_for_another_image(toy_page, mediastinal) == lung
    level = toy_page.locator("#window-box input[type=number]").first
    level.fill("-200")
    level.press("Tab")
    wait_for_another_image(toy_page, lung)
    toy_page.get_by_role("button", name="CT slice, PNG").click()
    expect(toy_page.locator("#scan")).to_contain_text(re.compile(r"phantom-ct\s*\.png"))
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    expect(toy_page.locator("#window")).to_be_hidden()


def test_a_closed_gate_says_so_and_why(toy_page: Page) -> None:
    toy_page.get_by_role("button", name="Thresholds of the gates").click()
    set_threshold(toy_page, "covid19", "1")
    upload(toy_page, "slice.png", ct_png())
    closed = toy_page.locator("#manifestations .ls-closed")
    expect(closed).to_have_count(len(STREAMS))
    expect(closed.first).to_contain_text(
        re.compile(r"not run: gate closed by COVID-19 \(p = 0\.\d+ < threshold 1\.0+\)")
    )
    expect(toy_page.locator("#layers-note")).to_contain_text("every gate was closed")


def test_an_xray_is_not_applicable_to_manifestations(toy_page: Page) -> None:
    upload(toy_page, "chest.png", phantom.png_bytes(phantom.chest_xray(seed=1)))
    expect(toy_page.locator("#manifestations")).to_contain_text("Not applicable")
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    expect(toy_page.locator("#manifestations")).not_to_contain_text("nothing found")
    expect(toy_page.locator("#layers")).to_have_count(0)


def test_an_example_is_one_click_away(toy_page: Page) -> None:
    toy_page.get_by_role("button", name="CT slice, DICOM").click()
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    expect(toy_page.locator("#scan")).to_contain_text("phantom-ct")


def test_a_file_that_is_no_scan_gets_a_message_and_takes_the_old_result_away(toy_page: Page) -> None:
    toy_page.get_by_role("button", name="Chest X-ray, PNG").click()
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
    toy_page.get_by_role("button", name="Clear").click()
    upload(toy_page, "notes.png", b"these are only words")
    alert = toy_page.locator("#alert [role=alert]")
    expect(alert).to_contain_text("This file can not be read as a scan")
    expect(alert).to_contain_text("Expected PNG, JPEG or DICOM, got 20 bytes")
    expect(toy_page.locator("body")).not_to_contain_text("Traceback")
    expect(toy_page.locator("#diagnosis .ls-row")).to_have_count(0)
    expect(toy_page.locator("#overlay img")).to_have_count(0)


def test_an_upload_that_finds_no_room_is_told_so_until_one_does(toy_page: Page) -> None:
    # What the server says then is tests/faults/test_full_disk.py's.
    full = re.compile(r"/gradio_api/upload")
    toy_page.route(full, lambda route: route.fulfill(status=507, content_type="text/plain", body=guard.NO_ROOM))
    upload(toy_page, "slice.png", ct_png())
    alert = toy_page.get_by_role("alert").filter(has_text="The file could not be kept")
    expect(alert).to_contain_text(guard.NO_ROOM)
    # It may lie over what one wants to press.
    alert.get_by_role("button", name="Close").click()
    expect(alert).to_have_count(0)
    upload(toy_page, "slice.png", ct_png())
    expect(alert).to_contain_text(guard.NO_ROOM)
    toy_page.unroute(full)
    upload(toy_page, "slice.png", ct_png())
    expect(alert).to_have_count(0)


def test_the_page_asks_nobody_else_for_anything(browser: Browser, toy_page_url: str) -> None:
    with browser.new_context(viewport=DESKTOP) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        open_page(page, toy_page_url)
        page.get_by_role("button", name="CT slice, PNG").click()
        expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
        own = (f"{toy_page_url}/", "data:", "blob:")
        assert [url for url in asked if not url.startswith(own)] == []


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_has_to_be_scrolled_sideways(browser: Browser, toy_page_url: str, viewport: dict[str, int]) -> None:
    with browser.new_context(viewport=viewport) as context:  # type: ignore[arg-type]
        page = context.new_page()
        open_page(page, toy_page_url)
        page.get_by_role("button", name="CT slice, PNG").click()
        expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
        page.get_by_role("button", name="Thresholds of the gates").click()
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_the_banner_comes_with_the_loss_of_triton_and_goes_when_it_is_back(
    browser: Browser, toy_repository: Path
) -> None:
    config = ServerConfig(toy_repository, grpc_port=free_port(), http_port=0, metrics_port=0, threads=1)
    banner = "#banner [role=alert]"
    with TritonServer(config) as server, served_page(server.grpc_url) as url:
        with browser.new_context(viewport=DESKTOP) as context:
            page = context.new_page()
            open_page(page, url)
            expect(page.locator("#server")).to_contain_text("Triton is ready")
            expect(page.locator(banner)).to_have_count(0)
            server.stop()
            expect(page.locator(banner)).to_contain_text("Triton is not")
            upload(page, "slice.png", ct_png())
            expect(page.locator("#alert [role=alert]")).to_contain_text("did not answer")
            with TritonServer(config):
                expect(page.locator(banner)).to_have_count(0)
                page.locator("#go").click()
                expect(page.locator("#diagnosis .ls-row")).to_have_count(len(DIAGNOSES))
                expect(page.locator("#alert [role=alert]")).to_have_count(0)
