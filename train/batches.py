"""Batches for `keras.Model.fit`, as pure functions of seed, epoch and step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from jaxtyping import Bool, Float64, Num, UInt8

from serving.errors import DatasetError
from train.augmentation import Augmentation, jitter, random_affine, warp
from train.data import Example
from train.targets import Code

Predictor = Callable[[UInt8[np.ndarray, "n 512 512 3"]], Num[np.ndarray, "n ..."]]
"""Preprocessed scans -> probabilities, or class ids of a mask."""


@dataclass(frozen=True)
class Arrays:
    """A split in memory.

    Attributes:
        examples: One a row of the arrays.
        images: `(n, 512, 512)`, grey.
        codes: `(n, 512, 512)`, `train.targets.Code`, for segmentation.
    """

    examples: Sequence[Example]
    images: UInt8[np.ndarray, "n h w"]
    codes: UInt8[np.ndarray, "n h w"] | None

    def select(self, keep: Sequence[int]) -> Arrays:
        """The rows of `keep`, in that order, in memory."""
        rows = list(keep)
        return Arrays(
            [self.examples[i] for i in rows],
            np.asarray(self.images[rows]),
            None if self.codes is None else np.asarray(self.codes[rows]),
        )

    def of_split(self, split: str) -> Arrays:
        """The rows of one split."""
        return self.select([i for i, example in enumerate(self.examples) if example.split == split])


def in_three_channels(images: UInt8[np.ndarray, "n h w"]) -> UInt8[np.ndarray, "n h w 3"]:
    """Grey as the models take it."""
    return np.repeat(images[..., None], 3, axis=-1)


def in_batches(
    predict: Callable[[UInt8[np.ndarray, "n h w 3"]], Any],
    images: UInt8[np.ndarray, "n h w"] | Sequence[UInt8[np.ndarray, "h w"]],
    size: int,
) -> Num[np.ndarray, "n ..."]:
    """A model's answers for grey images, asked for `size` at a time."""
    starts = range(0, len(images), size)
    return np.concatenate([np.asarray(predict(in_three_channels(np.asarray(images[i : i + size])))) for i in starts])


def sampling_weights(examples: Sequence[Example], mixture: Mapping[str, float]) -> Float64[np.ndarray, " n"]:
    """How likely each example is to be drawn; sums to 1.

    Args:
        examples: The training split.
        mixture: Share of each source by prefix, or empty to weigh groups of like examples by the square root of
            their number: large sources do not drown small ones, and small ones are not repeated without end.

    Raises:
        DatasetError: If a source of the mixture has no example.
    """
    if not mixture:
        keys = [(e.modality, e.source, e.target) for e in examples]
        counts = Counter(keys)
        weights = np.array([counts[key] ** -0.5 for key in keys])
        return np.asarray(weights / weights.sum())
    weights = np.zeros(len(examples))
    for prefix, share in mixture.items():
        chosen = np.array([e.source.startswith(prefix) for e in examples])
        if not chosen.any():
            raise DatasetError(f"the mixture asks for {prefix!r}: expected examples of it, found none")
        weights[chosen] = share / chosen.sum()
    return np.asarray(weights / weights.sum())


class TrainingBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """Augmented batches without end, drawn with replacement.

    The random numbers of a step follow from seed, epoch and step alone, so a resumed run sees what an unbroken one
    would have seen. Set `epoch` before each epoch (`train.fit` does, in a callback).
    """

    def __init__(
        self,
        arrays: Arrays,
        *,
        batch_size: int,
        steps: int,
        augmentation: Augmentation,
        crop_px: int,
        mixture: Mapping[str, float],
        seed: int,
        copies: Bool[np.ndarray, "n views"] | None = None,
    ) -> None:
        """Prepare the draws.

        Args:
            arrays: What is drawn from.
            batch_size: Scans a step.
            steps: Of an epoch.
            augmentation: The ranges.
            crop_px: Side of a crop.
            mixture: Share of each source; see `sampling_weights`.
            seed: Of everything random.
            copies: Which views of each scan may be drawn, view 0 being the scan as it is: the paper's copies, made
                once. None: each draw is a new copy.
        """
        super().__init__(workers=1, use_multiprocessing=False)
        self.epoch = 0
        self._arrays = arrays
        self._batch_size = batch_size
        self._steps = steps
        self._augmentation = augmentation
        self._crop_px = crop_px
        self._seed = seed
        self._copies = copies
        self._weights = sampling_weights(arrays.examples, mixture)
        if copies is not None:
            self._weights = self._weights * copies.any(axis=1)
            self._weights = self._weights / self._weights.sum()

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[Any, Any]:
        rng = np.random.default_rng([self._seed, self.epoch, step])
        rows = rng.choice(len(self._weights), self._batch_size, p=self._weights)
        pairs = [self._one(int(row), rng) for row in rows]
        images = in_three_channels(np.stack([image for image, _ in pairs]))
        if self._arrays.codes is None:
            targets = np.array([self._arrays.examples[int(row)].target for row in rows], dtype=np.float32)
            return images, targets
        return images, np.stack([codes for _, codes in pairs])

    def _one(self, row: int, rng: np.random.Generator) -> tuple[UInt8[np.ndarray, "h w"], Any]:
        if self._copies is None:
            return moved(self._arrays, row, rng, self._augmentation, self._crop_px)
        view = int(rng.choice(np.flatnonzero(self._copies[row])))
        return copy_of(self._arrays, row, view, self._augmentation, self._seed, self._crop_px)


def moved(
    arrays: Arrays, row: int, rng: np.random.Generator, augmentation: Augmentation, crop_px: int
) -> tuple[UInt8[np.ndarray, "crop crop"], UInt8[np.ndarray, "crop crop"] | None]:
    """One scan, and its annotation by the same matrix, moved at random."""
    image = arrays.images[row]
    matrix = random_affine(rng, augmentation, image.shape[0], crop_px)
    changed = jitter(rng, augmentation, warp(image, matrix, crop_px))
    if arrays.codes is None:
        return changed, None
    return changed, warp(arrays.codes[row], matrix, crop_px, is_mask=True, border=Code.OUTSIDE)


def copy_of(
    arrays: Arrays, row: int, view: int, augmentation: Augmentation, seed: int, crop_px: int
) -> tuple[UInt8[np.ndarray, "crop crop"], UInt8[np.ndarray, "crop crop"] | None]:
    """One view of one scan; it depends on the arguments alone. View 0 is the scan as it is.

    Raises:
        ValueError: If view 0 is asked for in another size than the scan's.
    """
    if view:
        return moved(arrays, row, np.random.default_rng([seed, row, view]), augmentation, crop_px)
    if crop_px != arrays.images.shape[1]:
        raise ValueError(f"expected crops of {arrays.images.shape[1]} px, as the scans have, got {crop_px}")
    return np.asarray(arrays.images[row]), None if arrays.codes is None else np.asarray(arrays.codes[row])


class PlainBatches(keras.utils.PyDataset):  # type: ignore[misc]
    """A split as it is, in order, for validation."""

    def __init__(self, arrays: Arrays, batch_size: int) -> None:
        super().__init__(workers=1, use_multiprocessing=False)
        self._arrays = arrays
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self._arrays.examples) // self._batch_size)

    def __getitem__(self, step: int) -> tuple[Any, Any]:
        rows = slice(step * self._batch_size, (step + 1) * self._batch_size)
        images = in_three_channels(self._arrays.images[rows])
        if self._arrays.codes is not None:
            return images, self._arrays.codes[rows]
        return images, np.array([e.target for e in self._arrays.examples[rows]], dtype=np.float32)
