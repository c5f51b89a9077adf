"""Activation maps on a scan's own pixels, and as heat."""

from __future__ import annotations

import numpy as np
import pytest

from serving import phantom
from serving.activation import ActivationMaps, evidence, evidence_inside, render_heat, restore_map
from serving.errors import GeometryError, RequestError, ServerMismatch
from serving.labels import DIAGNOSIS_NAMES
from serving.pipeline import ACTIVATION, ACTIVATION_FIRST, ACTIVATION_HW, ACTIVATION_STEP


def one_cell(row: int, column: int) -> np.ndarray:
    cells = np.zeros(ACTIVATION_HW, np.float32)
    cells[row, column] = 1
    return cells


def centre_px(cell: int, size_px: int) -> float:
    """Where a cell's centre is, in whole pixels from the first pixel's centre."""
    return (ACTIVATION_FIRST + cell * ACTIVATION_STEP) * size_px - 0.5


@pytest.mark.parametrize("size_hw", [(512, 512), (300, 800), (48, 61)])
def test_a_cell_is_highest_where_it_looks(size_hw: tuple[int, int]) -> None:
    for row, column in ((1, 3), (4, 2)):
        restored = restore_map(one_cell(row, column), size_hw)
        assert restored.shape == size_hw
        assert restored.dtype == np.float32
        found = np.unravel_index(restored.argmax(), size_hw)
        for got, cell, size in zip(found, (row, column), size_hw, strict=True):
            assert abs(got - centre_px(cell, size)) <= 0.5


def test_between_two_centres_a_map_is_linear_and_outside_it_goes_on() -> None:
    rising = np.tile(np.arange(6, dtype=np.float32), (6, 1))
    row = restore_map(rising, (64, 1024))[10]
    places = (np.arange(1024) + 0.5) / 1024
    np.testing.assert_allclose(row, np.clip((places - ACTIVATION_FIRST) / ACTIVATION_STEP, 0, 5), atol=1e-4)
    assert row[0] == 0
    assert row[-1] == 5


def test_a_map_of_another_grid_is_refused() -> None:
    with pytest.raises(GeometryError, match=r"expected a map of \(6, 6\) cells, got \(8, 8\)"):
        restore_map(np.zeros((8, 8), np.float32), (512, 512))


def test_maps_are_drawn_by_diagnosis() -> None:
    cells = np.random.default_rng(1).normal(size=ACTIVATION.shape).astype(np.float32)
    maps = ActivationMaps(cells, (90, 70))
    assert tuple(maps) == DIAGNOSIS_NAMES
    assert len(maps) == len(DIAGNOSIS_NAMES)
    for index, name in enumerate(DIAGNOSIS_NAMES):
        np.testing.assert_array_equal(maps[name], restore_map(cells[index], (90, 70)))
        np.testing.assert_array_equal(maps.cells(name), cells[index])
    with pytest.raises(KeyError):
        maps["sneezing"]
    maps.cells("normal")[:] = 0
    assert maps.cells("normal").any()


@pytest.mark.parametrize(
    "cells",
    [
        np.zeros((4, 8, 8), np.float32),
        np.zeros(ACTIVATION.shape, np.float64),
        np.full(ACTIVATION.shape, np.nan, np.float32),
    ],
    ids=["shape", "dtype", "NaN"],
)
def test_what_is_no_activation_is_refused(cells: np.ndarray) -> None:
    with pytest.raises(ServerMismatch, match=r"activation: expected finite float32 of shape \(4, 6, 6\)"):
        ActivationMaps(cells, (90, 70))


def test_evidence_is_relative_to_the_strongest_and_never_against() -> None:
    activation = np.array([[-3, 0], [1, 4]], np.float32)
    np.testing.assert_array_equal(evidence(activation), [[0, 0], [0.25, 1]])
    assert not evidence(-np.abs(activation)).any()


def test_the_part_inside_counts_what_speaks_for_a_diagnosis_alone() -> None:
    activation = np.array([[-3, 0], [1, 4]], np.float32)
    assert evidence_inside(activation, np.array([[True, True], [True, False]])) == pytest.approx(0.2)
    assert evidence_inside(-np.abs(activation), np.ones((2, 2), bool)) is None
    with pytest.raises(GeometryError, match="expected a region of the map's size"):
        evidence_inside(activation, np.ones((3, 2), bool))


def test_heat_grows_with_the_evidence_and_leaves_the_rest_as_it_is() -> None:
    pixels = phantom.ct_slice(seed=2, size_px=256).pixels
    activation = restore_map(one_cell(2, 3) * 5 - 1, pixels.shape)
    heat = render_heat(pixels, activation)
    against = activation <= 0
    assert against.any()
    np.testing.assert_array_equal(heat[against], np.repeat(pixels[against][:, None], 3, axis=1))
    # Lightness over black grows with the evidence: that is what the colour map was chosen for.
    dark = render_heat(np.zeros_like(pixels), activation).astype(int).sum(axis=-1).ravel()
    ordered = dark[np.argsort(activation.ravel())]
    assert (np.diff(ordered) >= -6).all()
    assert ordered[-1] > 300


def test_nothing_is_changed_in_place_and_no_evidence_is_no_heat() -> None:
    pixels = phantom.ct_slice(seed=2, size_px=256).pixels
    before = pixels.copy()
    grey = np.repeat(pixels[..., None], 3, axis=-1)
    np.testing.assert_array_equal(render_heat(pixels, np.full(pixels.shape, -1, np.float32)), grey)
    np.testing.assert_array_equal(render_heat(pixels, np.ones(pixels.shape, np.float32), opacity=0), grey)
    np.testing.assert_array_equal(pixels, before)


def test_what_can_not_be_drawn_is_refused() -> None:
    pixels, activation = np.zeros((20, 30), np.uint8), np.zeros((20, 30), np.float32)
    with pytest.raises(GeometryError, match="expected uint8 pixels"):
        render_heat(pixels.astype(np.float32), activation)
    with pytest.raises(GeometryError, match=r"expected a map of \(20, 30\) like the scan, got \(30, 20\)"):
        render_heat(pixels, activation.T)
    with pytest.raises(RequestError, match="expected an opacity in"):
        render_heat(pixels, activation, opacity=2)
