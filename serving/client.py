"""The client of the ensemble: a scan in, a `CaseReport` out, over gRPC.

::

    with PipelineClient("127.0.0.1:8001") as client:
        report = client.predict(Path("slice.dcm").read_bytes(), thresholds={"ground_glass": 0.3})
        print(report.diagnosis["covid19"], report.status["ground_glass"])

A scan is decoded here first, so that a bad file fails before the network is touched, and its own bytes are sent with
the modality that this found: client and server can not disagree on what it is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Final

import numpy as np
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serving import pipeline, statistics, wire
from serving.calls import Calls, pauses
from serving.errors import InferenceFailed, LungstreamsError, RequestError, ScanError, ServerError, ServerNotReady
from serving.labels import REQUESTED_MODALITIES, RequestedModality
from serving.measuring import measured
from serving.plausibility import examine
from serving.results import CaseReport, build_report, resolve_thresholds
from serving.scans import Scan, decode
from serving.tls import ClientTls

DEFAULT_URL: Final = "127.0.0.1:8001"

_ADMIN_TIMEOUT_S: Final = 5.0
_READY_TIMEOUT_S: Final = 2.0
_OfOneScan = ScanError | RequestError | InferenceFailed
_OF_ONE_SCAN: Final = (ScanError, RequestError, InferenceFailed)


class PipelineClient:
    """Asks a Triton that serves `pipeline.ENSEMBLE_NAME`. Safe to share between threads.

    Args:
        url: Host and port of the server's gRPC endpoint, without a scheme.
        timeout_s: Deadline of an inference in seconds, counted from when it is sent.
        cancel_on_server: Whether cancelling, and the deadline, take a request out of the server's queues. Only for a
            Triton that survives it, see `serving.calls`: the embedded one does not.
        tls: For a server that speaks TLS; None speaks plainly.
        retry_busy: Whether a request that the server refuses because it is busy is sent again, after pauses that double
            from `serving.calls.FIRST_PAUSE_S` on, until its deadline.
        retry_lost: Whether, likewise, a request is sent again whose server goes while it is under way. Where this
            client has reached the server before, one that is gone when a request is to be sent is waited for as long.
        drain_in_background: Whether `close` leaves to a thread what it would wait for: for a process that goes on, and
            whose user waits for an error.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout_s: float = 30.0,
        cancel_on_server: bool = False,
        tls: ClientTls | None = None,
        retry_busy: bool = True,
        retry_lost: bool = True,
        drain_in_background: bool = False,
    ) -> None:
        self.url = url
        self.timeout_s = timeout_s
        self._triton = wire.connect(url, tls)
        self._retry_lost = retry_lost
        self._has_reached_it = False
        self._calls = Calls(
            self._triton,
            url,
            timeout_s,
            cancel_on_server=cancel_on_server,
            retry_busy=retry_busy,
            retry_lost=retry_lost,
            drain_in_background=drain_in_background,
        )

    def __enter__(self) -> PipelineClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is under way and close the connection.

        That includes requests that missed their deadline: closing under them would cancel them on the server, see
        `serving.calls`. With `cancel_on_server` it does not. A server that gives no answer at all is left after
        `serving.calls.DRAIN_S`, or `timeout_s` where that is longer.
        """
        self._calls.close()

    def predict(
        self,
        data: bytes,
        modality: RequestedModality = "auto",
        thresholds: Mapping[str, float] | None = None,
        *,
        explain: bool = False,
        request_id: str | None = None,
    ) -> CaseReport:
        """Send one scan and wait for its report.

        Args:
            data: The bytes of a PNG, JPEG or DICOM file.
            modality: What it is; ``auto`` lets the file say.
            thresholds: In `[0, 1]` by name; those left out are `pipeline.THRESHOLDS`. 0 opens a gate.
            explain: Whether the report says which parts of the scan speak for each diagnosis: `CaseReport.activation`.
            request_id: What the case is called here, on the server and at each of its steps, see `CaseReport`; never
                made of anything of the file. By default one is drawn. Errors bear it, too.

        Raises:
            ScanError: If the file can not be used; nothing was sent.
            RequestError: If the modality or a threshold is not one that the pipeline has; nothing was sent.
            ServerUnreachable: If nothing answers at the address, and did not until the deadline where it has before.
            ServerNotReady: If the server does not have the models.
            InferenceFailed: If the server refused the scan, failed, or gave no answer in time.
            ServerBusy: If its queues were full until the deadline, or at once without `retry_busy`.
            ServerMismatch: If the answer is not what `serving.pipeline` says.
        """
        return self.submit(data, modality, thresholds, explain=explain, request_id=request_id).result()

    def submit(
        self,
        data: bytes,
        modality: RequestedModality = "auto",
        thresholds: Mapping[str, float] | None = None,
        *,
        explain: bool = False,
        request_id: str | None = None,
        measure: bool = True,
    ) -> Future[CaseReport]:
        """Send one scan as `predict` and return at once; the future gives the report, or raises as `predict` does.

        A future that is cancelled gives its answer to nobody; with `cancel_on_server` it leaves the server's queue.

        Args:
            data: See `predict`.
            modality: See `predict`.
            thresholds: See `predict`.
            explain: See `predict`.
            request_id: See `predict`.
            measure: Whether a CT slice's report is held against the slice, see `serving.measuring`; whoever knows more
                of where the lungs are does so himself.

        Raises:
            ScanError: As `predict`; at once, since nothing is sent.
            RequestError: As `predict`; at once.
            ServerUnreachable: If nothing answers at the address already, as `predict`.
        """
        request_id = request_id or wire.new_request_id()
        try:
            asked = resolve_thresholds(thresholds)
            scan = decode(data, modality)
            before = self._read_before()
        except LungstreamsError as error:
            error.request_id = request_id
            raise
        return self._calls.start(
            wire.request(data, scan.modality, asked, explain=explain, request_id=request_id),
            lambda answer, latency_ms: self._report(
                scan, asked, before, answer, latency_ms, request_id, measure=measure
            ),
            self._explain,
        )

    def predict_many(
        self,
        scans: Iterable[bytes],
        modality: RequestedModality = "auto",
        thresholds: Mapping[str, float] | None = None,
        *,
        in_flight: int = pipeline.MAX_BATCH_SIZE,
    ) -> Iterator[CaseReport | ScanError | RequestError | InferenceFailed]:
        """Reports of many scans, in their order; the server batches what is under way together.

        A scan that fails gives its error in its place and does not end the run. What concerns every scan (the server
        has gone, a threshold does not exist) is raised.

        Args:
            scans: Bytes of files; read as they are needed.
            modality: Of all of them, see `predict`.
            thresholds: Of all of them, see `predict`.
            in_flight: How many are under way at most, at least 1.
        """
        waiting: deque[Future[CaseReport] | _OfOneScan] = deque()
        asked = resolve_thresholds(thresholds)
        if modality not in REQUESTED_MODALITIES:
            raise RequestError(f"modality: expected one of {', '.join(REQUESTED_MODALITIES)}, got {modality!r}")
        try:
            for data in scans:
                while len(waiting) >= max(1, in_flight):
                    yield _outcome(waiting.popleft())
                try:
                    waiting.append(self.submit(data, modality, asked))
                # With the arguments checked above, a RequestError says that this DICOM is of another modality.
                except _OF_ONE_SCAN as error:
                    waiting.append(error)
            while waiting:
                yield _outcome(waiting.popleft())
        finally:
            for left in waiting:
                if isinstance(left, Future):
                    left.cancel()

    def tensors(
        self, data: bytes, modality: RequestedModality = "auto", thresholds: Mapping[str, float] | None = None
    ) -> dict[str, np.ndarray]:
        """Send one scan as `predict` does and wait for what the ensemble answers itself.

        For whoever compares models: masks are in model space, as they were computed. There is no deadline.

        Args:
            data: See `predict`.
            modality: See `predict`.
            thresholds: See `predict`.

        Returns:
            The outputs of `wire.wanted_outputs` by name, without the batch axis.

        Raises:
            LungstreamsError: As `predict` does.
        """
        asked = resolve_thresholds(thresholds)
        scan = decode(data, modality)
        try:
            answer = self._triton.infer(**wire.request(data, scan.modality, asked, request_id=wire.new_request_id()))
        except InferenceServerException as fault:
            raise self._explain(fault) from fault
        return _tensors(answer, scan)

    def is_ready(self) -> bool:
        """Whether the server answers and the ensemble is loaded. Never raises."""
        try:
            return bool(self._triton.is_model_ready(pipeline.ENSEMBLE_NAME, client_timeout=_READY_TIMEOUT_S))
        except InferenceServerException:
            return False

    def check(self) -> None:
        """Hold the server's models against `serving.pipeline`.

        Raises:
            ServerUnreachable: If nothing answers at the address.
            ServerNotReady: If a model is not loaded.
            ServerMismatch: If a model's inputs or outputs differ in names, types or dimensions.
        """
        try:
            missing = [
                model
                for model in pipeline.MODEL_NAMES
                if not self._triton.is_model_ready(model, client_timeout=_ADMIN_TIMEOUT_S)
            ]
            if missing:
                raise ServerNotReady(f"{self.url} answers, but does not have {', '.join(missing)} loaded")
            for model in pipeline.MODEL_NAMES:
                wire.compare(model, self._triton.get_model_metadata(model, client_timeout=_ADMIN_TIMEOUT_S), self.url)
            self._has_reached_it = True
        except InferenceServerException as fault:
            raise self._error(fault) from fault

    def versions(self) -> dict[str, str]:
        """The newest loaded version of each model: what a request gets.

        Raises:
            ServerUnreachable: If nothing answers at the address.
        """
        loaded = self._counters()
        return statistics.versions(loaded, loaded, pipeline.MODEL_NAMES)

    def _counters(self) -> statistics.Reading:
        try:
            return statistics.read(self._triton, _ADMIN_TIMEOUT_S)
        except InferenceServerException as fault:
            raise self._error(fault) from fault

    def _read_before(self) -> statistics.Reading:
        """The counters before a request, as soon as a server that was there before is there again."""
        give_up_s = time.monotonic() + self.timeout_s
        for pause_s in pauses():
            try:
                before = statistics.read(self._triton, _ADMIN_TIMEOUT_S)
            except InferenceServerException as fault:
                waits = self._retry_lost and self._has_reached_it and wire.is_lost(fault, inferring=False)
                if not waits or time.monotonic() + pause_s >= give_up_s:
                    raise self._error(fault) from fault
                time.sleep(pause_s)
            else:
                self._has_reached_it = True
                return before
        raise AssertionError("pauses have no end")

    def _error(self, fault: InferenceServerException) -> ServerError:
        return wire.translate(fault, self.url, timeout_s=_ADMIN_TIMEOUT_S, inferring=False)

    def _explain(self, fault: InferenceServerException) -> ServerError:
        return wire.translate(fault, self.url, timeout_s=self.timeout_s, inferring=True)

    def _report(
        self,
        scan: Scan,
        thresholds: Mapping[str, float],
        before: statistics.Reading,
        answer: triton_grpc.InferResult,
        latency_ms: float,
        request_id: str,
        *,
        measure: bool,
    ) -> CaseReport:
        models = wire.asked_models(scan.modality)
        after = before
        # A report without times is better than none: the answer is there.
        with suppress(InferenceServerException):
            after = statistics.read_after(self._triton, before, models, _ADMIN_TIMEOUT_S)
        report = build_report(
            scan,
            _tensors(answer, scan),
            thresholds,
            models=statistics.versions(before, after, (*models, pipeline.ENSEMBLE_NAME)),
            latency_ms=latency_ms,
            stage_ms=statistics.stage_ms(before, after, models),
            doubts=examine(scan).words,
            request_id=request_id,
        )
        return measured(report, scan) if measure else report


def _tensors(answer: triton_grpc.InferResult, scan: Scan) -> dict[str, np.ndarray]:
    # Asked for or not: of what was not, tritonclient has no tensor.
    names = [output.name for output in wire.wanted_outputs(scan.modality, explain=True)]
    return {name: tensor[0] for name in names if (tensor := answer.as_numpy(name)) is not None}


def _outcome(waiting: Future[CaseReport] | _OfOneScan) -> CaseReport | _OfOneScan:
    if not isinstance(waiting, Future):
        return waiting
    try:
        return waiting.result()
    except _OF_ONE_SCAN as error:
        return error
