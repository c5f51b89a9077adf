"""A case as a picture: the scan with the masks of its specialised streams; a study as a montage.

A scan's picture has the scan's own pixels and nothing else, so that it can be laid over it. Of a study a reader
wants to see where something is, not 300 files: up to `MOST_TILES` of the slices that show enough lung, the most
affected ones, no two of them close together, from the feet to the head; where nothing is marked, slices spread evenly
over the lungs. Every slice's mask is in the kinds ``nifti`` and ``seg``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from serving.exports.about import RESEARCH_USE
from serving.exports.case import Case
from serving.labels import MANIFESTATION_NAMES, MANIFESTATIONS
from serving.overlay import render, stream_layer
from serving.study_report import SliceReading, StudyReport

MOST_TILES: Final = 12
_COLUMNS: Final = 4
_TILE_PX: Final = 320
_GAP_PX: Final = 6
_STRIP_PX: Final = 40
_TEXT_PX: Final = 17
_BACK, _FORE, _DIM = (17, 17, 17), (245, 245, 245), (170, 170, 170)


def no_picture(case: Case) -> str | None:
    """Why there are no masks to draw, if so."""
    return None if case.ran else "expected a case in which a segmentation stream ran, got one in which none did"


def drawn(case: Case, index: int = 0) -> UInt8[np.ndarray, "h w 3"]:
    """A scan, or a slice of a study, with the masks of the single manifestations that ran."""
    masks = case.masks(index)
    return render(case.picture(index), [stream_layer(n, masks[n]) for n in MANIFESTATION_NAMES if n in masks])


def affected(one: SliceReading) -> float:
    """The marked part of a slice by the single manifestations' streams; what two of them mark counts twice."""
    return sum(one.area_fraction[name] or 0.0 for name in MANIFESTATION_NAMES)


def chosen_slices(study: StudyReport, most: int = MOST_TILES) -> tuple[int, ...]:
    """The slices to show: the most affected ones of those that count, not close together, in axial order."""
    counted = study.counted
    # What is marked beside the lungs is shown only where nothing is marked in them: networks err there.
    among = counted if any(map(affected, counted)) else study.slices
    marked = sorted((one for one in among if affected(one) > 0), key=lambda one: (-affected(one), one.index))
    if not marked:
        spread = np.linspace(0, len(counted) - 1, min(most, len(counted))).round().astype(int)
        return tuple(counted[i].index for i in spread)
    indices = [one.index for one in marked]
    apart = max(1, (max(indices) - min(indices) + 1) // most)
    kept: list[int] = []
    for index in indices:
        if len(kept) < most and all(abs(index - other) >= apart for other in kept):
            kept.append(index)
    return tuple(sorted(kept))


def montage(case: Case, most: int = MOST_TILES, *, legend: bool = True) -> Image.Image:
    """The montage of a study, with numbers of slices.

    Args:
        case: A study.
        most: How many slices at most.
        legend: Whether to write below it which colour is what.
    """
    study = case.study
    assert study is not None
    chosen = chosen_slices(study, most)
    by_index = {one.index: one for one in study.slices}
    tiles = [_tile(case, by_index[index], study) for index in chosen]
    columns = min(_COLUMNS, len(tiles))
    width, height = max(tile.width for tile in tiles), max(tile.height for tile in tiles)
    rows = -(-len(tiles) // columns)
    strip = _STRIP_PX if legend else 0
    size_wh = columns * (width + _GAP_PX) + _GAP_PX, rows * (height + _GAP_PX) + _GAP_PX + strip
    sheet = Image.new("RGB", size_wh, _BACK)
    for i, tile in enumerate(tiles):
        row, column = divmod(i, columns)
        sheet.paste(tile, (_GAP_PX + column * (width + _GAP_PX), _GAP_PX + row * (height + _GAP_PX)))
    if legend:
        _legend(sheet)
    return sheet


def picture(case: Case) -> Image.Image:
    """What is written: the scan with its masks, or the montage of a study."""
    return Image.fromarray(drawn(case)) if case.study is None else montage(case)


def write_overlay(case: Case, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write ``<prefix>.overlay.png``.

    Raises:
        ScanError: If a slice can not be decoded.
    """
    path = folder / f"{prefix}.overlay.png"
    picture(case).save(path, "PNG")
    return (path,)


def _tile(case: Case, one: SliceReading, study: StudyReport) -> Image.Image:
    rgb = drawn(case, one.index)
    height, width = rgb.shape[:2]
    # Pixels need not be square: a reader wants to see the body as it is.
    row_mm, column_mm = study.spacing_mm[1:] if study.spacing_mm is not None else (1.0, 1.0)
    scale = _TILE_PX / max(height * row_mm, width * column_mm)
    size_wh = max(1, round(width * column_mm * scale)), max(1, round(height * row_mm * scale))
    shrinks = size_wh[0] < width
    resized = cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    tile = Image.fromarray(np.asarray(resized, np.uint8))
    _label(tile, f"{one.index + 1} / {study.shape[0]}   {affected(one):.1%} marked")
    return tile


def _font(size_px: int = _TEXT_PX) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size_px)


def _label(tile: Image.Image, text: str) -> None:
    brush = ImageDraw.Draw(tile)
    brush.text((8, 6), text, fill=_FORE, font=_font(), stroke_width=2, stroke_fill=(0, 0, 0))


def _legend(sheet: Image.Image) -> None:
    brush, at = ImageDraw.Draw(sheet), 12.0
    top = sheet.height - _STRIP_PX + 10
    for label in MANIFESTATIONS:
        brush.rectangle((at, top + 2, at + 16, top + 18), fill=label.colour_rgb)
        brush.text((at + 24, top), label.title, fill=_FORE, font=_font())
        at += 24 + brush.textlength(label.title, font=_font()) + 24
    for note in _notes():
        left = sheet.width - 12 - brush.textlength(note, font=_font())
        if left > at:
            brush.text((left, top), note, fill=_DIM, font=_font())
            return


def _notes() -> Sequence[str]:
    return (f"Slices from the feet to the head. {RESEARCH_USE}", RESEARCH_USE, "Research use only.")
