"""One case as ``lungstreams predict`` gives it: the object of ``--json``, and what people read of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from serving.burden import INFECTED, SIDE_NAMES
from serving.errors import AmbiguousStudy, LungstreamsError
from serving.labels import DIAGNOSES, MANIFESTATIONS, STREAM_NAMES
from serving.results import CaseReport
from serving.series import LeftOut
from serving.study_report import StudyReport

EXPLANATION: Final = "explanation"
"""Key of the picture of what speaks for the answer; there when it was asked for, None for a study."""
_AT_THE_TOP: Final = frozenset(
    (
        *("modality", "diagnosis", "manifestations", "area_fraction", "status"),
        *("models", "latency_ms", "request_id", "doubts"),
    )
)
DOUBTED: Final = "What follows is not to be trusted."


@dataclass(frozen=True, eq=False)
class CaseResult:
    """What came of a case.

    Attributes:
        data: As ``--json`` writes it; stable, users script against it.
        caption: What else a table says below it.
    """

    data: Mapping[str, Any]
    caption: str = ""

    @property
    def name(self) -> str:
        """The file, or the folder of a series."""
        return str(self.data["file"])

    @property
    def title(self) -> str:
        """`name` as a terminal can show it: names of files need not be UTF-8."""
        return self.name.encode(errors="backslashreplace").decode()

    @property
    def failed(self) -> bool:
        """Whether something that was asked for was not done."""
        return "error" in self.data or "export_errors" in self.data

    @property
    def complaints(self) -> tuple[str, ...]:
        """A line for each thing that was not done."""
        if "error" in self.data:
            request_id = f" (request id {self.data['request_id']})" if "request_id" in self.data else ""
            return (f"{self.title}: {self.data['error']['type']}: {self.data['error']['message']}{request_id}",)
        return tuple(f"{self.title}: CanNotExport: {why}" for why in self.data.get("export_errors", {}).values())

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why it may be no chest scan, or no study of the chest."""
        return tuple(self.data.get("doubts", ()))

    @property
    def line(self) -> str:
        """The object as a line of JSON."""
        return json.dumps(self.data, allow_nan=False)

    @property
    def sentence(self) -> str:
        """The case in one line for people: what to doubt, what is missing, and only then what was said."""
        diagnosis = max(DIAGNOSES, key=lambda label: self.data["diagnosis"][label.name])
        said = [f"{diagnosis.title} {self.data['diagnosis'][diagnosis.name]:.0%}"]
        for label in MANIFESTATIONS:
            if (score := self.data["manifestations"][label.name]) is not None:
                said.append(f"{label.title.lower()} {score:.0%}")
        said.extend(burden_words(burden_of(self.data)))
        first = [*self.doubts, DOUBTED] if self.doubts else []
        if "study" in self.data and not self.data["study"]["complete"]:
            read, of = len(self.data["study"]["slices"]), self.data["study"]["shape"][0]
            first.append(f"Incomplete: {read:,} of {of:,} slices were read.")
        return " ".join([f"{self.title}:", *first, f"{self.data['modality']}, {', '.join(said)}"])


def scan_case(name: str, report: CaseReport, masks: Mapping[str, str | None]) -> CaseResult:
    """The case of a single scan.

    Args:
        name: Its file, as the user named it.
        report: What was said of it.
        masks: By stream, the mask's file.
    """
    height, width = report.size_hw
    caption = f"{report.modality}, {width} x {height} pixels, {report.latency_ms:.0f} ms."
    everything = report.to_json()
    return CaseResult({**_top(name, everything, masks), "burden": everything["burden"]}, caption)


def study_case(
    name: str,
    report: StudyReport,
    masks: Mapping[str, str | None],
    series: str | None = None,
    left_out: Sequence[LeftOut] = (),
) -> CaseResult:
    """The case of a study.

    Args:
        name: Its file or folder, as the user named it.
        report: What was said of it.
        masks: By stream, the mask's file, or the folder of its slices.
        series: `serving.series.Series.summary` of a DICOM series.
        left_out: Files that were not read.
    """
    everything = report.to_json()
    study: dict[str, Any] = {
        "series": series,
        "left_out": [{"files": one.files, "why": one.why, "which": list(one.which)} for one in left_out],
        **{key: value for key, value in everything.items() if key not in _AT_THE_TOP},
    }
    slices, height, width = report.shape
    apart = "" if report.spacing_mm is None else f", {' x '.join(f'{mm:.2f}' for mm in report.spacing_mm)} mm apart"
    said = [
        f"{everything['modality']}, {slices} slices of {width} x {height} pixels{apart},"
        f" {report.latency_ms / 1000:.1f} s.",
        f"The probabilities are of {len(report.counted)} slices that show enough lung.",
        *(f"Note: {problem}." for problem in report.problems),
        *(f"Note: {one.words}." for one in left_out),
    ]
    return CaseResult({**_top(name, everything, masks), "study": study}, " ".join(said))


def failed_case(name: str, error: LungstreamsError | OSError, request_id: str = "") -> CaseResult:
    """The case of what could not be read.

    Args:
        name: Its file, as the user named it.
        error: Why.
        request_id: Drawn for it; empty where it was no case yet.
    """
    message = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    said: dict[str, Any] = {"type": type(error).__name__, "message": message}
    if isinstance(error, AmbiguousStudy):
        said["choices"] = list(error.choices)
    return CaseResult({"file": name, "error": said, **({"request_id": request_id} if request_id else {})})


def burden_of(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The burden of a case, of a study or of a CT slice; None of an X-ray, and of a line from before slices had one."""
    burden: Mapping[str, Any] | None = data["study"]["burden"] if "study" in data else data.get("burden")
    return burden


def burden_words(burden: Mapping[str, Any] | None) -> tuple[str, ...]:
    """How much of the lungs is marked, in words; none where nobody looked or there is no burden."""
    if burden is None or INFECTED not in burden["found"]:
        return ()
    if burden.get("note"):
        return (burden["note"].rstrip("."),)
    sides = burden["found"][INFECTED]
    if sides["both"]["percent"] is None:
        return ("no lung was found",)
    said = [f"{side} {percent_of(sides[side])}" for side in SIDE_NAMES[1:] if percent_of(sides[side])]
    lung = burden["lung"]["both"]
    if "ml" not in lung:
        said.append(f"{sides['both']['pixels']:,} of {lung['pixels']:,} pixels")
    elif lung["ml"] is not None:
        said.append(f"{sides['both']['ml']:,.0f} ml of {lung['ml']:,.0f} ml")
    return (f"{percent_of(sides['both'])} of the lungs are marked ({', '.join(said)})",)


def percent_of(amount: Mapping[str, Any] | None) -> str:
    """An amount's per cent of the lung; empty where it is not known."""
    return "" if amount is None or amount["percent"] is None else f"{amount['percent']:.1f} %"


def _top(name: str, everything: Mapping[str, Any], masks: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "file": name,
        "modality": everything["modality"],
        "diagnosis": everything["diagnosis"],
        "manifestations": everything["manifestations"],
        "masks": {stream: masks.get(stream) for stream in STREAM_NAMES},
        "area_fraction": everything["area_fraction"],
        "status": everything["status"],
        "models": everything["models"],
        "latency_ms": round(everything["latency_ms"], 3),
        "request_id": everything["request_id"],
        "doubts": everything["doubts"],
    }
