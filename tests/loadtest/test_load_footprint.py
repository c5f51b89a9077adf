from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from loadtest import footprint
from loadtest.cases import CASES
from loadtest.footprint import WHOLE, WINDOW, Footprint, measure_parts, part_calls, scans
from loadtest.memory import ProcessMemory, pss_bytes
from serving.errors import RequestError
from serving.pipeline import STEPS
from serving.preprocessing import preprocess

SCANS = ("X-ray, PNG", "CT slice, PNG", "CT slice, DICOM")


@pytest.fixture(scope="module")
def measured(toy_repository: Path) -> Footprint:
    return footprint.measure(toy_repository, threads=1, starts=2, seconds=0.2, rounds=2)


@pytest.mark.triton
@pytest.mark.slow
def test_the_server_is_started_as_often_as_asked_and_looked_at_after_every_case(measured: Footprint) -> None:
    assert len(measured.starts_s) == 2
    assert list(measured.after_cases) == list(CASES)
    everyone = {"tritonserver", *(step.model for step in STEPS)}
    for look in (measured.after_start, *measured.after_cases.values()):
        assert {process.name for process in look} == everyone
        assert measured.peak_pss_bytes >= pss_bytes(look)
    assert measured.peak_pss_bytes > pss_bytes(measured.after_start)


@pytest.mark.triton
@pytest.mark.slow
def test_the_sections_and_plots_show_every_process_and_part(measured: Footprint) -> None:
    text = "\n\n".join(footprint.sections(measured))
    for name in ("tritonserver", "recognition", "preprocess (2 processes)", "resize", "CLAHE", WINDOW, WHOLE):
        assert f"\n| {name} | " in text
    for heading in (*CASES, *SCANS):
        assert heading in text
    assert set(footprint.draw(measured)) == {"memory", "preprocessing"}
    json.dumps(asdict(measured))


def test_an_aim_that_is_missed_is_said_to_be() -> None:
    process = (ProcessMemory("tritonserver", 4 * 10**9, 4 * 10**9),)
    text = "\n".join(footprint.sections(Footprint(1, (1.0, 21.0), process, {"xray": process}, 4 * 10**9, {"a": ()})))
    assert "(aim 20 s: missed)" in text
    assert "4.00 GB at most meanwhile (aim 3 GB: missed)" in text


@pytest.mark.parametrize("name", SCANS)
def test_the_parts_make_up_what_the_server_does(name: str) -> None:
    data, modality = scans()[name]
    calls = part_calls(data, modality)
    image, _ = calls[WHOLE]()
    scan = calls["decode"]()
    assert scan.modality == modality
    np.testing.assert_array_equal(calls["CLAHE"](), image[:, :, 0])
    np.testing.assert_array_equal(calls["three channels"]()[:, :, 1], calls["resize"]())
    np.testing.assert_array_equal(preprocess(scan), image)
    if WINDOW in calls:
        np.testing.assert_array_equal(calls[WINDOW](), scan.pixels)


@pytest.mark.parametrize("name", SCANS)
def test_shares_are_of_the_whole(name: str) -> None:
    threads = cv2.getNumThreads()
    parts = measure_parts(*scans()[name], rounds=2)
    assert cv2.getNumThreads() == threads
    assert (WINDOW in [part.name for part in parts]) == ("DICOM" in name)
    assert parts[-1].name == WHOLE
    assert all(part.share == part.ms / parts[-1].ms for part in parts)


@pytest.mark.parametrize(("starts", "rounds"), [(0, 1), (1, 0)])
def test_nothing_to_measure_is_refused(tmp_path: Path, starts: int, rounds: int) -> None:
    with pytest.raises(RequestError, match="expected 1 start and 1 round or more"):
        footprint.measure(tmp_path, starts=starts, rounds=rounds)
