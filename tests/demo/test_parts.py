from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from demo import panels
from demo.case import KeptReport, View, read_case
from demo.folders import UploadGone, kept
from demo.parts import chosen_thresholds, seen_through
from demo.site import Stops
from serving import phantom
from serving.activation import render_heat
from serving.errors import RequestError, ServerUnreachable
from serving.tritonserver import TritonServer
from serving.windows import LUNG, MEDIASTINAL, Window, through


def test_a_window_by_name_or_by_hand() -> None:
    assert seen_through("lung", 0, 1) == LUNG
    assert seen_through("mediastinal", None, None) == MEDIASTINAL
    assert seen_through("custom", 50, 350) == Window(50, 350)
    # A field that was emptied.
    assert seen_through("custom", None, 350) == Window(LUNG.level_hu, 350)
    assert seen_through(None, None, None) == LUNG
    with pytest.raises(RequestError):
        seen_through("bone", 0, 1)


def test_thresholds_that_were_emptied_are_left_out() -> None:
    assert chosen_thresholds([0.1, None, 0.3, None]) == {"covid19": 0.1, "consolidation": 0.3}


def test_only_the_session_that_asks_is_stopped() -> None:
    stops = Stops()
    one, other, program = stops.start("a"), stops.start("b"), stops.start(None)
    stops.stop("a")
    stops.stop(None)
    stops.stop("nobody")
    assert (one.is_set(), other.is_set(), program.is_set()) == (True, False, False)


def test_another_reading_of_a_session_stops_the_one_before_and_outlives_its_end() -> None:
    stops = Stops()
    first = stops.start("a")
    second = stops.start("a")
    assert first.is_set()
    stops.end(first)
    stops.stop("a")
    assert second.is_set()
    stops.end(second)
    assert isinstance(stops.start("a"), threading.Event)


def test_a_view_with_hounsfield_units_is_drawn_through_the_chosen_window() -> None:
    hu = np.linspace(-1000, 300, 64 * 64, dtype=np.float32).reshape(64, 64)
    view = View(through(hu, LUNG), {}, hu)
    np.testing.assert_array_equal(view.draw([], 0.5, MEDIASTINAL)[..., 0], through(hu, MEDIASTINAL))
    np.testing.assert_array_equal(view.draw([], 0.5)[..., 0], view.pixels)
    # A picture has none, whatever is chosen.
    np.testing.assert_array_equal(View(view.pixels, {}).draw([], 0.5, MEDIASTINAL)[..., 0], view.pixels)


@pytest.mark.triton
def test_a_dicom_slice_has_hounsfield_units_and_a_picture_has_not(toy_triton: TritonServer) -> None:
    pixels = phantom.ct_slice(size_px=128).pixels
    dicom, _ = read_case(toy_triton.grpc_url, phantom.dicom_bytes(pixels), "auto", {})
    assert dicom.hu is not None
    assert np.abs(through(dicom.hu, LUNG).astype(int) - pixels).max() <= 1
    png, _ = read_case(toy_triton.grpc_url, phantom.png_bytes(pixels), "ct", {})
    assert png.hu is None


@pytest.mark.triton
def test_a_kept_report_is_the_report(toy_triton: TritonServer, tmp_path: Path) -> None:

    data = phantom.png_bytes(phantom.ct_slice(size_px=128).pixels)
    _, report = read_case(toy_triton.grpc_url, data, "ct", dict.fromkeys(("consolidation",), 0.0))
    kept = KeptReport.of(Path("scan.png"), report).report()
    assert kept.to_json() == report.to_json()
    for stream, mask in report.masks.items():
        if mask is None:
            assert kept.masks[stream] is None
        else:
            np.testing.assert_array_equal(kept.masks[stream], mask)


def test_no_server_no_case() -> None:
    with pytest.raises(ServerUnreachable):
        read_case("127.0.0.1:1", phantom.png_bytes(phantom.ct_slice(size_px=128).pixels), "ct", {})


def test_an_upload_that_is_gone_is_said_without_its_name(tmp_path: Path) -> None:
    there = tmp_path / "there.png"
    there.write_bytes(b"")
    assert kept([str(there)]) == [there]
    with pytest.raises(UploadGone) as gone:
        kept([there, tmp_path / "Mustermann.png"])
    assert "Mustermann" not in str(gone.value)
    assert "not kept any more" in panels.alert(gone.value)


@pytest.mark.triton
def test_heat_is_drawn_in_place_of_the_masks_and_asks_nobody(toy_triton: TritonServer) -> None:
    data = phantom.png_bytes(phantom.ct_slice(size_px=128).pixels)
    view, report = read_case(toy_triton.grpc_url, data, "ct", {}, explain=True)
    assert report.activation is not None
    heat = view.draw(["all"], 0.5, why="covid19")
    np.testing.assert_array_equal(heat, render_heat(view.pixels, report.activation["covid19"]))
    assert (view.draw(["all"], 0.5, why="normal") != heat).any()
    np.testing.assert_array_equal(view.draw([], 0.5, why=""), view.draw([], 0.5))


@pytest.mark.triton
def test_nobody_who_does_not_ask_gets_maps(toy_triton: TritonServer) -> None:
    view, report = read_case(toy_triton.grpc_url, phantom.png_bytes(phantom.ct_slice(size_px=128).pixels), "ct", {})
    assert view.maps is report.activation is None
