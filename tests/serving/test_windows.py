"""CT windows for the viewer."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from serving.dicom_pixels import lung_window
from serving.errors import RequestError
from serving.windows import LUNG, MEDIASTINAL, Window, through, window

RAMP = np.arange(-2000, 3000, dtype=np.int16).reshape(50, 100)


@pytest.mark.parametrize("seen", [LUNG, MEDIASTINAL, Window(300, 1500), Window(-50.5, 33)])
def test_a_window_is_that_of_the_standard(seen: Window) -> None:
    dataset = Dataset()
    dataset.WindowCenter, dataset.WindowWidth, dataset.VOILUTFunction = seen.level_hu, seen.width_hu, "LINEAR"
    dataset.BitsStored, dataset.PixelRepresentation = 16, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    theirs = (apply_windowing(RAMP, dataset) + 2**15) / (2**16 - 1) * 255
    assert np.abs(through(RAMP, seen) - theirs).max() <= 0.51


def test_the_models_window_is_not_the_viewers_but_next_to_it() -> None:
    difference = np.abs(through(RAMP, LUNG).astype(int) - lung_window(RAMP))
    assert difference.max() == 1
    assert lung_window(np.array([[-1350, -600, 150]])).tolist() == [[0, 128, 255]]


def test_windows_have_names() -> None:
    assert (window("lung"), window("mediastinal")) == (LUNG, MEDIASTINAL)
    assert (LUNG.level_hu, LUNG.width_hu) == (-600, 1500)
    with pytest.raises(RequestError, match="expected a window of lung, mediastinal, got 'bone'"):
        window("bone")


@pytest.mark.parametrize(
    ("level", "width", "says"),
    [
        (np.nan, 400, "window level"),
        (5000, 400, r"window level: expected HU in \[-2000, 4000\], got 5000"),
        (40, 0, r"window width: expected HU in \[1, 8000\], got 0"),
        (40, -400, "window width"),
        (40, np.inf, "window width"),
    ],
)
def test_windows_that_show_nothing_are_refused(level: float, width: float, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        Window(level, width)


def test_a_window_of_one_is_a_step_and_what_is_no_number_is_black() -> None:
    hu = np.array([[38.0, 39.0, 40.0, 41.0, np.nan]])
    assert through(hu, Window(40, 1)).tolist() == [[0, 0, 255, 255, 0]]
