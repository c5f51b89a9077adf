"""What stands beside the numbers of a case, as HTML: why they may mean nothing at all, and what they mean otherwise."""

from __future__ import annotations

from html import escape
from typing import Final

from serving.labels import DIAGNOSES, Modality
from serving.results import CaseReport
from serving.study_report import StudyReport

# Of docs/results.md, in per cent; a test holds them against docs/results.json.
ACCURACY: Final[dict[Modality, int]] = {"xray": 82, "ct": 82}
"""Right answers among the four diagnoses, in scans of patients or groups that were not trained on."""
COMMONEST_ANSWER: Final[dict[Modality, int]] = {"xray": 38, "ct": 85}
"""How many of these have the commonest diagnosis: what always giving that one answer is right in."""
CALIBRATION_ERROR: Final[dict[Modality, int]] = {"xray": 4, "ct": 8}
"""How far stage 1's probabilities are from how often they come true, on average."""
WORST_MANIFESTATION_CALIBRATION_ERROR: Final = 14
_SCANS: Final[dict[Modality, str]] = {"xray": "X-rays", "ct": "CT slices"}


def doubts(report: CaseReport | StudyReport) -> str:
    """What stands above the diagnosis of what may be no chest scan or study; empty for a plausible one."""
    if not report.doubts:
        return ""
    reasons = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.doubts)
    return (
        '<div class="ls-doubt" role="alert"><strong>This may not be a chest scan that can be read</strong>'
        f"{reasons}<p>What follows is not to be trusted: the networks answer for whatever they are shown.</p></div>"
    )


def meaning(report: CaseReport | StudyReport) -> str:
    """What probabilities, thresholds and *not run* mean, and how far they hold."""
    if isinstance(report, StudyReport):
        texts = [*_of_a_study(), _LIMITS]
    else:
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
        _THRESHOLD,
        ("Not run", "The score was below the threshold, so nobody looked. It does not mean that nothing is there."),
        (
            "Area",
            "The marked part of the whole picture, not of the lung. It is rough at the edges, and misses small spots.",
        ),
    )


def _of_a_study() -> tuple[tuple[str, str], ...]:
    return (
        (
            f"{len(DIAGNOSES)} scores, 100 % in all",
            f"The network reads slices, and shares 100 % of each among {len(DIAGNOSES)} answers. Shown is "
            "the mean over the slices with enough lung, in which a small finding in a few slices nearly vanishes: "
            "the curves below the picture show it.",
        ),
        (
            "70 %",
            f"The mean of what slices got, not a chance of 70 in 100: of a single slice a score is "
            f"{CALIBRATION_ERROR['ct']} points off on average, and of whole studies nobody has measured how often it "
            f"comes true. Of single slices the highest score was right in {ACCURACY['ct']} of 100 that it was not "
            f"trained on; always giving the commonest answer would have been in {COMMONEST_ANSWER['ct']}.",
        ),
        (
            "A manifestation's score",
            "The highest of any slice with enough lung, and which one that is. The more slices there are, the likelier "
            "is a high one by chance alone: look at that slice. Of a single slice these are up to "
            f"{WORST_MANIFESTATION_CALIBRATION_ERROR} points off on average.",
        ),
        _THRESHOLD,
        (
            "Not run",
            "In no slice did the score before it reach its threshold, so nobody looked. It does not mean that nothing "
            "is there.",
        ),
        (
            "Burden",
            "What is marked in the slices with enough lung, as a part of the lung of that side; fluid lies beside the "
            "lung and is given in relation to it. Lungs are found by a threshold and not by a network. Marks are rough "
            "at the edges, and miss small spots.",
        ),
    )


_THRESHOLD: Final = (
    "Threshold (the tick on a bar)",
    "From it on the next network is asked to mark what was found. At 0.50 that is when presence is likelier than "
    "absence. Lower it to miss less and mark more that is nothing; 0 always asks. It changes no score.",
)
_LIMITS: Final = (
    "How far this holds",
    "For scans from the few public sources that it was trained on. In part the networks tell hospitals and ages apart "
    "and not diseases: knowing only where an X-ray comes from tells COVID-19 from normal about as well. Expect worse "
    "on scans from elsewhere.",
)
