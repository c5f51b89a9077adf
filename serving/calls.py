"""Inference requests under way: how they end, and how not.

Taking a request back (`cancel`, a gRPC deadline, a closed connection) can crash Triton, or make it lose requests: an
ensemble that fails to enqueue one of several steps that run side by side counts its requests wrongly, until
triton-inference-server/core#483 (merged in March 2026). Measured on 2.51: down or stuck after some tens of cancelled
CT slices, with four streams side by side; unharmed by hundreds of X-rays, whose steps are a chain. So nothing is
taken back unless asked for: a request that is given up here is still computed there, and its answer is dropped.
`Calls.close` waits for those too.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from serving import wire
from serving.errors import InferenceFailed, LungstreamsError, ServerBusy, ServerError
from serving.results import CaseReport

DRAIN_S: Final = 30.0
"""Longest wait of `Calls.close` for answers that nobody waits for any more: a server that hangs gives none."""


FIRST_PAUSE_S: Final = 0.2
"""Before a request that found the server busy or gone is sent again; twice as long before each further try."""

LONGEST_PAUSE_S: Final = 4.0

MOST_FALLS: Final = 3
"""Times that one request may be under way in a server that goes: by then it may be what brings it down."""


def pauses() -> Iterator[float]:
    """Seconds between one try and the next, without end: doubled each time, and drawn from half of that on.

    By chance, so that those who were refused together do not come back together.
    """
    pause_s = FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class CaseFuture(Future[CaseReport]):
    """A future that several may want to settle: the answer, the deadline and whoever cancels it."""

    def __init__(self) -> None:
        super().__init__()
        self._claim = threading.Lock()
        self.take_back: Callable[[], None] | None = None

    def claim(self) -> bool:
        """Whether the caller, and nobody else, is to settle this future."""
        return self._claim.acquire(blocking=False) and self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Give the request up, if no answer is there yet."""
        cancelled = super().cancel()
        if cancelled and self._claim.acquire(blocking=False):
            # Whoever waits by `concurrent.futures.wait` hears of it now, and not when the server's answer comes.
            self.set_running_or_notify_cancel()
        if cancelled and self.take_back is not None:
            self.take_back()
        return cancelled


@dataclass
class _Call:
    """A request under way, from its first sending to its future's being settled."""

    future: CaseFuture
    request: Mapping[str, Any]
    report: Callable[[Any, float], CaseReport]
    explain: Callable[[InferenceServerException], ServerError]
    started_s: float = field(default_factory=time.perf_counter)
    pauses: Iterator[float] = field(default_factory=pauses)
    falls: int = 0
    deadline: threading.Timer | None = None

    def fail(self, error: Exception) -> None:
        """Settle the future by an error, which bears the request's id from then on. To be claimed before."""
        if isinstance(error, LungstreamsError):
            error.request_id = self.request.get("request_id", "")
        self.future.set_exception(error)

    def settle(self, report: Callable[[], CaseReport]) -> None:
        """Settle the future by a report."""
        try:
            self.future.set_result(report())
        # Whatever it is belongs to whoever waits: raised here, it would vanish, and they would wait for ever.
        except Exception as error:
            self.fail(error)


