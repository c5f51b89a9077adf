from __future__ import annotations

import numpy as np

from serving.lungs import find_lungs
from serving.phantom import ct_slice
from serving.phantom_volume import ct_volume, series_zip_bytes
from serving.series import read_study
from serving.studies import open_volume


def test_a_slice_at_the_middle_is_the_slice_that_was_drawn_before() -> None:
    np.testing.assert_array_equal(ct_slice(4, 128).pixels, ct_slice(4, 128, height=0.0).pixels)


def test_the_study_opens_as_the_slices_that_were_drawn() -> None:
    drawn = ct_volume(5, 7, 64)
    volume = open_volume(series_zip_bytes(drawn, (8.0, 3.0, 2.0)))
    assert volume.shape == (7, 64, 64)
    assert volume.spacing_mm == (8.0, 3.0, 2.0)
    assert volume.problems == ()
    for index, pixels in enumerate(drawn):
        np.testing.assert_array_equal(volume.slice_scan(index).pixels, pixels)


def test_the_lungs_are_widest_in_the_middle_and_all_but_missing_at_both_ends() -> None:
    volume = open_volume(series_zip_bytes(ct_volume(3, 12, 128), (20.0, 2.8, 2.8)))
    sizes = [int(np.count_nonzero(labels)) for labels in find_lungs(volume).slices()]
    # The main bronchi are drawn wherever the slice lies.
    assert max(sizes[0], sizes[-1]) < 0.05 * max(sizes)
    assert 4 <= int(np.argmax(sizes)) <= 7


def test_two_numbers_are_two_series_of_one_study() -> None:
    slices = ct_volume(3, 2, 64)
    one, two = (series_zip_bytes(slices, series=number, description=f"kernel {number}") for number in (1, 2))
    planes = [read_study(data).choose().planes[0] for data in (one, two)]
    assert planes[0].series_uid != planes[1].series_uid
    assert [plane.description for plane in planes] == ["kernel 1", "kernel 2"]
