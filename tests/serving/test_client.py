from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving import phantom, pipeline, wire
from serving.client import PipelineClient
from serving.errors import (
    InferenceFailed,
    RequestError,
    ServerMismatch,
    ServerNotReady,
    ServerUnreachable,
    UnreadableScan,
)
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.lungs import within_body
from serving.preprocessing import preprocess
from serving.results import CaseReport, restore_mask
from serving.scans import decode
from serving.tritonserver import ServerConfig, TritonServer
from tests.toy_models import QUADRANTS, STRIPS, expected_activation, expected_mask, expected_means
from tests.waiting import eventually, pending

pytestmark = pytest.mark.triton

ALL_OPEN = dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0)
CT_MODELS = {step.model for step in pipeline.STEPS}
XRAY_MODELS = {"preprocess", "recognition"}


@pytest.fixture
def client(toy_triton: TritonServer) -> Iterator[PipelineClient]:
    with PipelineClient(toy_triton.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="module")
def ct() -> bytes:
    return phantom.png_bytes(phantom.ct_slice(seed=3, size_px=400).pixels[:, 20:])


@pytest.fixture(scope="module")
def xray() -> bytes:
    return phantom.png_bytes(phantom.chest_xray(seed=3, size_px=400))


@pytest.fixture
def dead_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class TestPredict:
    def test_a_ct_slice_gives_what_its_pixels_say(self, client: PipelineClient, ct: bytes) -> None:
        scan = decode(ct, "ct")
        image = preprocess(scan)
        report = client.predict(ct, "ct", ALL_OPEN)
        np.testing.assert_allclose(list(report.diagnosis.values()), expected_means(image, QUADRANTS), atol=1e-4)
        np.testing.assert_allclose(list(report.manifestations.values()), expected_means(image, STRIPS), atol=1e-4)
        assert set(report.status.values()) == {"ran"}
        for stream in STREAM_NAMES:
            expected = np.where(
                within_body(scan.pixels, np.zeros(scan.size_hw, np.uint8)),
                restore_mask(expected_mask(image, stream), scan),
                0,
            )
            assert report.masks[stream] is not None
            np.testing.assert_array_equal(report.masks[stream], expected)
            assert report.area_fraction[stream] == pytest.approx((expected > 0).mean())
        assert report.size_hw == (400, 380)
        assert report.thresholds == ALL_OPEN

    def test_says_which_versions_would_answer(self, client: PipelineClient, dead_url: str) -> None:
        assert client.versions() == dict.fromkeys([*CT_MODELS, "covid_pipeline"], "1")
        with PipelineClient(dead_url) as lost, pytest.raises(ServerUnreachable, match="nothing answers"):
            lost.versions()

    def test_says_which_versions_answered_and_how_long_each_computed(self, client: PipelineClient, ct: bytes) -> None:
        report = client.predict(ct, "ct", ALL_OPEN)
        assert dict(report.models) == dict.fromkeys([*CT_MODELS, "covid_pipeline"], "1")
        assert set(report.stage_ms) == CT_MODELS
        assert all(ms > 0 for ms in report.stage_ms.values())
        assert report.latency_ms > max(report.stage_ms.values())

    def test_an_xray_is_asked_for_its_diagnosis_alone(self, client: PipelineClient, xray: bytes) -> None:
        report = client.predict(xray, "xray", ALL_OPEN)
        assert report.modality == "xray"
        assert set(report.status.values()) == {"not_applicable"}
        assert set(report.manifestations.values()) == {None}
        assert set(report.models) == XRAY_MODELS | {"covid_pipeline"}
        assert set(report.stage_ms) == XRAY_MODELS
        image = preprocess(decode(xray, "xray"))
        np.testing.assert_allclose(list(report.diagnosis.values()), expected_means(image, QUADRANTS), atol=1e-4)

    def test_the_ensembles_own_tensors_are_in_model_space(self, client: PipelineClient, ct: bytes, xray: bytes) -> None:
        image = preprocess(decode(ct, "ct"))
        tensors = client.tensors(ct, "ct", ALL_OPEN)
        assert set(tensors) == {output.name for output in pipeline.REPORT_OUTPUTS}
        np.testing.assert_allclose(tensors["diagnosis"], expected_means(image, QUADRANTS), atol=1e-4)
        for stream in STREAM_NAMES:
            np.testing.assert_array_equal(tensors[pipeline.mask_output(stream)], expected_mask(image, stream))
        closed = client.tensors(ct, "ct", {**ALL_OPEN, "covid19": 1.0})
        assert not closed["manifestations"].any()
        assert set(client.tensors(xray, "xray")) == {"diagnosis"}

    def test_a_report_explains_itself_when_asked(self, client: PipelineClient, ct: bytes, xray: bytes) -> None:
        for data, modality in ((ct, "ct"), (xray, "xray")):
            scan = decode(data, modality)  # type: ignore[arg-type]
            report = client.predict(data, modality, ALL_OPEN, explain=True)  # type: ignore[arg-type]
            assert report.activation is not None
            assert set(report.activation) == set(DIAGNOSIS_NAMES)
            for name, cells in zip(DIAGNOSIS_NAMES, expected_activation(preprocess(scan)), strict=True):
                np.testing.assert_allclose(report.activation.cells(name), cells, atol=1e-4)
                assert report.activation[name].shape == scan.size_hw
            assert report.status == client.predict(data, modality, ALL_OPEN).status  # type: ignore[arg-type]
            assert client.predict(data, modality).activation is None  # type: ignore[arg-type]

    def test_tensors_fail_as_a_report_does(self, client: PipelineClient, dead_url: str, ct: bytes) -> None:
        with pytest.raises(UnreadableScan):
            client.tensors(b"broken")
        with pytest.raises(RequestError):
            client.tensors(ct, thresholds={"sneezing": 0.5})
        with PipelineClient(dead_url) as lonely, pytest.raises(ServerUnreachable):
            lonely.tensors(ct)

    def test_the_dicom_itself_says_what_it_is(self, client: PipelineClient) -> None:
        for modality in ("ct", "xray"):
            pixels = phantom.ct_slice(size_px=256).pixels if modality == "ct" else phantom.chest_xray(size_px=256)
            data = phantom.dicom_bytes(pixels, modality=modality, pixel_spacing_mm=(0.7, 0.7))  # type: ignore[arg-type]
            assert client.predict(data).modality == modality

    def test_thresholds_close_gates_one_by_one(self, client: PipelineClient, ct: bytes) -> None:
        scores = client.predict(ct, "ct", ALL_OPEN).manifestations
        for closed in MANIFESTATION_NAMES:
            score = scores[closed]
            assert score is not None
            report = client.predict(ct, "ct", {**ALL_OPEN, closed: score + 1e-3})
            assert {stream: report.status[stream] == "ran" for stream in STREAM_NAMES} == {
                stream: stream != closed for stream in STREAM_NAMES
            }
            assert report.masks[closed] is None

    def test_a_closed_stage_2_says_nothing(self, client: PipelineClient, ct: bytes) -> None:
        report = client.predict(ct, "ct", {**ALL_OPEN, "covid19": 1.0})
        assert set(report.status.values()) == {"not_run"}
        assert set(report.manifestations.values()) == {None}

    def test_a_scan_above_grpcs_own_limit_of_4_mib_gets_through(self, client: PipelineClient) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (2300, 2300), dtype=np.uint8)
        data = phantom.png_bytes(noise)
        assert len(data) > 5 * 2**20
        assert client.predict(data, "ct", ALL_OPEN).size_hw == (2300, 2300)


