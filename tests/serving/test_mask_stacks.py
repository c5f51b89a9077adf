from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from serving.errors import GeometryError
from serving.mask_stacks import MaskStack

SHAPE = (5, 60, 72)


def classes(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, SHAPE[1:]).astype(np.uint8)


def test_slices_come_back_as_they_were_put_in_whatever_order() -> None:
    stack = MaskStack(SHAPE)
    for index in (3, 0, 4):
        stack.put(index, classes(index))
    for index in range(5):
        expected = classes(index) if index in (0, 3, 4) else np.zeros(SHAPE[1:], np.uint8)
        np.testing.assert_array_equal(stack.slice(index), expected)
        np.testing.assert_array_equal(stack.array()[index], expected)
    assert stack.marked() == (0, 3, 4)
    assert stack.array().dtype == stack.slice(0).dtype == np.uint8
    assert stack.array().shape == SHAPE


def test_a_view_of_an_array_in_another_order_is_filled() -> None:
    stack = MaskStack(SHAPE)
    stack.put(3, classes(3))
    source = np.zeros((72, 60, 5), np.uint8)
    stack.fill(source.transpose(2, 1, 0)[::-1])
    np.testing.assert_array_equal(source, stack.array()[::-1].transpose(2, 1, 0))
    with pytest.raises(GeometryError, match=r"expected an array \[5, 60, 72\] to fill, got \[72, 60, 5\]"):
        stack.fill(source)


def test_a_slice_is_the_last_that_was_put_also_where_that_is_empty() -> None:
    stack = MaskStack(SHAPE)
    stack.put(1, classes(1))
    stack.put(1, classes(2))
    np.testing.assert_array_equal(stack.slice(1), classes(2))
    stack.put(1, np.zeros(SHAPE[1:], np.uint8))
    assert stack.marked() == ()
    assert not stack.slice(1).any()


def test_views_and_bools_are_taken_and_what_is_given_out_is_the_callers() -> None:
    stack = MaskStack(SHAPE)
    flipped = classes(7)[::-1, ::-1]
    stack.put(0, flipped)
    stack.put(2, classes(7) > 1)
    np.testing.assert_array_equal(stack.slice(0), flipped)
    np.testing.assert_array_equal(stack.slice(2), (classes(7) > 1).astype(np.uint8))
    stack.slice(0)[:] = 0
    np.testing.assert_array_equal(stack.slice(0), flipped)


def test_a_copy_and_its_original_go_their_own_ways() -> None:
    stack = MaskStack(SHAPE)
    stack.put(0, classes(0))
    copied = stack.copy()
    stack.put(1, classes(1))
    copied.put(0, classes(2))
    assert copied.marked() == (0,)
    np.testing.assert_array_equal(stack.slice(0), classes(0))


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_no_slice_beside_the_volume(index: int) -> None:
    stack = MaskStack(SHAPE)
    with pytest.raises(GeometryError, match=r"expected a slice in \[0, 5\), got "):
        stack.put(index, classes(0))
    with pytest.raises(GeometryError, match=r"expected a slice in \[0, 5\), got "):
        stack.slice(index)


@pytest.mark.parametrize("mask", [classes(0).T, classes(0).astype(np.int64), classes(0)[None], classes(0) / 1])
def test_another_size_or_type_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(GeometryError, match=r"expected a mask uint8\[60, 72\], got "):
        MaskStack(SHAPE).put(0, mask)


def test_a_slice_takes_a_twentieth_of_a_byte_a_voxel() -> None:
    y, x = np.mgrid[:512, :512]
    stack = MaskStack((40, 512, 512))
    tracemalloc.start()
    try:
        for index in range(40):
            stack.put(index, ((x - 150 - index) ** 2 + (y - 260) ** 2 < 90**2) & ((x ^ y) & 8 > 0))
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(stack.marked()) == 40
    assert held < 40 * 512 * 512 // 20
