"""What tells a chest scan from another picture, as numbers: outlines, coarse greys, fineness, and what may be lung.

The lungs of `serving.lungs` are those of a volume or of a slice that shows the whole body. Here a slice may be cropped
to the lungs, or lie in a round field that is darker than they are, and a coarse answer is enough: two thresholds,
and what does not reach a corner of the picture.
"""

from __future__ import annotations

from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from numpy.typing import ArrayLike

from serving import modality

WORKING_PX: Final = 256
"""Longest side that anything here looks at."""
_GREY_PX: Final = 128
_THUMBNAIL_PX: Final = 12
_OCTAVES: Final = 5
_GREYS: Final = 32
_QUANTILES: Final = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
_GRID: Final = 8
# Greys apart, at most, within a row or column of a frame: JPEG's ringing.
_EVEN: Final = 12
# Of the picture's area: smaller is gas in the bowel, the windpipe, noise.
_PIECE: Final = 0.004
# Of the picture's edge: what lies along more of it is what surrounds a body.
_ALONG_EDGE: Final = 0.2
_LUNG_NUMBERS: Final = 16
FEATURES: Final = (
    modality.FEATURES + _THUMBNAIL_PX**2 + _OCTAVES + 7 + len(_QUANTILES) + 2 * _LUNG_NUMBERS + _GRID**2 + 2
)


def features(pixels: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, " features"]:
    """The numbers.

    Args:
        pixels: Grey for display: air is dark. Of any size.

    Returns:
        `FEATURES` finite numbers, each of its own unit. An even frame around the picture changes none of them.
    """
    small = _without_frame(_shrunk(pixels, WORKING_PX))
    return _joined(modality.features(small), _greys(small), _lungs(_shrunk(small, _GREY_PX)))


def _joined(*numbers: ArrayLike) -> Float32[np.ndarray, " numbers"]:
    joined: Float32[np.ndarray, " numbers"] = np.concatenate(numbers).astype(np.float32)
    return joined


def _without_frame(pixels: UInt8[np.ndarray, "h w"]) -> UInt8[np.ndarray, "new_h new_w"]:
    rows, columns = (np.flatnonzero(np.ptp(pixels, axis=axis) > _EVEN) for axis in (1, 0))
    if not rows.size or not columns.size:
        return pixels
    return np.ascontiguousarray(pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _shrunk(pixels: UInt8[np.ndarray, "h w"], side_px: int) -> UInt8[np.ndarray, "new_h new_w"]:
    height, width = pixels.shape
    factor = min(1.0, side_px / max(height, width))
    size_wh = (max(1, round(width * factor)), max(1, round(height * factor)))
    shrunk: UInt8[np.ndarray, "new_h new_w"] = cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA)
    return shrunk


def _greys(pixels: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, " numbers"]:
    """Coarse greys without contrast, how much there is at each fineness, levels, and symmetry."""
    square = cv2.resize(pixels, (_GREY_PX, _GREY_PX), interpolation=cv2.INTER_AREA)
    mean, spread = float(square.mean()), float(square.std())
    even = (square.astype(np.float32) - mean) / (spread + 4)
    thumbnail = cv2.resize(even, (_THUMBNAIL_PX, _THUMBNAIL_PX), interpolation=cv2.INTER_AREA).ravel()
    fineness, left = [], even
    for _ in range(_OCTAVES):
        smooth = cv2.GaussianBlur(left, (0, 0), 1.0)
        fineness.append(np.log(float(np.abs(left - smooth).mean()) + 1e-3))
        left = smooth[::2, ::2]
    shares = np.bincount((square >> 3).ravel(), minlength=_GREYS) / square.size
    entropy = -float(np.sum(shares * np.log(np.where(shares > 0, shares, 1))))
    levels = [mean / 255, spread / 128, float((square < 10).mean()), float((square > 245).mean()), entropy]
    mirrored = [float((even * even[:, ::-1]).mean()), float((even * even[::-1]).mean())]
    return _joined(thumbnail, fineness, levels, mirrored, np.quantile(even, _QUANTILES))


