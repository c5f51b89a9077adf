"""Tables and numbers of the reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from train.metrics import CLASSIFICATION_METRICS

METRIC_TITLES: Final = dict(
    zip(
        CLASSIFICATION_METRICS, ("accuracy", "sensitivity", "specificity", "precision", "F1", "MCC", "FPR"), strict=True
    )
)
NOTHING: Final = "n/a"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its last line break."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; ``n/a`` for None."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent(share: float | None) -> str:
    """A share in `[0, 1]` in percent; ``n/a`` for None."""
    return NOTHING if share is None else f"{100 * share:.2f} %"


def interval(value: float | None, bounds: Sequence[float | None], digits: int = 3) -> str:
    """A value with the bounds of its interval in brackets."""
    return f"{number(value, digits)} [{number(bounds[0], digits)}, {number(bounds[1], digits)}]"


def metric_cells(figures: Mapping[str, Any] | None) -> list[str]:
    """Cells of `CLASSIFICATION_METRICS`, in their order; ``n/a`` for what is not there."""
    return [number((figures or {}).get(name)) for name in CLASSIFICATION_METRICS]
