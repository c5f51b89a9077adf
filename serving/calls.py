"""Inference requests under way: how they end, and how not.

Taking a request back (`cancel`, a gRPC deadline, a closed connection) can crash Triton, or make it lose requests: an
ensemble that fails to enqueue one of several steps that run side by side counts its requests wrongly, until
triton-inference-server/core#483 (merged in March 2026). Measured on 2.51: down or stuck after some tens of cancelled
CT slices, with four streams side by side; unharmed by hundreds of X-rays, whose steps are a chain. So nothing is
taken back unless asked for: a request that is given up here is still computed there, and its answer is dropped.
`Calls.close` waits for those too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from tritonclient.utils import InferenceServerException

from serving.errors import InferenceFailed, ServerError
from serving.results import CaseReport

DRAIN_S: Final = 30.0
"""Longest wait of `Calls.close` for answers that nobody waits for any more: a server that hangs gives none."""


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
        if cancelled and self.take_back is not None:
            self.take_back()
        return cancelled


class Calls:
    """The requests of one connection.

    Args:
        triton: A `tritonclient.grpc.InferenceServerClient`.
        url: Its address, for messages.
        timeout_s: When a request is given up, in seconds from when it is sent.
        cancel_on_server: Whether giving up takes the request out of the server's queues.
    """

    def __init__(self, triton: Any, url: str, timeout_s: float, *, cancel_on_server: bool) -> None:
        self._triton = triton
        self._url = url
        self._timeout_s = timeout_s
        self._cancel_on_server = cancel_on_server
        self._changed = threading.Condition()
        self._under_way = 0
        # gRPC's callback thread only hands over: what it would wait for there, it would have to deliver itself.
        self._finisher = ThreadPoolExecutor(max_workers=2, thread_name_prefix="lungstreams-client")

    def start(
        self,
        request: dict[str, Any],
        report: Callable[[Any, float], CaseReport],
        explain: Callable[[InferenceServerException], ServerError],
    ) -> CaseFuture:
        """Send a request.

        Args:
            request: Keyword arguments of `async_infer`, without a deadline.
            report: Makes the report of tritonclient's result and the latency in ms; runs in a thread of ours.
            explain: Makes our error of tritonclient's.
        """
        future = CaseFuture()
        started_s = time.perf_counter()
        deadline = threading.Timer(self._timeout_s, self._expire, [future])
        deadline.daemon = True

        def answered(result: Any, error: InferenceServerException | None) -> None:
            latency_ms = (time.perf_counter() - started_s) * 1e3
            deadline.cancel()
            try:
                if not future.claim():
                    return
                if error is not None:
                    future.set_exception(explain(error))
                else:
                    self._finisher.submit(_settle, future, lambda: report(result, latency_ms))
            finally:
                with self._changed:
                    self._under_way -= 1
                    self._changed.notify_all()

        with self._changed:
            self._under_way += 1
        deadline_s = self._timeout_s if self._cancel_on_server else None
        call = self._triton.async_infer(callback=answered, client_timeout=deadline_s, **request)
        if self._cancel_on_server:
            future.take_back = call.cancel
        else:
            deadline.start()
        return future

    def close(self) -> None:
        """Let what is under way end, then close the connection.

        Without `cancel_on_server` that includes what was given up, for `DRAIN_S` at the longest.
        """
        longest_s = self._timeout_s if self._cancel_on_server else max(self._timeout_s, DRAIN_S)
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, timeout=longest_s)
        # In this order: a report that is being made still reads the server's counters.
        self._finisher.shutdown(wait=True)
        self._triton.close()

    def _expire(self, future: CaseFuture) -> None:
        if future.claim():
            future.set_exception(
                InferenceFailed(f"expected an answer of {self._url} within {self._timeout_s:g} s, got none")
            )


def _settle(future: CaseFuture, report: Callable[[], CaseReport]) -> None:
    try:
        future.set_result(report())
    # Whatever it is belongs to whoever waits: raised here, it would vanish, and they would wait for ever.
    except Exception as error:
        future.set_exception(error)
