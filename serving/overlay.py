"""Masks over a scan, as pure functions: nothing here changes what it is given.

A `Layer` is one stream's mask with the colours that it is drawn in. `render` lays the layers over the grey scan
in the order given, so that the last one is on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from serving.errors import GeometryError, RequestError
from serving.labels import ALL_STREAM, BACKGROUND_CLASS, MANIFESTATIONS, STREAMS

RGB = tuple[int, int, int]

OUTLINE_GAIN: Final = 2.5
"""Outlines are this much more opaque than the fill, at most 1, so that a faint layer still has an edge."""

_OUTLINE_PER_SIDE: Final = 1 / 512
"""Width of an outline in pixels, per pixel of the longer side: one pixel in model space."""


@dataclass(frozen=True)
class Layer:
    """One mask and how it is drawn.

    Attributes:
        mask: Class ids; `BACKGROUND_CLASS` is not drawn.
        colours: Fill of each class id in the mask.
        outline: Colour of the edges; None for each class's own fill.
    """

    mask: UInt8[np.ndarray, "h w"]
    colours: Mapping[int, RGB]
    outline: RGB | None = None

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.uint8:
            raise GeometryError(f"expected a uint8 mask (h, w), got {self.mask.dtype} {self.mask.shape}")
        unknown = set(np.unique(self.mask).tolist()) - set(self.colours) - {BACKGROUND_CLASS}
        if unknown:
            raise GeometryError(f"expected class ids of {sorted(self.colours)}, got {sorted(unknown)}")
        object.__setattr__(self, "colours", MappingProxyType(dict(self.colours)))


def stream_layer(stream: str, mask: UInt8[np.ndarray, "h w"]) -> Layer:
    """The layer of a stream, in the colours of `serving.labels`.

    The mask of `all` holds class ids: each is filled in its manifestation's colour, and `all`'s own colour draws
    the edges, so that it can be told from the layers of the single streams.

    Args:
        stream: One of `STREAM_NAMES`.
        mask: For `all` class ids, for the others 0 and 1.

    Raises:
        RequestError: If there is no such stream.
        GeometryError: If the mask has another class id.
    """
    for label in STREAMS:
        if label.name != stream:
            continue
        if label is ALL_STREAM:
            fills = {i: manifestation.colour_rgb for i, manifestation in enumerate(MANIFESTATIONS, start=1)}
            return Layer(mask, fills, outline=ALL_STREAM.colour_rgb)
        return Layer(mask, {1: label.colour_rgb})
    raise RequestError(f"expected a stream of {', '.join(s.name for s in STREAMS)}, got {stream!r}")


def render(
    pixels: UInt8[np.ndarray, "h w"], layers: Sequence[Layer] = (), opacity: float = 0.45
) -> UInt8[np.ndarray, "h w 3"]:
    """Lay masks over a scan.

    Args:
        pixels: The grey scan, `[0, 255]`, row 0 at the top.
        layers: Drawn in this order: the last is on top.
        opacity: Of the fills, in `[0, 1]`. At 0 the result is the scan, at 1 a mask hides what is under it.

    Returns:
        RGB in `[0, 255]`, a new array.

    Raises:
        GeometryError: If `pixels` is not `(h, w)` of uint8 or a mask has another size.
        RequestError: If `opacity` is not in `[0, 1]`.
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise GeometryError(f"expected uint8 pixels (h, w), got {pixels.dtype} {pixels.shape}")
    if not 0.0 <= opacity <= 1.0:
        raise RequestError(f"expected an opacity in [0, 1], got {opacity}")
    canvas: Float32[np.ndarray, "h w 3"] = np.repeat(pixels[..., None], 3, axis=-1).astype(np.float32)
    outline_opacity = min(1.0, OUTLINE_GAIN * opacity)
    for layer in layers:
        if layer.mask.shape != pixels.shape:
            raise GeometryError(f"expected a mask of {pixels.shape} like the scan, got {layer.mask.shape}")
        for class_id, colour in layer.colours.items():
            inside = layer.mask == class_id
            if not inside.any():
                continue
            edge = _edge(inside)
            _blend(canvas, inside & ~edge, colour, opacity)
            _blend(canvas, edge, layer.outline or colour, outline_opacity)
    return np.asarray(np.rint(canvas), dtype=np.uint8)


def fit(array: UInt8[np.ndarray, "h w"], max_side_px: int, *, is_mask: bool) -> UInt8[np.ndarray, "h2 w2"]:
    """Shrink an array so that its longer side is at most `max_side_px`; a smaller one comes back as a copy.

    Args:
        array: Grey pixels or class ids.
        max_side_px: The longest side that a screen needs.
        is_mask: Masks keep their class ids (nearest); pixels are averaged.
    """
    height, width = array.shape
    scale = max_side_px / max(height, width)
    if scale >= 1.0:
        return array.copy()
    size_wh = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = cv2.INTER_NEAREST if is_mask else cv2.INTER_AREA
    return np.asarray(cv2.resize(array, size_wh, interpolation=method), dtype=np.uint8)


def _edge(inside: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The outermost pixels of a region. Where it touches the border of the scan, there is no edge."""
    thickness = max(1, round(max(inside.shape) * _OUTLINE_PER_SIDE))
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    core = cv2.erode(inside.astype(np.uint8), cross, iterations=thickness)
    return np.asarray(inside & (core == 0), dtype=np.bool_)


def _blend(canvas: Float32[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"], colour: RGB, opacity: float) -> None:
    canvas[where] = canvas[where] * (1.0 - opacity) + np.asarray(colour, dtype=np.float32) * opacity
