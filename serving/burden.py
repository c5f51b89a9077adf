"""How much of the lungs is affected: ml (of a single slice, pixels) and per cent, per manifestation, left and right.

**What counts.** Lung is what `serving.lungs` finds, and what is marked as ground glass or consolidation: a threshold
on air misses dense lung. Fluid is beside the lung; its per cent is its volume in relation to that of the lung. What
lies in no lung belongs to the side whose lung is nearest in its slice; where a slice has no lung, to its half.

**How exact.** Of an analytic phantom, marked as it is, volumes and per cents are within 1 %; within 2 % where slices
are not equally far apart or a slice came in another size (`tests/serving/test_burden.py`, `test_measuring.py`).

A slice at a time is added, so that a study costs no more memory than a slice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Shaped, UInt8
from scipy import ndimage

from serving.errors import GeometryError, RequestError
from serving.labels import ALL_STREAM, MANIFESTATION_NAMES
from serving.lungs import SIDES, halves

INFECTED: Final = "infected"
"""The union of all manifestations."""

BOTH: Final = "both"
SIDE_NAMES: Final = (BOTH, *SIDES)
FINDING_NAMES: Final = (INFECTED, *MANIFESTATION_NAMES)

SLICE_FINDING_NAMES: Final = (*FINDING_NAMES, ALL_STREAM.name)
"""Of a single slice: what the network of all manifestations marks is there, too."""

# What is marked as this is lung, whatever its density.
_LUNG_TISSUE: Final = ("ground_glass", "consolidation")


@dataclass(frozen=True)
class Amount:
    """How much there is of something.

    Attributes:
        pixels: Voxels of a volume, pixels of a slice.
        ml: Its volume; None where the file does not say how large voxels are.
        percent: Of the lung (of that side); None where there is no lung.
    """

    pixels: int
    ml: float | None
    percent: float | None


@dataclass(frozen=True)
class Burden:
    """The burden of a study.

    Attributes:
        lung: By side (`SIDE_NAMES`), how large the lung is.
        found: By finding (`FINDING_NAMES`; a manifestation that nobody looked for is left out), then by side.
    """

    lung: Mapping[str, Amount]
    found: Mapping[str, Mapping[str, Amount]]

    def to_json(self) -> dict[str, object]:
        """What `json.dumps` takes."""
        return {
            "lung": {side: vars(amount).copy() for side, amount in self.lung.items()},
            "found": {
                name: {side: vars(amount).copy() for side, amount in sides.items()}
                for name, sides in self.found.items()
            },
        }


@dataclass(frozen=True)
class Area:
    """How much there is of something in a slice.

    Attributes:
        pixels: Pixels of the slice.
        mm2: Their area; None where the file does not say how large pixels are.
        percent: Of the lung (of that side); None where that is not known.
    """

    pixels: int
    mm2: float | None
    percent: float | None


@dataclass(frozen=True)
class SliceBurden:
    """The burden of a single CT slice. No ml: a slice of unknown thickness has no volume.

    Attributes:
        lung: By side (`SIDE_NAMES`), how large the lung is; None for what is not known: for all where `note` says
            so, for each side where the two lungs can not be told apart.
        found: By finding (`SLICE_FINDING_NAMES`; what nobody looked for is left out), then by side, likewise.
        note: Why there are no per cents, as a sentence for a reader; None where there are.
    """

    lung: Mapping[str, Area | None]
    found: Mapping[str, Mapping[str, Area | None]]
    note: str | None = None

    def to_json(self) -> dict[str, object]:
        """What `json.dumps` takes."""
        return {
            "lung": _areas_json(self.lung),
            "found": {name: _areas_json(sides) for name, sides in self.found.items()},
            "note": self.note,
        }


class Tally:
    """Counts slices as they come.

    Args:
        names: What was looked for: manifestations, and `ALL_STREAM` for what the network of all of them marks. The
            latter is counted beside the others; `INFECTED` and the lung are of the single ones alone.

    Raises:
        RequestError: If there is no such manifestation.
    """

    def __init__(self, names: Sequence[str] = MANIFESTATION_NAMES) -> None:
        known = (*MANIFESTATION_NAMES, ALL_STREAM.name)
        for name in names:
            if name not in known:
                raise RequestError(f"expected a manifestation of {', '.join(known)}, got {name!r}")
        self._names = tuple(names)
        self._pixels: Counter[tuple[str, int]] = Counter()
        self._ml: dict[tuple[str, int], float] = defaultdict(float)
        self._sized = True

    def add(
        self,
        lungs: UInt8[np.ndarray, "h w"],
        masks: Mapping[str, Shaped[np.ndarray, "h w"]],
        voxel_ml: Float64[np.ndarray, "h_or_1 w_or_1"] | None,
    ) -> None:
        """Count a slice.

        Args:
            lungs: `serving.lungs.RIGHT`, `LEFT` or 0.
            masks: By manifestation; what is not 0 is marked. All that were looked for. They may overlap.
            voxel_ml: As `serving.volumes.Volume.voxel_ml`; None if it is not known.

        Raises:
            RequestError: If `masks` does not hold just those.
            GeometryError: If a mask is not of the size of `lungs`.
        """
        if set(masks) != set(self._names):
            raise RequestError(f"expected masks of {', '.join(self._names)}, got {', '.join(masks) or 'none'}")
        marked: dict[str, Bool[np.ndarray, "h w"]] = {name: np.asarray(masks[name]) != 0 for name in self._names}
        for name, mask in marked.items():
            if mask.shape != lungs.shape:
                raise GeometryError(f"mask of {name}: expected the size of the lungs {lungs.shape}, got {mask.shape}")
        infected = np.zeros(lungs.shape, bool)
        tissue = lungs != 0
        for name, mask in marked.items():
            if name in MANIFESTATION_NAMES:
                infected |= mask
            if name in _LUNG_TISSUE:
                tissue |= mask
        sides = _sides(lungs, np.logical_or.reduce([tissue, *marked.values()]))
        self._sized &= voxel_ml is not None
        each = np.zeros((1, 1)) if voxel_ml is None else voxel_ml
        for name, mask in {"lung": tissue, INFECTED: infected, **marked}.items():
            for side in SIDES.values():
                self._count(name, side, mask & (sides == side), each)

    def merge(self, other: Tally) -> None:
        """Add what another tally of the same manifestations counted.

        Raises:
            RequestError: If it looked for others.
        """
        if other._names != self._names:
            raise RequestError(f"expected a tally of {', '.join(self._names)}, got one of {', '.join(other._names)}")
        self._pixels.update(other._pixels)
        for key, ml in other._ml.items():
            self._ml[key] += ml
        self._sized &= other._sized

    def burden(self) -> Burden:
        """What was counted so far. A side's per cent is of that side's lung."""
        lung = {side: self._amount("lung", side) for side in SIDE_NAMES}
        return Burden(
            lung={side: Amount(pixels, ml, 100.0 if pixels else None) for side, (pixels, ml) in lung.items()},
            found={
                name: {side: self._of_lung(name, side, lung[side]) for side in SIDE_NAMES}
                for name in (INFECTED, *self._names)
            },
        )

    def _count(
        self, name: str, side: int, mask: Bool[np.ndarray, "h w"], each: Float64[np.ndarray, "h_or_1 w_or_1"]
    ) -> None:
        key = name, side
        count = int(np.count_nonzero(mask))
        self._pixels[key] += count
        if each.size == 1:
            added = float(each.flat[0]) * count
        else:
            added = float(np.sum(np.broadcast_to(each, mask.shape), where=mask))
        self._ml[key] += added

    def _amount(self, name: str, side: str) -> tuple[int, float | None]:
        ids = SIDES.values() if side == BOTH else (SIDES[side],)
        pixels = sum(self._pixels[name, i] for i in ids)
        return pixels, sum(self._ml[name, i] for i in ids) if self._sized else None

    def _of_lung(self, name: str, side: str, lung: tuple[int, float | None]) -> Amount:
        pixels, ml = self._amount(name, side)
        # Of unequal voxels volumes are what counts.
        part, whole = (ml, lung[1]) if ml is not None and lung[1] is not None else (float(pixels), float(lung[0]))
        return Amount(pixels, ml, 100 * part / whole if whole else None)


def _areas_json(sides: Mapping[str, Area | None]) -> dict[str, object]:
    return {side: None if area is None else vars(area).copy() for side, area in sides.items()}


def _sides(lungs: UInt8[np.ndarray, "h w"], wanted: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    """The side of each wanted pixel: its lung's, or that of the nearest lung in the slice, or that of the picture."""
    if not (wanted & (lungs == 0)).any():
        return lungs
    if not lungs.any():
        return np.broadcast_to(halves(lungs.shape[1]), lungs.shape)
    nearest = ndimage.distance_transform_edt(lungs == 0, return_distances=False, return_indices=True)
    sides: UInt8[np.ndarray, "h w"] = lungs[tuple(nearest)]
    return sides
