"""Burden of a single slice, of a phantom whose areas are known on paper."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from serving.burden import BOTH, INFECTED, SLICE_FINDING_NAMES
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.measuring import NO_LUNG, NOT_WHOLE, clipped, measured
from serving.phantom import ct_slice
from serving.scans import Scan, from_hu
from tests.serving.export_cases import ct_report, xray_report

SIDE = 640
# Centre and half axes in pixels (x, y), and HU. The lungs are far apart; the lesions lie in them, the fluid does, too.
Ellipse = tuple[float, float, float, float, int]
BODY: Ellipse = (320, 320, 290, 210, 40)
RIGHT_LUNG: Ellipse = (185, 315, 100, 140, -850)
LEFT_LUNG: Ellipse = (455, 315, 95, 130, -850)
GROUND_GLASS: Ellipse = (185, 350, 50, 60, -500)
CONSOLIDATION: Ellipse = (455, 290, 24, 26, 20)
EFFUSION: Ellipse = (175, 230, 22, 20, 10)
FINDINGS = dict(zip(MANIFESTATION_NAMES, (GROUND_GLASS, CONSOLIDATION, EFFUSION), strict=True))


def area(ellipse: Ellipse) -> float:
    return math.pi * ellipse[2] * ellipse[3]


def inside(ellipse: Ellipse) -> np.ndarray:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    x, y, a, b, _ = ellipse
    return np.asarray(((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1)


def drawn(*ellipses: Ellipse) -> np.ndarray:
    hu = np.full((SIDE, SIDE), -1000, np.int16)
    for ellipse in ellipses:
        hu[inside(ellipse)] = ellipse[4]
    return hu


CHEST = drawn(BODY, RIGHT_LUNG, LEFT_LUNG, GROUND_GLASS, CONSOLIDATION, EFFUSION)


def masks(*, corner: bool = True) -> dict[str, np.ndarray]:
    marked = {name: inside(ellipse).astype(np.uint8) for name, ellipse in FINDINGS.items()}
    every = np.zeros((SIDE, SIDE), np.uint8)
    for i, name in enumerate(MANIFESTATION_NAMES[:2], start=1):
        every[marked[name] > 0] = i
    if corner:
        # As the streams do beside a scanner's round field.
        for mask in (*marked.values(), every):
            mask[:60, :60] = 1
    return {"all": every, **marked}


def slice_of(hu: np.ndarray, spacing: tuple[float, float] | None = None) -> Scan:
    return from_hu(hu, pixel_spacing_mm=spacing)


def test_pixels_and_per_cent_are_those_of_the_phantom_within_one_per_cent() -> None:
    burden = measured(ct_report(masks()), slice_of(CHEST)).burden
    assert burden is not None
    assert burden.note is None
    right, left = area(RIGHT_LUNG), area(LEFT_LUNG)
    for side, expected in (("right", right), ("left", left), (BOTH, right + left)):
        lung = burden.lung[side]
        assert lung is not None
        assert lung.pixels == pytest.approx(expected, rel=0.01)
        assert (lung.mm2, lung.percent) == (None, 100)
    assert set(burden.found) == set(SLICE_FINDING_NAMES)
    every = area(GROUND_GLASS) + area(CONSOLIDATION)
    for name, expected in (
        *((name, area(ellipse)) for name, ellipse in FINDINGS.items()),
        ("all", every),
        (INFECTED, every + area(EFFUSION)),
    ):
        found = burden.found[name][BOTH]
        assert found is not None
        assert found.pixels == pytest.approx(expected, rel=0.01)
        assert found.percent == pytest.approx(100 * expected / (right + left), rel=0.01)
        assert found.mm2 is None
    for name, side, lung_px in (
        ("ground_glass", "right", right),
        ("consolidation", "left", left),
        ("pleural_effusion", "right", right),
    ):
        of_side, other = burden.found[name][side], burden.found[name][{"left": "right", "right": "left"}[side]]
        assert of_side is not None
        assert other is not None
        assert of_side.percent == pytest.approx(100 * area(FINDINGS[name]) / lung_px, rel=0.01)
        assert other.pixels == 0


@pytest.mark.parametrize("side_px", [200, 512, 1500])
def test_the_size_of_the_picture_does_not_matter(side_px: int) -> None:
    at = (np.arange(side_px) + 0.5) * SIDE / side_px
    rows, columns = at.astype(int)[:, None], at.astype(int)
    report = ct_report({name: mask[rows, columns] for name, mask in masks().items()})
    burden = measured(report, slice_of(CHEST[rows, columns])).burden
    assert burden is not None
    found, lung = burden.found["ground_glass"]["right"], burden.lung["right"]
    assert lung is not None
    assert found is not None
    assert lung.pixels * (SIDE / side_px) ** 2 == pytest.approx(area(RIGHT_LUNG), rel=0.02)
    assert found.percent == pytest.approx(100 * area(GROUND_GLASS) / area(RIGHT_LUNG), rel=0.02)


def test_what_is_marked_outside_of_the_body_is_taken_out_of_the_masks_and_their_area() -> None:
    report = ct_report(masks())
    held = measured(report, slice_of(CHEST))
    for stream, expected in masks(corner=False).items():
        mask, before = held.masks[stream], report.masks[stream]
        assert mask is not None
        assert before is not None
        assert before[:60, :60].all()
        np.testing.assert_array_equal(mask, expected)
        assert held.area_fraction[stream] == pytest.approx(np.count_nonzero(expected) / SIDE**2)
    burden = held.burden
    assert burden is not None
    for stream in STREAM_NAMES:
        found = burden.found[stream][BOTH]
        assert found is not None
        assert found.pixels == np.count_nonzero(held.masks[stream])


def test_with_spacing_there_is_an_area_in_mm2() -> None:
    burden = measured(ct_report(masks()), slice_of(CHEST, (0.8, 0.5))).burden
    assert burden is not None
    lung, found = burden.lung["left"], burden.found["consolidation"]["left"]
    assert lung is not None
    assert found is not None
    assert lung.mm2 == pytest.approx(lung.pixels * 0.4)
    assert found.mm2 == pytest.approx(found.pixels * 0.4)


def test_without_lung_there_is_no_per_cent_and_it_says_so() -> None:
    burden = measured(ct_report(masks()), slice_of(drawn(BODY, (*GROUND_GLASS[:4], 60)), (1, 1))).burden
    assert burden is not None
    assert burden.note == NO_LUNG
    assert json.loads(json.dumps(burden.to_json()))["lung"] == {
        "both": {"pixels": 0, "mm2": 0.0, "percent": None},
        "right": None,
        "left": None,
    }
    found = burden.found["ground_glass"]
    assert found[BOTH] is not None
    assert found[BOTH].pixels == pytest.approx(area(GROUND_GLASS), rel=0.01)
    assert found[BOTH].percent is None
    assert (found["right"], found["left"]) == (None, None)


def test_of_a_picture_cropped_to_the_lungs_nothing_is_taken_out_and_there_is_no_per_cent() -> None:
    crop = np.s_[200:440, 120:520]
    marked = {name: np.ascontiguousarray(mask[crop]) for name, mask in masks().items()}
    held = measured(ct_report(marked), slice_of(CHEST[crop]))
    assert held.burden is not None
    assert held.burden.note == NOT_WHOLE
    assert set(held.burden.lung.values()) == {None}
    for stream, mask in marked.items():
        np.testing.assert_array_equal(held.masks[stream], mask)
        found = held.burden.found[stream][BOTH]
        assert found is not None
        assert (found.pixels, found.percent) == (np.count_nonzero(mask), None)


def test_where_the_lungs_can_not_be_told_apart_only_both_are_counted() -> None:
    alone = drawn(BODY, RIGHT_LUNG, GROUND_GLASS)
    burden = measured(ct_report(masks()), slice_of(alone)).burden
    assert burden is not None
    assert burden.note is None
    assert burden.lung["right"] is None
    assert burden.found["ground_glass"]["left"] is None
    both = burden.found["ground_glass"][BOTH]
    assert both is not None
    assert both.percent is not None


def test_what_nobody_looked_for_is_left_out() -> None:
    report = ct_report(masks())
    closed = ("all", *MANIFESTATION_NAMES[1:])
    status = {**report.status, **dict.fromkeys(closed, "not_run")}
    some = type(report)(
        **{
            **vars(report),
            "masks": {**report.masks, **dict.fromkeys(closed)},
            "status": status,
            "area_fraction": {**report.area_fraction, **dict.fromkeys(closed)},
        }
    )
    burden = measured(some, slice_of(CHEST)).burden
    assert burden is not None
    assert set(burden.found) == {INFECTED, "ground_glass"}
    none = {"masks": dict.fromkeys(STREAM_NAMES), "area_fraction": dict.fromkeys(STREAM_NAMES)}
    nothing = type(report)(**{**vars(report), **none, "status": {**status, "ground_glass": "not_run"}})
    burden = measured(nothing, slice_of(CHEST)).burden
    assert burden is not None
    assert burden.found == {}
    assert burden.lung[BOTH] is not None


def test_an_xray_has_no_burden() -> None:
    scan = Scan(ct_slice(3, 128).pixels, "xray", "png")
    report = xray_report(scan.size_hw)
    assert measured(report, scan) is report
    assert report.to_json()["burden"] is None


def test_a_report_that_is_not_clipped_is_the_same() -> None:
    report = ct_report(masks())
    assert clipped(report, None) is report
