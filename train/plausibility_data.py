"""What `train.plausibility` fits and tests on, as rows of features: chest scans, and what is none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from rich.progress import track
from scipy import ndimage

from serving.labels import Modality
from serving.lungs import find_lungs, lungs_of_grey
from serving.modality import guess_modality
from serving.phantom import chest_xray, ct_slice
from serving.plausibility_features import WORKING_PX, features
from serving.scans import from_hu
from serving.studies import open_volume
from train import data, not_chest
from train.modality import change, load_scan

Picture = UInt8[np.ndarray, "h w"]

LUNG_SHARE: Final = 0.02
"""A slice of the whole trunk shows lung from this part of its pixels on, by masks of its source or `serving.lungs`."""
TURNS: Final = ("clockwise", "half", "anticlockwise", "flipped", "inverted")
_FILLED: Final = "CT slices with filled lungs"
MADE: Final = (_FILLED, "shuffled", "a piece of")
"""How kinds begin that are made of chest scans."""
_ABDOMEN: Final = "CT of the abdomen, drawn"
_SHARE: Final = 0.15
"""How many of the scans are also turned, shuffled and cut into pieces."""
_FILLED_SHARE: Final = 0.3
_SMALLEST_FILLED: Final = 0.03
_NODULES: Final = 150


@dataclass(frozen=True)
class Row:
    """One picture.

    Attributes:
        values: Its features.
        modality: What it is, or for what is no chest scan, what `serving.modality` takes it for.
        kind: Its source, or the kind of what it is instead of a chest scan.
        group: ``chest``, ``no_lung``, ``turned``, ``not_chest``.
        split: `data.Split`; of other pictures too, by chance.
        change: Empty as it is; else what was done to it.
    """

    values: Float32[np.ndarray, " features"] = field(repr=False)
    modality: Modality
    kind: str
    group: str
    split: data.Split
    change: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by column.

    Attributes:
        rows: Them.
    """

    rows: tuple[Row, ...]

    @property
    def values(self) -> Float32[np.ndarray, "n features"]:
        """Features of all rows."""
        return np.stack([row.values for row in self.rows])

    def where(self, **wanted: str | Sequence[str]) -> Table:
        """The rows whose attributes are those wanted, or among them."""

        def fits(row: Row) -> bool:
            return all(
                getattr(row, name) == value if isinstance(value, str) else getattr(row, name) in value
                for name, value in wanted.items()
            )

        return Table(tuple(row for row in self.rows if fits(row)))

    def without(self, kind: str) -> Table:
        """The rows of all other kinds."""
        return Table(tuple(row for row in self.rows if row.kind != kind))

    def read_as(self, modality: Modality) -> Table:
        """The same rows, as if they had been read as a modality."""
        return Table(tuple(replace(row, modality=modality) for row in self.rows))

    def grouped(self, group: str) -> Table:
        """The same rows as of another group."""
        return Table(tuple(replace(row, group=group) for row in self.rows))

    def kinds(self) -> list[str]:
        """Kinds, in alphabetical order."""
        return sorted({row.kind for row in self.rows})

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Table) -> Table:
        return Table(self.rows + other.rows)


def row(
    pixels: Picture, kind: str, group: str, split: data.Split, modality: Modality | None = None, change: str = ""
) -> Row:
    """A picture as a row; without a modality, as ``auto`` would take it."""
    return Row(features(pixels), modality or guess_modality(pixels), kind, group, split, change)


def scans(root: Path, seed: int) -> Table:
    """Real chest scans by source: as they are, changed, some turned; and what is made of them that is none."""
    listed = [*data.recognition(root), *data.segmentation(root)]
    examples = list({example.path: example for example in listed}.values())
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for example in track(examples, "decoding"):
        pixels = _working_size(load_scan(example, root, soft_window=False).pixels)
        rows += _of_scan(example, root, pixels, rng)
        if example.stored_hu:
            soft = _working_size(load_scan(example, root, soft_window=True).pixels)
            rows += [_named(example, soft, "chest" if _shows_lung(example, root, pixels) else "no_lung", "soft window")]
    return Table(tuple(rows))


def _of_scan(example: data.Example, root: Path, pixels: Picture, rng: np.random.Generator) -> Iterator[Row]:
    group = "chest" if _shows_lung(example, root, pixels) else "no_lung"
    yield _named(example, pixels, group, "")
    yield _named(example, change(pixels, rng), group, "changed")
    if rng.random() < _SHARE and group == "chest":
        copies = [*(np.rot90(pixels, -turns) for turns in (1, 2, 3)), pixels[::-1], 255 - pixels]
        for turn, copy in zip(TURNS, copies, strict=True):
            yield _named(example, np.ascontiguousarray(copy), "turned", turn)
    filled = _filled(pixels, rng) if example.modality == "ct" and rng.random() < _FILLED_SHARE else None
    if filled is not None:
        yield row(filled, _FILLED, "no_lung", example.split, "ct", "filled")
    for kind, make in (("shuffled", _shuffled), ("a piece of", _piece)):
        if rng.random() < _SHARE:
            yield row(make(pixels, rng), f"{kind} {example.modality}", "not_chest", example.split, example.modality)


def _named(example: data.Example, pixels: Picture, group: str, change: str) -> Row:
    source = example.source.removeprefix("healthy: ").removeprefix("ct_classification: ").removeprefix("xray: ")
    return row(pixels, source, group, example.split, example.modality, change)


