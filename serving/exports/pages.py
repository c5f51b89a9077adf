"""A case as one A4 page for people: picture, diagnosis, findings, burden, what to doubt, and how to read it.

Nothing on it says whose scan it is. The same case gives the same bytes.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

from serving.burden import BOTH, INFECTED, SIDE_NAMES, Amount, Area
from serving.exports.about import RESEARCH_USE, SOFTWARE, UNVERIFIED, software_version
from serving.exports.case import Case
from serving.exports.measurements import area_mm2
from serving.exports.paper import GREY, MARGIN_PT, WARNING, WIDTH_PT, Column, Row, Sheet
from serving.exports.pictures import montage, picture
from serving.exports.plots import along_axis
from serving.exports.tables import doubts_of, problems_of
from serving.labels import ALL_STREAM, DIAGNOSES, MANIFESTATIONS
from serving.pipeline import ENSEMBLE_NAME
from serving.results import MANIFESTATIONS_STAGE

_TILES: Final = 8
_MONTAGE_PT: Final = 268.0
_SCAN_PT: Final = 320.0
_GAP_PT: Final = 16.0
_NOTES_PT: Final = 100.0
_DOUBTS: Final = 3
_STATUS: Final = {"not_run": "not run", "not_applicable": "CT only"}
_BESIDE_PT: Final = 7.5

_HOW_TO_READ: Final = (
    "Probabilities are those of neural networks, not frequencies among patients. A finding's network marks pixels only "
    'where its probability reaches the threshold of this request; "not run" is not "nothing found".'
)
_HOW_TO_READ_STUDY: Final = (
    "The study's diagnosis is the mean over slices that show enough lung; a finding is as likely as in its likeliest "
    "slice."
)
_HOW_TO_READ_BURDEN: Final = (
    "Per cents are of the lung of that side; fluid lies beside the lung and is given in relation to it. Lungs "
    "were found by thresholds and morphology, not by a network."
)


def page(case: Case) -> bytes:
    """The page, as a PDF.

    Raises:
        ScanError: If a slice can not be decoded.
    """
    from reportlab.lib.pagesizes import A4
    from reportlab.pdfgen.canvas import Canvas

    stream = io.BytesIO()
    canvas = Canvas(stream, pagesize=A4, invariant=True)
    canvas.setTitle(f"{SOFTWARE} reading")
    canvas.setCreator(f"{SOFTWARE} {software_version()}")
    canvas.setSubject(RESEARCH_USE)
    sheet = Sheet(canvas)
    _head(sheet, case)
    if case.study is None:
        _scan(sheet, case)
    else:
        _study(sheet, case)
    _findings(sheet, case)
    _doubts(sheet, case)
    _foot(sheet, case)
    canvas.showPage()
    canvas.save()
    return stream.getvalue()


def write_pdf(case: Case, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write ``<prefix>.pdf``.

    Raises:
        ScanError: If a slice can not be decoded.
    """
    path = folder / f"{prefix}.pdf"
    path.write_bytes(page(case))
    return (path,)


def what_it_is(case: Case) -> str:
    """The scan in a line that names nobody."""
    if case.study is None:
        scan = case.scan
        assert scan is not None
        height, width = scan.size_hw
        kind = "CT slice" if scan.modality == "ct" else "Chest X-ray"
        spacing = "" if scan.pixel_spacing_mm is None else " of {:.2f} x {:.2f} mm".format(*scan.pixel_spacing_mm[::-1])
        return f"{kind} ({scan.source_format.upper()}), {width:,} x {height:,} pixels{spacing}"
    slices, height, width = case.study.shape
    spacing = "of unknown spacing"
    if case.study.spacing_mm is not None:
        between, row, column = case.study.spacing_mm
        spacing = f"{between:.2f} mm apart, pixels of {column:.2f} x {row:.2f} mm"
    return f"CT study, {slices:,} slices of {width:,} x {height:,} pixels, {spacing}"


def _head(sheet: Sheet, case: Case) -> None:
    sheet.text("COVID-19 chest scan: computed reading", 17, bold=True)
    sheet.skip(2)
    sheet.text(f"{what_it_is(case)}. {SOFTWARE} {software_version()}", 8.5, colour=GREY)
    sheet.skip(4)
    sheet.banner(f"{RESEARCH_USE} {UNVERIFIED}")
    sheet.skip(12)
    doubts = doubts_of(case)
    for doubt in doubts[:_DOUBTS]:
        sheet.paragraph(f"Doubtful: {doubt}", 9, colour=WARNING, most_lines=2)
    if doubts:
        sheet.skip(8)


