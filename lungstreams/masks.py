"""Masks as files that look right in a viewer and read back as class ids: PNG for a scan, NIfTI or PNGs for a study.

And explanations, as pictures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from serving import exports
from serving.activation import render_heat
from serving.labels import ALL_STREAM, MANIFESTATIONS, STREAM_NAMES, STREAMS
from serving.results import CaseReport
from serving.study_report import StudyReport

_BACKGROUND_RGB = (0, 0, 0)


class MaskFolder:
    """Writes masks of many cases below one folder, as ``<prefix>.<stream>.png`` or ``<prefix>.<stream>.nii.gz``.

    What explains a diagnosis goes beside them, as ``<prefix>.why.<diagnosis>.png``.

    Args:
        folder: Made with the first mask.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[str] = set()

    def prefix(self, stem: str) -> str:
        """What the names of a case's files begin with: the stem, or ``<stem>.2`` where it was given out, and so on."""
        prefix, n = stem, 1
        while prefix in self._taken:
            n += 1
            prefix = f"{stem}.{n}"
        self._taken.add(prefix)
        return prefix

    def write(self, prefix: str, report: CaseReport) -> dict[str, str | None]:
        """Write a scan's masks, over those that are there.

        Returns:
            Path of each stream's PNG; None where the stream did not run.
        """
        paths: dict[str, str | None] = {}
        for stream, mask in report.masks.items():
            paths[stream] = None
            if mask is not None:
                path = self.folder / f"{prefix}.{stream}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                _save(palette_image(mask, stream), path)
                paths[stream] = str(path)
        return paths

    def write_explanation(self, prefix: str, report: CaseReport, pixels: UInt8[np.ndarray, "h w"]) -> str | None:
        """Write what speaks for a scan's likeliest diagnosis, as heat over the scan; over the picture that is there.

        Args:
            prefix: See `prefix`.
            report: What was said of the scan.
            pixels: The scan.

        Returns:
            The picture's path; None where the report explains nothing.
        """
        if report.activation is None:
            return None
        likeliest = max(report.diagnosis, key=lambda name: report.diagnosis[name])
        path = self.folder / f"{prefix}.why.{likeliest}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(Image.fromarray(render_heat(pixels, report.activation[likeliest])), path)
        return str(path)

    def write_study(self, prefix: str, case: exports.Case, report: StudyReport) -> dict[str, str | None]:
        """Write a study's masks, over those that are there.

        Args:
            prefix: See `prefix`.
            case: The study.
            report: What was said of it.

        Returns:
            Path of each stream's NIfTI file on the study's own voxels; of a folder with a PNG a slice, named by its
            index, where the study has no such grid; None where the stream did not run.
        """
        paths: dict[str, str | None] = dict.fromkeys(STREAM_NAMES)
        if "nifti" in exports.possible(case):
            place = self.folder / prefix
            for path in exports.write(case, ["nifti"], place.parent, place.name)["nifti"]:
                paths[path.name.removesuffix(".nii.gz").rpartition(".")[2]] = str(path)
            return paths
        for stream, masks in report.masks.items():
            if masks is not None:
                folder = self.folder / f"{prefix}.{stream}"
                folder.mkdir(parents=True, exist_ok=True)
                for one in report.slices:
                    _save(palette_image(masks.slice(one.index), stream), folder / f"{one.index:04d}.png")
                paths[stream] = str(folder)
        return paths


def _save(image: Image.Image, path: Path) -> None:
    try:
        image.save(path)
    except OSError:
        # Half a mask, or an empty one, would be taken for one.
        path.unlink(missing_ok=True)
        raise


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
