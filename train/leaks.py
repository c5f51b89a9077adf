"""Looks for scans that are on both sides of a split.

Three kinds, from certain to likely: a group (patient) in two splits, the same file in two splits, and two scans in two
splits that show the same thing: a copy of another size, crop or brightness, or the neighbouring slice of one patient.
The first two are mistakes in the listing and stop a run. Look-alikes come with sources that give no patient ids;
`train.evaluate` leaves such test scans out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final, Literal

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from serving.errors import DatasetError
from train.batches import Arrays
from train.data import Example
from train.digest import sha256_of

Kind = Literal["group", "file", "look"]

CANDIDATE_SIDE_PX: Final = 24
CANDIDATE_SIGMA_PX: Final = 3.0
CANDIDATE_CORRELATION: Final = 0.65
"""From here on, unaligned and at `CANDIDATE_SIDE_PX`, a pair is aligned."""
ALIGNED_SIDES_PX: Final = (64, 128)
"""At which two aligned scans are compared, the cheap one first: with less detail they correlate by more."""
DETAIL_SIGMA_PX: Final = 4.0
LOOK_CORRELATION: Final = 0.70
"""From here on, aligned, a pair is a look-alike; `docs/decisions.md` says why."""
MIN_OVERLAP: Final = 0.5
LEFT_OUT: Final = "test_scans_left_out"
"""Of a model's figures: `by_source` of the test split."""
_ALIGNMENT: Final = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 60, 1e-4)
_ALIGNMENT_BLUR_PX: Final = 7
_MESSAGE_PAIRS: Final = 10


@dataclass(frozen=True)
class Leak:
    """Two scans of two splits that should be in one.

    Attributes:
        kind: What they share.
        a: One scan.
        b: Another, of another split.
        correlation: Of their details after alignment, for a look-alike; 1 otherwise.
    """

    kind: Kind
    a: Example
    b: Example
    correlation: float = 1.0

    def __str__(self) -> str:
        sides = " and ".join(f"{e.name} ({e.split})" for e in (self.a, self.b))
        return f"{self.kind} {self.a.group}: {sides}" if self.kind == "group" else f"{self.kind}: {sides}"


def _one_a_split(kind: Kind, buckets: Iterable[Sequence[Example]]) -> list[Leak]:
    leaks = []
    for bucket in buckets:
        first = {example.split: example for example in reversed(bucket)}
        leaks += [Leak(kind, first[s], first[t]) for s, t in combinations(sorted(first), 2)]
    return leaks


def shared_groups(examples: Sequence[Example]) -> list[Leak]:
    """Groups that are in more than one split, each pair of splits named by its first scans."""
    buckets: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        buckets[example.group].append(example)
    return _one_a_split("group", buckets.values())


def shared_files(examples: Sequence[Example], root: Path) -> list[Leak]:
    """Files of the same bytes (SHA-256) in more than one split, each pair of splits named by its first scans.

    Of a volume, each slice counts as a file of its own.
    """
    buckets: dict[tuple[str, int | None], list[Example]] = defaultdict(list)
    digests: dict[str, str] = {}
    for example in examples:
        if example.path not in digests:
            digests[example.path] = sha256_of(root / example.path)
        buckets[digests[example.path], example.slice_index].append(example)
    return _one_a_split("file", buckets.values())


def refuse(leaks: Sequence[Leak]) -> None:
    """Stop where there is a leak.

    Raises:
        DatasetError: If there is any; it names the pairs.
    """
    if leaks:
        named = "; ".join(str(leak) for leak in leaks[:_MESSAGE_PAIRS])
        more = f"; and {len(leaks) - _MESSAGE_PAIRS} more" if len(leaks) > _MESSAGE_PAIRS else ""
        raise DatasetError(f"expected no scan on both sides of a split, got {len(leaks)}: {named}{more}")


def refuse_mistakes(examples: Sequence[Example], root: Path) -> None:
    """Stop where a group or a file is in two splits.

    Raises:
        DatasetError: If so; it names the pairs.
    """
    refuse([*shared_groups(examples), *shared_files(examples, root)])


def _shrink(images: Iterable[UInt8[np.ndarray, "h w"]], side_px: int) -> UInt8[np.ndarray, "n side side"]:
    return np.stack([cv2.resize(np.asarray(i), (side_px, side_px), interpolation=cv2.INTER_AREA) for i in images])