def _scan(sheet: Sheet, case: Case) -> None:
    top = sheet.y
    _, height = sheet.picture(picture(case), MARGIN_PT, _SCAN_PT, _SCAN_PT)
    x = MARGIN_PT + _SCAN_PT + _GAP_PT
    _diagnosis(sheet, case, x, MARGIN_PT + WIDTH_PT - x)
    if not case.ran and case.single is not None and case.single.modality == "ct":
        note = "No network of a finding ran: nothing is marked."
        sheet.put(note, x, sheet.y - 14, MARGIN_PT + WIDTH_PT - x, size=_BESIDE_PT, colour=GREY)
    sheet.y = min(sheet.y, top - height) - 10


def _study(sheet: Sheet, case: Case) -> None:
    study = case.study
    assert study is not None
    if case.ran:
        _, height = sheet.picture(montage(case, _TILES, legend=False), MARGIN_PT, WIDTH_PT, _MONTAGE_PT)
        sheet.skip(height + 10)
    top, width = sheet.y, 0.42 * WIDTH_PT
    _diagnosis(sheet, case, MARGIN_PT, width)
    note = f"mean over {len(study.counted):,} of {len(study.slices):,} slices that were read"
    sheet.put(note, MARGIN_PT, sheet.y - 10, width, size=_BESIDE_PT, colour=GREY)
    x = MARGIN_PT + width + 2 * _GAP_PT
    bottom = along_axis(sheet, study, x, top, MARGIN_PT + WIDTH_PT - x)
    sheet.y = min(sheet.y - 14, bottom) - 8


def _diagnosis(sheet: Sheet, case: Case, x: float, width: float) -> None:
    p = case.report.diagnosis
    likeliest = max(p, key=lambda name: p[name])
    columns = (
        Column("Diagnosis", 0.58 * width),
        Column("", 0.2 * width),
        Column("probability", 0.22 * width, right=True),
    )
    rows = [
        Row(
            (label.title, "likeliest" if label.name == likeliest else "", f"{p[label.name]:.1%}"),
            bold=label.name == likeliest,
        )
        for label in DIAGNOSES
    ]
    sheet.table(columns, rows, x)


def _findings(sheet: Sheet, case: Case) -> None:
    if case.single is not None and case.single.modality == "xray":
        sheet.paragraph("Ground glass, consolidation and pleural effusion are looked for in CT slices only.", 8.5)
        sheet.skip(10)
        return
    columns, rows = _study_findings(case) if case.study is not None else _scan_findings(case)
    sheet.table(columns, rows)
    if case.single is not None and case.single.burden is not None and case.single.burden.note is not None:
        sheet.skip(4)
        sheet.paragraph(f"Note: {case.single.burden.note}", 8.5, colour=WARNING, most_lines=2)
    sheet.skip(10)


def _scan_findings(case: Case) -> tuple[list[Column], list[Row]]:
    assert case.single is not None
    columns = [
        *(Column("Finding", 132), Column("probability", 58, right=True), Column("threshold", 52, right=True)),
        *(Column("of the picture", 64, right=True), Column("area", 65, right=True)),
        *(Column("% of lung", 52, right=True), Column("% right", 46, right=True), Column("% left", 46, right=True)),
    ]
    rows = []
    for label in MANIFESTATIONS:
        area = area_mm2(case, label.name)
        rows.append(
            Row(
                (
                    *(label.title, _probability(case, label.name), f"{case.report.thresholds[label.name]:.2f}"),
                    *(_marked(case, label.name), "" if area is None else f"{area / 100:.1f} cm2"),
                    *_slice_percents(case, label.name),
                ),
                label.colour_rgb,
                bold=_reached(case, label.name),
            )
        )
    every = ALL_STREAM.name
    rows.append(
        Row((f"{ALL_STREAM.title} (one network)", "", "", _marked(case, every), "", *_slice_percents(case, every)))
    )
    if case.single.burden is not None and case.single.burden.note is None:
        rows.append(Row(("Any of them", "", "", "", "", *_slice_percents(case, INFECTED))))
        lung = [_pixels(case.single.burden.lung[side]) for side in SIDE_NAMES]
        rows.append(Row(("Lung", "", "", "", "", *lung)))
    return columns, rows