class Calls:
    """The requests of one connection.

    A request that finds the queues full (`ServerBusy`) is sent again after `pauses`, as long as its deadline is not
    over before: it did no work there, or hardly any. So is one whose server goes while it is under way, but not once
    this has happened `MOST_FALLS` times: nothing was answered, and an answer depends on its request alone.

    Args:
        triton: A `tritonclient.grpc.InferenceServerClient`.
        url: Its address, for messages.
        timeout_s: When a request is given up, in seconds from when it is first sent.
        cancel_on_server: Whether giving up takes the request out of the server's queues.
        retry_busy: Whether a request that is refused since the server is busy is sent again.
        retry_lost: Whether a request whose server goes is sent again.
        drain_in_background: Whether `close` leaves what missed its deadline to a thread.
    """

    def __init__(
        self,
        triton: Any,
        url: str,
        timeout_s: float,
        *,
        cancel_on_server: bool,
        retry_busy: bool = True,
        retry_lost: bool = True,
        drain_in_background: bool = False,
    ) -> None:
        self._triton = triton
        self._url = url
        self._timeout_s = timeout_s
        self._cancel_on_server = cancel_on_server
        self._retry_busy = retry_busy
        self._retry_lost = retry_lost
        self._drain_in_background = drain_in_background
        self._changed = threading.Condition()
        self._under_way = 0
        self._has_answered = False
        # gRPC's callback thread only hands over: what it would wait for there, it would have to deliver itself.
        self._finisher = ThreadPoolExecutor(max_workers=2, thread_name_prefix="lungstreams-client")

    def start(
        self,
        request: Mapping[str, Any],
        report: Callable[[Any, float], CaseReport],
        explain: Callable[[InferenceServerException], ServerError],
    ) -> CaseFuture:
        """Send a request.

        Args:
            request: Keyword arguments of `async_infer`, without a deadline.
            report: Makes the report of tritonclient's result and the latency in ms; runs in a thread of ours.
            explain: Makes our error of tritonclient's.
        """
        call = _Call(CaseFuture(), request, report, explain)
        with self._changed:
            self._under_way += 1
        # Before it is sent: an answer may be there sooner than this thread goes on, and ends the timer.
        if not self._cancel_on_server:
            call.deadline = threading.Timer(self._timeout_s, self._expire, [call])
            call.deadline.daemon = True
            call.deadline.start()
        try:
            self._send(call)
        except BaseException:
            if call.deadline is not None:
                call.deadline.cancel()
            self._ended()
            raise
        return call.future

    def close(self) -> None:
        """Let what is under way end, then close the connection.

        Without `cancel_on_server` that includes what was given up, for `DRAIN_S` at the longest.
        """
        with self._changed:
            waits = self._under_way > 0
        if waits and self._drain_in_background:
            threading.Thread(target=self._drain, name="lungstreams-drain", daemon=True).start()
        else:
            self._drain()

    def _drain(self) -> None:
        longest_s = self._timeout_s if self._cancel_on_server else max(self._timeout_s, DRAIN_S)
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, timeout=longest_s)
        # In this order: a report that is being made still reads the server's counters.
        self._finisher.shutdown(wait=True)
        self._triton.close()

    def _send(self, call: _Call) -> None:
        deadline_s = self._left_s(call) if self._cancel_on_server else None
        sent = self._triton.async_infer(
            callback=partial(self._answered, call), client_timeout=deadline_s, **call.request
        )
        if self._cancel_on_server:
            call.future.take_back = sent.cancel

    def _answered(self, call: _Call, result: Any, error: InferenceServerException | None) -> None:
        latency_ms = (time.perf_counter() - call.started_s) * 1e3
        fault = None if error is None else call.explain(error)
        self._has_answered |= error is None
        if error is not None and self._may_be_sent_again(call, error, fault) and self._again_later(call):
            return
        if call.deadline is not None:
            call.deadline.cancel()
        try:
            if not call.future.claim():
                return
            if fault is not None:
                call.fail(fault)
            else:
                self._finisher.submit(call.settle, lambda: call.report(result, latency_ms))
        finally:
            self._ended()

    def _may_be_sent_again(self, call: _Call, error: InferenceServerException, fault: ServerError | None) -> bool:
        if isinstance(fault, ServerBusy):
            return self._retry_busy
        if not self._retry_lost or not wire.is_lost(error, inferring=True, had_models=self._has_answered):
            return False
        call.falls += wire.fell_with(error)
        return call.falls < MOST_FALLS

    def _again_later(self, call: _Call) -> bool:
        """Whether there is time to send a request again, which then is arranged."""
        pause_s = next(call.pauses)
        if call.future.done() or pause_s >= self._left_s(call):
            return False
        timer = threading.Timer(pause_s, self._again, [call])
        timer.daemon = True
        timer.start()
        return True

    def _again(self, call: _Call) -> None:
        if call.future.done():  # cancelled, or late
            self._ended()
            return
        try:
            self._send(call)
        # As in `_Call.settle`. Here it is a connection that was closed meanwhile.
        except Exception as error:
            if call.future.claim():
                call.fail(error)
            self._ended()

    def _left_s(self, call: _Call) -> float:
        return self._timeout_s - (time.perf_counter() - call.started_s)

    def _ended(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def _expire(self, call: _Call) -> None:
        if call.future.claim():
            call.fail(InferenceFailed(f"expected an answer of {self._url} within {self._timeout_s:g} s, got none"))
