"""Slices of NIfTI volumes, turned as a CT slice is read.

The volumes of medicalsegmentation.com are stored with the first axis along the image's columns (from the patient's
right to the left) and the second along its rows (from front to back): a plane of the array has to be transposed, and
neither flipped nor turned further. Inf-Net's cuts of the same slices, made without it, lie on their side. The affine
is not consulted: volumes that were put together from single pictures have none that means anything.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import nibabel
import numpy as np
from jaxtyping import Float32, Num, Shaped
from nibabel.filebasedimages import ImageFileError

from serving.errors import DatasetError

_KEPT_VOLUMES: Final = 2
"""An image and its mask. A volume of 512 x 512 x 100 takes 100 MiB, and seconds to unpack."""


def shape(path: Path) -> tuple[int, int, int]:
    """Columns, rows and slices of a volume, from its header alone.

    Raises:
        DatasetError: If it is no NIfTI file of three axes.
    """
    found = tuple(int(n) for n in _open(path).shape)
    if len(found) != 3:
        raise DatasetError(f"{path.name}: expected a volume of three axes, got {list(found)}")
    return found[0], found[1], found[2]


def read_slice(path: Path, index: int) -> Float32[np.ndarray, "h w"]:
    """One slice, row 0 at the patient's front, column 0 at the patient's right.

    Args:
        path: A ``.nii`` or ``.nii.gz`` of three axes; the last one counts slices.
        index: Which slice, from 0.

    Returns:
        The stored values, scaled as the header asks: Hounsfield units, or class ids.

    Raises:
        DatasetError: If the file can not be read, or has no such slice.
    """
    volume = _volume(path, path.stat().st_mtime_ns if path.is_file() else 0)
    if not 0 <= index < volume.shape[2]:
        raise DatasetError(f"{path.name}: expected a slice of 0 to {volume.shape[2] - 1}, got {index}")
    return np.ascontiguousarray(upright(volume[:, :, index]))


def upright(plane: Shaped[np.ndarray, "columns rows"]) -> Shaped[np.ndarray, "rows columns"]:
    """A plane of the array as an image: rows from front to back, columns from the patient's right to the left."""
    return plane.T


def pixel_counts(path: Path, n_classes: int) -> Num[np.ndarray, "slices classes"]:
    """How many pixels of each class the slices of a mask have.

    Raises:
        DatasetError: If the mask holds anything but `0` to `n_classes - 1`.
    """
    volume = _volume(path, path.stat().st_mtime_ns)
    found = np.unique(volume)
    if not np.isin(found, np.arange(n_classes)).all():
        got = ", ".join(f"{value:g}" for value in found[:8])
        raise DatasetError(f"{path.name}: expected class ids of 0 to {n_classes - 1}, got {got}")
    return np.stack([(volume == i).sum(axis=(0, 1)) for i in range(n_classes)], axis=1)


def minimum(path: Path) -> float:
    """The lowest value of a volume."""
    return float(np.nanmin(_volume(path, path.stat().st_mtime_ns)))


def _open(path: Path) -> Any:
    try:
        return nibabel.load(path)
    except (OSError, EOFError, ImageFileError) as error:
        raise DatasetError(f"{path}: expected a NIfTI volume, got {type(error).__name__}: {error}") from error


# Keyed by the time of the last change too, so that a file which was replaced is read anew.
@lru_cache(maxsize=_KEPT_VOLUMES)
def _volume(path: Path, mtime_ns: int) -> Float32[np.ndarray, "columns rows slices"]:
    shape(path)
    try:
        return np.asarray(_open(path).dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise DatasetError(f"{path}: expected a whole volume, got {type(error).__name__}: {error}") from error
