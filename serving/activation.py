"""Why this diagnosis: class activation maps on the scan's own pixels, and as heat over the scan.

A map holds what each place adds to the logit of a diagnosis: the mean over the network's grid is the logit, and softmax
of the four logits is the diagnosis. Positive values speak for the diagnosis, negative ones against it. The softmax does
not change when all four logits grow by the same, so what decides between two diagnoses is the difference of their maps.

A grid of 6x6 cells shows regions and no outlines, and each cell sees much of the image. A map says what the network
looked at, not where disease is: it may lie outside of the lungs, since the network can tell the sources of its training
scans apart by such places (docs/explanations.json, docs/results.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import cv2
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from serving.errors import GeometryError, RequestError, ServerMismatch
from serving.labels import DIAGNOSIS_NAMES
from serving.pipeline import ACTIVATION, ACTIVATION_FIRST, ACTIVATION_HW, ACTIVATION_STEP

CAUTION: Final = (
    "Heat shows what spoke for the answer, on a grid of 6x6: not where disease is. In the CT slices that this was "
    "measured on, most of it lay outside of the lungs."
)
"""What whoever shows a map must say beside it; docs/explanations.json has the figures."""
HEAT_OPACITY: Final = 0.6
"""Of the strongest evidence in a picture."""
COLOUR_MAP: Final = cv2.COLORMAP_INFERNO
"""Lightness grows evenly with the evidence, for those too who do not see red and green apart, and none of its hues is
that of a stream's mask in a dark scan. Turbo and jet have edges where the evidence has none."""


class ActivationMaps(Mapping[str, Float32[np.ndarray, "h w"]]):
    """The maps of a case by diagnosis, drawn on the scan's own pixels when they are read.

    Four maps of a large X-ray would take a quarter of a gigabyte, and whoever asks looks at one or two.

    Args:
        cells: The ensemble's ``activation``.
        size_hw: Of the scan, in pixels.

    Raises:
        ServerMismatch: If `cells` is not float32 of that shape, or not finite.
    """

    def __init__(self, cells: Float32[np.ndarray, "4 6 6"], size_hw: tuple[int, int]) -> None:
        if cells.shape != ACTIVATION.shape or cells.dtype != np.float32 or not np.isfinite(cells).all():
            got = f"{cells.dtype} of shape {cells.shape}"
            raise ServerMismatch(f"{ACTIVATION.name}: expected finite float32 of shape {ACTIVATION.shape}, got {got}")
        self._cells = dict(zip(DIAGNOSIS_NAMES, cells, strict=True))
        self.size_hw = size_hw

    def __getitem__(self, diagnosis: str) -> Float32[np.ndarray, "h w"]:
        """The map of a diagnosis, a new array."""
        return restore_map(self._cells[diagnosis], self.size_hw)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def cells(self, diagnosis: str) -> Float32[np.ndarray, "6 6"]:
        """A map as the network has it, a new array; its mean is the diagnosis' logit."""
        return np.array(self._cells[diagnosis])


def restore_map(cells: Float32[np.ndarray, "6 6"], size_hw: tuple[int, int]) -> Float32[np.ndarray, "h w"]:
    """Draw a map on the scan's own pixels: bilinear between the centres of the cells' receptive fields.

    Outside of the outermost centres it goes on as it is there. `preprocess` stretches, so a part of the model's side is
    the same part of the scan's side.

    Args:
        cells: One diagnosis of the ensemble's ``activation``; row 0 is the top.
        size_hw: Of the scan, in pixels.

    Returns:
        What each place adds to the logit, a new array.

    Raises:
        GeometryError: If `cells` is not of the network's grid.
    """
    if cells.shape != ACTIVATION_HW:
        raise GeometryError(f"expected a map of {ACTIVATION_HW} cells, got {cells.shape}")
    rows, columns = (_between_cells(size, n) for size, n in zip(size_hw, ACTIVATION_HW, strict=True))
    return np.asarray(rows @ cells.astype(np.float32) @ columns.T, dtype=np.float32)


def _between_cells(size_px: int, n_cells: int) -> Float32[np.ndarray, "size cells"]:
    """How much of each cell a pixel's value is made of: linear interpolation as a matrix, each row summing to 1."""
    cell_of = ((np.arange(size_px) + 0.5) / size_px - ACTIVATION_FIRST) / ACTIVATION_STEP
    each = [np.interp(cell_of, np.arange(n_cells), one) for one in np.eye(n_cells)]
    return np.stack(each, axis=1).astype(np.float32)


def evidence(activation: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """What speaks for a diagnosis, in `[0, 1]`: 1 where most does, 0 where nothing does or something speaks against it.

    Args:
        activation: A map.

    Returns:
        A new array; 0 all over where nothing speaks for it.
    """
    positive = np.clip(activation, 0.0, None)
    highest = float(positive.max(initial=0.0))
    return np.asarray(positive / highest if highest > 0 else positive, dtype=np.float32)


def evidence_inside(activation: Float32[np.ndarray, "h w"], region: Bool[np.ndarray, "h w"]) -> float | None:
    """The part of what speaks for a diagnosis that lies in a region, in `[0, 1]`; None where nothing speaks for it.

    Raises:
        GeometryError: If the region is of another size.
    """
    if activation.shape != region.shape:
        raise GeometryError(f"expected a region of the map's size {activation.shape}, got {region.shape}")
    positive = np.clip(activation, 0.0, None).astype(np.float64)
    total = float(positive.sum())
    return float(positive[region].sum()) / total if total > 0 else None


def render_heat(
    pixels: UInt8[np.ndarray, "h w"], activation: Float32[np.ndarray, "h w"], opacity: float = HEAT_OPACITY
) -> UInt8[np.ndarray, "h w 3"]:
    """Lay what speaks for a diagnosis over a scan, as heat.

    Colour and opacity both follow the evidence, relative to the strongest of this map: heat compares places of one
    scan, not scans. Where nothing speaks for the diagnosis the scan shows as it is.

    Args:
        pixels: The grey scan, `[0, 255]`, row 0 at the top.
        activation: A map on the same pixels.
        opacity: Of the strongest evidence, in `[0, 1]`.

    Returns:
        RGB in `[0, 255]`, a new array.

    Raises:
        GeometryError: If `pixels` is not `(h, w)` of uint8, or the map has another size.
        RequestError: If `opacity` is not in `[0, 1]`.
    """
    if pixels.ndim != 2 or pixels.dtype != np.uint8:
        raise GeometryError(f"expected uint8 pixels (h, w), got {pixels.dtype} {pixels.shape}")
    if activation.shape != pixels.shape:
        raise GeometryError(f"expected a map of {pixels.shape} like the scan, got {activation.shape}")
    if not 0.0 <= opacity <= 1.0:
        raise RequestError(f"expected an opacity in [0, 1], got {opacity}")
    heat = evidence(activation)
    levels = np.rint(heat * 255).astype(np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(levels, COLOUR_MAP), cv2.COLOR_BGR2RGB)
    share = (heat * np.float32(opacity))[..., None]
    grey = np.repeat(pixels[..., None], 3, axis=-1)
    return np.asarray(np.rint(grey * (1 - share) + colours * share), dtype=np.uint8)
