"""Burden of an analytic phantom, whose volumes are known on paper."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from serving.burden import FINDING_NAMES, INFECTED, SIDE_NAMES, Tally
from serving.errors import GeometryError, RequestError
from serving.labels import MANIFESTATION_NAMES
from serving.lungs import LEFT, RIGHT, find_lungs
from serving.studies import open_volume
from serving.volumes import Volume
from tests.serving.volume_files import affine_ras, dicom_series, nifti_bytes, shuffled, zipped

# Centre and half axes in LPS mm, and HU.
BODY = ((0, 0, 0), (150, 105, 400), 40)
RIGHT_LUNG = ((-66, 0, 0), (52, 72, 95), -850)
LEFT_LUNG = ((66, 0, 0), (48, 66, 90), -850)
GROUND_GLASS = ((-66, 20, 10), (25, 30, 40), -500)
CONSOLIDATION = ((66, -10, -20), (18, 20, 25), 20)
EFFUSION = ((-66, -30, -40), (14, 14, 14), 10)
SIZE = (104, 132, 150)
Ellipsoid = tuple[tuple[float, ...], tuple[float, ...], float]


def ml(ellipsoid: Ellipsoid) -> float:
    return 4 / 3 * math.pi * math.prod(ellipsoid[1]) / 1000


def inside(ellipsoid: Ellipsoid, affine_lps: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    centre, axes, _ = ellipsoid
    at = np.indices(shape, np.float32).reshape(3, -1)
    unit = (affine_lps[:3, :3] @ at + (affine_lps[:3, 3] - centre)[:, None]) / np.array(axes)[:, None]
    return ((unit**2).sum(axis=0) <= 1).reshape(shape)


def phantom(axes: tuple[int, ...], signs: tuple[int, ...], degrees: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """HU in the file's order, and the file's affine to LPS, centred in the body."""
    spacing = np.array([2.4, 1.9, 2.2])
    affine = np.diag([-1.0, -1, 1, 1]) @ affine_ras(axes, signs, spacing, degrees)
    patient_size = {2: SIZE[0], 1: SIZE[1], 0: SIZE[2]}
    shape = tuple(patient_size[axis] for axis in axes)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    hu = np.full(shape, -1000, np.int16)
    for ellipsoid in (BODY, RIGHT_LUNG, LEFT_LUNG, GROUND_GLASS, CONSOLIDATION, EFFUSION):
        hu[inside(ellipsoid, affine, shape)] = ellipsoid[2]
    return hu, affine


def tallied(volume: Volume) -> Tally:
    lungs, tally = find_lungs(volume), Tally()
    affine = volume.affine
    assert affine is not None
    masks = {
        name: inside(ellipsoid, affine, volume.shape)
        for name, ellipsoid in zip(MANIFESTATION_NAMES, (GROUND_GLASS, CONSOLIDATION, EFFUSION), strict=True)
    }
    for i in range(volume.shape[0]):
        tally.add(lungs.slice(i), {name: mask[i] for name, mask in masks.items()}, volume.voxel_ml(i))
    return tally


@pytest.mark.parametrize("packing", ["nifti", "dicom"])
@pytest.mark.parametrize(
    ("axes", "signs", "degrees"),
    [((0, 1, 2), (-1, -1, 1), (0, 0, 0)), ((0, 1, 2), (1, -1, -1), (7, -6, 9)), ((2, 0, 1), (1, 1, 1), (-8, 5, 6))],
    ids=["straight", "oblique", "oblique sagittal"],
)
def test_burden_is_that_of_the_analytic_phantom_within_one_per_cent(
    axes: tuple[int, ...], signs: tuple[int, ...], degrees: tuple[float, ...], packing: str
) -> None:
    hu, affine = phantom(axes, signs, degrees)
    if packing == "nifti":
        data = nifti_bytes(hu, np.diag([-1.0, -1, 1, 1]) @ affine)
    else:
        data = zipped(shuffled(dicom_series(hu, affine)))
    burden = tallied(open_volume(data)).burden()
    right, left = ml(RIGHT_LUNG), ml(LEFT_LUNG)
    assert burden.lung["right"].ml == pytest.approx(right, rel=0.01)
    assert burden.lung["left"].ml == pytest.approx(left, rel=0.01)
    assert burden.lung["both"].ml == pytest.approx(right + left, rel=0.01)
    for name, side, ellipsoid, lung in (
        ("ground_glass", "right", GROUND_GLASS, right),
        ("consolidation", "left", CONSOLIDATION, left),
        ("pleural_effusion", "right", EFFUSION, right),
    ):
        found = burden.found[name]
        assert found[side].ml == pytest.approx(ml(ellipsoid), rel=0.01)
        assert found[side].percent == pytest.approx(100 * ml(ellipsoid) / lung, rel=0.01)
        assert found["both"].percent == pytest.approx(100 * ml(ellipsoid) / (right + left), rel=0.01)
        other = {"left": "right", "right": "left"}[side]
        assert (found[other].pixels, found[other].ml) == (0, 0.0)
    every = sum(map(ml, (GROUND_GLASS, CONSOLIDATION, EFFUSION)))
    assert burden.found[INFECTED]["both"].ml == pytest.approx(every, rel=0.01)
    assert burden.found[INFECTED]["both"].percent == pytest.approx(100 * every / (right + left), rel=0.01)


def test_slices_that_are_not_equally_far_apart_reach_half_way_to_their_neighbours() -> None:
    hu, affine = phantom((2, 1, 0), (1, -1, -1), (0, 0, 0))
    files = dicom_series(hu, affine)
    kept = [files[i] for i in range(len(files)) if i % 3 != 1]
    volume = open_volume(zipped(shuffled(kept)))
    assert any("missing" in problem or "equally far" in problem for problem in volume.problems)
    assert volume.affine is None
    lungs, tally = find_lungs(volume), Tally(())
    for i in range(volume.shape[0]):
        tally.add(lungs.slice(i), {}, volume.voxel_ml(i))
    assert tally.burden().lung["right"].ml == pytest.approx(ml(RIGHT_LUNG), rel=0.02)


LUNGS = np.zeros((60, 80), np.uint8)
LUNGS[10:50, 5:35], LUNGS[10:50, 45:75] = RIGHT, LEFT


def mask(rows: slice, columns: slice) -> np.ndarray:
    marked = np.zeros(LUNGS.shape, np.uint8)
    marked[rows, columns] = 1
    return marked


def test_without_spacing_there_are_pixels_and_per_cent_and_no_ml() -> None:
    tally = Tally(["ground_glass"])
    tally.add(LUNGS, {"ground_glass": mask(slice(10, 20), slice(5, 35))}, None)
    burden = tally.burden()
    found = burden.found["ground_glass"]
    assert (found["right"].pixels, found["right"].ml, found["right"].percent) == (300, None, 25.0)
    assert (found["both"].pixels, found["both"].ml, found["both"].percent) == (300, None, 12.5)
    assert (burden.lung["left"].pixels, burden.lung["left"].ml) == (1200, None)


def test_one_slice_without_spacing_leaves_no_ml_for_any() -> None:
    tally = Tally([])
    tally.add(LUNGS, {}, np.full((1, 1), 0.5))
    assert tally.burden().lung["both"].ml == 1200
    tally.add(LUNGS, {}, None)
    assert tally.burden().lung["both"].ml is None


def test_overlapping_manifestations_are_infected_once() -> None:
    tally = Tally(["ground_glass", "consolidation"])
    masks = {"ground_glass": mask(slice(10, 20), slice(5, 35)), "consolidation": mask(slice(15, 25), slice(5, 35))}
    tally.add(LUNGS, masks, None)
    found = tally.burden().found
    assert found[INFECTED]["right"].pixels == 450
    assert (found["ground_glass"]["right"].pixels, found["consolidation"]["right"].pixels) == (300, 300)


def test_dense_lung_that_was_not_found_as_lung_counts_as_lung_of_the_nearest_side() -> None:
    tally = Tally(["consolidation", "pleural_effusion"])
    nothing = np.zeros_like(LUNGS)
    tally.add(LUNGS, {"consolidation": mask(slice(10, 50), slice(35, 38)), "pleural_effusion": nothing}, None)
    assert tally.burden().lung["right"].pixels == 1200 + 120
    assert tally.burden().found["consolidation"]["left"].pixels == 0
    tally.add(LUNGS, {"consolidation": nothing, "pleural_effusion": mask(slice(10, 50), slice(42, 45))}, None)
    assert tally.burden().lung["left"].pixels == 2 * 1200
    assert tally.burden().found["pleural_effusion"]["left"].pixels == 120


def test_where_there_is_no_lung_there_is_no_per_cent() -> None:
    tally = Tally(["pleural_effusion"])
    tally.add(np.zeros_like(LUNGS), {"pleural_effusion": mask(slice(0, 9), slice(70, 80))}, np.ones((1, 1)))
    found = tally.burden().found["pleural_effusion"]
    assert (found["left"].pixels, found["left"].ml, found["left"].percent) == (90, 90.0, None)
    assert found["right"].pixels == 0


def test_voxels_of_unequal_volume_are_weighed() -> None:
    tally = Tally(["ground_glass"])
    each = np.linspace(1, 3, LUNGS.shape[1])[None]
    tally.add(LUNGS, {"ground_glass": mask(slice(10, 50), slice(5, 20))}, each)
    expected = 100 * each[0, 5:20].sum() / each[0, 5:35].sum()
    assert tally.burden().found["ground_glass"]["right"].percent == pytest.approx(expected)


def test_what_is_asked_wrongly_is_refused() -> None:
    with pytest.raises(RequestError, match=r"expected a manifestation of ground_glass, .*, got 'nodule'"):
        Tally(["nodule"])
    tally = Tally(["ground_glass"])
    with pytest.raises(RequestError, match="expected masks of ground_glass, got none"):
        tally.add(LUNGS, {}, None)
    with pytest.raises(GeometryError, match=r"mask of ground_glass: expected the size of the lungs \(60, 80\)"):
        tally.add(LUNGS, {"ground_glass": LUNGS[1:]}, None)


def test_a_burden_is_json() -> None:
    tally = Tally()
    tally.add(LUNGS, dict.fromkeys(MANIFESTATION_NAMES, LUNGS), None)
    read = json.loads(json.dumps(tally.burden().to_json()))
    assert read["found"].keys() == set(FINDING_NAMES)
    for name, side in itertools.product(FINDING_NAMES, SIDE_NAMES):
        assert read["found"][name][side]["percent"] == 100


def test_tallies_add_up_and_those_of_other_manifestations_do_not() -> None:
    lungs = np.zeros((64, 64), np.uint8)
    lungs[:, :20], lungs[:, 40:] = RIGHT, LEFT
    mask = np.zeros((64, 64), np.uint8)
    mask[:8, :8] = 1
    whole, one, other = Tally(["ground_glass"]), Tally(["ground_glass"]), Tally(["ground_glass"])
    for tally, voxel_ml in ((one, np.full((1, 1), 0.5)), (other, np.full((1, 1), 0.25))):
        tally.add(lungs, {"ground_glass": mask}, voxel_ml)
        whole.add(lungs, {"ground_glass": mask}, voxel_ml)
    one.merge(other)
    assert one.burden() == whole.burden()
    with pytest.raises(RequestError, match="expected a tally of ground_glass, got one of consolidation"):
        one.merge(Tally(["consolidation"]))
    unsized = Tally(["ground_glass"])
    unsized.add(lungs, {"ground_glass": mask}, None)
    one.merge(unsized)
    assert one.burden().lung["both"].ml is None
