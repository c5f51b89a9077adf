"""The tab that says what all this is, how good it is, what is kept, and how a program asks.

Figures are those that ``lungstreams evaluate`` wrote, if they are beside the packages as in a checkout; a page without
them says where they are instead of repeating them here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from demo.panels import RESEARCH_USE
from demo.rows import card, scrolled
from demo.site import Site
from demo.volume_tab import STUDIES_KEPT
from serving import pipeline
from serving.labels import MANIFESTATIONS
from serving.repository import DEFAULT_REPOSITORY, PROVENANCE_NAME

RESULTS: Final = Path(__file__).resolve().parents[1] / "docs" / "results.json"
PLAUSIBILITY: Final = RESULTS.with_name("plausibility.json")

EXAMPLE: Final = """\
from gradio_client import Client, handle_file

page = Client("http://127.0.0.1:7860", verbose=False)
scan, study = handle_file("scan.png"), handle_file("study.zip")
gates = 0, 0.5, 0.5, 0.5  # covid19, ground_glass, consolidation, pleural_effusion

case = page.predict(scan, "auto", *gates, api_name="/predict")
print(case["diagnosis"]["covid19"], case["status"]["ground_glass"])

case = page.predict([study], None, *gates, api_name="/predict_volume")
print(case["diagnosis"]["covid19"], case["burden"]["lung"]["both"]["ml"])

for case in page.predict([scan, study], *gates, api_name="/predict_folder"):
    print(case["number"], case.get("error") or case["diagnosis"]["covid19"])
