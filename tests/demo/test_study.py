from __future__ import annotations

import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from demo.study import Shelf, StudyView, open_study, picture, read_slices
from serving.errors import GeometryError, UnreadableScan
from serving.labels import STREAM_NAMES
from serving.overlay import render
from serving.phantom_volume import ct_volume, series_zip_bytes
from serving.tritonserver import TritonServer
from serving.volumes import Volume
from serving.windows import LUNG, MEDIASTINAL

OPEN = dict.fromkeys(("covid19", "ground_glass", "consolidation", "pleural_effusion"), 0.0)


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    path = tmp_path / "study.zip"
    path.write_bytes(series_zip_bytes(ct_volume(1, 8, 64)))
    opened = open_study([path], None)
    assert isinstance(opened, Volume)
    return opened


def view_of(volume: Volume, triton: TritonServer) -> StudyView:
    *_, last = read_slices(triton.grpc_url, volume, OPEN, threading.Event())
    assert last.report is not None
    return StudyView(volume, last.report)


def test_several_series_are_titles_and_a_number_chooses(tmp_path: Path) -> None:
    slices = ct_volume(1, 3, 64)
    paths = []
    for series in (1, 2):
        path = tmp_path / f"{series}.zip"
        path.write_bytes(series_zip_bytes(slices, series=series, description=f"series {series}"))
        paths.append(path)
    files = unzipped(paths, tmp_path)
    titles = open_study(files, None)
    assert isinstance(titles, tuple)
    assert [title.split(":")[0] for title in titles] == ["series 1", "series 2"]
    chosen = open_study(files, 1)
    assert isinstance(chosen, Volume)
    assert chosen.shape == slices.shape


def unzipped(archives: list[Path], folder: Path) -> list[Path]:
    files = []
    for archive in archives:
        with zipfile.ZipFile(archive) as opened:
            files += [Path(opened.extract(name, folder)) for name in opened.namelist()]
    return files


def test_what_is_no_study_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.nii"
    path.write_bytes(b"only words")
    with pytest.raises(UnreadableScan):
        open_study([path], None)


def test_a_shelf_has_room_for_some_and_forgets_the_oldest() -> None:
    shelf = Shelf(2, 3600)
    keys = [shelf.put(f"view {i}") for i in range(3)]  # type: ignore[arg-type]
    assert [shelf.get(key) for key in keys] == [None, "view 1", "view 2"]
    shelf.drop(keys[1])
    assert shelf.get(keys[1]) is None
    assert shelf.get(None) is None
    assert len(set(keys)) == 3


def test_a_shelf_keeps_nothing_for_longer_than_it_says() -> None:
    shelf = Shelf(2, -1)
    key = shelf.put("a view")  # type: ignore[arg-type]
    assert shelf.get(key) is None


@pytest.mark.triton
def test_a_slice_is_drawn_through_a_window_and_under_layers(volume: Volume, toy_triton: TritonServer) -> None:
    view = view_of(volume, toy_triton)
    assert view.streams == STREAM_NAMES
    lung, mediastinal = (view.draw(3, [], 0.5, seen) for seen in (LUNG, MEDIASTINAL))
    grey = volume.slice_scan(3).pixels
    assert np.abs(lung.astype(int) - render(grey)).max() <= 1
    assert (lung != mediastinal).any()
    assert (view.draw(3, ["ground_glass"], 0.5, LUNG) != lung).any()
    with pytest.raises(GeometryError):
        view.draw(8, [], 0.5, LUNG)


@pytest.mark.triton
def test_a_slice_that_could_not_be_read_is_black_and_one_that_is_gone_is_an_error(
    volume: Volume, toy_triton: TritonServer, tmp_path: Path
) -> None:
    (path,) = tmp_path.glob("study.zip")
    with zipfile.ZipFile(path) as whole:
        files = [whole.read(name) for name in whole.namelist()]
    # Everything is there of a file but the last of its pixels.
    files[3] = files[3][:-64]
    broken = tmp_path / "broken.zip"
    with zipfile.ZipFile(broken, "w") as archive:
        for i, data in enumerate(files):
            archive.writestr(str(i), data)
    opened = open_study([broken], None)
    assert isinstance(opened, Volume)
    view = view_of(opened, toy_triton)
    (missing,) = {*range(8)} - {one.index for one in view.report.slices}
    assert not view.draw(missing, STREAM_NAMES, 0.5, LUNG).any()
    np.testing.assert_array_equal(
        view.draw(0, STREAM_NAMES, 0.5, LUNG), view_of(volume, toy_triton).draw(0, STREAM_NAMES, 0.5, LUNG)
    )
    # One that was read, of files that are not what they were.
    with pytest.raises(UnreadableScan, match="file 4 of 8: expected 8,192 bytes of pixels"):
        StudyView(opened, view_of(volume, toy_triton).report).draw(missing, [], 0.5, LUNG)


@pytest.mark.triton
def test_a_reading_that_is_stopped_says_what_it_has(volume: Volume, toy_triton: TritonServer) -> None:
    stop = threading.Event()
    steps = read_slices(toy_triton.grpc_url, volume, {}, stop)
    assert next(steps).done == 0
    assert next(steps).done == 1
    stop.set()
    *_, last = steps
    assert last.report is not None
    assert not last.report.complete
    assert 1 <= last.done == len(last.report.slices) < len(ct_volume(1, 8, 64))


@pytest.mark.triton
def test_a_reading_that_is_closed_leaves_no_thread(volume: Volume, toy_triton: TritonServer) -> None:
    before = threading.active_count()
    steps = read_slices(toy_triton.grpc_url, volume, {}, threading.Event())
    next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    # What is under way is waited for behind the visitor's back.
    deadline_s = time.monotonic() + 30
    while threading.active_count() > before and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_a_lost_server_is_said_and_not_raised(volume: Volume) -> None:
    *_, last = read_slices("127.0.0.1:1", volume, {}, threading.Event())
    assert last.error is not None
    assert last.report is None


def test_a_picture_is_a_png_with_the_same_pixels() -> None:
    import base64

    import cv2

    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    head, data = picture(pixels).split(",")
    assert head == "data:image/png;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(decoded[..., ::-1], pixels)
