"""Where a volume's voxels come from: three axes, read a plane at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
from jaxtyping import Float32, Num, UInt8

from serving.errors import UnsupportedScan
from serving.scans import SourceFormat

UNMEASURED_HU: Final = -2000.0
"""What reads where nothing was measured: padding, and what is no number. Black in every window, as padding is."""


class VoxelSource(Protocol):
    """A grid of voxels in the order of its file.

    `plane(axis, index)` leaves out `axis` and keeps the order of the other two.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """Length of each axis of the file."""

    @property
    def source_format(self) -> SourceFormat:
        """What the file is."""

    @property
    def is_hu(self) -> bool:
        """Whether the values are Hounsfield units."""

    def plane(self, axis: int, index: int) -> Float32[np.ndarray, "a b"]:
        """Hounsfield units of one plane, a new array."""

    def grey_plane(self, axis: int, index: int) -> UInt8[np.ndarray, "a b"]:
        """Grey of one plane of values that are no Hounsfield units."""


class Memory:
    """Voxels that are in memory, or mapped to it.

    Args:
        values: Hounsfield units, of any real type.
        source_format: What they come from.
    """

    def __init__(self, values: Num[np.ndarray, "a b c"], source_format: SourceFormat = "nifti") -> None:
        self._values = values
        self.source_format = source_format
        self.is_hu = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Length of each axis."""
        a, b, c = self._values.shape
        return a, b, c

    def plane(self, axis: int, index: int) -> Float32[np.ndarray, "a b"]:
        """Hounsfield units of one plane, a new array."""
        return np.array(self._values[(slice(None),) * axis + (index,)], dtype=np.float32)

    def grey_plane(self, axis: int, index: int) -> UInt8[np.ndarray, "a b"]:
        """There is none: the values are Hounsfield units."""
        raise UnsupportedScan("expected a volume without Hounsfield units, got one that has them")


def spool(shape: tuple[int, int, int], plane: Callable[[int], np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    """Write planes along the first axis to a file without a name, and map it.

    Reading across the stored planes of a large study would otherwise decode all of it for each plane, or hold it.
    """
    with tempfile.TemporaryFile() as file:
        file.truncate(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        # The mapping outlives the file's handle.
        mapped = np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    for index in range(shape[0]):
        mapped[index] = plane(index)
    return mapped