def _detail(image: UInt8[np.ndarray, "h w"], sigma_px: float) -> Float32[np.ndarray, "h w"]:
    # Without its coarse shape: any two chests agree in that, and correlate by 0.9 at times.
    grey = image.astype(np.float32)
    return np.asarray(grey - cv2.GaussianBlur(grey, (0, 0), sigma_px))


def _unit(details: Float32[np.ndarray, "n h w"]) -> Float32[np.ndarray, "n h*w"]:
    rows = details.reshape(len(details), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6))


def aligned_correlation(a: UInt8[np.ndarray, "h w"], b: UInt8[np.ndarray, "h w"]) -> float:
    """Normalised cross-correlation of the details of two scans after an affine alignment of `b` with `a`.

    The alignment maximises the enhanced correlation coefficient (Evangelidis and Psarakis 2008), starting from
    none: it undoes a crop, a stretch or a shift of some percent, not a mirror image.

    Returns:
        In `[-1, 1]`; -1 if the two cannot be aligned or overlap by less than `MIN_OVERLAP`.
    """
    first, second = _detail(a, DETAIL_SIGMA_PX), _detail(b, DETAIL_SIGMA_PX)
    if not first.any() or not second.any():
        return -1.0
    try:
        _, matrix = cv2.findTransformECC(
            first, second, np.eye(2, 3, dtype=np.float32), cv2.MOTION_AFFINE, _ALIGNMENT, None, _ALIGNMENT_BLUR_PX
        )
    except cv2.error:  # It did not converge.
        return -1.0
    size_wh = first.shape[::-1]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    inside = cv2.warpAffine(np.ones_like(first), matrix, size_wh, flags=flags) > 0.999
    if inside.mean() < MIN_OVERLAP:
        return -1.0
    pair = np.stack([first[inside], cv2.warpAffine(second, matrix, size_wh, flags=flags)[inside]])
    return float(np.corrcoef(pair)[0, 1]) if pair.std(axis=1).all() else -1.0


def lookalikes(examples: Sequence[Example], images: UInt8[np.ndarray, "n h w"]) -> list[Leak]:
    """Pairs of scans of two splits that show the same thing, the closest first.

    Args:
        examples: One a row of `images`.
        images: As `train.data.load_image` gives them, all splits.
    """
    large = _shrink(images, max(ALIGNED_SIDES_PX))
    sizes = [_shrink(large, side) for side in ALIGNED_SIDES_PX]
    small = _unit(np.stack([_detail(i, CANDIDATE_SIGMA_PX) for i in _shrink(large, CANDIDATE_SIDE_PX)]))
    splits = np.array([e.split for e in examples])
    leaks = []
    for one, other in combinations(sorted(set(splits.tolist())), 2):
        rows, columns = np.flatnonzero(splits == one), np.flatnonzero(splits == other)
        for r, c in np.argwhere(small[rows] @ small[columns].T >= CANDIDATE_CORRELATION):
            i, j = int(rows[r]), int(columns[c])
            for scans in sizes:
                correlation = aligned_correlation(scans[i], scans[j])
                if correlation < LOOK_CORRELATION:
                    break
            else:
                leaks.append(Leak("look", examples[i], examples[j], correlation))
    return sorted(leaks, key=lambda leak: -leak.correlation)


def clean_split(arrays: Arrays, split: str, root: Path) -> tuple[Arrays, list[Leak]]:
    """A split without the scans that look like one of another split.

    Args:
        arrays: All splits.
        split: Which to return.
        root: Of the data.

    Returns:
        The split, and the look-alikes across all splits.

    Raises:
        DatasetError: If a group or a file is in two splits.
    """
    refuse_mistakes(arrays.examples, root)
    leaks = lookalikes(arrays.examples, arrays.images)
    out = {example.name for example in sides(leaks, split)}
    keep = [i for i, e in enumerate(arrays.examples) if e.split == split and e.name not in out]
    return arrays.select(keep), leaks


def sides(leaks: Sequence[Leak], split: str) -> list[Example]:
    """The scans of one split that are part of a leak, each once."""
    return list({e.name: e for leak in leaks for e in (leak.a, leak.b) if e.split == split}.values())


def by_source(leaks: Sequence[Leak], split: str) -> dict[str, int]:
    """How many scans of a split are part of a leak, by source."""
    return dict(sorted(Counter(e.source for e in sides(leaks, split)).items()))
