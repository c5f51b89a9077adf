"""Minutes or hours of load, faults and bad input at once: ``python -m tests.soak.run --minutes 10`` (`make soak`).

It starts a ``lungstreams serve`` of its own on loopback, aims at nothing else, and stops by itself; Ctrl-C stops it
early, with the table of what was. Exit code 1 if a request was lost or wrong, if memory grew by more than
`growth.MAX_GROWTH_BYTES` within the life of one server, or if the server is left with requests that nobody waits for.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from serving.client import PipelineClient
from tests.hostile.mutations import mutant
from tests.reliability import ROWS, Row, Tally, record
from tests.soak import answers, callers
from tests.soak.callers import Books
from tests.soak.faults import Faults, schedule
from tests.soak.growth import MAX_GROWTH_BYTES, Growth, Sample, growths, largest
from tests.soak.service import Service
from tests.waiting import eventually, pending

SAMPLE_EVERY_S = 1.0
LONG_S = 300.0
"""A run of that length or more has to have a life in which memory can be judged."""

FIRST_MUTATION = 100_000
"""Others than those of `make fuzz` and of tests/hostile."""


@dataclass(frozen=True)
class Plan:
    """What is to be run.

    Attributes:
        seconds: How long load and faults last.
        seed: Of all that is drawn.
        serve: More arguments of ``lungstreams serve``.
        readers: How many callers ask whole cases; one more sends damaged files.
        bombs: Whether bombs are among these.
        scans: How many whole scans of each modality there are.
    """

    seconds: float
    seed: int = 1
    serve: tuple[str, ...] = ()
    readers: int = 3
    bombs: bool = True
    scans: int = 4


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        seconds: How long load and faults lasted.
        is_whole: Whether it was not stopped early.
        tallies: By kind of request.
        tries_again: How often requests were asked again that the client itself had given up.
        faults: How often each was done.
        sent_by_gone: Requests of clients that went away.
        ends: How often ``lungstreams serve`` found that Triton had ended or hung.
        server: Growth of Triton with its stubs, in each life that was long enough.
        keeper: That of the process that looks after them.
        peak_bytes: The highest PSS of Triton with its stubs.
        pending: What waited in the server's queues in the end.
        exit_status: Of ``lungstreams serve``.
    """

    seconds: float = 0.0
    is_whole: bool = True
    tallies: dict[str, Tally] = field(default_factory=dict)
    tries_again: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    sent_by_gone: int = 0
    ends: int = 0
    server: list[Growth] = field(default_factory=list)
    keeper: list[Growth] = field(default_factory=list)
    peak_bytes: int = 0
    pending: int = 0
    exit_status: int | None = None

    def rows(self) -> list[Row]:
        """A row of each kind of request."""
        return [tally.row(kind, group="Soak") for kind, tally in self.tallies.items()]

    def row(self) -> Row:
        """All of them together, for docs/reliability.md."""
        rows = self.rows()
        what = f"{self.seconds / 60:.2g} minutes of load, faults and damaged files (memory: of Triton with its stubs)"
        counts = (sum(getattr(row, name) for row in rows) for name in ("requests", "answered", "refused", "lost"))
        slowest_s = max((row.slowest_s for row in rows if row.slowest_s is not None), default=None)
        grown = [f"{name} grew by {most.grown_bytes / 1e6:+.1f} MB" for name, most in self._most() if most is not None]
        note = ", ".join([f"{sum(self.faults.values())} faults", *grown])
        wrong = sum(row.wrong for row in rows)
        return Row("Soak", what, *counts, wrong, self.peak_bytes, slowest_s, note=note)

    def problems(self) -> list[str]:
        """What is not as promised, a line each."""
        row = self.row()
        found = [f"{count} {name}" for name, count in (("lost", row.lost), ("wrong", row.wrong)) if count]
        for name, most in self._most():
            if most is not None and not most.is_borne:
                found.append(f"{name} grew by more than {MAX_GROWTH_BYTES / 1e6:g} MB: {most}")
            if most is None and self.is_whole and self.seconds >= LONG_S:
                found.append(f"{name}: expected a life that is long enough to judge its memory, got none")
        if not row.answered:
            found.append("nothing was answered")
        if self.pending:
            found.append(f"{self.pending} requests wait in the server, and nobody for them")
        if self.exit_status != 0:
            found.append(f"expected that lungstreams serve exits with 0, got {self.exit_status}")
        return found

    def _most(self) -> list[tuple[str, Growth | None]]:
        """The largest growth within one life, by whose it is."""
        return [("Triton with its stubs", largest(self.server)), ("lungstreams serve", largest(self.keeper))]

    def table(self) -> str:
        """What was, for people."""
        columns = ("requests", "answered", "refused", "lost", "wrong")
        lines = [f"{'':28}" + "".join(f"{name:>10}" for name in columns) + f"{'slowest':>10}"]
        for row in [*self.rows(), self.row()]:
            name = "all" if row.peak_bytes is not None else row.what
            slowest = "" if row.slowest_s is None else f"{row.slowest_s:.1f} s"
            lines.append(f"{name:28}" + "".join(f"{getattr(row, c):>10,}" for c in columns) + f"{slowest:>10}")
        done = ", ".join(f"{kind} {count}" for kind, count in self.faults.items()) or "none"
        lines += [
            f"faults: {done}; {self.sent_by_gone} requests of clients that went away",
            f"Triton ended, hung or lost a backend {self.ends} times and was started again; "
            f"{self.tries_again} requests were asked again that the client had given up",
            *(f"memory of Triton with its stubs: {growth}" for growth in self.server),
            *(f"memory of lungstreams serve: {growth}" for growth in self.keeper),
            f"{self.seconds:.0f} s{'' if self.is_whole else ', stopped early'}; {self.pending} requests left waiting",
            *(f"not as promised: {problem}" for problem in self.problems()),
            f"soak: {'FAIL' if self.problems() else 'PASS'}",
        ]
        return "\n".join(lines)


