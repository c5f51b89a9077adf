"""What crosses gRPC, by `serving.pipeline`: the channel, the request, the server's metadata and its faults."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from tritonclient import grpc as triton_grpc
from tritonclient.utils import InferenceServerException

from serving import pipeline
from serving.errors import (
    InferenceFailed,
    ServerBusy,
    ServerError,
    ServerMismatch,
    ServerNotReady,
    ServerUnreachable,
)
from serving.labels import Modality
from serving.limits import MAX_FILE_BYTES
from serving.tls import ClientTls

_UNLIMITED: Final = 2**31 - 1
_RETRY: Final = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 4,
                "retryableStatusCodes": ["ABORTED"],
            },
        }
    ]
}
_CHANNEL_ARGS: Final = [
    # tritonclient drops its own two defaults as soon as it is given any argument; gRPC's are 4 MiB.
    ("grpc.max_send_message_length", _UNLIMITED),
    ("grpc.max_receive_message_length", _UNLIMITED),
    # A server that comes back is found within a second, and not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    # In spite of its name what a handshake may take: a slow network, or a busy server, needs more than a moment.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # What a proxy says of a server that died at work (deploy/nginx): nothing was answered, so asking again is safe. Not
    # UNAVAILABLE, which is Triton's word for a full queue, too.
    ("grpc.service_config", json.dumps(_RETRY)),
    # gRPC's 256 KiB would leave every larger scan with one attempt.
    ("grpc.per_rpc_retry_buffer_size", MAX_FILE_BYTES + 2**20),
    # Else clients of one process share a connection, and with it each other's backoff.
    ("grpc.use_local_subchannel_pool", 1),
]

# "[request id: <id_unknown>] in ensemble 'covid_pipeline', ": true, and no help to whoever sent the scan.
_PREFIX: Final = re.compile(r"^(\[request id: [^\]]*\]\s*)?(in ensemble '[^']*',\s*)?")
_FULL: Final = ("maximum queue size", "timeout expired")
# In gRPC's words, which differ by release: "Ssl handshake failed", "Tls handshake failed".
_HANDSHAKE: Final = "handshake failed"
_NO_ADDRESS: Final = ("errors resolving", "name resolution", "dns resolution")
# The last is what one that was told to end (SIGTERM) says of all calls: by its ports it is reached once it is ready.
_LEAVING: Final = ("stopping", "exiting", "server not ready")
# A backend process that ended: Triton never starts it again, `serving.supervision` does.
_NO_BACKEND: Final = "is not healthy"
_NOT_LOADED: Final = ("unknown model", "no available versions", "not ready", "not found", *_LEAVING)


def connect(url: str, tls: ClientTls | None = None) -> Any:
    """A `tritonclient.grpc.InferenceServerClient` for an address without a scheme; no connection is made yet.

    Args:
        url: Host and port.
        tls: For a server that speaks TLS; None speaks plainly.

    Raises:
        TlsError: If a file of `tls` can not be read any more.
    """
    credentials = None if tls is None else tls.credentials()
    return triton_grpc.InferenceServerClient(url, creds=credentials, channel_args=_CHANNEL_ARGS)


def wanted_outputs(modality: Modality, *, explain: bool = False) -> tuple[pipeline.Tensor, ...]:
    """The ensemble's outputs that say something about a scan, and why where that is asked for.

    For an X-ray this is the diagnosis alone. Its other gates are closed anyway, but Triton does not even run a step
    that nothing asks for, and sends no empty masks.
    """
    wanted = (pipeline.DIAGNOSIS,) if modality == "xray" else pipeline.REPORT_OUTPUTS
    return (*wanted, pipeline.ACTIVATION) if explain else wanted


def asked_models(modality: Modality) -> tuple[str, ...]:
    """The models that `wanted_outputs` make Triton run, in the order of the pipeline."""
    return models_behind(wanted_outputs(modality))


def models_behind(outputs: Iterable[pipeline.Tensor]) -> tuple[str, ...]:
    """The models that Triton runs for outputs of the ensemble, in the order of the pipeline."""
    wanted = {output.name for output in outputs}
    return tuple(
        step.model for step in pipeline.STEPS if step.stage == 0 or not wanted.isdisjoint(step.output_map.values())
    )


def new_request_id() -> str:
    """An id for a case: drawn at random, so that it says nothing of the case to who has no log."""
    return uuid.uuid4().hex


def request(
    data: bytes,
    modality: Modality,
    thresholds: Mapping[str, float],
    *,
    explain: bool = False,
    request_id: str = "",
) -> dict[str, Any]:
    """The keyword arguments of tritonclient's `infer` and `async_infer` for one scan.

    Args:
        data: The scan's own bytes.
        modality: Of the scan, resolved.
        thresholds: All of `pipeline.THRESHOLD_NAMES`, in `[0, 1]`.
        explain: Whether to ask for the activation maps, too.
        request_id: What Triton, and each step that it runs, calls the request.
    """
    values = {
        pipeline.SCAN.name: np.array([[data]], dtype=np.object_),
        pipeline.MODALITY.name: np.array([[modality.encode()]], dtype=np.object_),
        pipeline.THRESHOLDS_TENSOR.name: np.array(
            [[thresholds[name] for name in pipeline.THRESHOLD_NAMES]], dtype=np.float32
        ),
    }
    inputs = []
    for tensor in pipeline.ENSEMBLE_INPUTS:
        wire_input = triton_grpc.InferInput(tensor.name, [1, *tensor.shape], tensor.dtype)
        wire_input.set_data_from_numpy(values[tensor.name])
        inputs.append(wire_input)
    return {
        "model_name": pipeline.ENSEMBLE_NAME,
        "inputs": inputs,
        "outputs": [
            triton_grpc.InferRequestedOutput(tensor.name) for tensor in wanted_outputs(modality, explain=explain)
        ],
        "request_id": request_id,
    }


def compare(model: str, metadata: Any, url: str) -> None:
    """Hold a model's metadata, a `ModelMetadataResponse`, against `serving.pipeline`.

    Raises:
        ServerMismatch: If names, types or dimensions differ.
    """
    if model == pipeline.ENSEMBLE_NAME:
        sides = (("inputs", pipeline.ENSEMBLE_INPUTS), ("outputs", pipeline.ENSEMBLE_OUTPUTS))
    else:
        step = pipeline.step(model)
        sides = (("inputs", step.inputs), ("outputs", step.outputs))
    for side, expected in sides:
        # -1 is the batch axis, which Triton puts before the dimensions of a batching model.
        there = _signature((t.name, t.datatype, tuple(t.shape)) for t in getattr(metadata, side))
        ours = _signature((t.name, t.dtype, (-1, *t.shape)) for t in expected)
        if there != ours:
            raise ServerMismatch(f"{side} of {model} at {url}: expected {ours}, got {there or 'none'}")


def _signature(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> str:
    return ", ".join(f"{name} {dtype}{list(shape)}" for name, dtype, shape in sorted(tensors))


def translate(fault: InferenceServerException, url: str, *, timeout_s: float, inferring: bool) -> ServerError:
    """The error of ours that a failed call means.

    Triton uses UNAVAILABLE for a full queue and for a model that is not there, gRPC for a connection that failed: only
    the text tells them apart.

    Args:
        fault: As raised by tritonclient.
        url: The server's address, for the message.
        timeout_s: The deadline that the call had, in seconds.
        inferring: Whether the call was a request for an inference. The others take no time, so that a deadline which
            they miss means that nothing answers.
    """
    status = (fault.status() or "").removeprefix("StatusCode.")
    text = " ".join(_PREFIX.sub("", fault.message() or "").split())
    lower = text.lower()
    if status == "DEADLINE_EXCEEDED":
        if inferring:
            return InferenceFailed(f"expected an answer of {url} within {timeout_s:g} s, got none")
        return ServerUnreachable(f"nothing answers at {url} within {timeout_s:g} s")
    if status == "UNAVAILABLE" and any(sign in lower for sign in _NO_ADDRESS):
        return ServerUnreachable(f"expected the address of a server, got {url}, which no name service knows ({text})")
    if status == "UNAVAILABLE" and any(sign in lower for sign in _FULL):
        return ServerBusy(f"expected room in the queues of {url}, got none: the server is busy, try again in a while")
    if status in ("NOT_FOUND", "UNAVAILABLE") and any(sign in lower for sign in _NOT_LOADED):
        return ServerNotReady(f"{url} answers, but: {text}")
    if status == "UNAVAILABLE":
        return ServerUnreachable(_unreachable(text, url))
    if status == "ABORTED":
        return ServerUnreachable(f"nothing answers behind {url} ({text})")
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return ServerUnreachable(f"{url} does not let us in: {text or status}")
    if status == "UNIMPLEMENTED":
        return ServerUnreachable(f"what answers at {url} is no Triton server ({text or status})")
    return InferenceFailed(text or f"{url} failed without a word ({status or 'no status'})")


def is_lost(fault: InferenceServerException, *, inferring: bool, had_models: bool = False) -> bool:
    """Whether a call found a server that had answered before, and is gone or going now: it may be made again.

    Args:
        fault: As raised by tritonclient.
        inferring: See `translate`.
        had_models: Whether it has inferred before. Then one that has no models is going, or is not quite there again.
    """
    status, lower = (fault.status() or "").removeprefix("StatusCode."), (fault.message() or "").lower()
    if status == "DEADLINE_EXCEEDED":
        return not inferring
    if status in ("NOT_FOUND", "UNAVAILABLE") and any(sign in lower for sign in _NOT_LOADED):
        return had_models or any(sign in lower for sign in _LEAVING)
    if status == "UNAVAILABLE":
        return not any(sign in lower for sign in (*_FULL, *_NO_ADDRESS))
    return status == "ABORTED" or _NO_BACKEND in lower


def fell_with(fault: InferenceServerException) -> bool:
    """Whether a call that is lost may have been what brought the server down: it had arrived there."""
    lower = (fault.message() or "").lower()
    return not any(sign in lower for sign in ("failed to connect", _NO_BACKEND, *_NOT_LOADED))


def _unreachable(text: str, url: str) -> str:
    lower = text.lower()
    if "certificate_verify_failed" in lower or "hostname verification" in lower:
        return f"expected {url} to show a certificate that we trust and that bears its name, got another ({text})"
    if _HANDSHAKE in lower:
        return f"expected {url} to speak TLS, got no handshake ({text})"
    if "failed to connect" not in lower:
        return f"nothing answers at {url} ({text})"
    if "socket closed" in lower:
        # All that a server says which expected TLS, or a client's certificate.
        return f"{url} hangs up on us: it may expect TLS, or the certificate of a client that it knows"
    # gRPC's words for a refused connection say no more, at length.
    return f"nothing answers at {url}"
