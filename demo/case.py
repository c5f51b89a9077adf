"""One case of a visitor: asked for once, drawn as often as a layer is switched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8

from serving import scans
from serving.client import PipelineClient
from serving.labels import STREAMS, RequestedModality
from serving.overlay import fit, render, stream_layer
from serving.results import CaseReport
from serving.tls import ClientTls

_DISPLAY_SIDE_PX: Final = 1280
"""No screen shows more of a 3,000-pixel X-ray, and drawing would take seconds."""


@dataclass(frozen=True)
class View:
    """What a session keeps of a case to draw it again, at the size that is shown.

    Attributes:
        pixels: The scan.
        masks: The masks of the streams that ran.
    """

    pixels: UInt8[np.ndarray, "h w"]
    masks: dict[str, UInt8[np.ndarray, "h w"]]

    def draw(self, streams: Sequence[str], opacity: float) -> UInt8[np.ndarray, "h w 3"]:
        """The scan under the chosen streams: `all` lowest, then in the order of `STREAMS`."""
        chosen = [stream.name for stream in STREAMS if stream.name in streams and stream.name in self.masks]
        return render(self.pixels, [stream_layer(name, self.masks[name]) for name in chosen], opacity)


def read_case(
    url: str,
    data: bytes,
    modality: RequestedModality,
    thresholds: dict[str, float],
    tls: ClientTls | None = None,
) -> tuple[View, CaseReport]:
    """Ask the pipeline for one case.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint.
        data: The file, as it was uploaded.
        modality: What the visitor said it is.
        thresholds: By name, each in `[0, 1]`.
        tls: For a Triton that speaks TLS.

    Raises:
        LungstreamsError: Whatever was wrong with the file, the settings or the server.
    """
    # A client a case: the page then holds nothing that would have to be closed with it.
    with PipelineClient(url, tls=tls) as client:
        report = client.predict(data, modality, thresholds)
    scan = scans.decode(data, report.modality)
    masks = {name: fit(mask, _DISPLAY_SIDE_PX, is_mask=True) for name, mask in report.masks.items() if mask is not None}
    return View(fit(scan.pixels, _DISPLAY_SIDE_PX, is_mask=False), masks), report
