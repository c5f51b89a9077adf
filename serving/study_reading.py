"""A CT study through the pipeline: slice after slice, several under way, a slice's memory at a time.

::

    with PipelineClient() as client, StudyReading(client, open_volume(Path("study.nii.gz"))) as reading:
        for one in reading:
            print(one.index, one.diagnosis["covid19"])
        report = reading.report()

Leaving the loop early stops the study; `report` is then about what was read so far.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from types import MappingProxyType

import cv2
import numpy as np
from jaxtyping import UInt8

from serving import pipeline, wire
from serving.burden import Burden, Tally
from serving.client import PipelineClient
from serving.errors import GeometryError, ScanError
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.lungs import Lungs, find_lungs, lungs_of_grey, within_body
from serving.mask_stacks import MaskStack
from serving.measuring import clipped
from serving.results import CaseReport, resolve_thresholds
from serving.study_report import SliceReading, StudyReport, those_that_count
from serving.volumes import Volume

# Slices are packed for a socket on this machine or the next: speed counts, bytes hardly do.
_PNG_LEVEL = 1
_NAMED = 5
_NOT_A_CHEST = "this may be no study of the chest."

_Sent = tuple[int, UInt8[np.ndarray, "h w"], Future[CaseReport]]
"""Which slice, its pixels as they were sent, and its report to come."""


class StudyReading:
    """Reads a volume once. An iterator over its slices, from the feet to the head, in order.

    Args:
        client: Stays open.
        volume: Its files must stay as they are.
        thresholds: In `[0, 1]` by name; those left out are `pipeline.THRESHOLDS`.
        in_flight: How many slices are under way at most.
        request_id: What the study, and each request for a slice of it, is called in logs. By default one is drawn.

    Raises:
        RequestError: If a threshold is not one that the pipeline has.
    """

    def __init__(
        self,
        client: PipelineClient,
        volume: Volume,
        thresholds: Mapping[str, float] | None = None,
        *,
        in_flight: int = pipeline.MAX_BATCH_SIZE,
        request_id: str | None = None,
    ) -> None:
        self.volume = volume
        self.request_id = request_id or wire.new_request_id()
        self._client = client
        self._thresholds = resolve_thresholds(thresholds)
        self._in_flight = max(1, in_flight)
        self._waiting: deque[_Sent] = deque()
        self._masks = {stream: MaskStack(volume.shape) for stream in STREAM_NAMES}
        self._ran: set[str] = set()
        self._tallies: list[tuple[Tally, Tally]] = []
        self._models: dict[str, str] = {}
        self._doubted: set[int] = set()
        self._slices: list[SliceReading] = []
        self._sent = 0
        self._broken: dict[int, ScanError | GeometryError] = {}
        self._latency_ms = 0.0
        self._lungs: Lungs | None = None

    def __enter__(self) -> StudyReading:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __len__(self) -> int:
        return self.volume.shape[0]

    def __iter__(self) -> Iterator[SliceReading]:
        """Read on from where it is. A slice that can not be decoded is left out, and the report says so.

        Raises:
            ScanError: If no slice can be decoded.
            ServerError: As `PipelineClient.predict`.
        """
        if self._lungs is None and self.volume.source.is_hu:
            self._lungs = find_lungs(self.volume)
        started_s = time.monotonic() - self._latency_ms / 1000
        try:
            # Looked up anew each time: another loop over the same reading may have gone on in between.
            while self._send_ahead():
                read, pixels, future = self._waiting.popleft()
                one = self._take(read, pixels, future.result())
                self._latency_ms = 1000 * (time.monotonic() - started_s)
                yield one
        finally:
            self.stop()

    def stop(self) -> None:
        """Give up what is under way."""
        while self._waiting:
            self._sent, _, future = self._waiting.pop()
            future.cancel()

    def report(self) -> StudyReport:
        """What is known of the slices that were read; it stays as it is when the reading goes on.

        Raises:
            ServerMismatch: If none was.
        """
        return StudyReport(
            shape=self.volume.shape,
            spacing_mm=self.volume.spacing_mm,
            problems=(*self._gaps(), *self.volume.problems),
            slices=tuple(self._slices),
            masks={stream: mask.copy() if stream in self._ran else None for stream, mask in self._masks.items()},
            burden=self._burden(),
            thresholds=self._thresholds,
            models=dict(self._models),
            latency_ms=self._latency_ms,
            request_id=self.request_id,
            doubts=self._doubts(),
        )

    def lungs_of(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """`serving.lungs.RIGHT`, `LEFT` or 0 of each pixel of a slice.

        Raises:
            GeometryError: If there is no such slice.
            ScanError: If it can not be decoded.
        """
        if self._lungs is not None:
            return self._lungs.slice(index)
        return lungs_of_grey(self.volume.slice_scan(index).pixels)

    def _send_ahead(self) -> bool:
        """Have as many slices under way as there may be; whether there is any."""
        while self._sent < len(self) and len(self._waiting) < self._in_flight:
            index = self._sent
            self._sent += 1
            try:
                self._waiting.append(self._send(index))
            except (ScanError, GeometryError) as error:
                self._broken[index] = error
        if not self._waiting and not self._slices and self._broken:
            raise next(iter(self._broken.values()))
        return bool(self._waiting)

    def _send(self, index: int) -> _Sent:
        pixels = self.volume.slice_scan(index).pixels
        _, packed = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, _PNG_LEVEL])
        future = self._client.submit(
            packed.tobytes(), "ct", self._thresholds, measure=False, request_id=self.request_id
        )
        return index, pixels, future

    def _take(self, index: int, pixels: UInt8[np.ndarray, "h w"], report: CaseReport) -> SliceReading:
        empty = np.zeros(self.volume.shape[1:], np.uint8)
        lungs = self.lungs_of(index)
        # Where nobody is, nothing counts and nothing is shown, whatever was marked.
        report = clipped(report, within_body(pixels, lungs))
        for stream, mask in report.masks.items():
            if mask is not None:
                self._ran.add(stream)
                self._masks[stream].put(index, mask)
        found = {name: empty if (mask := report.masks[name]) is None else mask for name in MANIFESTATION_NAMES}
        # With what is marked, and without: whether the slice counts is known when all are read.
        marked, bare = Tally(), Tally()
        marked.add(lungs, found, self.volume.voxel_ml(index))
        bare.add(lungs, dict.fromkeys(MANIFESTATION_NAMES, empty), self.volume.voxel_ml(index))
        self._tallies.append((marked, bare))
        self._models.update(report.models)
        if report.doubts:
            self._doubted.add(index)
        one = SliceReading.of(index, report, int(np.count_nonzero(lungs)))
        self._slices.append(one)
        return one

    def _doubts(self) -> tuple[str, ...]:
        if not any(one.lung_px for one in self._slices):
            return (f"No lung was found in any slice: {_NOT_A_CHEST}",)
        counted = {one.index for one in those_that_count(self._slices)}
        odd = len(counted & self._doubted)
        if 2 * odd <= len(counted):
            return ()
        return (
            f"{odd:,} of {len(counted):,} slices that show lung do not look like slices of a chest: {_NOT_A_CHEST}",
        )

    def _gaps(self) -> tuple[str, ...]:
        broken = sorted(self._broken.items())
        said = [f"slice {i + 1:,} of {len(self):,} is missing, since it can not be read ({why})" for i, why in broken]
        more = (f"{len(said) - _NAMED:,} more slices can not be read",) if len(said) > _NAMED else ()
        return (*said[:_NAMED], *more)

    def _burden(self) -> Burden:
        counted = {one.index for one in those_that_count(self._slices)}
        total = Tally()
        for one, (marked, bare) in zip(self._slices, self._tallies, strict=True):
            total.merge(marked if one.index in counted else bare)
        burden = total.burden()
        if any(one.status["manifestations"] == "ran" for one in self._slices):
            return burden
        # Nobody looked: not the same as nothing found.
        return replace(burden, found=MappingProxyType({}))


def read_volume(
    client: PipelineClient,
    volume: Volume,
    thresholds: Mapping[str, float] | None = None,
    *,
    in_flight: int = pipeline.MAX_BATCH_SIZE,
    request_id: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> StudyReport:
    """Read all slices of a volume and wait for the report.

    Args:
        client: See `StudyReading`.
        volume: See `StudyReading`.
        thresholds: See `StudyReading`.
        in_flight: See `StudyReading`.
        request_id: See `StudyReading`.
        progress: Called after each slice with how many are read, and of how many. What it raises stops the study.

    Raises:
        LungstreamsError: As `StudyReading` does.
    """
    with StudyReading(client, volume, thresholds, in_flight=in_flight, request_id=request_id) as reading:
        for one in reading:
            progress(one.index + 1, len(reading))
        return reading.report()
