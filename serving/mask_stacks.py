"""Masks of many slices at once, packed, so that a study of 800 slices fits into a few MiB."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Shaped, UInt8

from serving.errors import GeometryError

# A mask is long runs of few values: the lowest level packs it a hundredfold, and the highest takes ten times as long.
_LEVEL = 1


@dataclass(eq=False)
class MaskStack:
    """A mask of each slice of a volume; a slice that was never put is background.

    Attributes:
        shape: Slices, rows, columns.
    """

    shape: tuple[int, int, int]
    _packed: dict[int, bytes] = field(default_factory=dict, repr=False)

    def put(self, index: int, mask: Shaped[np.ndarray, "h w"]) -> None:
        """Keep a slice's mask.

        Args:
            index: Which slice.
            mask: uint8 of class ids, or bool.

        Raises:
            GeometryError: If there is no such slice, or `mask` is not of a slice's size and type.
        """
        self._check(index)
        if mask.shape != self.shape[1:] or mask.dtype not in (np.uint8, np.bool_):
            raise GeometryError(f"expected a mask uint8{list(self.shape[1:])}, got {mask.dtype}{list(mask.shape)}")
        if mask.any():
            self._packed[index] = zlib.compress(np.ascontiguousarray(mask, np.uint8).tobytes(), _LEVEL)
        else:
            self._packed.pop(index, None)

    def slice(self, index: int) -> UInt8[np.ndarray, "h w"]:
        """A slice's mask, a new array.

        Raises:
            GeometryError: If there is no such slice.
        """
        self._check(index)
        packed = self._packed.get(index)
        if packed is None:
            return np.zeros(self.shape[1:], np.uint8)
        return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(self.shape[1:]).copy()

    def marked(self) -> tuple[int, ...]:
        """The slices in which anything is marked, in their order."""
        return tuple(sorted(self._packed))

    def copy(self) -> MaskStack:
        """A stack of the same masks that later ones of this stack do not get into."""
        return MaskStack(self.shape, dict(self._packed))

    def array(self) -> UInt8[np.ndarray, "n h w"]:
        """All of it, a byte a voxel: 200 MiB for 512 x 512 x 800."""
        whole = np.zeros(self.shape, np.uint8)
        self.fill(whole)
        return whole

    def fill(self, whole: UInt8[np.ndarray, "n h w"]) -> None:
        """Put what is marked into an array of background, which may be a view of one in another order.

        Raises:
            GeometryError: If it is not of this shape.
        """
        if whole.shape != self.shape:
            raise GeometryError(f"expected an array {list(self.shape)} to fill, got {list(whole.shape)}")
        for index in self._packed:
            whole[index] = self.slice(index)

    def _check(self, index: int) -> None:
        if not 0 <= index < self.shape[0]:
            raise GeometryError(f"expected a slice in [0, {self.shape[0]:,}), got {index:,}")
