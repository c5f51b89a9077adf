"""The tab for many files in a real browser, in front of a real Triton."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from serving import phantom
from tests.browser.pages import ct_png, open_tab, study_zip

pytestmark = [pytest.mark.browser, pytest.mark.triton]


def test_each_file_is_a_row_and_a_bad_one_says_why(toy_page: Page) -> None:
    open_tab(toy_page, "Folder")
    files = {
        "a.png": ct_png(),
        "b.png": b"only words",
        "c.png": phantom.png_bytes(phantom.chest_xray(seed=1)),
        "d.zip": study_zip(3),
    }
    toy_page.locator("#files input[type=file]").set_input_files(
        [{"name": name, "mimeType": "application/octet-stream", "buffer": data} for name, data in files.items()]
    )
    rows = toy_page.locator("#cases tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.nth(0)).to_contain_text("CT slice")
    expect(rows.nth(1)).to_contain_text("expected PNG, JPEG or DICOM, got 10 bytes")
    expect(rows.nth(2)).to_contain_text("X-ray")
    expect(rows.nth(3)).to_contain_text("CT study, 3 slices")
    sort = toy_page.get_by_role("button", name="COVID-19")
    sort.press("Enter")
    expect(toy_page.locator("#cases th[aria-sort=ascending]")).to_contain_text("COVID-19")
    # What has no score is last, whichever way the others go.
    expect(rows.last).to_contain_text("b.png")
    upwards = rows.first.inner_text()
    sort.press("Enter")
    expect(toy_page.locator("#cases th[aria-sort=descending]")).to_have_count(1)
    expect(rows.last).to_contain_text("b.png")
    assert rows.first.inner_text() != upwards
    with toy_page.expect_download() as started:
        toy_page.get_by_role("button", name="Take it away as CSV").click()
    lines = list(csv.DictReader(Path(started.value.path()).read_text().splitlines()))
    assert [line["file"] for line in lines] == list(files)
    assert [line["error"] for line in lines] == ["", "UnreadableScan", "", ""]
