"""Drawing on a sheet of paper: lines of text, tables, bars, a plot and a picture, from the top to the bottom.

reportlab's canvas and not its layout engine: a page that must be one page is laid out by hand. Its fonts are PDF's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from serving.overlay import RGB

if TYPE_CHECKING:
    from reportlab.pdfgen.canvas import Canvas

A4_PT: Final = (595.28, 841.89)
MARGIN_PT: Final = 40.0
WIDTH_PT: Final = A4_PT[0] - 2 * MARGIN_PT

INK: Final[RGB] = (25, 30, 38)
GREY: Final[RGB] = (105, 112, 122)
LINE: Final[RGB] = (205, 210, 216)
WARNING: Final[RGB] = (158, 32, 32)
PALE_WARNING: Final[RGB] = (252, 236, 234)
SOFT: Final[RGB] = (241, 243, 246)

_REGULAR, _BOLD = "Helvetica", "Helvetica-Bold"
_LEADING: Final = 1.3
_ELLIPSIS: Final = "..."
# 200 dots an inch over the whole width: a radiograph of 20 million pixels is no page.
_MOST_PX: Final = 1440


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: What stands above it.
        width_pt: How wide it is.
        right: Whether its cells end at the same place (numbers do).
    """

    title: str
    width_pt: float
    right: bool = False


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        cells: A text a column.
        swatch: A colour before the first cell.
        bold: Whether it matters more.
    """

    cells: Sequence[str]
    swatch: RGB | None = None
    bold: bool = False


@dataclass
class Sheet:
    """A page and how far it is filled.

    Attributes:
        canvas: reportlab's.
        y: Where the next thing begins, in points from the bottom; falls as the page fills.
    """

    canvas: Canvas
    y: float = field(default=A4_PT[1] - MARGIN_PT)

    @property
    def left_pt(self) -> float:
        """What is left of the page above its lower margin."""
        return self.y - MARGIN_PT

    def skip(self, points: float) -> None:
        """Leave a gap."""
        self.y -= points

    def text(self, said: str, size: float = 8.5, *, bold: bool = False, colour: RGB = INK) -> None:
        """One line; what is too long for it ends in an ellipsis."""
        self.y -= size
        self.put(said, MARGIN_PT, self.y, WIDTH_PT, size=size, bold=bold, colour=colour)
        self.y -= size * (_LEADING - 1)

    def paragraph(self, said: str, size: float = 8.0, *, colour: RGB = INK, most_lines: int = 99) -> None:
        """Text over as many lines as it needs, and no more than `most_lines`."""
        lines = wrapped(said, WIDTH_PT, size)
        if len(lines) > most_lines:
            lines = [*lines[: most_lines - 1], " ".join(lines[most_lines - 1 :])]
        for line in lines:
            self.text(line, size, colour=colour)

    def banner(self, said: str, size: float = 9.0) -> None:
        """A line in a box that is not overlooked."""
        height = 2.2 * size
        self.y -= height
        self.fill(MARGIN_PT, self.y, WIDTH_PT, height, PALE_WARNING)
        self.fill(MARGIN_PT, self.y, 3, height, WARNING)
        self.put(said, MARGIN_PT + 10, self.y + 0.76 * size, WIDTH_PT - 14, size=size, bold=True, colour=WARNING)

    def picture(self, image: Image.Image, x: float, width: float, height: float) -> tuple[float, float]:
        """A picture as large as fits into a box whose upper left corner is at `x` and `y`; does not move `y`.

        Returns:
            Its width and height in points.
        """
        from reportlab.lib.utils import ImageReader

        scale = min(width / image.width, height / image.height)
        shown = image.copy()
        shown.thumbnail((_MOST_PX, _MOST_PX))
        drawn_wh = image.width * scale, image.height * scale
        self.canvas.drawImage(ImageReader(shown), x, self.y - drawn_wh[1], *drawn_wh)
        return drawn_wh

    def table(self, columns: Sequence[Column], rows: Sequence[Row], x: float = MARGIN_PT, size: float = 8.5) -> None:
        """A table with its head; moves `y` below it."""
        height = 1.75 * size
        width = sum(column.width_pt for column in columns)
        for row in (Row([column.title for column in columns]), *rows):
            self.y -= height
            head = row.cells == [column.title for column in columns]
            at = x
            for i, (column, cell) in enumerate(zip(columns, row.cells, strict=True)):
                indent = 0.0
                if i == 0 and row.swatch is not None:
                    self.fill(at, self.y + 0.35 * size, 0.9 * size, 0.9 * size, row.swatch)
                    indent = 1.5 * size
                self.put(
                    cell,
                    at + indent,
                    self.y + 0.5 * size,
                    column.width_pt - indent - 4,
                    size=size * (0.86 if head else 1),
                    bold=row.bold,
                    colour=GREY if head else INK,
                    right=column.right,
                )
                at += column.width_pt
            self.rule(x, self.y, width)

    def put(
        self,
        said: str,
        x: float,
        y: float,
        width: float,
        *,
        size: float,
        bold: bool = False,
        colour: RGB = INK,
        right: bool = False,
    ) -> None:
        """A text at a place, cut to a width."""
        self.canvas.setFillColorRGB(*_unit(colour))
        self.canvas.setFont(_BOLD if bold else _REGULAR, size)
        said = cut(said, width, size, bold=bold)
        (self.canvas.drawRightString if right else self.canvas.drawString)(x + (width if right else 0), y, said)

    def fill(self, x: float, y: float, width: float, height: float, colour: RGB) -> None:
        """A filled box, from its lower left corner."""
        self.canvas.setFillColorRGB(*_unit(colour))
        self.canvas.rect(x, y, width, height, stroke=0, fill=1)

    def rule(self, x: float, y: float, width: float, colour: RGB = LINE) -> None:
        """A thin horizontal line."""
        self.canvas.setStrokeColorRGB(*_unit(colour))
        self.canvas.setLineWidth(0.5)
        self.canvas.line(x, y, x + width, y)

    def curve(self, points: Sequence[tuple[float, float]], colour: RGB, width: float = 1.2) -> None:
        """A line through points; a single one is a dot."""
        self.canvas.setStrokeColorRGB(*_unit(colour))
        self.canvas.setFillColorRGB(*_unit(colour))
        self.canvas.setLineWidth(width)
        if len(points) == 1:
            self.canvas.circle(*points[0], width, stroke=0, fill=1)
            return
        path: Any = self.canvas.beginPath()
        path.moveTo(*points[0])
        for point in points[1:]:
            path.lineTo(*point)
        self.canvas.drawPath(path)


def text_width(said: str, size: float, *, bold: bool = False) -> float:
    """Width of a text in points."""
    from reportlab.pdfbase.pdfmetrics import stringWidth

    return float(stringWidth(said, _BOLD if bold else _REGULAR, size))


def cut(said: str, width: float, size: float, *, bold: bool = False) -> str:
    """A text, or as much of its beginning as fits into a width."""
    if text_width(said, size, bold=bold) <= width:
        return said
    while said and text_width(said + _ELLIPSIS, size, bold=bold) > width:
        said = said[:-1]
    return said.rstrip() + _ELLIPSIS


def wrapped(said: str, width: float, size: float) -> list[str]:
    """A text as lines that fit into a width."""
    from reportlab.lib.utils import simpleSplit

    return [str(line) for line in simpleSplit(said, _REGULAR, size, width)]


def _unit(colour: RGB) -> tuple[float, float, float]:
    r, g, b = colour
    return r / 255, g / 255, b / 255
