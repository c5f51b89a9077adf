"""What the page says about a case, as HTML: pure functions of a `CaseReport`.

Three things that look alike as numbers are told apart in words and in form: a stage that does not apply to an
X-ray, a stage whose gate was closed, and a stage that ran and found nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Final

from demo.folders import UploadGone
from demo.rows import burden_table, card, row, scrolled, sentence, swatch
from demo.watch import Health
from serving import pipeline
from serving.burden import INFECTED, SIDE_NAMES, Area
from serving.errors import CanNotExport, LungstreamsError, RequestError, ScanError, ServerBusy, ServerError
from serving.labels import ALL_STREAM, DIAGNOSES, MANIFESTATIONS, Label
from serving.results import CaseReport

RESEARCH_USE: Final = "Research use only. Not a medical device."
_COVID: Final = DIAGNOSES[0]
_MODALITY_TITLES: Final = {"ct": "CT slice", "xray": "X-ray"}


def header() -> str:
    """The top of the page: what this is."""
    return (
        '<header class="ls-header">'
        '<svg class="ls-mark" viewBox="0 0 40 40" aria-hidden="true"><path d="M18 4v13c0 2-1 3-3 4.500L10 25"/>'
        '<path d="M22 4v13c0 2 1 3 3 4.500L30 25"/><path d="M14 12C8 15 4 23 4 31c0 4 2 5 5 5 5 0 9-2 9-7v-4"/>'
        '<path d="M26 12c6 3 10 11 10 19 0 4-2 5-5 5-5 0-9-2-9-7v-4"/></svg>'
        '<div><h1>lungstreams</h1><p class="ls-tagline">COVID-19 on chest scans: a diagnosis, the manifestations, '
        "and a segmentation stream for each.</p></div></header>"
    )


def disclaimer() -> str:
    """The sentence that is on the page whatever else is."""
    return f'<p class="ls-disclaimer" role="note"><strong>{RESEARCH_USE}</strong></p>'


def server_pill(health: Health, url: str) -> str:
    """One line on the server, for the header."""
    state = "up" if health.ready else "down"
    return f'<p class="ls-pill ls-pill-{state}" role="status"><span>{health.title}</span><code>{escape(url)}</code></p>'


def server_banner(health: Health, url: str) -> str:
    """The banner while the server can not be used; empty when it can."""
    if health.ready:
        return ""
    return (
        f'<div class="ls-banner" role="alert"><strong>{health.title} at <code>{escape(url)}</code></strong>'
        f"<p>{sentence(health.reason)}</p>"
        "<p>Scans can not be read until it is back. This page keeps trying: no need to reload it.</p></div>"
    )


def alert(error: LungstreamsError) -> str:
    """An error that the visitor can do something about."""
    titles = (
        (UploadGone, "The upload is not kept any more"),
        (ScanError, "This file can not be read as a scan"),
        (CanNotExport, "This file can not be made of this case"),
        (RequestError, "These settings do not fit"),
        (ServerBusy, "The server is busy"),
        (ServerError, "The server did not answer"),
    )
    title = next((text for kind, text in titles if isinstance(error, kind)), "The case could not be read")
    return message(title, str(error), request_id(error.request_id))


def message(title: str, text: str, note: str = "") -> str:
    """What went wrong, where the result would be.

    Args:
        title: In a few words of ours.
        text: In a sentence.
        note: HTML that follows it.
    """
    return f'<div class="ls-alert" role="alert"><strong>{title}</strong><p>{sentence(text)}</p>{note}</div>'


def request_id(value: str) -> str:
    """What to quote when asking whoever runs the server about a case; nothing where it has no id."""
    return value and f'<p class="ls-note">Request id: <code>{escape(value)}</code></p>'


def progress(words: str, done: int, of: int) -> str:
    """How far a reading is."""
    return (
        f'<div class="ls-progress"><label>{words}<progress max="{of}" value="{done}">{done} of {of}</progress></label>'
        "</div>"
    )


def film(address: str, words: str) -> str:
    """The scan that is looked at, in a dark frame.

    Args:
        address: Of the picture; empty for none.
        words: What it is, or why there is none.
    """
    if not address:
        return f'<div class="ls-film"><p class="ls-empty">{escape(words)}</p></div>'
    return f'<div class="ls-film"><img src="{address}" alt="{escape(words)}"></div>'


def error_json(error: LungstreamsError) -> dict[str, object]:
    """An error for a program, as ``lungstreams predict --json`` has it."""
    said: dict[str, object] = {"error": {"type": type(error).__name__, "message": str(error)}}
    return {**said, "request_id": error.request_id} if error.request_id else said


def below(p: float, threshold: float) -> str:
    """Say that `p` is under a threshold, with as many digits as it takes to see it."""
    for digits in range(2, 8):
        left, right = f"{p:.{digits}f}", f"{threshold:.{digits}f}"
        if left != right:
            break
    return f"p = {left} &lt; threshold {right}"


def area(fraction: float) -> str:
    """An area in per cent of the slice: three digits where it is small, never `0 %` for something found."""
    percent = 100 * fraction
    return "&lt; 0.01 %" if 0 < percent < 0.01 else f"{percent:.2f} %" if percent < 10 else f"{percent:.1f} %"


def intro() -> str:
    """What the result will be, while there is none."""
    return steps(
        "No result yet",
        (
            "<strong>Recognition.</strong> Four scores: " + ", ".join(label.title for label in DIAGNOSES) + ".",
            "<strong>Manifestations.</strong> On CT slices: " + ", ".join(m.title for m in MANIFESTATIONS) + ".",
            "<strong>Segmentation.</strong> One stream for each manifestation that was found, and one for all.",
        ),
    )


def steps(title: str, texts: Sequence[str]) -> str:
    """A card with what there will be, numbered.

    Args:
        title: Its heading.
        texts: HTML of ours.
    """
    items = "".join(f"<li><b>{number}</b><span>{text}</span></li>" for number, text in enumerate(texts, start=1))
    return f'{card(title, "what you will see")}<ol class="ls-steps">{items}</ol></section>'


def diagnosis(report: CaseReport) -> str:
    """The four scores of stage 1."""
    ranked = max(DIAGNOSES, key=lambda label: report.diagnosis[label.name])
    rows = "".join(row(label, report.diagnosis[label.name], is_top=label is ranked) for label in DIAGNOSES)
    return (
        f"{card('Diagnosis', _MODALITY_TITLES[report.modality])}"
        f'<p class="ls-lead">Highest score: <strong>{escape(ranked.title)}</strong></p>'
        f'<ul class="ls-rows" aria-label="Diagnosis probabilities">{rows}</ul></section>'
    )


def manifestations(report: CaseReport) -> str:
    """The three scores of stage 2, and what each stream of stage 3 did."""
    if report.status["manifestations"] == "not_applicable":
        return (
            f"{card('Manifestations', 'and segmentation')}"
            '<div class="ls-na"><strong>Not applicable</strong><p>Manifestations and their segmentation are read on '
            "CT slices. This is an X-ray: they were not looked for, so nothing follows from their absence.</p></div>"
            "</section>"
        )
    rows = "".join(
        row(
            label,
            report.manifestations[label.name],
            threshold=report.thresholds[label.name],
            verdict=_verdict(report, label),
        )
        for label in MANIFESTATIONS
    )
    return (
        f"{card('Manifestations', 'area in % of the slice')}"
        f'<ul class="ls-rows" aria-label="Manifestation probabilities and areas">{rows}'
        f'<li class="ls-row"><span class="ls-name">{swatch(ALL_STREAM)}{ALL_STREAM.title}</span>'
        f"{_verdict(report, ALL_STREAM)}</li></ul></section>"
    )


def burden(report: CaseReport) -> str:
    """How much of the lung is marked in a CT slice; empty for an X-ray, and where no stream looked."""
    said = report.burden
    if said is None or not said.found:
        return ""
    if said.note is not None:
        return f"{card('Burden', '% of the lung')}<p>{escape(said.note)}</p></section>"
    sides = [side for side in SIDE_NAMES if said.lung[side] is not None]
    singles = [name for name in said.found if name not in (INFECTED, ALL_STREAM.name)]
    names = [name for name in (*singles, INFECTED, ALL_STREAM.name) if name in said.found]
    found = [(name, [_share(said.found[name][side]) for side in sides]) for name in names]
    table = burden_table(sides, found, [_pixels(said.lung[side]) for side in sides])
    apart = "" if len(sides) > 1 else '<p class="ls-note">The two lungs can not be told apart in this slice.</p>'
    return (
        f"{card('Burden', '% of the lung in this slice')}{table}{apart}"
        '<p class="ls-note">Lungs were found by thresholds, not by a network. A slice has no volume.</p></section>'
    )


def how(report: CaseReport) -> str:
    """Which model versions answered, and how long each took."""
    slowest_ms = max(report.stage_ms.values(), default=0.0)
    rows = "".join(_model_row(report, step, slowest_ms) for step in pipeline.STEPS)
    table = (
        '<table class="ls-models"><thead><tr><th scope="col">Stage</th><th scope="col">Model</th>'
        '<th scope="col">Version</th><th scope="col">Time</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return (
        f"{card('Time and models', f'{report.latency_ms:,.0f} ms in all')}"
        f"{scrolled('time and models', table)}{request_id(report.request_id)}</section>"
    )


def layers_note(report: CaseReport) -> str:
    """Why there is no layer to switch, if there is none; else how the layers are drawn."""
    if report.status["manifestations"] == "not_applicable":
        return '<p class="ls-note">No layers: segmentation is not applicable to an X-ray.</p>'
    if all(mask is None for mask in report.masks.values()):
        return '<p class="ls-note">No layers: every gate was closed, so no stream ran.</p>'
    return (
        f'<p class="ls-note">{ALL_STREAM.title}: filled in the colour of each class, edged in '
        f"{swatch(ALL_STREAM)}its own.</p>"
    )


def _share(area: Area | None) -> str:
    percent = "—" if area is None or area.percent is None else f"{area.percent:.1f} %"
    return f"<b>{percent}</b><span>{_pixels(area)}</span>"


def _pixels(area: Area | None) -> str:
    return "—" if area is None else f"{area.pixels:,} px"


def _verdict(report: CaseReport, label: Label) -> str:
    fraction = report.area_fraction[label.name]
    if report.status[label.name] != "ran" or fraction is None:
        return f'<span class="ls-verdict ls-closed">not run: {_why_closed(report, label.name)}</span>'
    if fraction == 0:
        return '<span class="ls-verdict ls-nothing">ran, nothing found</span>'
    by = ", by one network for all three" if label is ALL_STREAM else ""
    return f'<span class="ls-verdict ls-found"><strong>{area(fraction)}</strong> of the slice{by}</span>'


def _why_closed(report: CaseReport, stream: str) -> str:
    if report.status["manifestations"] != "ran":
        p, threshold = report.diagnosis[_COVID.name], report.thresholds[_COVID.name]
        return f"gate closed by {_COVID.title} ({below(p, threshold)})"
    if stream == ALL_STREAM.name:
        return "gate closed (no manifestation reached its threshold)"
    return f"gate closed ({below(report.manifestations[stream] or 0.0, report.thresholds[stream])})"


def _model_row(report: CaseReport, step: pipeline.Step, slowest_ms: float) -> str:
    status = report.status.get(step.model.removeprefix("segment_"), "ran")
    ms = report.stage_ms.get(step.model)
    if status != "ran":
        time = f'<span class="ls-quiet">{status.replace("_", " ")}</span>'
    elif ms is None:
        time = '<span class="ls-quiet">not measured</span>'
    else:
        share = 100 * ms / slowest_ms if slowest_ms > 0 else 0.0
        time = f'<span class="ls-ms">{ms:,.0f} ms</span><span class="ls-time"><b style="width:{share:.1f}%"></b></span>'
    version = "—" if status == "not_applicable" else escape(report.models.get(step.model, "—"))
    return f"<tr><td>{step.stage}</td><td><code>{step.model}</code></td><td>{version}</td><td>{time}</td></tr>"
