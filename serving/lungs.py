"""Where the lungs are, by a classical method: air inside the body, in pieces that are joined, with dense spots closed.

It is no trained model. Lung that is as dense as its wall (a consolidated lobe, fluid) is found only as far as it is
enclosed by air: `serving.burden` therefore counts as lung what was marked as consolidation there, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from scipy import ndimage

from serving.errors import GeometryError, ScanError
from serving.volumes import Volume

RIGHT: Final = 1
LEFT: Final = 2
SIDES: Final = {"right": RIGHT, "left": LEFT}
"""The patient's lungs and their ids in label maps; 0 is neither."""

AIRY_HU: Final = -320.0
"""Below it a voxel is airy: ground glass is, consolidation and tissue are not."""

# The coarse grid: cells of about these lengths, and few enough that finding the lungs takes a quarter of a GiB.
_COARSE_MM: Final = 3.0
_COARSE_PX: Final = 128
_COARSE_SLICES: Final = 400
_BROKEN: Final = (ScanError, GeometryError)
_CLOSING_MM: Final = 10.0
_CLOSING_OF_WIDTH: Final = 0.028
# A second lung has at least this part of the first; a piece that is cut off by dense lung at least that.
_SECOND_LUNG: Final = 0.1
_PIECE: Final = 0.02
# A piece is of one lung if this part of it lies to one side of the middle.
_ONE_SIDED: Final = 0.9
_MAX_EROSIONS: Final = 8
# Of a slice, in discs of the closing's radius.
_LARGEST_HOLE: Final = 5
# A body fills this much of its convex hull: of 109 whole slices all 0.87 and more, of 74 that are cropped to lungs that
# are open to the picture's edge three quarters 0.60 and less.
_WHOLE_BODY: Final = 0.85


