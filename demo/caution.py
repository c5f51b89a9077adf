"""What stands beside the numbers of a case, as HTML: why they may mean nothing at all, and what they mean otherwise."""

from __future__ import annotations

from html import escape
from typing import Final

from serving.labels import DIAGNOSES, Modality
from serving.results import CaseReport

# Of docs/results.md, in per cent; a test holds them against docs/results.json.
ACCURACY: Final[dict[Modality, int]] = {"xray": 82, "ct": 82}
"""Right answers among the four diagnoses, in scans of patients or groups that were not trained on."""
COMMONEST_ANSWER: Final[dict[Modality, int]] = {"xray": 38, "ct": 85}
"""How many of these have the commonest diagnosis: what always giving that one answer is right in."""
CALIBRATION_ERROR: Final[dict[Modality, int]] = {"xray": 4, "ct": 8}
"""How far stage 1's probabilities are from how often they come true, on average."""
WORST_MANIFESTATION_CALIBRATION_ERROR: Final = 14
_SCANS: Final[dict[Modality, str]] = {"xray": "X-rays", "ct": "CT slices"}


def doubts(report: CaseReport) -> str:
    """What stands above the diagnosis of what may be no chest scan; empty for a plausible one."""
    if not report.doubts:
        return ""
    reasons = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.doubts)
    return (
        '<div class="ls-doubt" role="alert"><strong>This may not be a chest scan that can be read</strong>'
        f"{reasons}<p>What follows is not to be trusted: the networks answer for whatever they are shown.</p></div>"
    )


def meaning(report: CaseReport) -> str:
    """What probabilities, thresholds and *not run* mean, and how far they hold."""
    texts = [*_of_the_diagnosis(report.modality), *(_of_the_gates() if report.modality == "ct" else ()), _LIMITS]
    terms = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in texts)
    return (
        f'<details class="ls-card ls-meaning"><summary>What do these numbers mean?</summary><dl>{terms}</dl></details>'
    )


def _of_the_diagnosis(modality: Modality) -> tuple[tuple[str, str], ...]:
    return (
        (
            f"{len(DIAGNOSES)} scores, 100 % in all",
            f"The network shares 100 % among {len(DIAGNOSES)} answers and has no other: whatever else a scan shows is "
            "put under one of them. The highest is the likeliest of the four, not a finding.",
        ),
        (
            "70 %",
            f"Of {_SCANS[modality]} like those it was tested on that got 70 %, about 70 in 100 should be what it "
            f"says. On average it is {CALIBRATION_ERROR[modality]} points off. The highest score was right in "
            f"{ACCURACY[modality]} of 100 {_SCANS[modality]} that it was not trained on; always giving the commonest "
            f"answer would have been in {COMMONEST_ANSWER[modality]}.",
        ),
    )


def _of_the_gates() -> tuple[tuple[str, str], ...]:
    return (
        (
            "A manifestation's score",
            "Manifestations do not exclude each other, so each has its own score: how likely it is somewhere in this "
            f"slice. These are up to {WORST_MANIFESTATION_CALIBRATION_ERROR} points off on average.",
        ),
        (
            "Threshold (the tick on a bar)",
            "From it on the next network is asked to mark what was found. At 0.50 that is when presence is likelier "
            "than absence. Lower it to miss less and mark more that is nothing; 0 always asks. It changes no score.",
        ),
        ("Not run", "The score was below the threshold, so nobody looked. It does not mean that nothing is there."),
        (
            "Area",
            "The marked part of the whole picture, not of the lung. It is rough at the edges, and misses small spots.",
        ),
    )


_LIMITS: Final = (
    "How far this holds",
    "For scans from the few public sources that it was trained on. In part the networks tell hospitals and ages apart "
    "and not diseases: knowing only where an X-ray comes from tells COVID-19 from normal about as well. Expect worse "
    "on scans from elsewhere.",
)
