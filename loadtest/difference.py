"""How far two ways of answering the same scans are apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadtest.wire import Answer


@dataclass(frozen=True)
class Difference:
    """How far answers to the same scans are apart at most.

    Attributes:
        probability: Largest difference of a probability.
        mask: Largest share of a mask's pixels that differ.
    """

    probability: float = 0.0
    mask: float = 0.0

    def widened(self, a: Answer, b: Answer) -> Difference:
        """The larger of this and what lies between two answers, by each measure."""
        probability, mask = self.probability, self.mask
        for name, array in a.items():
            if array.dtype == np.uint8:
                mask = max(mask, float((array != b[name]).mean()))
            else:
                # Not Python's max, which passes NaN over.
                probability = float(np.maximum(probability, np.abs(array - b[name]).max()))
        return Difference(probability, mask)

    def within(self, limit: Difference) -> bool:
        """Whether both measures are up to a limit's. NaN is not."""
        return self.probability <= limit.probability and self.mask <= limit.mask
