"""Who comes when, so that no way of doing the work is always first or always after the same other one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


def order_of_turns(competitors: Sequence[_T], index: int) -> list[_T]:
    """Who comes when in a round.

    Williams 1949: over as many rounds as there are competitors each one takes every place once, and, where their
    number is even, follows every other one once. Where it is odd, that takes twice as many rounds.

    Args:
        competitors: All of them.
        index: Of the round; may be negative.
    """
    n = len(competitors)
    steps = [place // 2 + 1 if place % 2 else (n - place // 2) % n for place in range(n)]
    order = [competitors[(index + step) % n] for step in steps]
    return order[::-1] if n % 2 and (index // n) % 2 else order
