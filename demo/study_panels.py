"""What the page says about a CT study, as HTML: pure functions of a `StudyReport`."""

from __future__ import annotations

from html import escape

from demo.panels import request_id, steps
from demo.rows import burden_table, card, row, sentence, swatch
from serving.burden import INFECTED, SIDE_NAMES, Amount
from serving.labels import ALL_STREAM, DIAGNOSES, MANIFESTATION_NAMES, MANIFESTATIONS
from serving.study_report import SliceReading, StudyReport


def opening() -> str:
    """Before it is known how many slices there are."""
    return '<div class="ls-progress"><label>Opening the study …<progress></progress></label></div>'


def intro() -> str:
    """What the result will be, while there is none."""
    return steps(
        "No study yet",
        (
            "<strong>Every slice</strong> goes through the three stages, several at a time.",
            "<strong>The summary</strong> is of the slices that show enough lung.",
            "<strong>Burden.</strong> What is marked, in ml and in % of the lung, for each lung.",
        ),
    )


def slice_words(report: StudyReport, index: int) -> str:
    """What was said of one slice, in a line."""
    count = report.shape[0]
    one = next((one for one in report.slices if one.index == index), None)
    if one is None:
        return f"Slice {index + 1} of {count}: not read"
    parts = [f"COVID-19 {100 * one.diagnosis['covid19']:.1f} %"]
    parts += [_finding(one, label.name, label.title) for label in MANIFESTATIONS]
    lungless = "" if one.index in {each.index for each in report.counted} else "; does not count: too little lung"
    return f"Slice {index + 1} of {count}: {', '.join(parts)}{lungless}"


def problems(report: StudyReport) -> str:
    """What has to be known before anything else; empty if there is nothing."""
    said = list(report.problems)
    if not report.complete:
        said.insert(0, f"incomplete: {len(report.slices):,} of {report.shape[0]:,} slices were read")
    if not said:
        return ""
    items = "".join(f"<li>{sentence(problem)}</li>" for problem in said)
    return f'<section class="ls-known" aria-label="Know this first"><h2>Know this first</h2><ul>{items}</ul></section>'


def diagnosis(report: StudyReport) -> str:
    """The mean of stage 1 over the slices that count."""
    means = report.diagnosis
    ranked = max(DIAGNOSES, key=lambda label: means[label.name])
    rows = "".join(row(label, means[label.name], is_top=label is ranked) for label in DIAGNOSES)
    counted = len(report.counted)
    return (
        f"{card('Diagnosis', f'mean of {counted:,} of {len(report.slices):,} slices')}"
        f'<p class="ls-lead">Highest score: <strong>{escape(ranked.title)}</strong></p>'
        f'<ul class="ls-rows" aria-label="Diagnosis probabilities">{rows}</ul></section>'
    )


def manifestations(report: StudyReport) -> str:
    """The highest of stage 2, and where it is."""
    rows = ""
    for label in MANIFESTATIONS:
        top = report.likeliest(label.name)
        if top is None:
            verdict = '<span class="ls-verdict ls-closed">not run: the gate was closed on every slice</span>'
            rows += row(label, None, verdict=verdict)
            continue
        index, p = top
        verdict = (
            f'<span class="ls-verdict">highest in <button type="button" class="ls-jump" data-slice="{index + 1}">'
            f"slice {index + 1}</button>{_marked(report, label.name)}</span>"
        )
        rows += row(label, p, threshold=report.thresholds[label.name], verdict=verdict)
    return (
        f"{card('Manifestations', 'highest of any slice')}"
        f'<ul class="ls-rows" aria-label="Manifestation probabilities">{rows}</ul></section>'
    )


def burden(report: StudyReport) -> str:
    """How much of each lung is marked."""
    found = report.burden.found
    nobody = "" if found else '<p class="ls-note">No stream ran, so nothing is known of what is marked.</p>'
    names = [name for name in (*MANIFESTATION_NAMES, INFECTED) if name in found]
    rows = [(name, [_amount(found[name][side]) for side in SIDE_NAMES]) for name in names]
    lung = [_size(report.burden.lung[side]) for side in SIDE_NAMES]
    return f"{card('Burden', '% of the lung')}{burden_table(SIDE_NAMES, rows, lung)}{nobody}</section>"


def how(report: StudyReport) -> str:
    """Which models answered, and how long the study took."""
    versions = ", ".join(f"{escape(model)} {escape(version)}" for model, version in report.models.items())
    n, h, w = report.shape
    apart = "" if report.spacing_mm is None else ", " + " x ".join(f"{mm:.2f}" for mm in report.spacing_mm) + " mm"
    seconds, each_ms = report.latency_ms / 1000, report.latency_ms / len(report.slices)
    return (
        f"{card('Time and models', f'{seconds:.1f} s in all')}"
        f'<p class="ls-note">{n:,} slices of {w} x {h}{apart}; {each_ms:.0f} ms a slice.</p>'
        f'<p class="ls-note">Versions: {versions}.</p>{request_id(report.request_id)}</section>'
    )


def layers_note(report: StudyReport) -> str:
    """How the layers are drawn, or why there are none."""
    if all(mask is None for mask in report.masks.values()):
        return '<p class="ls-note">No layers: no stream ran on any slice.</p>'
    return (
        f'<p class="ls-note">{ALL_STREAM.title}: filled in the colour of each class, edged in '
        f"{swatch(ALL_STREAM)}its own.</p>"
    )


def _finding(one: SliceReading, name: str, title: str) -> str:
    p = one.manifestations[name]
    return f"{title.lower()} {'not run' if p is None else f'{100 * p:.1f} %'}"


def _marked(report: StudyReport, stream: str) -> str:
    stack = report.masks[stream]
    if stack is None:
        return "; its stream ran on none"
    count = len(stack.marked())
    return f"; marked in {count:,} slice{'' if count == 1 else 's'}"


def _amount(amount: Amount) -> str:
    percent = "—" if amount.percent is None else f"{amount.percent:.1f} %"
    return f"<b>{percent}</b><span>{_size(amount)}</span>"


def _size(amount: Amount) -> str:
    return (
        f"{amount.pixels:,} px"
        if amount.ml is None
        else f"{amount.ml:,.0f} ml"
        if amount.ml >= 10
        else _small(amount.ml)
    )


def _small(ml: float) -> str:
    return "0 ml" if ml == 0 else f"{ml:.1f} ml" if ml >= 0.05 else "&lt; 0.1 ml"
