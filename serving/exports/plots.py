"""The probability of COVID-19 and the marked area along a study's axis, drawn with PDF's own lines."""

from __future__ import annotations

from typing import Final

from serving.exports.paper import GREY, LINE, SOFT, Sheet, text_width
from serving.exports.pictures import affected
from serving.labels import DIAGNOSES, MANIFESTATIONS
from serving.study_report import StudyReport

_HEIGHT_PT: Final = 72.0
_SIZE: Final = 7.0
_LEFT_PT: Final = 26.0
_SHADED: Final = "shaded: slices that count"


def along_axis(sheet: Sheet, study: StudyReport, x: float, top: float, width: float) -> float:
    """Draw the plot.

    Args:
        sheet: Where to.
        study: Of what.
        x: Its left edge in points.
        top: Its upper edge.
        width: How wide it may be, with its labels.

    Returns:
        Its lower edge.
    """
    covid = DIAGNOSES[0]
    _titles(sheet, study, x, top, width)
    left, bottom = x + _LEFT_PT, top - 16 - _HEIGHT_PT
    inner = width - _LEFT_PT
    _shade(sheet, study, left, bottom, inner)
    for part in (0.0, 0.5, 1.0):
        y = bottom + part * _HEIGHT_PT
        sheet.rule(left, y, inner, LINE)
        sheet.put(f"{part:.0%}", x, y - 2.5, _LEFT_PT - 4, size=_SIZE, colour=GREY, right=True)
    most = max(map(affected, study.slices))
    if most > 0:
        for label in MANIFESTATIONS:
            area = [(one.index, (one.area_fraction[label.name] or 0.0) / most) for one in study.slices]
            sheet.curve([_at(study, i, value, left, bottom, inner) for i, value in area], label.colour_rgb, 1.0)
    p = [(one.index, one.diagnosis[covid.name]) for one in study.slices]
    sheet.curve([_at(study, i, value, left, bottom, inner) for i, value in p], covid.colour_rgb, 1.6)
    sheet.put("feet", left, bottom - 9, inner, size=_SIZE, colour=GREY)
    sheet.put("head", left, bottom - 9, inner, size=_SIZE, colour=GREY, right=True)
    middle = text_width(_SHADED, _SIZE)
    sheet.put(_SHADED, left + (inner - middle) / 2, bottom - 9, middle + 1, size=_SIZE, colour=GREY)
    return bottom - 12


def _titles(sheet: Sheet, study: StudyReport, x: float, top: float, width: float) -> None:
    covid, most = DIAGNOSES[0], max(map(affected, study.slices))
    said = f"Probability of {covid.title}"
    sheet.put(said, x + _LEFT_PT, top - 9, width, size=_SIZE, bold=True, colour=covid.colour_rgb)
    if most > 0:
        after = x + _LEFT_PT + text_width(said, _SIZE, bold=True) + 6
        area = f"marked area by finding, 100% = {most:.1%} of a slice"
        sheet.put(area, after, top - 9, x + width - after, size=_SIZE, colour=GREY)


def _at(study: StudyReport, index: int, value: float, left: float, bottom: float, width: float) -> tuple[float, float]:
    return left + width * (index + 0.5) / study.shape[0], bottom + value * _HEIGHT_PT


def _shade(sheet: Sheet, study: StudyReport, left: float, bottom: float, width: float) -> None:
    step = width / study.shape[0]
    counted = sorted(one.index for one in study.counted)
    start = 0
    for i, index in enumerate(counted):
        # Neighbours are one box: seams between boxes show in viewers.
        if i + 1 == len(counted) or counted[i + 1] != index + 1:
            first = counted[start]
            sheet.fill(left + first * step, bottom, (index + 1 - first) * step, _HEIGHT_PT, SOFT)
            start = i + 1
