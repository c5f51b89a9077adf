from __future__ import annotations

import pytest
from tritonclient.utils import InferenceServerException

from serving import pipeline, wire
from serving.errors import InferenceFailed, ServerBusy, ServerError, ServerNotReady, ServerUnreachable


def translated(status: str, text: str, *, inferring: bool = True) -> ServerError:
    fault = InferenceServerException(text, status=f"StatusCode.{status}")
    return wire.translate(fault, "10.0.0.1:8001", timeout_s=7, inferring=inferring)


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (
            "UNAVAILABLE",
            "failed to connect to all addresses; last error: UNKNOWN: Connection refused",
            ServerUnreachable,
        ),
        ("UNAVAILABLE", "Stream removed (Socket closed)", ServerUnreachable),
        ("UNAVAILABLE", "[request id: <id_unknown>] Exceeds maximum queue size", ServerBusy),
        ("UNAVAILABLE", "[request id: <id_unknown>] Request timeout expired", ServerBusy),
        ("UNAVAILABLE", "Request for unknown model: 'covid_pipeline' is not found", ServerNotReady),
        ("UNAVAILABLE", "errors resolving nowhere:81: Domain name not found", ServerUnreachable),
        ("NOT_FOUND", "Request for unknown model: 'covid_pipeline' is not found", ServerNotReady),
        ("UNIMPLEMENTED", "", ServerUnreachable),
        ("ABORTED", "the server that was asked is gone", ServerUnreachable),
        ("UNAUTHENTICATED", "expected a certificate of a known authority", ServerUnreachable),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", InferenceFailed),
        ("INVALID_ARGUMENT", "unexpected shape for input 'scan'", InferenceFailed),
        ("INTERNAL", "", InferenceFailed),
    ],
)
def test_grpc_status_and_text_tell_the_errors_apart(status: str, text: str, expected: type[ServerError]) -> None:
    error = translated(status, text)
    assert type(error) is expected
    assert "\n" not in str(error)
    assert str(error)


@pytest.mark.parametrize(
    ("status", "text", "lost", "fell"),
    [
        ("UNAVAILABLE", "Socket closed", True, True),
        ("ABORTED", "the server that was asked is gone", True, True),
        ("UNAVAILABLE", "failed to connect to all addresses; last error: Connection refused", True, False),
        ("INTERNAL", "Stub process 'recognition_0_0' is not healthy.", True, False),
        ("UNAVAILABLE", "Server is stopping, scheduler for model has stopped", True, False),
        ("UNAVAILABLE", "Server not ready", True, False),
        ("UNAVAILABLE", "Request for unknown model: 'covid_pipeline' is not found", False, None),
        ("UNAVAILABLE", "Exceeds maximum queue size", False, None),
        ("UNAVAILABLE", "errors resolving nowhere:81: Domain name not found", False, None),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", False, None),
        ("INTERNAL", "expected PNG, JPEG or DICOM, got a GIF", False, None),
    ],
)
def test_what_may_be_sent_again_is_what_no_server_answered(
    status: str, text: str, lost: bool, fell: bool | None
) -> None:
    fault = InferenceServerException(text, status=f"StatusCode.{status}")
    assert wire.is_lost(fault, inferring=True) is lost
    if lost:
        assert wire.fell_with(fault) is fell


def test_a_server_that_has_inferred_and_has_no_models_is_going_or_coming() -> None:
    fault = InferenceServerException("Request for unknown model: 'x' is not found", status="StatusCode.NOT_FOUND")
    assert not wire.is_lost(fault, inferring=True)
    assert wire.is_lost(fault, inferring=True, had_models=True)


def test_a_deadline_of_a_call_that_takes_no_time_means_that_nobody_is_there() -> None:
    assert type(translated("DEADLINE_EXCEEDED", "Deadline Exceeded", inferring=False)) is ServerUnreachable


def test_the_scans_error_comes_without_tritons_prefixes() -> None:
    text = "in ensemble 'covid_pipeline', expected PNG, JPEG or DICOM,\n got a GIF"
    assert str(translated("INTERNAL", text)) == "expected PNG, JPEG or DICOM, got a GIF"
    nested = f"[request id: <id_unknown>] {text}"
    assert str(translated("INTERNAL", nested)) == "expected PNG, JPEG or DICOM, got a GIF"


def test_an_xray_asks_for_what_says_something_about_it() -> None:
    assert [tensor.name for tensor in wire.wanted_outputs("xray")] == ["diagnosis"]
    assert wire.asked_models("xray") == ("preprocess", "recognition")
    assert wire.wanted_outputs("ct") == pipeline.REPORT_OUTPUTS
    assert wire.asked_models("ct") == tuple(step.model for step in pipeline.STEPS)


def test_only_who_asks_why_asks_for_the_maps() -> None:
    assert [tensor.name for tensor in wire.wanted_outputs("xray", explain=True)] == ["diagnosis", "activation"]
    assert wire.wanted_outputs("ct", explain=True) == pipeline.ENSEMBLE_OUTPUTS
    for explain, expected in ((False, ["diagnosis"]), (True, ["diagnosis", "activation"])):
        request = wire.request(b"", "xray", pipeline.THRESHOLDS, explain=explain)
        assert [output.name() for output in request["outputs"]] == expected


def test_a_request_has_the_ensembles_inputs_in_their_types() -> None:
    request = wire.request(b"\x89PNG\x00\x00", "ct", {**pipeline.THRESHOLDS, "consolidation": 0.25})
    there = {i.name(): (i.datatype(), tuple(i.shape())) for i in request["inputs"]}
    assert there == {t.name: (t.dtype, (1, *t.shape)) for t in pipeline.ENSEMBLE_INPUTS}
    assert request["model_name"] == pipeline.ENSEMBLE_NAME
