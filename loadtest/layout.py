"""How the benchmark's sections and plots look: Markdown tables, Matplotlib figures.

Matplotlib comes with the extra `train`, so it is imported where something is drawn, and measuring does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE: Final = "#0072B2"
ORANGE: Final = "#D55E00"
GREEN: Final = "#009E73"
GREY: Final = "#767676"
"""Of Okabe and Ito, told apart by people who do not see red and green apart."""

MIB: Final = 2**20


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float | None, digits: int = 2) -> str:
    """A number with so many digits after its point; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def mib(size_bytes: float) -> str:
    """Bytes as whole MiB."""
    return f"{size_bytes / MIB:.0f}"


def new_figure(width_in: float = 6.4, height_in: float = 4.2) -> Figure:
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(figure: Figure, title: str, across: str, up: str) -> Axes:
    """The figure's one pair of axes, with a light grid."""
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=across, ylabel=up)
    axes.title.set_fontsize(10)
    axes.grid(color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes
