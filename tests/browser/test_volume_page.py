"""The tab for a CT study in a real browser, in front of a real Triton."""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect

from serving.tritonserver import TritonServer
from tests.browser.pages import PATIENCE_MS, inferences_of, open_tab, study_zip, tab_to
from tests.serving.volume_files import affine_ras, nifti_bytes

pytestmark = [pytest.mark.browser, pytest.mark.triton]

MANY = 300
"""Slices that take long enough to be stopped in between."""


def send(page: Page, *files: bytes) -> None:
    given = [
        {"name": f"{i}.zip", "mimeType": "application/octet-stream", "buffer": data} for i, data in enumerate(files)
    ]
    page.locator("#study input[type=file]").set_input_files(given)  # type: ignore[arg-type]


def shown_slice(page: Page) -> str:
    return page.locator("#film img").get_attribute("src") or ""


def wait_for_another_slice(page: Page, before: str) -> str:
    for _ in range(PATIENCE_MS // 50):
        # Compared here: a failed expectation would print both pictures.
        if (after := shown_slice(page)) != before:
            return after
        page.wait_for_timeout(50)
    pytest.fail("the slice did not change")


def recognised(server: TritonServer) -> float:
    """How many slices went through stage 1 so far."""
    return sum(float(line.rsplit(" ", 1)[1]) for line in inferences_of(server) if 'model="recognition"' in line)


@pytest.fixture
def read(toy_page: Page) -> Page:
    """The tab with a study of six slices that was read."""
    open_tab(toy_page, "Volume")
    send(toy_page, study_zip())
    expect(toy_page.locator("#burden table")).to_be_visible()
    return toy_page


def test_a_study_is_read_and_looked_at_without_another_inference(read: Page, toy_triton: TritonServer) -> None:
    inferences = inferences_of(toy_triton)
    expect(read.locator("#volume-diagnosis")).to_contain_text("of 6 slices")
    expect(read.locator("#burden")).to_contain_text(re.compile(r"Lung\s*[\d,]+ ml"))
    first = shown_slice(read)
    slider = read.locator("#slice input[type=range]")
    slider.focus()
    slider.press("ArrowRight")
    second = wait_for_another_slice(read, first)
    now = slider.input_value()
    expect(read.locator("#slice-words")).to_contain_text(f"Slice {now} of 6: COVID-19")
    # The plot goes along, and says the numbers of the slice.
    expect(read.locator(".ls-field")).to_have_attribute("aria-valuenow", now)
    expect(read.locator(".ls-field")).to_have_attribute("aria-valuetext", re.compile(rf"slice {now} of 6, COVID-19 \d"))
    read.locator("#volume-layers input[name=consolidation]").uncheck()
    third = wait_for_another_slice(read, second)
    read.get_by_label("Mediastinal (40 / 400)").last.check()
    wait_for_another_slice(read, third)
    assert inferences_of(toy_triton) == inferences


def test_the_plot_jumps_to_a_slice_by_click_and_by_key(read: Page) -> None:
    plot, slider = read.locator(".ls-field"), read.locator("#slice input[type=range]")
    box = plot.bounding_box()
    assert box is not None
    film = read.locator("#film img")
    plot.click(position={"x": box["width"] * 5.5 / 6, "y": 20})
    expect(slider).to_have_value("6")
    expect(film).to_have_attribute("alt", re.compile("Slice 6 of 6"))
    plot.press("Home")
    expect(slider).to_have_value("1")
    expect(film).to_have_attribute("alt", re.compile("Slice 1 of 6"))
    plot.press("ArrowRight")
    expect(slider).to_have_value("2")
    expect(film).to_have_attribute("alt", re.compile("Slice 2 of 6"))
    expect(read.locator("#slice-words")).to_contain_text("Slice 2 of 6")
    read.locator("#volume-manifestations .ls-jump").first.click()
    expect(plot).to_have_attribute("aria-valuenow", slider.input_value())


def test_what_is_no_study_of_the_chest_is_flagged_above_its_diagnosis_and_the_next_is_not(toy_page: Page) -> None:
    solid = np.full((72, 72, 3), -1000, np.int16)
    solid[10:-10, 20:-20] = 40
    open_tab(toy_page, "Volume")
    send(toy_page, nifti_bytes(solid, affine_ras((0, 1, 2), (-1, -1, 1), (0.8, 0.7, 5))))
    banner = toy_page.locator("#volume-doubts [role=alert]")
    expect(banner).to_contain_text("No lung was found in any slice")
    expect(toy_page.locator("#volume-diagnosis .ls-row")).not_to_have_count(0)
    above, below = banner.bounding_box(), toy_page.locator("#volume-diagnosis").bounding_box()
    assert above is not None
    assert below is not None
    assert above["y"] + above["height"] <= below["y"]
    toy_page.get_by_text("What do these numbers mean?").last.click()
    expect(toy_page.locator("#volume-meaning")).to_contain_text("the mean over the slices with enough lung")
    expect(toy_page.locator("#volume-meaning dd").first).to_be_visible()
    toy_page.get_by_role("button", name="CT study, 24 slices").click()
    expect(toy_page.locator("#volume-diagnosis")).to_contain_text("of 24 slices")
    expect(banner).to_have_count(0)


def test_stopping_shows_what_was_read_and_asks_for_nothing_more(toy_page: Page, toy_triton: TritonServer) -> None:
    open_tab(toy_page, "Volume")
    send(toy_page, study_zip(MANY))
    progress = toy_page.locator("#volume-progress").get_by_role("progressbar", name=f" of {MANY}")
    expect(progress).to_have_attribute("max", str(MANY))
    expect(progress).to_have_attribute("value", re.compile(r"^[1-9]\d*$"))
    toy_page.get_by_role("button", name="Stop reading").click()
    expect(toy_page.locator("#volume-problems")).to_contain_text(
        re.compile(rf"Incomplete: \d+ of {MANY} slices were read")
    )
    expect(toy_page.locator("#burden table")).to_be_visible()
    expect(toy_page.get_by_role("button", name="Stop reading")).to_have_count(0)
    expect(progress).to_have_count(0)
    said = toy_page.locator("#volume-problems").inner_text()
    assert int(re.search(r"(\d+) of", said)[1]) < MANY  # type: ignore[index]
    inferences = inferences_of(toy_triton)
    toy_page.wait_for_timeout(500)
    assert inferences_of(toy_triton) == inferences


def test_leaving_the_page_ends_its_reading(toy_page: Page, toy_triton: TritonServer) -> None:
    before = recognised(toy_triton)
    open_tab(toy_page, "Volume")
    send(toy_page, study_zip(MANY))
    expect(toy_page.locator("#axis .ls-field")).to_be_visible()
    toy_page.goto("about:blank")
    done = recognised(toy_triton)
    for _ in range(PATIENCE_MS // 500):
        toy_page.wait_for_timeout(500)
        earlier, done = done, recognised(toy_triton)
        if done == earlier:
            break
    assert before < done < before + MANY


def test_several_series_are_listed_and_one_is_chosen(toy_page: Page) -> None:
    open_tab(toy_page, "Volume")
    files = []
    for series, (name, slices) in enumerate((("Lung 1.0", 3), ("Soft tissue", 4)), start=1):
        with zipfile.ZipFile(io.BytesIO(study_zip(slices, series=series, description=name))) as archive:
            files += [(f"{series}-{i}", archive.read(member)) for i, member in enumerate(archive.namelist())]
    toy_page.locator("#study input[type=file]").set_input_files(
        [{"name": name, "mimeType": "application/dicom", "buffer": data} for name, data in files]
    )
    expect(toy_page.locator("#series")).to_contain_text("Soft tissue: CT, axial, 4 slices of 64 x 64")
    toy_page.locator("#series input").nth(1).check()
    toy_page.get_by_role("button", name="Read the study").click()
    expect(toy_page.locator("#volume-diagnosis")).to_contain_text("of 4 slices")


def test_a_folder_of_a_series_is_chosen_by_the_keyboard_and_read(toy_page: Page, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(study_zip(4))) as archive:
        for i, member in enumerate(archive.namelist()):
            (tmp_path / f"IM{i}").write_bytes(archive.read(member))
    open_tab(toy_page, "Volume")
    tab_to(toy_page, "#study-directory")
    expect(toy_page.locator("#study-directory")).to_have_accessible_name("Or choose the folder of a series")
    with toy_page.expect_file_chooser() as opened:
        toy_page.keyboard.press("Enter")
    opened.value.set_files(tmp_path)
    expect(toy_page.locator("#volume-diagnosis")).to_contain_text("of 4 slices")


def test_a_study_is_taken_away_as_json(read: Page) -> None:
    with read.expect_download() as started:
        read.locator("#volume-export-json").click()
    case = json.loads(Path(started.value.path()).read_text())
    assert started.value.suggested_filename.startswith("lungstreams")
    assert "slices" in json.dumps(case)


def test_a_file_that_is_no_study_gets_a_message(toy_page: Page) -> None:
    open_tab(toy_page, "Volume")
    send(toy_page, b"only words")
    expect(toy_page.locator("#volume-alert [role=alert]")).to_contain_text("This file can not be read as a scan")
    expect(toy_page.locator("#film img")).to_have_count(0)
