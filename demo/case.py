"""One case of a visitor: asked for once, drawn as often as a layer is switched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8

from demo.folders import kept
from serving import scans, windows
from serving.activation import ActivationMaps, render_heat, restore_map
from serving.client import PipelineClient
from serving.dicom_volumes import DicomVoxels
from serving.errors import ScanError
from serving.labels import STREAMS, RequestedModality
from serving.limits import check_file_size
from serving.mask_stacks import MaskStack
from serving.overlay import fit, render, stream_layer
from serving.results import CaseReport
from serving.scans import Scan
from serving.series import read_study
from serving.tls import ClientTls
from serving.windows import LUNG, Window

_DISPLAY_SIDE_PX: Final = 1280
"""No screen shows more of a 3,000-pixel X-ray, and drawing would take seconds."""


@dataclass(frozen=True)
class View:
    """What a session keeps of a case to draw it again, at the size that is shown.

    Attributes:
        pixels: The scan.
        masks: The masks of the streams that ran.
        hu: Hounsfield units at the size of the file; None where it has none.
        maps: What spoke for each diagnosis; None where nobody asked.
    """

    pixels: UInt8[np.ndarray, "h w"]
    masks: Mapping[str, UInt8[np.ndarray, "h w"]]
    hu: Float32[np.ndarray, "file_h file_w"] | None = field(default=None, repr=False)
    maps: ActivationMaps | None = field(default=None, repr=False)

    def draw(
        self, streams: Sequence[str], opacity: float, seen: Window = LUNG, why: str = ""
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The scan under the chosen streams: `all` lowest, then in the order of `STREAMS`.

        Args:
            streams: Names; those that did not run are left out.
            opacity: In `[0, 1]`.
            seen: The window, where there are Hounsfield units.
            why: The diagnosis whose heat is drawn in place of the masks: colours over colours could not be read.
        """
        pixels = self.pixels
        if self.hu is not None and seen != LUNG:
            pixels = fit(windows.through(self.hu, seen), _DISPLAY_SIDE_PX, is_mask=False)
        if self.maps is not None and why in self.maps:
            height, width = pixels.shape
            return render_heat(pixels, restore_map(self.maps.cells(why), (height, width)))
        chosen = [stream.name for stream in STREAMS if stream.name in streams and stream.name in self.masks]
        return render(pixels, [stream_layer(name, self.masks[name]) for name in chosen], opacity)


@dataclass(frozen=True)
class KeptReport:
    """A report whose masks are packed: some kB a session instead of four times the scan.

    Attributes:
        path: The file that it is about, as long as the page keeps it.
        modality: What the scan was taken for.
    """

    path: Path
    modality: str
    _rest: Mapping[str, Any] = field(repr=False)
    _masks: Mapping[str, MaskStack | None] = field(repr=False)

    @classmethod
    def of(cls, path: Path, report: CaseReport) -> KeptReport:
        """Pack a report on the file at `path`."""
        rest = {item.name: getattr(report, item.name) for item in dataclasses.fields(report) if item.name != "masks"}
        return cls(path, report.modality, rest, {name: _packed(mask) for name, mask in report.masks.items()})

    def report(self) -> CaseReport:
        """The report as it was."""
        masks = {name: None if stack is None else stack.slice(0) for name, stack in self._masks.items()}
        return CaseReport(masks=masks, **self._rest)


def read_file(path: Path) -> bytes:
    """The bytes of one scan's file.

    Raises:
        ScanTooLarge: If it is larger than a scan may be; nothing was read.
        UploadGone: If it is not kept any more.
    """
    (path,) = kept([path])
    check_file_size(path)
    return path.read_bytes()


def read_case(
    url: str,
    data: bytes,
    modality: RequestedModality,
    thresholds: Mapping[str, float],
    *,
    explain: bool = False,
    tls: ClientTls | None = None,
) -> tuple[View, CaseReport]:
    """Ask the pipeline for one case.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint.
        data: The file, as it was uploaded.
        modality: What the visitor said it is.
        thresholds: By name, each in `[0, 1]`.
        explain: Whether to ask for what spoke for each diagnosis, too.
        tls: For a Triton that speaks TLS.

    Raises:
        LungstreamsError: Whatever was wrong with the file, the settings or the server.
    """
    # A client a case: the page then holds nothing that would have to be closed with it.
    with PipelineClient(url, tls=tls, drain_in_background=True) as client:
        report = client.predict(data, modality, thresholds, explain=explain)
    scan = scans.decode(data, report.modality)
    masks = {name: fit(mask, _DISPLAY_SIDE_PX, is_mask=True) for name, mask in report.masks.items() if mask is not None}
    return View(fit(scan.pixels, _DISPLAY_SIDE_PX, is_mask=False), masks, _hu(data, scan), report.activation), report


def _hu(data: bytes, scan: Scan) -> Float32[np.ndarray, "h w"] | None:
    """The Hounsfield units behind a CT slice, in the file's own order of rows and columns."""
    if scan.source_format != "dicom" or scan.modality != "ct":
        return None
    try:
        voxels = DicomVoxels(read_study(data).choose().planes)
        return voxels.plane(0, 0) if voxels.is_hu and voxels.shape == (1, *scan.size_hw) else None
    except ScanError:
        # It was read as a picture: one without windows is better than none.
        return None


def _packed(mask: UInt8[np.ndarray, "h w"] | None) -> MaskStack | None:
    if mask is None:
        return None
    height, width = mask.shape
    stack = MaskStack((1, height, width))
    stack.put(0, mask)
    return stack
