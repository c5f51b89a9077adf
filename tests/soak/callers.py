"""Callers of a server that is brought down under them: whoever gets no answer asks again, until the deadline.

What a request comes to:

- *answered*: the answer that is known beforehand, or to a damaged file a result that can be one;
- *refused*: a clear error that is the last word, since the file is damaged or the queue is full;
- *lost*: no answer within `DEADLINE_S`, or an error while nothing had been done to the server;
- *wrong*: an answer that belongs to another case, or an error that says nothing about the damaged file.
"""

from __future__ import annotations

import itertools
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from loadtest.cases import CASES
from loadtest.wire import batch_inputs
from serving import pipeline, wire
from serving.calls import Calls
from serving.client import PipelineClient
from serving.errors import InferenceFailed, ServerBusy, ServerError, ServerNotReady, ServerUnreachable
from tests.hostile.bombs import BOMBS
from tests.hostile.mutations import mutant
from tests.reliability import Tally
from tests.soak.answers import Case, of_report, of_tensors

TRY_S = 120.0
"""How long one try may take: a burst of 200 cases is before it in the queue at most."""

DEADLINE_S = 240.0
"""When a request counts as lost. Triton is back seconds after it ended; after several times in a row it is left down
for up to half a minute, and a machine that does other things starts it slowly."""

PAUSE_S = 0.5
BOMB_EVERY = 10
MUTATION, BOMB, BURST = "damaged files", "bombs", "bursts beyond the queue"
BATCH = "batches of the largest size"

SMALL_BOMBS = (
    "png of two to the 62 pixels",
    "png of 100 million pixels",
    "png at the limit with a palette",
    "jpeg at the limit over few pixels",
    "dicom of two billion frames",
)
"""Some of each format that cost the server what a file may cost, and are quickly sent."""


@dataclass
class Books:
    """What all callers share.

    Attributes:
        is_explained: Whether something was done to the server lately that a failed try can come from.
        over: Set when nothing more is to be asked.
        tallies: By kind of request.
        tries_again: How often a request was asked again that the client itself had given up.
        remarks: A line about each that was lost or wrong.
    """

    is_explained: Callable[[], bool]
    over: threading.Event = field(default_factory=threading.Event)
    tallies: dict[str, Tally] = field(default_factory=dict)
    tries_again: int = 0
    remarks: list[str] = field(default_factory=list)

    def tally(self, kind: str) -> Tally:
        """The counts of a kind."""
        return self.tallies.setdefault(kind, Tally())

    def remark(self, line: str) -> None:
        """Keep a line about what should not be, and say it."""
        self.remarks.append(line)
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {line}\n")


def settle(books: Books, kind: str, ask: Callable[[], bool]) -> None:
    """Ask until there is an answer or a last word, and count what it was.

    Args:
        books: Where it is counted.
        kind: Under which name.
        ask: One try; says whether the answer is right, or raises what the client raises.
    """
    started_s = time.monotonic()
    while not is_settled(books, kind, ask, started_s):
        time.sleep(PAUSE_S)


def is_settled(books: Books, kind: str, ask: Callable[[], bool], started_s: float) -> bool:
    """Whether one try gave an answer or a last word, which then is counted; else it is to be asked again.

    Args:
        books: As `settle` has it.
        kind: As `settle` has it.
        ask: As `settle` has it.
        started_s: When it was first asked, by `time.monotonic`.
    """
    tally = books.tally(kind)
    try:
        count = tally.answer if ask() else tally.mistake
        says = "the answer is not the one to this case"
    except ServerBusy:
        count, says = tally.refuse, ""
    # FutureTimeout: not even the client's own deadline has ended it.
    except (ServerError, FutureTimeout) as error:
        says = f"{type(error).__name__}: {error}"
        if is_clear_refusal(error) and kind in (MUTATION, BOMB):
            count = tally.refuse
        elif _may_come_back(books, error) and time.monotonic() - started_s < DEADLINE_S:
            books.tries_again += 1
            return False
        else:
            count = tally.lose
    # Whatever else comes out of it is none of our errors: the worst of answers.
    except Exception as error:
        count, says = tally.mistake, f"{type(error).__name__}: {error}"
    count(time.monotonic() - started_s)
    if count in (tally.lose, tally.mistake):
        books.remark(f"{'lost' if count == tally.lose else 'wrong'}: {kind}: {says}")
    return True


def is_clear_refusal(error: Exception) -> bool:
    """Whether an error says what was expected of a file and what came."""
    says = str(error)
    return isinstance(error, InferenceFailed) and "expected" in says and "got" in says and "got none" not in says


