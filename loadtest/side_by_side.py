"""The same work done in several ways, in one run: the same scans, the same weights, in turn.

All ways are loaded at once, and each round asks every one of them. The order changes from round to round so that each
way comes as often at each place, and as often after each other one: whatever a way leaves behind (caches, warm cores)
hits all alike. Before each turn the machine has to be quiet (`loadtest.quiet`).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import track

from loadtest.cases import CASES, LoadCase
from loadtest.competitors import Competitor, KerasModels, check_packages
from loadtest.difference import Difference
from loadtest.gate import percentile
from loadtest.machine import Machine, describe
from loadtest.networks import unpack
from loadtest.quiet import QUIET_CORES, settle
from loadtest.served import line_up
from loadtest.turns import order_of_turns
from loadtest.wire import Answer, check_answer
from serving.errors import InferenceFailed, RequestError

WARM_UP_ROUNDS: Final = 2
SIDE_BY_SIDE_CASES: Final = (CASES["ct_open"], CASES["xray"])
REFERENCE_WAY: Final = "ONNX Runtime"
"""Whose answers those of the others are held against."""
GRAPH_OF: Final[Mapping[str, str]] = {"fp32": "fp32", "bf16": "fp32", "int8": "int8"}
"""Precision that is computed in -> that of the networks it is computed from."""


LIMITS: Final[Mapping[str, Difference]] = {
    "fp32": Difference(1e-3, 0.005),
    "bf16": Difference(0.05, 0.05),
    "int8": Difference(0.05, 0.05),
}
"""By precision: what counts as the same answer as the reference's from the same networks. Rounding may differ."""


@dataclass(frozen=True)
class Contender:
    """A competitor, as the report knows it.

    Attributes:
        name: As in ``OpenVINO bf16``.
        precision: fp32, bf16 or int8.
        served: Whether it answers from another process.
        ours: Whether it is this project's server.
        how: How it is set up.
    """

    name: str
    precision: str
    served: bool
    ours: bool
    how: str


@dataclass(frozen=True)
class Outcome:
    """What came of one contender in one case.

    Attributes:
        contender: Its name.
        case: The case's name.
        samples_ms: From the scan's bytes to the decoded answer, in milliseconds and in the order of the rounds.
        against_same: From the reference with the same networks.
        against_fp32: From the fp32 reference; None where no fp32 networks took part.
        complaint: Why an answer can not be right; None if all can.
    """

    contender: str
    case: str
    samples_ms: tuple[float, ...]
    against_same: Difference
    against_fp32: Difference | None
    complaint: str | None

    def percentile_ms(self, q: float) -> float:
        """Nearest-rank percentile of the samples."""
        value = percentile(self.samples_ms, q)
        return float("nan") if value is None else value


