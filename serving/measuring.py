"""A single CT slice's report, held against the slice: marks outside of the body taken out, and the burden.

The streams mark corners outside of a scanner's round field, and air beside the body. What is shown, written and counted
is what lies in the body; `PipelineClient.tensors` has the networks' own masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from jaxtyping import Bool, Shaped

from serving.burden import BOTH, INFECTED, SIDE_NAMES, Amount, Area, SliceBurden, Tally
from serving.errors import RequestError
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.lungs import lungs_told_apart, within_body
from serving.overlay import fit
from serving.pipeline import MODEL_HW
from serving.results import CaseReport, area_fraction, nearest
from serving.scans import Scan

# What `lungs_told_apart` takes grows faster than the pixels, and it smooths away what is finer than this.
_LUNGS_PX: Final = 256
# Less lung than this part of the body is a slice above or below the lungs, or some bowel: no per cent of that.
_LEAST_LUNG: Final = 0.02

NO_LUNG: Final = "No lung was found in this slice, or next to none, so there is no per cent of the lung."
NOT_WHOLE: Final = (
    "The picture does not show the whole body (it may be cropped), so lung can not be told from the air around, and "
    "there is no per cent of the lung."
)


def clipped(report: CaseReport, inside: Bool[np.ndarray, "h w"] | None) -> CaseReport:
    """A report without what is marked elsewhere.

    Args:
        report: Stays as it is.
        inside: Where marks count, see `serving.lungs.within_body`; None for everywhere.
    """
    if inside is None:
        return report
    masks = {
        stream: None if mask is None else np.where(inside, mask, np.uint8(0)) for stream, mask in report.masks.items()
    }
    areas = {stream: None if mask is None else area_fraction(mask) for stream, mask in masks.items()}
    return replace(report, masks=masks, area_fraction=areas)


def measured(report: CaseReport, scan: Scan) -> CaseReport:
    """The report of a single scan with its burden, and without marks outside of the body.

    Args:
        report: As `serving.results.build_report` gives it.
        scan: The scan that it is about.

    Returns:
        For a CT slice a new report; that of an X-ray is as it was.

    Raises:
        RequestError: If the report is not about a scan of this size.
    """
    if report.size_hw != scan.size_hw:
        raise RequestError(f"expected a scan of {report.size_hw} as in the report, got {scan.size_hw}")
    if report.modality != "ct":
        return report
    labels, are_apart = lungs_told_apart(fit(scan.pixels, _LUNGS_PX, is_mask=False))
    lungs = _at_size(labels, scan.size_hw)
    seen = fit(scan.pixels, max(MODEL_HW), is_mask=False)
    body = within_body(seen, _at_size(labels, (seen.shape[0], seen.shape[1])))
    inside = None if body is None else _at_size(body, scan.size_hw)
    report = clipped(report, inside)
    return replace(report, burden=_burden(report, scan, lungs, inside, are_apart=are_apart))


def _burden(
    report: CaseReport,
    scan: Scan,
    lungs: Shaped[np.ndarray, "h w"],
    inside: Bool[np.ndarray, "h w"] | None,
    *,
    are_apart: bool,
) -> SliceBurden:
    note = None
    if inside is None:
        note = NOT_WHOLE
    elif np.count_nonzero(lungs) < _LEAST_LUNG * np.count_nonzero(inside):
        note = NO_LUNG
    masks = {stream: mask for stream in STREAM_NAMES if (mask := report.masks[stream]) is not None}
    tally = Tally(tuple(masks))
    spacing = scan.pixel_spacing_mm
    # A tally adds up whatever a pixel is worth: here mm2.
    tally.add(lungs, masks, None if spacing is None else np.full((1, 1), spacing[0] * spacing[1]))
    counted = tally.burden()
    # Nobody looked: not the same as nothing found.
    looked = [INFECTED] if any(name in masks for name in MANIFESTATION_NAMES) else []
    found = {name: _areas(counted.found[name], note, are_apart=are_apart) for name in (*looked, *masks)}
    if note is None:
        return SliceBurden(_areas(counted.lung, None, are_apart=are_apart), found)
    nothing = Area(0, None if spacing is None else 0.0, None) if note is NO_LUNG else None
    return SliceBurden({side: nothing if side == BOTH else None for side in SIDE_NAMES}, found, note)


def _areas(amounts: Mapping[str, Amount], note: str | None, *, are_apart: bool) -> dict[str, Area | None]:
    areas: dict[str, Area | None] = dict.fromkeys(SIDE_NAMES)
    for side, amount in amounts.items():
        if side == BOTH or (are_apart and note is None):
            areas[side] = Area(amount.pixels, amount.ml, amount.percent if note is None else None)
    return areas


def _at_size(array: Shaped[np.ndarray, "h w"], size_hw: tuple[int, int]) -> Shaped[np.ndarray, "h2 w2"]:
    rows, columns = (nearest(have, want) for have, want in zip(array.shape, size_hw, strict=True))
    return np.asarray(array[rows[:, None], columns])