def _slice_percents(case: Case, finding: str) -> list[str]:
    burden = None if case.single is None else case.single.burden
    if burden is None or finding not in burden.found:
        return [""] * len(SIDE_NAMES)
    areas = [burden.found[finding][side] for side in SIDE_NAMES]
    return ["-" if area is None or area.percent is None else f"{area.percent:.1f} %" for area in areas]


def _pixels(area: Area | None) -> str:
    return "-" if area is None else f"{area.pixels:,} px"


def _study_findings(case: Case) -> tuple[list[Column], list[Row]]:
    study = case.study
    assert study is not None
    columns = [
        *(Column("Finding", 132), Column("probability", 58, right=True), Column("threshold", 52, right=True)),
        *(
            Column("likeliest in", 64, right=True),
            Column("volume", 65, right=True),
            Column("% of lung", 52, right=True),
        ),
        *(Column("% right", 46, right=True), Column("% left", 46, right=True)),
    ]
    rows = []
    for label in MANIFESTATIONS:
        best = study.likeliest(label.name)
        where = "" if best is None else f"slice {best[0] + 1:,}"
        score = (_probability(case, label.name), f"{study.thresholds[label.name]:.2f}", where)
        rows.append(
            Row((label.title, *score, *_burden(case, label.name)), label.colour_rgb, bold=_reached(case, label.name))
        )
    rows.append(Row(("Any of them", "", "", "", *_burden(case, INFECTED))))
    lung = study.burden.lung
    rows.append(Row(("Lung", "", "", "", _ml(lung[BOTH]), "", _ml(lung["right"]), _ml(lung["left"]))))
    return columns, rows


def _burden(case: Case, finding: str) -> tuple[str, str, str, str]:
    sides = None if case.study is None else case.study.burden.found.get(finding)
    if sides is None:
        return "not run", "", "", ""
    both, right, left = (
        "-" if sides[side].percent is None else f"{sides[side].percent:.1f} %" for side in (BOTH, "right", "left")
    )
    return _ml(sides[BOTH]), both, right, left


def _ml(amount: Amount) -> str:
    return "-" if amount.ml is None else f"{amount.ml:,.0f} ml" if amount.ml >= 10 else f"{amount.ml:.1f} ml"


def _probability(case: Case, name: str) -> str:
    probability = case.report.manifestations[name]
    if probability is not None:
        return f"{probability:.1%}"
    return _STATUS[case.report.status[MANIFESTATIONS_STAGE]]


def _marked(case: Case, stream: str) -> str:
    part = case.report.area_fraction[stream]
    if part is not None:
        return f"{part:.2%}"
    return _STATUS[case.report.status[stream]]


def _reached(case: Case, name: str) -> bool:
    probability = case.report.manifestations[name]
    return probability is not None and probability >= case.report.thresholds[name]


def _doubts(sheet: Sheet, case: Case) -> None:
    said = (*doubts_of(case)[_DOUBTS:], *problems_of(case))
    for i, problem in enumerate(said):
        if sheet.left_pt < _NOTES_PT + 20:
            sheet.text(f"and {len(said) - i} more, in the JSON document", 8, colour=WARNING)
            break
        sheet.paragraph(f"Note: {problem}", 8, colour=WARNING, most_lines=2)
    sheet.skip(6)


def _foot(sheet: Sheet, case: Case) -> None:
    sheet.y = min(sheet.y, MARGIN_PT + _NOTES_PT)
    sheet.rule(MARGIN_PT, sheet.y, WIDTH_PT)
    sheet.skip(6)
    sheet.text("How to read this page", 8.5, bold=True)
    has_burden = case.study is not None or (case.single is not None and case.single.burden is not None)
    said = (_HOW_TO_READ, _HOW_TO_READ_STUDY if case.study else "", _HOW_TO_READ_BURDEN if has_burden else "")
    sheet.paragraph(" ".join(filter(None, said)), 7.5)
    sheet.skip(4)
    models = sorted((model, version) for model, version in case.report.models.items() if model != ENSEMBLE_NAME)
    versions = ", ".join(f"{model} {version}" for model, version in models) or "unknown"
    gates = ", ".join(f"{name} {value:g}" for name, value in case.report.thresholds.items())
    sheet.paragraph(f"Models: {versions}. Thresholds: {gates}.", 7, colour=GREY, most_lines=2)