"""
"""How a program asks the page. Tested as it stands here, with addresses and files put in."""

_ENDPOINTS: Final = (
    ("/predict", "file, modality (auto, ct, xray), four thresholds", "what is said of a scan, without its masks"),
    ("/predict_volume", "files, series (from 0) or none, four thresholds", "what is said of a CT study"),
    ("/predict_folder", "files, four thresholds", "a list: for each its number, name, and one of the above"),
    ("/read", "as the tab Scan sends it", "the panels of the tab Scan, as HTML"),
)


def page(site: Site) -> str:
    """The whole tab, but for the versions that the server says."""
    return (
        '<div class="ls-about"><div>'
        f"{_what()}{_figures(_results())}{_privacy(site)}{_endpoints()}{_sources(_provenances())}</div></div>"
    )


def versions(found: Mapping[str, str] | None) -> str:
    """Which models the server serves.

    Args:
        found: Version by model; None while nobody asked, empty if the server does not say.
    """
    if not found:
        said = "Not asked yet." if found is None else "The server does not answer."
        return f'{card("Models that are served", "")}<p class="ls-note">{said}</p></section>'
    rows = "".join(
        f"<tr><td>{step.stage}</td><td><code>{step.model}</code></td><td>{escape(found.get(step.model, '—'))}</td></tr>"
        for step in pipeline.STEPS
    )
    return (
        f"{card('Models that are served', 'as the server says')}"
        f"{_table('models that are served', ('Stage', 'Model', 'Version'), rows)}</section>"
    )


def _what() -> str:
    return (
        f"{card('What this is', 'a research prototype')}"
        f'<p class="ls-text"><strong>{RESEARCH_USE}</strong> Nothing here is a basis for a decision about a person.</p>'
        '<p class="ls-text">lungstreams reads chest scans for COVID-19 in three stages: recognition by Inception-v3 in '
        "X-rays and CT slices; manifestations by a multi-label network and segmentation by four DeepLab-v3+ streams, "
        "one for each manifestation and one for all, in CT slices. A CT study is read slice by slice, and what is said "
        "of it is a summary of its slices. After El-bana, Al-Kabbany and Sharkas, PeerJ Computer Science 2020, "
        "doi:10.7717/peerj-cs.303.</p>"
        '<p class="ls-text">The weights were trained within hours on two CPU cores, on a few thousand public scans of '
        "which some are non-commercial. Knowing the hospital that a scan is from tells COVID-19 about as well as the "
        "network does, so do not expect the figures to hold elsewhere. Masks find most of a lesion's bulk and miss its "
        "edges. Lungs are found by a threshold and not by a network.</p>"
        f'<p class="ls-text">{_flagged(_plausibility())}</p></section>'
    )


def _flagged(measured: Mapping[str, Any] | None) -> str:
    """How well what is no chest scan is told, in two sentences.

    Args:
        measured: As `train.plausibility` wrote it; None if it is not there.
    """
    said = "What does not look like a chest scan is flagged before its answer, and is answered all the same"
    if measured is None:
        return f"{said}. How well it is told is in docs/plausibility.json, which is not installed with this page."
    short = measured["kinds_left_out_in_short"]
    alarms = [source["share"] for source in measured["false_alarms_of_sources_left_out"].values()]
    missed = 1 - measured["kinds_left_out"]["MR"]["auto"]["share"], 1 - measured["turned"]["ct, flipped"]["share"]
    return (
        f"{said}: of {short['kinds']} kinds of other pictures, many of them drawn and each left out of the fit, "
        f"{100 * short['mean_share_flagged']:.0f} % were flagged on average, and so were {100 * min(alarms):.0f} to "
        f"{100 * max(alarms):.1f} % of the chest scans of a source that was left out. It misses "
        f"{100 * missed[0]:.0f} % of MR images and {100 * missed[1]:.0f} % of CT slices that are upside down."
    )


def _figures(results: Mapping[str, Any] | None) -> str:
    head = card("How good it is", "on patients or groups that were not trained on")
    if results is None:
        return f'{head}<p class="ls-text">In docs/results.md, which is not installed with this page.</p></section>'
    recognition = results["recognition"]
    xray, ct = recognition["xray"]["four_classes"], recognition["ct"]["covid19_or_not"]
    rows = [
        ("1, X-ray", "accuracy, four classes", xray["accuracy"], xray["accuracy_95"], xray["majority_class_accuracy"]),
        ("1, CT", "AUC, COVID-19 or not", ct["auc"], ct["auc_95"], 0.5),
    ]
    for label in MANIFESTATIONS:
        found = results["manifestations"][label.name]
        rows.append(("2", f"AUC, {label.title.lower()}", found["auc"], found["auc_95"], 0.5))
    for label in MANIFESTATIONS:
        found = results[f"segment_{label.name}"][label.name]
        rows.append(
            ("3", f"Dice, {label.title.lower()}", found["dice"], found["dice_95"], found["dice_of_marking_everything"])
        )
    body = "".join(_figure(*row) for row in rows)
    return f"{head}{_table('how good it is', ('Stage', 'Figure', 'Ours', 'Chance'), body)}</section>"


def _figure(stage: str, what: str, value: float, interval: Sequence[float] | None, chance: float) -> str:
    between = "" if not interval else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"<tr><td>{stage}</td><td>{what}</td><td>{value:.3f}{between}</td><td>{chance:.3f}</td></tr>"


def _privacy(site: Site) -> str:
    longest_s = site.kept_s + site.sweep_s
    return (
        f'{card("What is kept, where and for how long", "")}<ul class="ls-list">'
        "<li>Scans stay on the machine that serves this page and on the Triton that it asks. The page loads nothing "
        "from anybody else, and sends nothing to anybody else.</li>"
        "<li>Uploads, under the names that you gave them, pictures of scans, and files to take away lie in a folder "
        f"that the page's own user alone can read. They are deleted {_time(site.kept_s)} after they came, at the "
        f"latest {_time(longest_s)}, and when the page ends.</li>"
        "<li>What was said of a scan, and what it takes to draw it, stays in memory for your session for as long. Of "
        f"studies the page keeps the last {STUDIES_KEPT} of all visitors; their slices are read from your files again "
        "when you look at them. A packed NIfTI is unpacked to a file without a name, which goes with the study.</li>"
        "<li>DICOM SEG and SR carry the patient and study of your DICOM files, or no archive would take them. Other "
        "files to take away name nobody.</li>"
        "<li>No file name, and nothing of a DICOM header, is logged or counted.</li></ul></section>"
    )


def _time(seconds: int) -> str:
    if seconds % 3600 == 0:
        return "an hour" if seconds == 3600 else f"{seconds // 3600} hours"
    return f"{seconds // 60} minutes" if seconds >= 60 else f"{seconds} seconds"


def _endpoints() -> str:
    rows = "".join(
        f"<tr><td><code>{name}</code></td><td>{takes}</td><td>{gives}</td></tr>" for name, takes, gives in _ENDPOINTS
    )
    return (
        f"{card('For programs', 'pip install gradio_client')}"
        f"{_table('endpoints', ('Endpoint', 'Takes', 'Gives'), rows)}"
        '<p class="ls-text">Thresholds are those of COVID-19, ground-glass opacity, consolidation and pleural '
        "effusion, in [0, 1]; a gate opens where a score reaches its threshold. Answers are JSON; what can not be "
        'read answers <code>{"error": {"type", "message"}}</code>. For masks ask Triton itself, over gRPC.</p>'
        '<pre class="ls-code" tabindex="0" role="region" aria-label="An example in Python">'
        f"<code>{escape(EXAMPLE)}</code></pre></section>"
    )


def _sources(provenances: Mapping[str, Any]) -> str:
    found = {source["name"]: source["licence"] for one in provenances.values() for source in one["data_sources"]}
    if not found:
        said = '<p class="ls-text">See provenance.json beside each version of the models, on the server.</p>'
    else:
        items = "".join(f"<li><b>{escape(name)}</b>: {escape(licence)}</li>" for name, licence in sorted(found.items()))
        summary = f"<summary>{len(found)} sources of training data</summary>"
        said = f'<details>{summary}<ul class="ls-list">{items}</ul></details>'
    return (
        f"{card('Licences', '')}"
        '<p class="ls-text">The program: Apache-2.0. The weights inherit the terms of the scans that they were trained '
        f"on: treat them as non-commercial.</p>{said}</section>"
    )


def _table(label: str, titles: Sequence[str], rows: str) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return scrolled(label, f'<table class="ls-models"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>')


def _results() -> Mapping[str, Any] | None:
    return _json(RESULTS) if RESULTS.is_file() else None


def _plausibility() -> Mapping[str, Any] | None:
    return _json(PLAUSIBILITY) if PLAUSIBILITY.is_file() else None


def _provenances() -> dict[str, Any]:
    files = sorted(DEFAULT_REPOSITORY.glob(f"*/*/{PROVENANCE_NAME}"))
    return {file.parts[-3]: said for file in files if "data_sources" in (said := _json(file))}


def _json(path: Path) -> dict[str, Any]:
    said: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return said