def _lungs(pixels: UInt8[np.ndarray, "h w"]) -> Float32[np.ndarray, " numbers"]:
    smooth = cv2.GaussianBlur(pixels, (0, 0), 1.0)
    first, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_OTSU)
    brighter = smooth[smooth > first]
    # Where a scanner's field lies in black, the first threshold parts the field from the black, and not lung from body.
    second = cv2.threshold(brighter.reshape(1, -1), 0, 255, cv2.THRESH_OTSU)[0] if brighter.size else first
    found = [_enclosed(smooth <= threshold) for threshold in (first, second)]
    described = sorted((_describe(pixels, *one) for one in found), key=lambda numbers: -float(numbers[0]))
    inside = max((mask for mask, _, _ in found), key=lambda mask: int(mask.sum()))
    grid = cv2.resize(inside.astype(np.float32), (_GRID, _GRID), interpolation=cv2.INTER_AREA).ravel()
    either = int((inside | inside[:, ::-1]).sum())
    symmetry = int((inside & inside[:, ::-1]).sum()) / either if either else 0.0
    twice = sum(float(mask.mean()) > 0.02 for mask, _, _ in found)
    return _joined(*described, grid, [symmetry, twice])


_Found = tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"], Float32[np.ndarray, "pieces 5"]]


def _enclosed(dark: Bool[np.ndarray, "h w"]) -> _Found:
    """Dark pieces that may be lung; what is dark; and the pieces' boxes and areas as OpenCV gives them, largest first.

    In a slice that is cropped tightly lungs reach an edge, and air reaches corners.
    """
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(dark.astype(np.uint8), connectivity=4)
    edge = np.concatenate([labels[0], labels[-1], labels[1:-1, 0], labels[1:-1, -1]])
    along_edge = np.bincount(edge, minlength=count) / edge.size
    keep = (boxes[:, cv2.CC_STAT_AREA] > _PIECE * dark.size) & (along_edge < _ALONG_EDGE)
    keep[labels[[0, 0, -1, -1], [0, -1, 0, -1]]] = False
    # Whatever is not dark.
    keep[0] = False
    ids = np.flatnonzero(keep)
    ids = ids[np.argsort(-boxes[ids, cv2.CC_STAT_AREA], kind="stable")]
    return keep[labels], dark, boxes[ids].astype(np.float32)


def _describe(
    pixels: UInt8[np.ndarray, "h w"],
    inside: Bool[np.ndarray, "h w"],
    dark: Bool[np.ndarray, "h w"],
    pieces: Float32[np.ndarray, "pieces 5"],
) -> Float32[np.ndarray, " numbers"]:
    """Area, number, place, reach, balance, grey and shape of what may be lung."""
    height, width = pixels.shape
    numbers = np.zeros(_LUNG_NUMBERS, np.float32)
    numbers[5] = dark.mean()
    if not len(pieces):
        return numbers
    areas = pieces[:, cv2.CC_STAT_AREA] / pixels.size
    rows, columns = np.nonzero(inside)
    reach_wh = np.ptp(columns) + 1, np.ptp(rows) + 1
    body = np.flatnonzero((~dark).any(axis=0))
    left = int(inside[:, : width // 2].sum())
    around = (cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & ~inside
    grey = float(pixels[inside].mean())
    boxes = pieces[:2, cv2.CC_STAT_WIDTH] * pieces[:2, cv2.CC_STAT_HEIGHT]
    numbers[:4] = areas.sum(), areas[0], areas[1] if len(areas) > 1 else 0, len(areas)
    numbers[4] = dark.mean() - areas.sum()
    numbers[6:10] = columns.mean() / width - 0.5, rows.mean() / height - 0.5, reach_wh[0] / width, reach_wh[1] / height
    numbers[10] = reach_wh[0] / (np.ptp(body) + 1) if body.size else 0
    numbers[11] = min(left, len(rows) - left) / len(rows)
    numbers[12:14] = grey / 255, pixels[inside].std() / 64
    numbers[14] = (float(pixels[around].mean()) - grey) / 255 if around.any() else 0
    numbers[15] = float((pieces[:2, cv2.CC_STAT_AREA] / boxes).mean())
    return numbers