@dataclass(frozen=True)
class SideBySide:
    """A run's result. `dataclasses.asdict` makes JSON of it.

    Attributes:
        title: What was measured, as in ``Full width``.
        taken_at: When it began, ISO 8601 in UTC.
        rounds: Answers per case and contender that are counted.
        machine: What it ran on.
        packages: Versions of what only the contenders need.
        contenders: In the order of the first round.
        outcomes: Of each contender in each case.
        turns: How many there were, warm-up included.
        restless: How many of them began before the machine was quiet, since a wait has an end.
        note: What a reader must know of the networks.
    """

    title: str
    taken_at: str
    rounds: int
    machine: Machine
    packages: Mapping[str, str]
    contenders: tuple[Contender, ...]
    outcomes: tuple[Outcome, ...]
    turns: int
    restless: int
    note: str = ""

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases."""
        return tuple(dict.fromkeys(outcome.case for outcome in self.outcomes))

    def contender(self, name: str) -> Contender:
        """The contender of a name."""
        return next(contender for contender in self.contenders if contender.name == name)

    def of(self, case: str) -> tuple[Outcome, ...]:
        """The outcomes of a case, the fastest median first."""
        outcomes = [outcome for outcome in self.outcomes if outcome.case == case]
        return tuple(sorted(outcomes, key=lambda outcome: outcome.percentile_ms(0.5)))

    def ours(self, case: str) -> Outcome:
        """Our fastest outcome of a case, by the median."""
        return next(outcome for outcome in self.of(case) if self.contender(outcome.contender).ours)


@dataclass
class _Tally:
    """An outcome while it grows."""

    samples_ms: list[float] = field(default_factory=list)
    against_same: Difference = field(default_factory=Difference)
    against_fp32: Difference | None = None
    complaint: str | None = None


def measure(
    repositories: Mapping[str, Path],
    rounds: int,
    *,
    title: str = "Shipped networks",
    note: str = "",
    keras_models: KerasModels | None = None,
    cases: Sequence[LoadCase] = SIDE_BY_SIDE_CASES,
) -> SideBySide:
    """Loads every way and takes the rounds.

    Args:
        repositories: By precision, fp32 or int8, model repositories; int8 must be there. The shipped one is int8 only.
        rounds: Answers per case and way that are counted.
        title: What the report calls it.
        note: What a reader must know of the networks.
        keras_models: Makes the Keras models of the fp32 repository; without it, Keras does not take part.
        cases: What is asked.

    Raises:
        RequestError: If `rounds` is below 1, or there is no int8 repository.
        MissingPackage: If a way needs a package that is not installed.
        ServerStartError: If a server does not start.
        InferenceFailed: If a server does not answer.
    """
    if rounds < 1:
        raise RequestError(f"expected 1 round or more, got {rounds}")
    if "int8" not in repositories or set(repositories) - {"fp32", "int8"}:
        raise RequestError(f"expected repositories of int8 and perhaps fp32, got {', '.join(repositories) or 'none'}")
    check_packages()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lungstreams-bare-")))
        networks = {precision: unpack(path, work / precision) for precision, path in repositories.items()}
        competitors = line_up(repositories, networks, keras_models)
        for competitor in competitors:
            stack.enter_context(competitor)
        return replace(compare(competitors, rounds, title=title, cases=cases), note=note)


def compare(competitors: Sequence[Competitor], rounds: int, *, title: str, cases: Sequence[LoadCase]) -> SideBySide:
    """Takes the rounds.

    Args:
        competitors: Started; `REFERENCE_WAY` among them for each precision of the networks.
        rounds: Answers per case and way that are counted.
        title: What the report calls it.
        cases: What is asked.

    Raises:
        InferenceFailed: If a server does not answer.
    """
    taken_at, machine = datetime.now(timezone.utc).isoformat(timespec="seconds"), describe()
    tallies = {(competitor.name, case.name): _Tally() for competitor in competitors for case in cases}
    scans = {case.name: case.scans() for case in cases}
    turns = restless = 0
    for index in track(range(-WARM_UP_ROUNDS, rounds), f"Side by side: {title}", console=Console(stderr=True)):
        for case in cases:
            scan = scans[case.name][index % len(scans[case.name])]
            answers, spent_ms, hurried = _ask_all(order_of_turns(competitors, index), case, scan)
            turns, restless = turns + len(competitors), restless + hurried
            for competitor in competitors:
                tally = tallies[competitor.name, case.name]
                _hold(competitor, case, answers, tally)
                if index >= 0:
                    tally.samples_ms.append(spent_ms[competitor.name])
    return SideBySide(
        title=title,
        taken_at=taken_at,
        rounds=rounds,
        machine=machine,
        packages=_versions(competitors),
        contenders=tuple(Contender(c.name, c.precision, c.served, c.ours, c.how) for c in competitors),
        outcomes=tuple(
            Outcome(*key, tuple(tally.samples_ms), tally.against_same, tally.against_fp32, tally.complaint)
            for key, tally in tallies.items()
        ),
        turns=turns,
        restless=restless,
    )


def _ask_all(
    competitors: Sequence[Competitor], case: LoadCase, scan: bytes
) -> tuple[dict[str, Answer], dict[str, float], int]:
    """One turn of each: answers and milliseconds by name, and how many turns began before it was quiet."""
    groups = [competitor.group for competitor in competitors if competitor.group is not None]
    answers, spent_ms, hurried = {}, {}, 0
    for competitor in competitors:
        hurried += settle(groups) >= QUIET_CORES
        started = time.perf_counter()
        answers[competitor.name] = competitor.answer(scan, case)
        spent_ms[competitor.name] = (time.perf_counter() - started) * 1000
    return answers, spent_ms, hurried


def _hold(competitor: Competitor, case: LoadCase, answers: Mapping[str, Answer], tally: _Tally) -> None:
    """Notes how an answer differs from the reference's; one that can not be right is reported, and the run goes on."""
    answer = answers[competitor.name]
    same = answers.get(f"{REFERENCE_WAY} {GRAPH_OF[competitor.precision]}")
    fp32 = answers.get(f"{REFERENCE_WAY} fp32")
    try:
        check_answer(case, answer)
    except InferenceFailed as error:
        tally.complaint = str(error)
    if same is not None:
        tally.against_same = tally.against_same.widened(answer, same)
    if fp32 is not None:
        tally.against_fp32 = (tally.against_fp32 or Difference()).widened(answer, fp32)


def _versions(competitors: Sequence[Competitor]) -> dict[str, str]:
    packages = {package: None for competitor in competitors for package in competitor.packages}
    return {package: version(package) for package in packages}