class TestRefusals:
    def test_a_bad_file_fails_before_the_network_is_touched(self, dead_url: str) -> None:
        with PipelineClient(dead_url) as client, pytest.raises(UnreadableScan):
            client.predict(b"not an image")

    def test_a_bad_threshold_fails_before_the_network_is_touched(self, dead_url: str, ct: bytes) -> None:
        with PipelineClient(dead_url) as client, pytest.raises(RequestError, match="got 'fever'"):
            client.predict(ct, "ct", {"fever": 0.5})

    def test_nothing_at_the_address_is_unreachable(self, dead_url: str, ct: bytes) -> None:
        with PipelineClient(dead_url) as client:
            assert not client.is_ready()
            for ask in (client.check, lambda: client.predict(ct), lambda: client.submit(ct)):
                with pytest.raises(ServerUnreachable, match=dead_url):
                    ask()

    def test_no_answer_in_time_is_no_missing_server(self, toy_triton: TritonServer, ct: bytes) -> None:
        with PipelineClient(toy_triton.grpc_url, timeout_s=1e-6) as client:
            with pytest.raises(InferenceFailed, match="within 1e-06 s, got none"):
                client.predict(ct)
            with pytest.raises(InferenceFailed, match="within 1e-06 s, got none"):
                client.submit(ct).result(30)

    def test_what_the_server_says_of_a_scan_comes_through(self, client: PipelineClient) -> None:
        # Sent past the client's own decoder, as any other gRPC client might.
        request = wire.request(b"not an image", "ct", ALL_OPEN)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - whichever tritonclient raises
            client._triton.infer(**request)
        error = wire.translate(caught.value, client.url, timeout_s=30, inferring=True)
        assert isinstance(error, InferenceFailed)
        assert "expected PNG, JPEG or DICOM, got 12 bytes" in str(error)
        assert "ensemble" not in str(error)

    def test_a_server_without_the_models_is_not_ready(self, toy_repository: Path, tmp_path: Path, ct: bytes) -> None:
        (tmp_path / "preprocess").symlink_to(toy_repository / "preprocess")
        config = ServerConfig(tmp_path, grpc_port=0, http_port=0, metrics_port=0, threads=1)
        with TritonServer(config) as running, PipelineClient(running.grpc_url) as client:
            assert not client.is_ready()
            with pytest.raises(ServerNotReady, match="does not have recognition, manifestations, segment_all"):
                client.check()
            with pytest.raises(ServerNotReady):
                client.predict(ct)