def _shows_lung(example: data.Example, root: Path, pixels: Picture) -> bool:
    if example.source == "covid19_ct_seg":
        mask = cv2.imread(str(root / example.path.replace("/images/", "/lung_masks/")), cv2.IMREAD_GRAYSCALE)
        return float((mask > 0).mean()) >= LUNG_SHARE
    if example.source == "nsclc_plethora":
        return float((lungs_of_grey(pixels) > 0).mean()) >= LUNG_SHARE
    # The others were chosen by their sources because they show lungs.
    return True


def _working_size(pixels: Picture) -> Picture:
    factor = min(1.0, 2 * WORKING_PX / max(pixels.shape))
    return np.asarray(cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def _filled(pixels: Picture, rng: np.random.Generator) -> Picture | None:
    """A slice whose enclosed air is made tissue; None where little is enclosed, as in slices cropped to the lungs."""
    smooth = cv2.GaussianBlur(pixels, (0, 0), 1.5)
    threshold, _ = cv2.threshold(smooth, 0, 255, cv2.THRESH_OTSU)
    body = smooth > threshold
    holes = ndimage.binary_fill_holes(body) & ~body
    if holes.mean() < _SMALLEST_FILLED:
        return None
    tissue = rng.normal(float(np.median(pixels[body])), rng.uniform(2, 10), pixels.shape).astype(np.float32)
    share = cv2.GaussianBlur(cv2.dilate(holes.astype(np.float32), np.ones((5, 5))), (0, 0), 2)
    return np.asarray(np.uint8(np.clip(pixels + (tissue - pixels) * share, 0, 255)))


def _shuffled(pixels: Picture, rng: np.random.Generator) -> Picture:
    side = int(rng.integers(2, 5))
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    tiles = pixels[: height * side, : width * side].reshape(side, height, side, width).swapaxes(1, 2)
    tiles = tiles.reshape(side * side, height, width)[rng.permutation(side * side)]
    return np.ascontiguousarray(tiles.reshape(side, side, height, width).swapaxes(1, 2).reshape(height * side, -1))


def _piece(pixels: Picture, rng: np.random.Generator) -> Picture:
    size = np.maximum(32, np.array(pixels.shape) * rng.uniform(0.15, 0.35)).astype(int)
    top, left = (int(rng.integers(0, max(1, whole - part))) for whole, part in zip(pixels.shape, size, strict=True))
    return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])


def volume_slices(root: Path) -> Table:
    """Slices of a volume of one test patient, from below the lungs to above them."""
    volume = open_volume(next((root / "volumes").glob("*_ct.nii.gz")))
    lungs = find_lungs(volume)
    rows = []
    for index in range(volume.shape[0]):
        share = float((lungs.slice(index) > 0).mean())
        # Between the two a slice may be called either.
        if share == 0 or share >= LUNG_SHARE:
            pixels = from_hu(volume.slice_hu(index)).pixels
            rows.append(row(pixels, "a volume", "chest" if share else "no_lung", "test", "ct"))
    return Table(tuple(rows))


def phantoms(count: int) -> Table:
    """Drawn chest scans, half of them for tests: the page shows some as examples."""
    rows = []
    for seed in range(count):
        split: data.Split = "test" if seed < count // 2 else "train"
        lesions = {name: bool(seed >> i & 1) for i, name in enumerate(("ground_glass", "consolidation"))}
        rows.append(row(ct_slice(seed, WORKING_PX, **lesions).pixels, "drawn CT slice", "chest", split, "ct"))
        rows.append(row(chest_xray(seed, WORKING_PX), "drawn X-ray", "chest", split, "xray"))
    return Table(tuple(rows))


def others(root: Path, packages: Path | None, count: int, seed: int) -> Table:
    """What is no chest scan: drawn, of packages, and nodules cut out of slices.

    Args:
        root: Folder of the real scans.
        packages: See `not_chest.of_packages`; None for what is drawn alone.
        count: Drawn pictures of each kind.
        seed: Of the changes and the drawings.
    """
    rng = np.random.default_rng(seed)
    pictures: Iterable[tuple[str, Picture]] = not_chest.drawn(count, seed)
    rows = [row(pixels, kind, "no_lung" if kind == _ABDOMEN else "not_chest", "train") for kind, pixels in pictures]
    for kind, pixels in not_chest.of_packages(packages) if packages else ():
        rows.append(row(pixels, kind, "not_chest", "train"))
        for copy in range(12 if kind == "photo" else 3):
            changed = change(pixels, rng)
            cut = _cut(changed, rng) if kind in ("photo", "texture") and copy > 2 else changed
            rows.append(row(cut, kind, "not_chest", "train", change="changed"))
    for example in data.nodules(root)[:_NODULES]:
        pixels = load_scan(example, root, soft_window=False).pixels
        # Never fitted on: a kind of its own for the test.
        rows.append(row(pixels, "a nodule, cut out", "not_chest", "test"))
    return Table(tuple(rows))


def _cut(pixels: Picture, rng: np.random.Generator) -> Picture:
    size = np.maximum(33, np.array(pixels.shape) * rng.uniform(0.4, 0.9)).astype(int)
    top, left = (int(rng.integers(0, max(1, whole - part))) for whole, part in zip(pixels.shape, size, strict=True))
    return np.ascontiguousarray(pixels[top : top + size[0], left : left + size[1]])