def run(plan: Plan, stop: threading.Event | None = None) -> Outcome:
    """Run it, and wait for every answer.

    Args:
        plan: What to do.
        stop: Ends it early when it is set.
    """
    stop, outcome = stop or threading.Event(), Outcome()
    with Service(*plan.serve) as service:
        with PipelineClient(service.url, timeout_s=callers.TRY_S) as client:
            cases = answers.prepare(client, plan.scans)
        mutant(0)  # draws all that the damaged files are made of
        faults = Faults(service, cases, plan.seed)
        books = Books(faults.is_explained)
        _load(plan, service, cases, faults, books, stop, outcome)
        eventually(lambda: _pending(service) == 0, within_s=callers.TRY_S)
        outcome.pending = _pending(service)
        outcome.ends = service.ends
    outcome.exit_status = service.exit_status
    outcome.tallies, outcome.tries_again = books.tallies, books.tries_again
    outcome.faults, outcome.sent_by_gone = faults.done, faults.sent_by_gone
    return outcome


def _load(
    plan: Plan,
    service: Service,
    cases: Sequence[answers.Case],
    faults: Faults,
    books: Books,
    stop: threading.Event,
    outcome: Outcome,
) -> None:
    since_s = time.monotonic()
    sys.stderr.write(f"ready at {service.url}: {plan.seconds:g} s of load, seed {plan.seed}\n")
    jobs = [
        *((callers.ask_cases, (books, service.url, cases, plan.seed + i)) for i in range(plan.readers)),
        (lambda *a: callers.ask_damaged(*a, bombs=plan.bombs), (books, service.url, FIRST_MUTATION * plan.seed)),
        (faults.follow, (books, schedule(plan.seconds, plan.seed), since_s)),
    ]
    threads = [threading.Thread(target=job, args=arguments) for job, arguments in jobs]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    server: list[Sample] = []
    keeper: list[Sample] = []
    every_s = min(SAMPLE_EVERY_S, plan.seconds / 60)
    while (left_s := since_s + plan.seconds - time.monotonic()) > 0 and not stop.wait(min(every_s, left_s)):
        for samples, sample in zip((server, keeper), service.sample(since_s), strict=True):
            samples.append(sample)
    outcome.seconds, outcome.is_whole = time.monotonic() - since_s, not stop.is_set()
    books.over.set()
    for thread in threads:
        thread.join()
    outcome.server, outcome.keeper = growths(server), growths(keeper)
    outcome.peak_bytes = max((sample.pss_bytes for sample in server), default=0)


def _pending(service: Service) -> int:
    try:
        return pending(service)
    except OSError:  # it is being started again
        return -1


def main() -> int:
    """Reads the command line, runs, and says what was."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1, help="Of the faults' moments, the cases and the damaged files.")
    parser.add_argument("--readers", type=int, default=3, help="Callers of whole cases.")
    parser.add_argument("--scans", type=int, default=4, help="Whole scans of each modality, in turn.")
    parser.add_argument("--repository", type=Path, help="Another model repository.")
    parser.add_argument("--no-bombs", action="store_true")
    options = parser.parse_args()
    serve = ("--repository", str(options.repository)) if options.repository else ()
    stop = threading.Event()

    def leave(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    plan = Plan(options.minutes * 60, options.seed, serve, options.readers, not options.no_bombs, options.scans)
    outcome = run(plan, stop)
    if outcome.is_whole:
        record(replace(outcome.row(), failed=bool(outcome.problems())), ROWS)
    sys.stdout.write(f"{outcome.table()}\n")
    return int(bool(outcome.problems()))


if __name__ == "__main__":
    sys.exit(main())