@dataclass(frozen=True, eq=False)
class Lungs:
    """The lungs of a volume: found once on a coarse grid, drawn on the volume's own a slice at a time.

    Attributes:
        volume: What they were found in.
        coarse: `RIGHT`, `LEFT` or 0 on the coarse grid: airy lung.
        enclosed: The same of what is not airy and enclosed by one lung on all sides.
        slices_per_coarse: Slices that make one of it.
    """

    volume: Volume
    coarse: UInt8[np.ndarray, "cn ch cw"] = field(repr=False)
    enclosed: UInt8[np.ndarray, "cn ch cw"] = field(repr=False)
    slices_per_coarse: int

    def slice(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """`RIGHT`, `LEFT` or 0 of each voxel of a slice, a new array.

        Raises:
            GeometryError: If there is no such slice.
            ScanError: If the slice can not be decoded.
        """
        hu = self.volume.slice_hu(index)
        cell = min(index // self.slices_per_coarse, len(self.coarse) - 1)
        size_wh, spacing = hu.shape[::-1], self.volume.spacing_mm
        radius_px = round(_CLOSING_MM / spacing[2] if spacing else _CLOSING_OF_WIDTH * size_wh[0])
        airy = hu < AIRY_HU
        labels = np.zeros(hu.shape, np.uint8)
        for side in SIDES.values():
            # Grown by a cell of the coarse grid, so that the edge is the volume's own.
            around = _resized(ndimage.binary_dilation(self.coarse[cell] == side, np.ones((3, 3))), size_wh)
            found = (airy & around) | _resized(self.enclosed[cell] == side, size_wh)
            labels[_closed(found & (labels == 0), radius_px) & (labels == 0)] = side
        return labels

    def slices(self) -> Iterator[UInt8[np.ndarray, "h w"]]:
        """`slice` of all slices, from the feet to the head."""
        return (self.slice(index) for index in range(self.volume.shape[0]))


def find_lungs(volume: Volume) -> Lungs:
    """Find the lungs of a volume of Hounsfield units. Reads each slice once and keeps a coarse grid.

    Args:
        volume: Of the chest, or a part of it; without geometry it is taken for axial.

    Returns:
        The lungs; empty where there is no air inside a body.

    Raises:
        UnsupportedScan: If its values are no Hounsfield units.
        ScanError: If no slice can be decoded; a slice that can not is taken for what lies beside it.
    """
    if not volume.source.is_hu:
        volume.slice_hu(0)
    spacing = volume.spacing_mm
    needed = -(-volume.shape[0] // _COARSE_SLICES)
    per_coarse = max(1, needed, round(_COARSE_MM / spacing[0]) if spacing else 1)
    airy = _coarse_hu(volume, per_coarse) < AIRY_HU
    sides, _ = _sides(_inside(airy))
    enclosed = np.zeros_like(sides)
    for side in SIDES.values():
        enclosed[ndimage.binary_fill_holes(sides == side) & (sides == 0)] = side
    return Lungs(volume, sides, enclosed, per_coarse)


def lungs_of_grey(pixels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The lungs of one axial slice that is grey already, whatever window it was put through.

    Args:
        pixels: Grey for display: air is dark; row 0 is the front, the patient's right is on the left.

    Returns:
        `RIGHT`, `LEFT` or 0.

    Raises:
        GeometryError: If `pixels` is not uint8 of two axes.
    """
    smooth = _smooth(pixels)
    threshold, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return _labelled(_inside((smooth <= threshold)[None])[0])[0]


def lungs_told_apart(pixels: UInt8[np.ndarray, "h w"]) -> tuple[UInt8[np.ndarray, "h w"], bool]:
    """As `lungs_of_grey`, to be measured: with edges half-way between lung and body, whatever air there is around.

    Returns:
        The lungs, and whether there are two that could be parted: else sides are halves of the picture.

    Raises:
        GeometryError: If `pixels` is not uint8 of two axes.
    """
    smooth = _smooth(pixels)
    threshold, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    airy = _inside((smooth <= threshold)[None])[0]
    if airy.any():
        half_way = (np.median(smooth[airy]) + np.median(smooth[smooth > threshold])) / 2
        airy = ndimage.binary_dilation(airy, np.ones((3, 3))) & (smooth <= half_way)
    return _labelled(airy)


def body_of(pixels: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The body in an axial slice: the largest bright piece and all that it encloses; not the table, not the air around.

    Args:
        pixels: Grey for display: air is dark.

    Raises:
        GeometryError: If `pixels` is not uint8 of two axes.
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise GeometryError(f"expected pixels of uint8[h, w], got {pixels.dtype}{list(pixels.shape)}")
    _, bright = cv2.threshold(cv2.GaussianBlur(pixels, (3, 3), 0), 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(bright, connectivity=4)
    if count < 2:
        return np.zeros(pixels.shape, bool)
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    return np.asarray(ndimage.binary_fill_holes(labels == largest), dtype=bool)


def within_body(pixels: UInt8[np.ndarray, "h w"], lungs: UInt8[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"] | None:
    """Where marks count in an axial slice: in the convex hull of the body, and in lung.

    The hull, so that no lung is lost that is open to the picture's edge; it leaves out the air around as well.

    Args:
        pixels: Grey for display: air is dark.
        lungs: `RIGHT`, `LEFT` or 0 of each pixel.

    Returns:
        The place; None where the picture does not show the body as a whole (it is cropped to the lungs, say), so that
        lung and the air around can not be told apart and nothing can be left out.

    Raises:
        GeometryError: If `pixels` is not uint8 of two axes.
    """
    body = body_of(pixels)
    outline = cv2.findNonZero(body.astype(np.uint8))
    if outline is None:
        return None
    hull = cv2.fillConvexPoly(np.zeros(body.shape, np.uint8), cv2.convexHull(outline), 1)
    if np.count_nonzero(body) < _WHOLE_BODY * np.count_nonzero(hull):
        return None
    inside: Bool[np.ndarray, "h w"] = (hull > 0) | (lungs != 0)
    return inside


def _smooth(pixels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise GeometryError(f"expected pixels of uint8[h, w], got {pixels.dtype}{list(pixels.shape)}")
    return np.asarray(cv2.GaussianBlur(pixels, (0, 0), pixels.shape[1] / 170), np.uint8)


def _labelled(airy: Bool[np.ndarray, "h w"]) -> tuple[UInt8[np.ndarray, "h w"], bool]:
    sides, apart = _sides(airy[None])
    radius_px = round(_CLOSING_OF_WIDTH * airy.shape[1])
    labels = np.zeros(airy.shape, np.uint8)
    for side in SIDES.values():
        labels[_closed(sides[0] == side, radius_px) & (labels == 0)] = side
    return labels, apart


def _coarse_hu(volume: Volume, per_coarse: int) -> Float32[np.ndarray, "cn ch cw"]:
    count, height, width = volume.shape
    factor = max(1.0, max(height, width) / _COARSE_PX)
    size = (max(1, round(width / factor)), max(1, round(height / factor)))
    cells: list[Float32[np.ndarray, "ch cw"]] = []
    unknown, failure = 0, None
    for first in range(0, count, per_coarse):
        read = []
        for index in range(first, min(first + per_coarse, count)):
            try:
                read.append(cv2.resize(volume.slice_hu(index), size, interpolation=cv2.INTER_AREA))
            except _BROKEN as error:
                failure = failure or error
        if read:
            cell = np.asarray(sum(read) / len(read), np.float32)
            # A cell of which nothing could be read is as the next one, or the one before it.
            cells.extend([cell] * (unknown + 1))
        unknown = 0 if read else unknown + 1
    if not cells:
        assert failure is not None
        raise failure
    return np.stack(cells + cells[-1:] * unknown)


def _inside(airy: Bool[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    """Airy pieces that do not reach the sides of the picture, and are large enough for a lung or a part of one."""
    labels, count = ndimage.label(airy)
    outside = np.unique(np.concatenate([labels[:, [0, -1]].ravel(), labels[:, :, [0, -1]].ravel()]))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[outside] = 0
    sizes[0] = 0
    largest = int(sizes.max())
    keep = (sizes > 0) & (sizes >= _PIECE * largest)
    inside: Bool[np.ndarray, "n h w"] = keep[labels]
    return inside


def _sides(lungs: Bool[np.ndarray, "n h w"]) -> tuple[UInt8[np.ndarray, "n h w"], bool]:
    """Each voxel's lung, and whether two were parted: where both are joined (by the airways, say), by erosion."""
    seeds = _two_cores(lungs)
    if seeds is None:
        return _by_middle(lungs), False
    nearest = ndimage.distance_transform_edt(seeds == 0, return_distances=False, return_indices=True)
    return np.where(lungs, seeds[tuple(nearest)], 0).astype(np.uint8), True


def _two_cores(lungs: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w"] | None:
    """What surely is of one lung: pieces that lie to one side of the middle, after as little erosion as that takes."""
    columns = np.flatnonzero(lungs.any(axis=(0, 1)))
    if not columns.size:
        return None
    # Columns run from the patient's right to the left.
    on_left = np.arange(lungs.shape[2]) > (columns[0] + columns[-1]) / 2
    cores = lungs
    # Within slices alone: they may be few and far apart.
    cross = ndimage.generate_binary_structure(2, 1)[None]
    for _ in range(_MAX_EROSIONS):
        labels, count = ndimage.label(cores)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
        lefts = np.bincount(labels[:, :, on_left].ravel(), minlength=count + 1)[1:]
        left, right = lefts >= _ONE_SIDED * sizes, lefts <= (1 - _ONE_SIDED) * sizes
        smaller, larger = sorted((int(sizes[left].sum()), int(sizes[right].sum())))
        if smaller and smaller >= _SECOND_LUNG * larger and smaller + larger >= _ONE_SIDED * sizes.sum():
            seeds: UInt8[np.ndarray, "n h w"] = np.r_[0, LEFT * left + RIGHT * right].astype(np.uint8)[labels]
            return seeds
        cores = ndimage.binary_erosion(cores, cross)
    return None


def _by_middle(lungs: Bool[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w"]:
    # One lung, or two that can not be parted.
    return np.where(lungs, halves(lungs.shape[2]), 0).astype(np.uint8)


def halves(width: int) -> UInt8[np.ndarray, " w"]:
    """The side of each column by the middle of the picture, which lies near that of the body.

    Columns run from the patient's right to the left.
    """
    return np.where(np.arange(width) < (width - 1) / 2, RIGHT, LEFT).astype(np.uint8)


def _resized(mask: Bool[np.ndarray, "ch cw"], size_wh: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    resized: Bool[np.ndarray, "h w"] = cv2.resize(mask.astype(np.uint8), size_wh, interpolation=cv2.INTER_NEAREST) > 0
    return resized


def _closed(mask: Bool[np.ndarray, "h w"], radius_px: int) -> Bool[np.ndarray, "h w"]:
    """With gaps up to a radius closed, and holes of five such discs filled: vessels, and dense lung in air.

    No larger holes: a dome of the diaphragm is one, too.
    """
    if radius_px <= 0 or not mask.any():
        return mask
    # Room around, or the closing would take the picture's edge for lung.
    room = np.pad(mask.astype(np.uint8), radius_px)
    disc = _disc(radius_px)
    closed = cv2.morphologyEx(room, cv2.MORPH_CLOSE, disc)[radius_px:-radius_px, radius_px:-radius_px] > 0
    labels, count = ndimage.label(ndimage.binary_fill_holes(closed) & ~closed)
    small = np.bincount(labels.ravel(), minlength=count + 1) <= _LARGEST_HOLE * int(disc.sum())
    small[0] = False
    filled: Bool[np.ndarray, "h w"] = closed | small[labels]
    return filled


def _disc(radius_px: int) -> UInt8[np.ndarray, "side side"]:
    disc: UInt8[np.ndarray, "side side"] = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius_px + 1,) * 2)
    return disc
