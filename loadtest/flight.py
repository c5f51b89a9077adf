"""Several requests under way on one connection, none of which is ever taken back.

Taking a CT request back can bring the embedded Triton down (docs/decisions.md, "Overload and cancelling"). So nothing
here has a deadline on the server, and leaving waits for everything that was sent before the connection may be closed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as _FutureTimeout
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Generic, TypeVar

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from loadtest.cases import LoadCase
from loadtest.wire import Answer, batch_inputs
from serving.errors import InferenceFailed
from serving.pipeline import ENSEMBLE_NAME, REPORT_OUTPUTS

DRAIN_S: Final = 120.0
"""Longest wait for the answers to what was sent, in seconds. After this the server counts as hung."""

T = TypeVar("T")


@dataclass(frozen=True)
class Landed(Generic[T]):
    """A request that was answered.

    Attributes:
        kept: What was made of the answer.
        done_s: When the answer came, on the clock of `time.perf_counter`.
    """

    kept: T
    done_s: float


class Flight:
    """The requests of one connection. Use as a context manager.

    Args:
        client: From `loadtest.wire.connect`.
        drain_s: Longest wait for what is under way, in seconds.
    """

    def __init__(self, client: Any, drain_s: float = DRAIN_S) -> None:
        self._client = client
        self._drain_s = drain_s
        self._changed = threading.Condition()
        self._under_way = 0
        # gRPC's own thread takes the time and hands over: what it does longer, the next answer waits for.
        self._finisher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loadtest-flight")

    def __enter__(self) -> Flight:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.wait()
        finally:
            self._finisher.shutdown(wait=True)

    def send(self, case: LoadCase, scans: Sequence[bytes], keep: Callable[[Answer], T]) -> Future[Landed[T]]:
        """Sends scans as one request, and returns at once.

        Args:
            case: What to ask of each.
            scans: The batch, from 1 to `serving.pipeline.MAX_BATCH_SIZE` files.
            keep: Makes of the answer what is to be kept, in a thread of ours; the answer itself is dropped.

        Returns:
            Its result, or `InferenceFailed` (see `loadtest.wire.is_refusal`), or what `keep` raised.
        """
        future: Future[Landed[T]] = Future()

        def answered(result: Any, error: InferenceServerException | None) -> None:
            done_s = time.perf_counter()
            try:
                self._finisher.submit(self._settle, future, result, error, keep, done_s)
            except RuntimeError:  # Left already, without it: nobody waits any more.
                self._ended()

        with self._changed:
            self._under_way += 1
        try:
            self._client.async_infer(
                ENSEMBLE_NAME,
                batch_inputs(case, scans),
                callback=answered,
                outputs=[triton.InferRequestedOutput(tensor.name) for tensor in REPORT_OUTPUTS],
            )
        except BaseException:
            self._ended()
            raise
        return future

    def in_order(
        self, case: LoadCase, batches: Iterable[Sequence[bytes]], in_flight: int, keep: Callable[[Answer], T]
    ) -> Iterator[T]:
        """Sends batches and yields what was kept of them, in their order.

        A batch is read when there is room for it: no more than `in_flight` are in memory.

        Raises:
            InferenceFailed: If one fails, or does not end in time; nothing is sent after that.
        """
        waiting: deque[Future[Landed[T]]] = deque()
        left = iter(batches)
        while True:
            if len(waiting) >= max(1, in_flight):
                yield self.result(waiting.popleft()).kept
            # Only now: a `for` would have read it before there was room.
            if (batch := next(left, None)) is None:
                break
            waiting.append(self.send(case, batch, keep))
        while waiting:
            yield self.result(waiting.popleft()).kept

    def result(self, future: Future[Landed[T]]) -> Landed[T]:
        """Waits for a request, and raises what it failed with.

        Raises:
            InferenceFailed: Also if it does not end within `drain_s`.
        """
        try:
            return future.result(self._drain_s)
        # Two classes until Python 3.11.
        except (TimeoutError, _FutureTimeout) as error:
            raise InferenceFailed(f"expected an answer within {self._drain_s:g} s, got none") from error

    def wait(self) -> None:
        """Waits until nothing is under way.

        Raises:
            InferenceFailed: If something still is after `drain_s`.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: not self._under_way, timeout=self._drain_s):
                raise InferenceFailed(
                    f"expected all answers within {self._drain_s:g} s, got none to {self._under_way} requests"
                )

    def _settle(
        self,
        future: Future[Landed[T]],
        result: Any,
        error: InferenceServerException | None,
        keep: Callable[[Answer], T],
        done_s: float,
    ) -> None:
        try:
            if error is not None:
                raise InferenceFailed(str(error))
            arrays = {tensor.name: result.as_numpy(tensor.name) for tensor in REPORT_OUTPUTS}
            kept = keep({name: array for name, array in arrays.items() if array is not None})
        # Whatever it is belongs to whoever waits: raised here, it would vanish, and they would wait for ever.
        except Exception as fault:
            future.set_exception(fault)
        else:
            future.set_result(Landed(kept, done_s))
        finally:
            self._ended()

    def _ended(self) -> None:
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()