class TestCheck:
    def test_the_models_of_the_pipeline_pass(self, client: PipelineClient) -> None:
        assert client.is_ready()
        client.check()

    @pytest.mark.parametrize(
        ("there", "expected"), [("recognition", "manifestations"), ("recognition", "covid_pipeline")]
    )
    def test_a_model_in_anothers_place_is_a_mismatch(self, client: PipelineClient, there: str, expected: str) -> None:
        metadata = client._triton.get_model_metadata(there)
        wire.compare(there, metadata, client.url)
        with pytest.raises(ServerMismatch, match=rf"inputs of {expected} at .*: expected .*, got gates FP32\[-1, 4\]"):
            wire.compare(expected, metadata, client.url)

    @pytest.mark.parametrize("change", [{"name": "probabilities"}, {"datatype": "FP16"}, {"shape": [-1, 2]}])
    def test_an_output_that_differs_is_a_mismatch(self, client: PipelineClient, change: dict[str, Any]) -> None:
        metadata = client._triton.get_model_metadata("recognition")
        output = next(o for o in metadata.outputs if o.name == "diagnosis")
        for name, value in change.items():
            if name == "shape":
                output.shape[:] = value
            else:
                setattr(output, name, value)
        with pytest.raises(ServerMismatch, match="outputs of recognition"):
            wire.compare("recognition", metadata, client.url)


