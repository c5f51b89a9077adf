"""A visitor's CT study: read slice by slice, kept opened from its file with packed masks, drawn a slice at a time."""

from __future__ import annotations

import base64
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8

from serving import windows
from serving.client import PipelineClient
from serving.errors import AmbiguousStudy, GeometryError, LungstreamsError, ScanError
from serving.labels import STREAMS
from serving.overlay import fit, render, stream_layer
from serving.series import read_study
from serving.studies import open_volume
from serving.study_reading import StudyReading
from serving.study_report import SliceReading, StudyReport
from serving.tls import ClientTls
from serving.volumes import Volume
from serving.windows import Window

_DISPLAY_SIDE_PX: Final = 1024
_TOLD_EVERY_S: Final = 0.4
# Bytes matter less than the time that it takes to find them: the picture is looked at for a moment.
_PNG_LEVEL: Final = 3


@dataclass(frozen=True, eq=False)
class StudyView:
    """What a session keeps of a study.

    Attributes:
        volume: Opened from the visitor's files.
        report: What was said of it; its masks are packed.
    """

    volume: Volume
    report: StudyReport

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that ran on any slice."""
        return tuple(stream.name for stream in STREAMS if self.report.masks[stream.name] is not None)

    @property
    def first_shown(self) -> int:
        """The slice to begin with: of those that count, the one most likely of COVID-19."""
        return max(self.report.counted, key=lambda one: one.diagnosis["covid19"]).index

    def draw(self, index: int, streams: Sequence[str], opacity: float, seen: Window) -> UInt8[np.ndarray, "h w 3"]:
        """A slice under the chosen streams.

        Raises:
            GeometryError: If there is no such slice.
            ScanError: If it can not be read any more.
            RequestError: If the opacity is not in `[0, 1]`.
        """
        try:
            pixels = self._grey(index, seen)
        except (ScanError, GeometryError):
            if not 0 <= index < self.volume.shape[0] or any(one.index == index for one in self.report.slices):
                raise
            # A slice that could not be read: the report's problems say so, and why.
            pixels = np.zeros(self.volume.shape[1:], np.uint8)
        masks = {name: stack for name in self.streams if name in streams and (stack := self.report.masks[name])}
        layers = [
            stream_layer(name, fit(stack.slice(index), _DISPLAY_SIDE_PX, is_mask=True)) for name, stack in masks.items()
        ]
        return render(fit(pixels, _DISPLAY_SIDE_PX, is_mask=False), layers, opacity)

    def _grey(self, index: int, seen: Window) -> UInt8[np.ndarray, "h w"]:
        if self.volume.source.is_hu:
            return windows.through(self.volume.slice_hu(index), seen)
        return self.volume.slice_scan(index).pixels


class Shelf:
    """The studies of all visitors: a few, each for a while. The oldest goes first.

    Args:
        room: How many at most. A packed NIfTI takes up to 2 GiB of disk while it is here.
        kept_s: How long one is kept after it was read, in seconds.
    """

    def __init__(self, room: int, kept_s: float) -> None:
        self._room = room
        self._kept_s = kept_s
        self._lock = threading.Lock()
        self._views: OrderedDict[str, tuple[float, StudyView]] = OrderedDict()

    def put(self, view: StudyView) -> str:
        """Keep a study.

        Returns:
            What to ask for it by; nobody can guess it.
        """
        key = secrets.token_hex(16)
        with self._lock:
            self._forget_old()
            self._views[key] = time.monotonic(), view
            while len(self._views) > self._room:
                self._views.popitem(last=False)
        return key

    def get(self, key: str | None) -> StudyView | None:
        """A study, if it is still kept."""
        with self._lock:
            self._forget_old()
            found = self._views.get(key or "")
        return None if found is None else found[1]

    def drop(self, key: str | None) -> None:
        """Let a study go."""
        with self._lock:
            self._views.pop(key or "", None)

    def _forget_old(self) -> None:
        oldest_s = time.monotonic() - self._kept_s
        for key in [key for key, (put_s, _) in self._views.items() if put_s < oldest_s]:
            del self._views[key]


@dataclass(frozen=True)
class Progress:
    """How far a study is read.

    Attributes:
        done: Slices that were read.
        of: All of them.
        slices: What was said of those that were read.
        report: Of what was read, when it is over; None before, and if nothing was.
        error: What ended it early, if that was an error.
    """

    done: int
    of: int
    slices: tuple[SliceReading, ...] = ()
    report: StudyReport | None = None
    error: LungstreamsError | None = None


def source_of(paths: Sequence[Path]) -> Path | list[Path]:
    """What `open_volume` takes for uploaded files: one file may be a volume or an archive, several are slices."""
    return paths[0] if len(paths) == 1 else list(paths)


def open_study(paths: Sequence[Path], series: int | None) -> Volume | tuple[str, ...]:
    """Open uploaded files as a volume.

    Args:
        paths: The files.
        series: Which of several series, from 0.

    Returns:
        The volume; or the titles of several series, of which one has to be chosen. For the visitor alone: what the
            files call a series may name anybody.

    Raises:
        LungstreamsError: If it can not be read.
    """
    try:
        return open_volume(source_of(paths), series)
    except AmbiguousStudy:
        return tuple(series.title for series in read_study(source_of(paths)).series)


def read_slices(
    url: str,
    volume: Volume,
    thresholds: Mapping[str, float],
    stop: threading.Event,
    *,
    tls: ClientTls | None = None,
    request_id: str | None = None,
) -> Iterator[Progress]:
    """Read a volume, and tell how far it is now and then. Closing the iterator stops the reading.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint.
        volume: What to read.
        thresholds: By name.
        stop: Ends the reading after the slice that it is at.
        tls: For a Triton that speaks TLS.
        request_id: See `StudyReading`.
    """
    count = volume.shape[0]
    slices: list[SliceReading] = []
    yield Progress(0, count)
    error: LungstreamsError | None = None
    with (
        PipelineClient(url, tls=tls, drain_in_background=True) as client,
        StudyReading(client, volume, thresholds, request_id=request_id) as reading,
    ):
        told_s = 0.0
        try:
            for one in reading:
                slices.append(one)
                if stop.is_set():
                    break
                if time.monotonic() - told_s >= _TOLD_EVERY_S:
                    told_s = time.monotonic()
                    yield Progress(len(slices), count, tuple(slices))
        except LungstreamsError as fault:
            error = fault
        report = reading.report() if slices else None
    yield Progress(len(slices), count, tuple(slices), report, error)


def picture(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A drawn slice as a ``data:`` address, so that no file of it is ever written."""
    _, packed = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
    return f"data:image/png;base64,{base64.b64encode(packed.tobytes()).decode()}"
