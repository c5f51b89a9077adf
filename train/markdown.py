"""Tables and numbers of the reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

NOTHING: Final = "n/a"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its last line break."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; ``n/a`` for None."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def interval(value: float | None, bounds: Sequence[float | None], digits: int = 3) -> str:
    """A value with the bounds of its interval in brackets."""
    return f"{number(value, digits)} [{number(bounds[0], digits)}, {number(bounds[1], digits)}]"