def _may_come_back(books: Books, error: Exception) -> bool:
    return isinstance(error, (ServerUnreachable, ServerNotReady)) or books.is_explained()


def ask_cases(books: Books, url: str, cases: Sequence[Case], seed: int) -> None:
    """A reader: one case after the other by our client."""
    rng, weights = random.Random(seed), [case.kind.weight for case in cases]
    with PipelineClient(url, timeout_s=TRY_S) as client:
        while not books.over.is_set():
            (case,) = rng.choices(cases, weights)
            settle(books, case.kind.name, partial(_ask_case, client, case))


def _ask_case(client: PipelineClient, case: Case) -> bool:
    kind = case.kind
    report = client.submit(case.scan, kind.modality, kind.thresholds, explain=True, measure=False).result()
    return case.is_answered_by(of_report(report))


class Raw:
    """Requests past the client's own decoder, as of another gRPC client; none is ever taken back. A context manager.

    Args:
        url: The server.
        retry_busy: As `PipelineClient` has it.
    """

    def __init__(self, url: str, *, retry_busy: bool = True) -> None:
        self._explain = partial(wire.translate, url=url, timeout_s=TRY_S, inferring=True)
        self._calls = Calls(wire.connect(url), url, TRY_S, cancel_on_server=False, retry_busy=retry_busy)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.close()

    def send(self, request: dict[str, Any], is_right: Callable[[Any], bool]) -> Future[Any]:
        """Send a request; the future says whether its answer is right."""
        return self._calls.start(request, lambda answer, _: is_right(answer), self._explain)  # type: ignore[arg-type,return-value]


def ask_damaged(books: Books, url: str, first: int, *, bombs: bool) -> None:
    """Someone who sends nothing but damaged files, with a bomb among them now and then."""
    made = [BOMBS[name].make() for name in SMALL_BOMBS] if bombs else []
    with Raw(url) as raw:
        number = first
        while not books.over.is_set():
            number += 1
            if made and number % BOMB_EVERY == 0:
                kind, data = BOMB, made[number // BOMB_EVERY % len(made)]
            else:
                kind, data = MUTATION, mutant(number)[1]
            settle(books, kind, lambda data=data: _ask_damaged(raw, data))  # type: ignore[misc]


def _ask_damaged(raw: Raw, data: bytes) -> bool:
    # The server is to find out what it is, as for a client that knows nothing.
    request = wire.request(data, "auto", dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0))  # type: ignore[arg-type]
    return raw.send(request, _is_finite).result(2 * TRY_S)  # type: ignore[no-any-return]


def _is_finite(answer: Any) -> bool:
    return bool(np.isfinite(answer.as_numpy(pipeline.DIAGNOSIS.name)).all())


def burst(books: Books, url: str, cases: Sequence[Case], count: int) -> None:
    """So many cases at once. Each is answered, or hears that the server is busy; who lost the server asks again."""
    waiting = [(case, case.request()) for case in itertools.islice(itertools.cycle(cases), count)]
    started_s = time.monotonic()
    with Raw(url, retry_busy=False) as raw:
        while waiting:
            sent = [raw.send(request, _is_answer_to(case)) for case, request in waiting]
            waiting = [
                asked
                for asked, future in zip(waiting, sent, strict=True)
                if not is_settled(books, BURST, partial(future.result, 2 * TRY_S), started_s)
            ]
            if waiting:
                time.sleep(PAUSE_S)


def fill(books: Books, url: str, case: Case, count: int) -> None:
    """Batches of the largest size with every gate open, one after the other: models keep the memory that these take.

    Without them a life settles only when chance has brought such a batch to each of the streams.
    """
    scans = [case.scan] * pipeline.MAX_BATCH_SIZE
    request = {**case.request(), "inputs": batch_inputs(CASES["ct_open"], scans)}
    with Raw(url) as raw:
        for _ in range(count):
            settle(books, BATCH, lambda: raw.send(request, _is_answer_to(case)).result(2 * TRY_S))


def _is_answer_to(case: Case) -> Callable[[Any], bool]:
    return lambda answer: case.is_answered_by(of_tensors(answer))


def go_away(url: str, case: Case, count: int, after_s: float) -> None:
    """A client that sends X-rays and hangs up without waiting for their answers.

    X-rays alone: their steps form a chain, which Triton 24.10 can take back.
    """
    if case.kind.modality != "xray":
        raise ValueError(f"expected an X-ray, got {case.kind.name}")
    client = wire.connect(url)
    for _ in range(count):
        client.async_infer(callback=lambda result, error: None, **case.request())
    time.sleep(after_s)
    client.close()