class TestMany:
    def test_a_future_gives_the_same_report(self, client: PipelineClient, ct: bytes) -> None:
        future = client.submit(ct, "ct", ALL_OPEN)
        report, direct = future.result(30), client.predict(ct, "ct", ALL_OPEN)
        assert report.diagnosis == direct.diagnosis
        assert report.latency_ms > 0
        assert future.cancel() is False

    def test_a_bad_file_is_refused_at_once(self, client: PipelineClient) -> None:
        with pytest.raises(UnreadableScan):
            client.submit(b"not an image")

    def test_a_cancelled_future_stays_cancelled_and_the_server_up(
        self, client: PipelineClient, toy_triton: TritonServer, ct: bytes
    ) -> None:
        # Taken back from it, these requests would crash Triton 2.51.
        n_cancelled = 0
        for _ in range(5):
            futures = [client.submit(ct, "ct", ALL_OPEN) for _ in range(24)]
            cancelled = [future for future in reversed(futures) if future.cancel()]
            n_cancelled += len(cancelled)
            for future in cancelled:
                with pytest.raises(CancelledError):
                    future.result(0)
            assert all(isinstance(future.result(60), CaseReport) for future in futures if future not in cancelled)
            assert isinstance(client.predict(ct, "ct", ALL_OPEN), CaseReport)
        assert n_cancelled
        assert eventually(lambda: pending(toy_triton) == 0)

    def test_reports_come_in_order_with_errors_in_their_places(
        self, client: PipelineClient, ct: bytes, xray: bytes
    ) -> None:
        other = phantom.png_bytes(phantom.ct_slice(seed=9, size_px=256).pixels)
        contradicting = phantom.dicom_bytes(phantom.chest_xray(size_px=256), modality="xray")
        got = list(client.predict_many([ct, b"broken", other, contradicting, ct], "ct", ALL_OPEN, in_flight=3))
        assert [type(item) for item in got] == [CaseReport, UnreadableScan, CaseReport, RequestError, CaseReport]
        sizes = [item.size_hw for item in got if isinstance(item, CaseReport)]
        assert sizes == [(400, 380), (256, 256), (400, 380)]

    def test_scans_are_read_as_they_are_needed(self, client: PipelineClient, ct: bytes) -> None:
        read = []

        def scans() -> Iterator[bytes]:
            for i in range(6):
                read.append(i)
                yield ct

        results = client.predict_many(scans(), "ct", in_flight=2)
        next(results)
        assert read == [0, 1, 2]
        results.close()  # type: ignore[attr-defined]

    def test_many_end_where_the_server_is_gone(self, dead_url: str, ct: bytes) -> None:
        with PipelineClient(dead_url) as client, pytest.raises(ServerUnreachable):
            list(client.predict_many([ct, ct]))

    def test_many_refuse_an_unknown_modality_as_a_whole(self, client: PipelineClient, ct: bytes) -> None:
        with pytest.raises(RequestError, match="got 'mri'"):
            list(client.predict_many([ct], "mri"))  # type: ignore[arg-type]

    def test_closing_waits_for_what_is_under_way(self, toy_triton: TritonServer, ct: bytes) -> None:
        client = PipelineClient(toy_triton.grpc_url)
        futures: list[Future[CaseReport]] = [client.submit(ct, "ct", ALL_OPEN) for _ in range(8)]
        client.close()
        assert all(future.done() for future in futures)
        assert all(isinstance(future.result(0), CaseReport) for future in futures)

    def test_closing_waits_for_what_was_given_up_too(
        self, client: PipelineClient, toy_triton: TritonServer, ct: bytes
    ) -> None:
        # To close under a request cancels it on the server, which some tens of times brings Triton 24.10 down.
        def answered() -> int:
            statistics = client._triton.get_inference_statistics(pipeline.ENSEMBLE_NAME)
            return int(statistics.model_stats[0].inference_stats.success.count)

        before = answered()
        with PipelineClient(toy_triton.grpc_url, timeout_s=0.001) as impatient:
            futures = [impatient.submit(ct, "ct", ALL_OPEN) for _ in range(4)]
            for future in futures:
                with pytest.raises(InferenceFailed):
                    future.result(30)
        assert eventually(lambda: answered() - before == len(futures))


@pytest.mark.slow
@pytest.mark.long
def test_a_client_finds_a_server_that_comes_back(toy_repository: Path, dead_url: str, ct: bytes) -> None:
    config = ServerConfig(toy_repository, grpc_port=int(dead_url.split(":")[1]), http_port=0, metrics_port=0, threads=1)
    with PipelineClient(dead_url) as client:
        assert not client.is_ready()
        for _ in range(2):
            with TritonServer(config):
                assert eventually(client.is_ready)
                assert client.predict(ct).modality == "ct"
            assert not client.is_ready()


SLOWLY = """

import time


class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        time.sleep(0.2 * len(requests))
        return super().execute(requests)
"""


@pytest.fixture
def slow_repository(toy_repository: Path, tmp_path: Path) -> Path:
    """The toys behind a door that takes 0.2 s a scan: long enough to take a request back before its next step."""
    slow = tmp_path / "slow"
    shutil.copytree(toy_repository, slow)
    (model,) = (slow / "preprocess").glob("*/model.py")
    model.write_text(model.read_text(encoding="utf-8") + SLOWLY, encoding="utf-8")
    return slow


@pytest.mark.slow
def test_on_request_cancelling_takes_it_out_of_the_servers_queue(slow_repository: Path, xray: bytes) -> None:
    # A server of its own: this one takes long to stop afterwards. X-rays, whose steps are a chain, do not crash it.
    config = ServerConfig(slow_repository, grpc_port=0, http_port=0, metrics_port=0, threads=1)
    with TritonServer(config) as own, PipelineClient(own.grpc_url, cancel_on_server=True) as client:
        # 32, because the queues take 64.
        futures = [client.submit(xray, "xray") for _ in range(32)]
        cancelled = [future for future in reversed(futures) if future.cancel()]
        assert cancelled
        client.predict(xray, "xray")  # Behind all of them.
        assert eventually(lambda: pending(own) == 0)
        models = client._triton.get_inference_statistics("recognition").model_stats
        computed = sum(model.inference_stats.compute_infer.count for model in models)
        assert computed < len(futures) + 1
