"""A case as a plain tritonclient request, and whether what came back can be right.

This does without `serving.client` on purpose: the load test must measure the server, not our own conveniences, and
under gevent it needs a channel of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, Final

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from loadtest.cases import LoadCase
from serving.errors import InferenceFailed, RequestError
from serving.labels import ALL_STREAM, BACKGROUND_CLASS, MANIFESTATIONS, STREAMS
from serving.pipeline import (
    DIAGNOSIS,
    ENSEMBLE_NAME,
    FINDINGS,
    GATES,
    MANIFESTATION_STEP,
    MODALITY,
    NEVER,
    NOT_RUN,
    REPORT_OUTPUTS,
    SCAN,
    SEGMENTATION,
    THRESHOLDS_TENSOR,
    Gate,
    Tensor,
    mask_output,
)
from serving.tls import ClientTls

REQUEST_TIMEOUT_S: Final = 30.0
"""When a request counts as failed, in seconds. Well above any budget, so that slow is told from dead."""

_ADDRESS = re.compile(r"(?:\w+://)?(?P<host>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+):(?P<port>\d{1,5})/?")
_MESSAGE_LIMIT_BYTES = 2**31 - 1

Answer = Mapping[str, "np.ndarray[Any, Any]"]
"""Outputs of the ensemble by name, each with its batch axis."""


def parse_address(url: str) -> tuple[str, int]:
    """Splits `host:port`, with or without a scheme in front; an IPv6 address stands in brackets.

    Raises:
        RequestError: If it is anything else.
    """
    match = _ADDRESS.fullmatch(url.strip())
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise RequestError(f"expected an address such as 127.0.0.1:8001, got {url!r}")
    return match["host"], int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: `localhost`, 127.0.0.0/8 or ::1. Other names are not looked up."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class _Client(triton.InferenceServerClient):  # type: ignore[misc]
    """A tritonclient that closes its channel once.

    Its parent closes it again when it is deleted. gRPC under gevent counts its channels down with each close, and stops
    serving those that are still open when it reaches 0: four users of locust then hang at the end of a run.
    """

    _closed = False

    def close(self) -> None:
        """Closes the channel; a second time does nothing."""
        if not self._closed:
            self._closed = True
            super().close()


def connect(url: str, tls: ClientTls | None = None) -> Any:
    """A tritonclient with a connection of its own.

    Args:
        url: As `parse_address` takes it.
        tls: For a server that speaks TLS.

    Returns:
        A `tritonclient.grpc.InferenceServerClient`.

    Raises:
        RequestError: If `url` is no address.
    """
    host, port = parse_address(url)
    options = [
        # tritonclient drops its own limits as soon as it is given any option.
        ("grpc.max_send_message_length", _MESSAGE_LIMIT_BYTES),
        ("grpc.max_receive_message_length", _MESSAGE_LIMIT_BYTES),
        # A proxy out of the environment would carry a request for this machine to another one.
        ("grpc.enable_http_proxy", 0),
        # Else all users of one process share a connection, which real ones do not.
        ("grpc.use_local_subchannel_pool", 1),
    ]
    credentials = None if tls is None else tls.credentials()
    return _Client(f"{host}:{port}", creds=credentials, channel_args=options)


def _input(tensor: Tensor, values: Sequence[Any]) -> Any:
    array = np.array(values, dtype=np.float32 if tensor.dtype == "FP32" else object).reshape(-1, *tensor.shape)
    wire = triton.InferInput(tensor.name, list(array.shape), tensor.dtype)
    wire.set_data_from_numpy(array)
    return wire


def request_inputs(case: LoadCase, scan: bytes) -> list[Any]:
    """A case's input tensors, as `InferInput`, for a batch of one."""
    return batch_inputs(case, [scan])


def batch_inputs(case: LoadCase, scans: Sequence[bytes]) -> list[Any]:
    """The input tensors, as `InferInput`, of several scans that are asked the same."""
    return [
        _input(SCAN, scans),
        _input(MODALITY, [case.modality.encode()] * len(scans)),
        _input(THRESHOLDS_TENSOR, [[*case.thresholds.values()]] * len(scans)),
    ]


