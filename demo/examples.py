"""Example files for the page, drawn when it starts: no scan of a person is shipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gradio as gr
import numpy as np
from jaxtyping import UInt8

from serving import phantom
from serving.overlay import fit
from serving.phantom_volume import ct_volume, series_zip_bytes

_THUMBNAIL_PX: Final = 96
_SEED_CT_PNG: Final = 3
_SEED_CT_DICOM: Final = 11
_SEED_XRAY: Final = 5
_SEED_STUDY: Final = 3


@dataclass(frozen=True)
class Example:
    """A file that a visitor can try.

    Attributes:
        title: What its button says.
        path: The file.
        thumbnail: A small PNG of it.
    """

    title: str
    path: Path
    thumbnail: Path


def draw_examples(folder: Path) -> tuple[Example, ...]:
    """Draw the examples into a folder: a CT slice as PNG and as DICOM, and an X-ray as PNG."""
    ct_png = phantom.ct_slice(seed=_SEED_CT_PNG).pixels
    ct_dicom = phantom.ct_slice(seed=_SEED_CT_DICOM, pleural_effusion=False).pixels
    xray = phantom.chest_xray(seed=_SEED_XRAY)
    return (
        _write(folder, "CT slice, PNG", "phantom-ct.png", ct_png, phantom.png_bytes),
        _write(folder, "CT slice, DICOM", "phantom-ct.dcm", ct_dicom, _ct_dicom_bytes),
        _write(folder, "Chest X-ray, PNG", "phantom-xray.png", xray, phantom.png_bytes),
    )


def draw_study(folder: Path) -> Example:
    """Draw a CT study into a folder, as a zip of a DICOM series of 24 slices."""
    volume = ct_volume(_SEED_STUDY)
    path = folder / "phantom-study.zip"
    path.write_bytes(series_zip_bytes(volume))
    return Example("CT study, 24 slices", path, _thumbnail(path, volume[len(volume) // 2]))


def example_button(example: Example) -> Any:
    """The button that reads an example."""
    button = gr.Button(example.title, icon=example.thumbnail, size="sm", elem_classes="ls-example")
    # Else Gradio takes the icon for an upload, and deletes it after an hour.
    button.keep_in_cache.add(button.icon["path"])
    return button


def _ct_dicom_bytes(pixels: UInt8[np.ndarray, "h w"]) -> bytes:
    return phantom.dicom_bytes(pixels, modality="ct")


def _write(
    folder: Path,
    title: str,
    name: str,
    pixels: UInt8[np.ndarray, "h w"],
    encode: Callable[[UInt8[np.ndarray, "h w"]], bytes],
) -> Example:
    path = folder / name
    path.write_bytes(encode(pixels))
    return Example(title, path, _thumbnail(path, pixels))


def _thumbnail(path: Path, pixels: UInt8[np.ndarray, "h w"]) -> Path:
    thumbnail = path.with_name(f"{path.stem}-{path.suffix[1:]}-thumbnail.png")
    thumbnail.write_bytes(phantom.png_bytes(fit(pixels, _THUMBNAIL_PX, is_mask=False)))
    return thumbnail
