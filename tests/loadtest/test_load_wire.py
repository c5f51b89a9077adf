from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from loadtest import wire
from loadtest.cases import CASES
from serving.errors import InferenceFailed, RequestError
from serving.tritonserver import TritonServer


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("127.0.0.1:8001", ("127.0.0.1", 8001)),
        ("http://localhost:1/", ("localhost", 1)),
        ("grpc://[::1]:65535", ("[::1]", 65535)),
    ],
)
def test_an_address_may_have_a_scheme(url: str, expected: tuple[str, int]) -> None:
    assert wire.parse_address(url) == expected


@pytest.mark.parametrize(
    "url", ["", "localhost", "localhost:0", "localhost:65536", "127.0.0.1:80@example.org:80", "unix:/tmp/s", "::1:80"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RequestError, match=r"expected an address such as 127\.0\.0\.1:8001"):
        wire.parse_address(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_is_this_machine(host: str) -> None:
    assert wire.is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "0.0.0.0", "[::]", "192.0.2.1", "localhost.example.org", "triton"])
def test_anything_else_is_not(host: str) -> None:
    assert not wire.is_loopback(host)


@pytest.fixture(scope="module")
def client(toy_triton: TritonServer) -> Any:
    with wire.connect(toy_triton.grpc_url) as client:
        yield client


def answer_to(client: Any, name: str) -> dict[str, np.ndarray]:
    case = CASES[name]
    return dict(wire.infer(client, case, case.scans()[0]))


@pytest.mark.triton
@pytest.mark.parametrize("name", CASES)
def test_each_case_is_answered_rightly(client: Any, name: str) -> None:
    answer = answer_to(client, name)
    wire.check_answer(CASES[name], answer)
    assert wire.answer_bytes(answer) == 4 * 512 * 512 + 4 * 4 + 3 * 4


@pytest.mark.triton
def test_the_open_case_runs_every_stream_and_the_xray_none(client: Any) -> None:
    masks = [name for name in answer_to(client, "ct_open") if name.startswith("mask_")]
    assert len(masks) == 4
    # A toy's mask is never empty where its network ran.
    assert all(answer_to(client, "ct_open")[name].any() for name in masks)
    assert not any(answer_to(client, "xray")[name].any() for name in masks)


@pytest.mark.triton
@pytest.mark.parametrize(
    ("case", "output", "value", "message"),
    [
        ("ct_open", "diagnosis", np.float32("nan"), "expected probabilities"),
        ("ct_open", "manifestations", np.float32(1.5), "expected probabilities"),
        ("ct_open", "mask_all", np.uint8(4), "expected class ids up to 3 in mask_all, got 4"),
        ("ct_open", "mask_consolidation", np.uint8(2), "expected class ids up to 1"),
        ("xray", "manifestations", np.float32(0.1), "whose gate is closed"),
        ("xray", "mask_ground_glass", np.uint8(1), "whose gate is closed"),
    ],
)
def test_a_wrong_value_is_noticed(client: Any, case: str, output: str, value: np.generic, message: str) -> None:
    answer = answer_to(client, case)
    answer[output] = answer[output].copy()
    answer[output].flat[1] = value
    with pytest.raises(InferenceFailed, match=message):
        wire.check_answer(CASES[case], answer)


@pytest.mark.triton
def test_a_missing_or_misshapen_output_is_noticed(client: Any) -> None:
    answer = answer_to(client, "xray")
    with pytest.raises(InferenceFailed, match="expected mask_all as"):
        wire.check_answer(CASES["xray"], answer | {"mask_all": answer["mask_all"][:, :-1]})
    del answer["diagnosis"]
    with pytest.raises(InferenceFailed, match="expected diagnosis as"):
        wire.check_answer(CASES["xray"], answer)


@pytest.mark.triton
def test_findings_below_their_thresholds_close_the_streams(client: Any) -> None:
    answer = answer_to(client, "ct_open")
    answer["manifestations"] = np.full_like(answer["manifestations"], 0.25)
    wire.check_answer(CASES["ct_open"], answer)
    with pytest.raises(InferenceFailed, match="whose gate is closed"):
        wire.check_answer(CASES["ct_gated"], answer)
