"""A drawn CT volume as files, and how it is taken through the server or through raw ONNX Runtime.

Every slice has its gates open, so each costs all seven models whatever is seen in it. Files are read when there is room
for them and an answer is reduced to a few numbers as it comes: neither side grows with the volume.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from loadtest.cases import CASES
from loadtest.flight import Flight
from loadtest.raw import RawPipeline
from loadtest.wire import Answer, check_answer
from serving.labels import STREAMS
from serving.phantom import ct_slice, png_bytes
from serving.pipeline import DIAGNOSIS, FINDINGS, mask_output

CASE: Final = CASES["ct_open"]

SliceResult = tuple[float, ...]
"""A slice's probabilities of stages 1 and 2, and of each stream the part of the pixels that is not background."""

_DRAWN: Final = 4


def write_volume(folder: Path, slices: int) -> list[Path]:
    """Writes a volume of CT slices, no two of them the same, into PNG files.

    A phantom takes half a second to draw. So a few are drawn, and mirrored, shifted and dimmed for the others.

    Args:
        folder: Where to; it must be there.
        slices: How many.

    Returns:
        The files, in the volume's order.
    """
    drawn = [ct_slice(seed).pixels for seed in range(min(_DRAWN, slices))]
    paths = []
    for index in range(slices):
        path = folder / f"{index:04}.png"
        path.write_bytes(png_bytes(_vary(drawn[index % len(drawn)], index // len(drawn))))
        paths.append(path)
    return paths


def _vary(pixels: UInt8[np.ndarray, "h w"], turn: int) -> UInt8[np.ndarray, "h w"]:
    mirrored = pixels[:, ::-1] if turn % 2 else pixels
    # By less than the air around the body, and back to where it was only once the dimming has gone far.
    shifted = np.roll(mirrored, (turn // 2) % 32, axis=0)
    return (shifted * (1 - 0.002 * (turn % 100))).astype(np.uint8)


def batches(paths: Sequence[Path], size: int) -> Iterator[list[bytes]]:
    """The files' bytes, so many files at a time, read when they are asked for."""
    for start in range(0, len(paths), size):
        yield [path.read_bytes() for path in paths[start : start + size]]


def reduce(answer: Answer) -> list[SliceResult]:
    """Checks a batch's answer, and keeps a few numbers of each slice.

    Raises:
        InferenceFailed: If it can not be right.
    """
    results = []
    for row in range(len(answer[DIAGNOSIS.name])):
        one = {name: array[row : row + 1] for name, array in answer.items()}
        check_answer(CASE, one)
        scores = [float(score) for name in (DIAGNOSIS.name, FINDINGS.name) for score in one[name][0]]
        masks = [one[mask_output(stream.name)] for stream in STREAMS]
        results.append((*scores, *(np.count_nonzero(mask) / mask.size for mask in masks)))
    return results


def through_server(client: Any, paths: Sequence[Path], batch: int, in_flight: int) -> list[SliceResult]:
    """Takes a volume through the server.

    Args:
        client: From `loadtest.wire.connect`.
        paths: Its slices.
        batch: Slices a request.
        in_flight: Requests at a time, at most.

    Returns:
        By slice, in their order.
    """
    with Flight(client) as flight:
        return [row for rows in flight.in_order(CASE, batches(paths, batch), in_flight, reduce) for row in rows]


def through_raw(raw: RawPipeline, paths: Sequence[Path], batch: int) -> list[SliceResult]:
    """The same without a server."""
    return [row for scans in batches(paths, batch) for row in reduce(raw.run_batch(CASE, scans)[0])]
