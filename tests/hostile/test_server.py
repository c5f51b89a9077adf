"""Hostile files past the client's own decoder, to a real Triton: an answer or a clear error, and nothing comes down."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import grpc as plain
import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from loadtest.memory import Sampler
from serving import phantom, pipeline
from serving.limits import MAX_FILE_BYTES
from serving.tritonserver import TritonServer
from tests.hostile.bombs import BOMBS
from tests.hostile.mutations import mutant
from tests.reliability import IS_LONG, Tally, record

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

MUTATIONS = 10_000 if IS_LONG else 500
# Others than those that tests/hostile/test_reading.py begins with.
FIRST_MUTATION = 50_000
GOOD = phantom.png_bytes(phantom.ct_slice(3, 256).pixels)
# What is no scan is refused by its first bytes, whatever else it is.
SCANS = [bomb for bomb in BOMBS.values() if not bomb.name.startswith(("nifti", "zip"))]
SHORT_BYTES = 2**20
AT_ONCE = 4
"""Below the length of the queues: this is not about overload."""


@pytest.fixture(scope="module")
def client(toy_triton: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(toy_triton.grpc_url) as client:
        yield client


def diagnoses(client: grpc.InferenceServerClient, scans: Sequence[bytes]) -> np.ndarray:
    values = (
        np.array([[scan] for scan in scans], object),
        np.array([[b"auto"]] * len(scans), object),
        np.zeros((len(scans), *pipeline.THRESHOLDS_TENSOR.shape), np.float32),
    )
    inputs = []
    for tensor, array in zip(pipeline.ENSEMBLE_INPUTS, values, strict=True):
        inputs.append(grpc.InferInput(tensor.name, list(array.shape), tensor.dtype))
        inputs[-1].set_data_from_numpy(array)
    # All of the ensemble's outputs, as a client asks that knows nothing.
    answer: np.ndarray = client.infer(pipeline.ENSEMBLE_NAME, inputs, client_timeout=60).as_numpy("diagnosis")
    return answer


def send(client: grpc.InferenceServerClient, scans: Iterable[bytes], tally: Tally) -> None:
    def one(scan: bytes) -> None:
        started_s = time.perf_counter()
        try:
            answer = diagnoses(client, [scan])
        except grpc.InferenceServerException as error:
            says, seconds = str(error), time.perf_counter() - started_s
            if "DEADLINE_EXCEEDED" in says or "Socket closed" in says or "failed to connect" in says:
                tally.lose(seconds)
            elif "expected" in says and "got" in says:
                tally.refuse(seconds)
            else:
                tally.mistake(seconds)
        else:
            (tally.answer if np.isfinite(answer).all() else tally.mistake)(time.perf_counter() - started_s)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(one, scans):
            pass


@pytest.mark.timeout(1800 if IS_LONG else 300)
def test_mutations_are_answered_or_refused(client: grpc.InferenceServerClient, toy_triton: TritonServer) -> None:
    tally, before = Tally(), diagnoses(client, [GOOD])
    with Sampler(toy_triton.pid) as memory:
        send(client, (mutant(FIRST_MUTATION + i)[1] for i in range(MUTATIONS)), tally)
    row = record(
        tally.row(
            "mutations through Triton (memory: of the whole server)",
            group="Hostile input",
            peak_bytes=memory.peak_pss_bytes,
        )
    )
    assert (row.requests, row.lost, row.wrong) == (MUTATIONS, 0, 0)
    assert row.answered
    assert row.refused
    np.testing.assert_array_equal(diagnoses(client, [GOOD]), before)


@pytest.mark.slow
def test_bombs_are_answered_or_refused(client: grpc.InferenceServerClient, toy_triton: TritonServer) -> None:
    tally, before = Tally(), diagnoses(client, [GOOD])
    count = 0

    def sent() -> Iterator[bytes]:
        nonlocal count
        for bomb in SCANS:
            data = bomb.make()
            if IS_LONG or len(data) < SHORT_BYTES:
                count += 1
                yield data

    with Sampler(toy_triton.pid) as memory:
        send(client, sent(), tally)
    what = f"{'bombs' if IS_LONG else 'small bombs'} through Triton, four at once (memory: of the whole server)"
    row = record(tally.row(what, group="Hostile input", peak_bytes=memory.peak_pss_bytes))
    assert (row.requests, row.lost, row.wrong) == (count, 0, 0)
    assert count > len(SCANS) / 3
    np.testing.assert_array_equal(diagnoses(client, [GOOD]), before)


def test_a_hostile_item_spoils_none_of_its_neighbours(client: grpc.InferenceServerClient) -> None:
    neighbours = [phantom.png_bytes(phantom.ct_slice(seed, 128).pixels) for seed in range(pipeline.MAX_BATCH_SIZE - 1)]
    alone = [diagnoses(client, [scan])[0] for scan in neighbours]
    small = (bomb.make() for bomb in BOMBS.values() if bomb.name.startswith(("dicom with", "jpeg with")))
    hostile = [*(mutant(i)[1] for i in range(16)), *(data for data in small if len(data) < 2**20)]
    tally = Tally()
    for place, data in zip(itertools.cycle(range(pipeline.MAX_BATCH_SIZE)), hostile, strict=False):
        batch = [*neighbours[:place], data, *neighbours[place:]]
        answer = diagnoses(client, batch)
        kept = np.delete(answer, place, axis=0)
        right = np.allclose(kept, alone, rtol=0, atol=1e-5)
        (tally.answer if right else tally.mistake)()
    row = record(tally.row("batches of seven scans and one hostile file", group="Hostile input"))
    assert (row.answered, row.wrong) == (len(hostile), 0)


def wire_request(**changes: bytes) -> service_pb2.ModelInferRequest:
    """A request whose tensors are bytes of our own choice."""

    def packed(data: bytes) -> bytes:
        return struct.pack("<I", len(data)) + data

    contents = {
        "scan": packed(GOOD),
        "modality": packed(b"auto"),
        "thresholds": np.zeros(4, np.float32).tobytes(),
    } | changes
    request = service_pb2.ModelInferRequest(model_name=pipeline.ENSEMBLE_NAME)
    for tensor in pipeline.ENSEMBLE_INPUTS:
        request.inputs.add(name=tensor.name, datatype=tensor.dtype, shape=[1, *tensor.shape])
        request.raw_input_contents.append(contents[tensor.name])
    return request


def _shaped(shape: Sequence[int]) -> service_pb2.ModelInferRequest:
    request = wire_request()
    request.inputs[0].shape[:] = shape
    return request


def _renamed() -> service_pb2.ModelInferRequest:
    request = wire_request()
    request.inputs[0].name = "nothing"
    return request


def _retyped() -> service_pb2.ModelInferRequest:
    request = wire_request()
    request.inputs[0].datatype = "FP32"
    return request


def _without_contents() -> service_pb2.ModelInferRequest:
    request = wire_request()
    del request.raw_input_contents[1:]
    return request


LIES = {
    "a scan that says it is longer than what was sent": wire_request(scan=struct.pack("<I", 2**31) + GOOD),
    "a scan that says it has 4 GiB": wire_request(scan=struct.pack("<I", 2**32 - 1)),
    "a scan without its length": wire_request(scan=b"\1"),
    "two scans where one was announced": wire_request(scan=(struct.pack("<I", 3) + b"one") * 2),
    "thresholds of three bytes": wire_request(thresholds=b"abc"),
    "thresholds of a megabyte": wire_request(thresholds=bytes(2**20)),
    "a batch of none": _shaped([0, 1]),
    "a batch of minus one": _shaped([-1, 1]),
    "a batch of two to the 62": _shaped([2**62, 1]),
    "no axes": _shaped([]),
    "nine axes": _shaped([1] * 9),
    "an input of another name": _renamed(),
    "an input of another type": _retyped(),
    "inputs without contents": _without_contents(),
}


def test_tensors_that_lie_about_themselves_are_refused(
    client: grpc.InferenceServerClient, toy_triton: TritonServer
) -> None:
    tally = Tally()
    channel_options = [("grpc.max_send_message_length", 2 * MAX_FILE_BYTES)]
    with plain.insecure_channel(toy_triton.grpc_url, options=channel_options) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for says, request in LIES.items():
            with pytest.raises(plain.RpcError) as refused:
                stub.ModelInfer(request, timeout=60)
            # Triton's own words, which say what it found.
            clear = refused.value.code() is not plain.StatusCode.UNAVAILABLE and bool(refused.value.details())
            (tally.refuse if clear else tally.lose)()
            assert clear, says
    assert np.isfinite(diagnoses(client, [GOOD])).all()
    record(tally.row("requests whose tensors lie about themselves", group="Hostile input"))