def infer(client: Any, case: LoadCase, scan: bytes, outputs: Sequence[Tensor] = REPORT_OUTPUTS) -> Answer:
    """Sends one case and waits for outputs of the ensemble, by default for all that a report is made of.

    Returns:
        The outputs that came back; `check_answer` says whether these are all.

    Raises:
        InferenceFailed: If the server can not be reached, refuses, fails, or needs longer than `REQUEST_TIMEOUT_S`.
    """
    try:
        result = client.infer(
            ENSEMBLE_NAME,
            request_inputs(case, scan),
            outputs=[triton.InferRequestedOutput(tensor.name) for tensor in outputs],
            client_timeout=REQUEST_TIMEOUT_S,
        )
    except InferenceServerException as error:
        raise InferenceFailed(str(error)) from error
    arrays = {tensor.name: result.as_numpy(tensor.name) for tensor in outputs}
    return {name: array for name, array in arrays.items() if array is not None}


def is_refusal(error: Exception) -> bool:
    """Whether a request failed because the server has as many waiting as it takes, or let it wait too long."""
    text = str(error).lower()
    return "maximum queue size" in text or "timeout expired" in text


def answer_bytes(answer: Answer) -> int:
    """Size of an answer's tensors, in bytes."""
    return sum(array.nbytes for array in answer.values())


def check_answer(case: LoadCase, answer: Answer) -> None:
    """Holds an answer against what any right answer to the case is like.

    Shapes, types, probabilities in `[0, 1]`, known class ids, and `Gate.closed_value` wherever the scores of the stage
    before say that a gate was closed. It can not tell whether a diagnosis is true.

    Raises:
        InferenceFailed: If it does not hold; the message says what was expected.
    """
    for tensor in REPORT_OUTPUTS:
        _check_form(tensor, answer.get(tensor.name))
    for stream in STREAMS:
        highest = len(MANIFESTATIONS) if stream == ALL_STREAM else BACKGROUND_CLASS + 1
        found = int(answer[mask_output(stream.name)].max())
        if found > highest:
            raise InferenceFailed(f"expected class ids up to {highest} in {mask_output(stream.name)}, got {found}")
    _check_gates(case, answer)


def _check_form(tensor: Tensor, array: np.ndarray[Any, Any] | None) -> None:
    expected = (1, *tensor.shape), {"UINT8": "uint8", "FP32": "float32"}[tensor.dtype]
    got = (array.shape, array.dtype.name) if array is not None else None
    if array is None or got != expected:
        raise InferenceFailed(f"expected {tensor.name} as {expected}, got {got}")
    # Written so that NaN fails too.
    if tensor.dtype == "FP32" and not bool(((array >= 0) & (array <= 1)).all()):
        raise InferenceFailed(f"expected probabilities in [0, 1] in {tensor.name}, got {array.tolist()}")


def _check_gates(case: LoadCase, answer: Answer) -> None:
    gates = np.array([*case.thresholds.values()], dtype=np.float32)
    if case.modality == "xray":
        gates = np.full(GATES.shape, NEVER, dtype=np.float32)
    findings = answer[FINDINGS.name]
    scores = findings[0]
    if not is_open(MANIFESTATION_STEP.gate, answer[DIAGNOSIS.name][0], gates):
        _check_closed(MANIFESTATION_STEP.gate, FINDINGS.name, findings)
        scores = np.full(FINDINGS.shape, NOT_RUN, dtype=np.float32)
    for step in SEGMENTATION:
        (output,) = step.output_map.values()
        if not is_open(step.gate, scores, gates):
            _check_closed(step.gate, output, answer[output])


def is_open(gate: Gate | None, scores: np.ndarray[Any, Any], gates: np.ndarray[Any, Any]) -> bool:
    """Whether a readable item's gate is open.

    Args:
        gate: The step's; None is always open, and so is one without pairs.
        scores: FP32 of the stage before, without a batch axis.
        gates: FP32 thresholds as `serving.preprocessing.prepare` passes them on.
    """
    if gate is None or not gate.pairs:
        return True
    return any(scores[score] >= gates[threshold] for score, threshold in gate.pairs)


def _check_closed(gate: Gate | None, name: str, array: np.ndarray[Any, Any]) -> None:
    if gate is not None and not bool((array == gate.closed_value).all()):
        raise InferenceFailed(f"expected {gate.closed_value} all over {name}, whose gate is closed, got other values")
