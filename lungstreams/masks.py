"""Masks as PNG files that look right in a viewer and read back as class ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from serving.labels import ALL_STREAM, MANIFESTATIONS, STREAMS
from serving.results import CaseReport

_BACKGROUND_RGB = (0, 0, 0)


class MaskFolder:
    """Writes masks of many cases into one folder, as ``<stem>.<stream>.png``.

    Files of one run that have the same stem get ``<stem>.2.<stream>.png`` and so on; what an earlier run wrote is
    written over.

    Args:
        folder: Made with the first mask.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[str] = set()

    def write(self, file: Path, report: CaseReport) -> dict[str, str | None]:
        """Write a case's masks.

        Returns:
            Path of each stream's PNG; None where the stream did not run.
        """
        prefix = self._prefix(file)
        paths: dict[str, str | None] = {}
        for stream, mask in report.masks.items():
            paths[stream] = None
            if mask is not None:
                path = self.folder / f"{prefix}.{stream}.png"
                self.folder.mkdir(parents=True, exist_ok=True)
                palette_image(mask, stream).save(path)
                paths[stream] = str(path)
        return paths

    def _prefix(self, file: Path) -> str:
        prefix, n = file.stem, 1
        while prefix in self._taken:
            n += 1
            prefix = f"{file.stem}.{n}"
        self._taken.add(prefix)
        return prefix


def palette_image(mask: UInt8[np.ndarray, "h w"], stream: str) -> Image.Image:
    """A mask as a palette image: its pixels are the class ids, its palette the labels' colours.

    Args:
        mask: Class ids for ``all``, 0 or 1 for the others.
        stream: Which stream it is of.
    """
    label = next(label for label in STREAMS if label.name == stream)
    classes = MANIFESTATIONS if stream == ALL_STREAM.name else (label,)
    image = Image.fromarray(mask)
    image.putpalette([value for rgb in (_BACKGROUND_RGB, *(c.colour_rgb for c in classes)) for value in rgb])
    return image
