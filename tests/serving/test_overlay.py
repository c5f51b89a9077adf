from __future__ import annotations

import numpy as np
import pytest

from serving.errors import GeometryError, RequestError
from serving.labels import ALL_STREAM, MANIFESTATIONS, STREAM_NAMES
from serving.overlay import Layer, fit, render, stream_layer

RED = (200, 10, 20)
BLUE = (5, 60, 250)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)


@pytest.fixture
def square() -> np.ndarray:
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:30, 20:40] = 1
    return mask


def grey(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, axis=-1)


def test_without_layers_the_scan_is_shown_as_it_is(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(render(pixels), grey(pixels))


def test_opacity_zero_is_the_scan_outlines_included(pixels: np.ndarray, square: np.ndarray) -> None:
    np.testing.assert_array_equal(render(pixels, [Layer(square, {1: RED}, outline=BLUE)], 0.0), grey(pixels))


def test_opacity_one_is_the_colour_inside_and_the_scan_outside(pixels: np.ndarray, square: np.ndarray) -> None:
    drawn = render(pixels, [Layer(square, {1: RED})], 1.0)
    np.testing.assert_array_equal(drawn[square == 1], np.tile(RED, (400, 1)))
    np.testing.assert_array_equal(drawn[square == 0], grey(pixels)[square == 0])


def test_the_fill_is_the_weighted_mean_of_scan_and_colour(square: np.ndarray) -> None:
    drawn = render(np.full((40, 60), 100, dtype=np.uint8), [Layer(square, {1: RED})], 0.25)
    # The middle, away from the outline: 0.75 * 100 + 0.25 * colour.
    assert drawn[20, 30].tolist() == [125, 78, 80]


def test_the_outline_is_the_outermost_pixels_and_stronger_than_the_fill(square: np.ndarray) -> None:
    drawn = render(np.zeros((40, 60), dtype=np.uint8), [Layer(square, {1: RED}, outline=BLUE)], 0.4)
    for row, column in ((10, 20), (10, 30), (29, 39), (20, 20)):
        assert drawn[row, column].tolist() == list(BLUE)
    assert drawn[11, 21].tolist() == [80, 4, 8]


def test_a_mask_that_touches_the_border_has_no_edge_there() -> None:
    mask = np.ones((40, 60), dtype=np.uint8)
    drawn = render(np.zeros((40, 60), dtype=np.uint8), [Layer(mask, {1: RED}, outline=BLUE)], 1.0)
    np.testing.assert_array_equal(drawn, np.full((40, 60, 3), RED, dtype=np.uint8))


def test_the_last_layer_is_on_top(pixels: np.ndarray, square: np.ndarray) -> None:
    red, blue = Layer(square, {1: RED}), Layer(square, {1: BLUE})
    assert render(pixels, [red, blue], 1.0)[20, 30].tolist() == list(BLUE)
    assert render(pixels, [blue, red], 1.0)[20, 30].tolist() == list(RED)


def test_nothing_that_is_given_is_changed(pixels: np.ndarray, square: np.ndarray) -> None:
    pixels_before, mask_before = pixels.copy(), square.copy()
    pixels.setflags(write=False)
    square.setflags(write=False)
    drawn = render(pixels, [Layer(square, {1: RED})], 0.5)
    shrunk = fit(pixels, 100, is_mask=False)
    shrunk[:] = 0
    drawn[:] = 0
    np.testing.assert_array_equal(pixels, pixels_before)
    np.testing.assert_array_equal(square, mask_before)


def test_the_same_input_gives_the_same_picture(pixels: np.ndarray, square: np.ndarray) -> None:
    layers = [Layer(square, {1: RED}), Layer(square, {1: BLUE})]
    np.testing.assert_array_equal(render(pixels, layers, 0.37), render(pixels, layers, 0.37))


@pytest.mark.parametrize("stream", [name for name in STREAM_NAMES if name != ALL_STREAM.name])
def test_each_stream_has_its_own_colour(stream: str, square: np.ndarray) -> None:
    label = next(label for label in MANIFESTATIONS if label.name == stream)
    drawn = render(np.zeros((40, 60), dtype=np.uint8), [stream_layer(stream, square)], 1.0)
    assert drawn[20, 30].tolist() == list(label.colour_rgb)


def test_all_is_filled_by_class_and_edged_in_its_own_colour() -> None:
    mask = np.zeros((40, 90), dtype=np.uint8)
    for class_id in (1, 2, 3):
        mask[10:30, 30 * class_id - 25 : 30 * class_id - 5] = class_id
    drawn = render(np.zeros((40, 90), dtype=np.uint8), [stream_layer(ALL_STREAM.name, mask)], 1.0)
    for class_id, label in enumerate(MANIFESTATIONS, start=1):
        assert drawn[20, 30 * class_id - 15].tolist() == list(label.colour_rgb)
        assert drawn[10, 30 * class_id - 15].tolist() == list(ALL_STREAM.colour_rgb)


def test_what_does_not_fit_is_refused(pixels: np.ndarray, square: np.ndarray) -> None:
    with pytest.raises(GeometryError, match=r"expected a mask of \(40, 60\) like the scan, got \(40, 59\)"):
        render(pixels, [Layer(square[:, :-1], {1: RED})])
    with pytest.raises(GeometryError, match=r"expected class ids of \[1\], got \[2\]"):
        Layer(square * 2, {1: RED})
    with pytest.raises(GeometryError, match="expected a uint8 mask"):
        Layer(square.astype(np.int64), {1: RED})
    with pytest.raises(GeometryError, match="expected uint8 pixels"):
        render(grey(pixels))
    with pytest.raises(RequestError, match="expected a stream of all, ground_glass"):
        stream_layer("lung", square)


@pytest.mark.parametrize("opacity", [-0.01, 1.01, float("nan")])
def test_an_opacity_outside_of_0_to_1_is_refused(pixels: np.ndarray, opacity: float) -> None:
    with pytest.raises(RequestError, match=r"expected an opacity in \[0, 1\]"):
        render(pixels, opacity=opacity)


def test_shrinking_keeps_the_aspect_and_invents_no_class() -> None:
    mask = np.zeros((1000, 2000), dtype=np.uint8)
    mask[400:, 700:] = 3
    small = fit(mask, 500, is_mask=True)
    assert small.shape == (250, 500)
    assert set(np.unique(small)) == {0, 3}


def test_shrinking_averages_pixels() -> None:
    stripes = np.zeros((100, 100), dtype=np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_array_equal(fit(stripes, 50, is_mask=False), np.full((50, 50), 100, dtype=np.uint8))


def test_what_is_small_enough_is_not_resized(pixels: np.ndarray) -> None:
    np.testing.assert_array_equal(fit(pixels, 60, is_mask=False), pixels)
