"""More at once than a server can do: everything is answered or refused in words, and afterwards all is as before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.utils import InferenceServerException

from demo import case, panels
from demo.parts import CASES_AT_ONCE
from loadtest.instances import copy_repository
from loadtest.memory import Sampler, of_group, pss_bytes
from serving import phantom, pipeline, wire
from serving.client import PipelineClient
from serving.errors import ServerBusy
from serving.preprocessing import preprocess
from serving.results import CaseReport
from serving.scans import decode
from serving.tritonserver import ServerConfig, TritonServer
from tests.demo.page_process import ask, said_of, send, served_page, upload
from tests.reliability import IS_LONG, Tally, record
from tests.toy_models import QUADRANTS, expected_means
from tests.waiting import eventually, pending

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

BURST = 200
RECOVERY_S = 30.0
"""Within which a case is answered that comes after a burst."""

ALL_OPEN = dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0)
DOOR, BEHIND = 24, 16
SLOW_DOOR = 8
SLOWLY = """

import time


class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        time.sleep(0.03 * len(requests))
        return super().execute(requests)
"""
STANDS_STILL = """

import pathlib
import time


class TritonPythonModel(TritonPythonModel):
    def execute(self, requests):
        flag = pathlib.Path({flag!r})
        while flag.exists():
            flag.with_suffix(".noticed").touch()
            time.sleep(0.01)
        return super().execute(requests)
"""
STANDING_DOOR = 16


@pytest.fixture(scope="module")
def scans() -> list[bytes]:
    """Slices that can be told apart by their answers."""
    return [phantom.png_bytes(phantom.ct_slice(seed, 128).pixels) for seed in range(8)]


@pytest.fixture(scope="module")
def narrow(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server with short queues, and with so short ones behind the door that these refuse as well."""

    def change(config: Any) -> None:
        policy = config.dynamic_batching.default_queue_policy
        if config.name == pipeline.PREPROCESS.model:
            policy.max_queue_size = DOOR
        elif config.dynamic_batching.HasField("default_queue_policy"):
            policy.max_queue_size = BEHIND

    repository = copy_repository(toy_repository, tmp_path_factory.mktemp("narrow") / "model_repository", change)
    with TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, threads=1)) as server:
        yield server


@pytest.fixture(scope="module")
def slow(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server that takes longer for a scan than our client needs to send it, and lets few wait."""

    def change(config: Any) -> None:
        if config.name == pipeline.PREPROCESS.model:
            config.dynamic_batching.default_queue_policy.max_queue_size = SLOW_DOOR
            config.instance_group[0].count = 1

    repository = copy_repository(toy_repository, tmp_path_factory.mktemp("slow") / "model_repository", change)
    (model,) = (repository / pipeline.PREPROCESS.model).glob("*/model.py")
    model.write_text(model.read_text(encoding="utf-8") + SLOWLY, encoding="utf-8")
    with TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, threads=1)) as server:
        yield server


@dataclass(frozen=True)
class Standing:
    """A server that stands still as long as there is a file, and lets `STANDING_DOOR` requests wait meanwhile."""

    server: TritonServer
    flag: Path

    @contextmanager
    def still(self, xray: bytes) -> Iterator[None]:
        """Let it stand still over one request, which is answered in the end."""
        noticed = self.flag.with_suffix(".noticed")
        noticed.unlink(missing_ok=True)
        self.flag.touch()
        try:
            with PipelineClient(self.server.grpc_url, timeout_s=120) as client:
                first = client.submit(xray, "xray")
                assert eventually(noticed.exists)
                yield
                self.flag.unlink()
                assert first.result(60).modality == "xray"
        finally:
            self.flag.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def standing(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    def change(config: Any) -> None:
        if config.name == pipeline.PREPROCESS.model:
            config.dynamic_batching.default_queue_policy.max_queue_size = STANDING_DOOR
            config.instance_group[0].count = 1

    folder = tmp_path_factory.mktemp("standing")
    repository = copy_repository(toy_repository, folder / "model_repository", change)
    (model,) = (repository / pipeline.PREPROCESS.model).glob("*/model.py")
    text = model.read_text(encoding="utf-8") + STANDS_STILL.format(flag=str(folder / "flag"))
    model.write_text(text, encoding="utf-8")
    with TritonServer(ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, threads=1)) as server:
        yield Standing(server, folder / "flag")


def computed(server: TritonServer, model: str) -> int:
    """How many scans a model has computed since the server's start."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        return int(client.get_inference_statistics(model).model_stats[0].inference_count)


def refusals(server: TritonServer) -> int:
    """How many requests the server has refused since its start."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics(pipeline.ENSEMBLE_NAME)
    return int(statistics.model_stats[0].inference_stats.fail.count)


def burst(client: Any, scans: Sequence[bytes], count: int, tally: Tally) -> None:
    """Send as many requests at once, each with all gates open, and wait for what becomes of them."""
    wanted = [expected_means(preprocess(decode(scan, "ct")), QUADRANTS) for scan in scans]
    ended = threading.Semaphore(0)

    def take(number: int, started_s: float, result: Any, error: InferenceServerException | None) -> None:
        seconds = time.perf_counter() - started_s
        if error is None:
            right = np.allclose(result.as_numpy("diagnosis")[0], wanted[number % len(scans)], atol=1e-3)
            (tally.answer if right else tally.mistake)(seconds)
        elif isinstance(wire.translate(error, "here", timeout_s=0, inferring=True), ServerBusy):
            tally.refuse(seconds)
        else:
            tally.lose(seconds)
        ended.release()

    for number in range(count):
        callback = partial(take, number, time.perf_counter())
        client.async_infer(callback=callback, **wire.request(scans[number % len(scans)], "ct", ALL_OPEN))
    for _ in range(count):
        assert ended.acquire(timeout=120)


def one_case(client: PipelineClient, scan: bytes, tally: Tally) -> None:
    """Ask for one CT case by our client, and count what becomes of it."""
    report = client.predict(scan, "ct", ALL_OPEN)
    wanted = expected_means(preprocess(decode(scan, "ct")), QUADRANTS)
    right = np.allclose(list(report.diagnosis.values()), wanted, atol=1e-3)
    (tally.answer if right else tally.mistake)(report.latency_ms / 1000)


def largest_batch(scans: Sequence[bytes]) -> dict[str, Any]:
    """A request whose memory the models keep: no burst makes a larger batch."""
    request = wire.request(scans[0], "ct", ALL_OPEN)
    for wire_input, values in zip(
        request["inputs"],
        (np.array([[scan] for scan in scans], object), np.array([[b"ct"]] * 8, object), np.zeros((8, 4), np.float32)),
        strict=True,
    ):
        wire_input.set_shape(values.shape)
        wire_input.set_data_from_numpy(values)
    return request


def test_bursts_are_answered_or_refused_and_memory_stays_flat(narrow: TritonServer, scans: list[bytes]) -> None:
    client, after_bytes = wire.connect(narrow.grpc_url), []
    for _ in range(4):
        client.infer(**largest_batch(scans))
    tally = Tally()
    with Sampler(narrow.pid) as memory:
        for _ in range(3):
            burst(client, scans, BURST, tally)
            after_bytes.append(pss_bytes(of_group(narrow.pid)))
    what = f"three bursts of {BURST} CT cases at once, queues of {DOOR} and {BEHIND} (memory: of the whole server)"
    row = record(tally.row(what, group="Overload", peak_bytes=memory.peak_pss_bytes))
    assert (row.requests, row.lost, row.wrong) == (3 * BURST, 0, 0)
    assert row.answered
    assert row.refused
    assert max(after_bytes) < after_bytes[0] * 1.15
    assert eventually(lambda: pending(narrow) == 0)
    client.close()


def test_after_a_burst_a_case_is_answered(narrow: TritonServer, scans: list[bytes]) -> None:
    client, tally = wire.connect(narrow.grpc_url), Tally()
    burst(client, scans, BURST, Tally())
    started_s = time.perf_counter()
    burst(client, scans, 1, tally)
    client.close()
    row = record(tally.row("a case right after such a burst", group="Overload"))
    assert row.answered == 1
    assert time.perf_counter() - started_s < RECOVERY_S


def test_who_tries_again_is_answered_in_the_end(slow: TritonServer, scans: list[bytes]) -> None:
    tally, before = Tally(), refusals(slow)
    with PipelineClient(slow.grpc_url, timeout_s=120) as client:
        futures = [client.submit(scans[i % len(scans)], "ct", ALL_OPEN) for i in range(BURST // 2)]
        for number, future in enumerate(futures):
            report = future.result(120)
            wanted = expected_means(preprocess(decode(scans[number % len(scans)], "ct")), QUADRANTS)
            right = np.allclose(list(report.diagnosis.values()), wanted, atol=1e-3)
            (tally.answer if right else tally.mistake)(report.latency_ms / 1000)
    row = record(tally.row(f"{BURST // 2} cases at once by our client, which tries again", group="Overload"))
    assert (row.answered, row.wrong) == (BURST // 2, 0)
    assert refusals(slow) > before


def test_who_does_not_try_again_hears_that_the_server_is_busy(slow: TritonServer, scans: list[bytes]) -> None:
    with PipelineClient(slow.grpc_url, retry_busy=False) as client:
        futures = [client.submit(scans[0], "ct", ALL_OPEN) for _ in range(BURST)]
        errors = [future.exception(60) for future in futures]
    busy = [error for error in errors if error is not None]
    assert busy
    assert {type(error) for error in busy} == {ServerBusy}
    assert all("the server is busy, try again" in str(error) for error in busy)
    assert len(busy) < BURST


def test_many_scans_in_order_are_all_answered_by_a_server_that_refuses(slow: TritonServer, scans: list[bytes]) -> None:
    # More in flight than fits: those that are refused come back, each in its place.
    before = refusals(slow)
    with PipelineClient(slow.grpc_url, timeout_s=120) as client:
        reports = list(client.predict_many(scans * 8, "ct", ALL_OPEN, in_flight=64))
    assert refusals(slow) > before
    assert len(reports) == len(scans) * 8
    for number, report in enumerate(reports):
        assert isinstance(report, CaseReport)
        assert report.diagnosis == pytest.approx(reports[number % len(scans)].diagnosis, abs=1e-6)  # type: ignore[union-attr]


def test_given_up_while_it_waits_to_try_again_nothing_is_sent_again(slow: TritonServer, scans: list[bytes]) -> None:
    with PipelineClient(slow.grpc_url) as client:
        futures: list[Future[CaseReport]] = [client.submit(scans[0], "ct", ALL_OPEN) for _ in range(BURST)]
        waiting = [future for future in futures if not future.done()]
        assert waiting
        for future in waiting:
            future.cancel()
        # One whose answer comes in just now can not be taken back, and has it in a moment.
        assert wait(futures, timeout=30).not_done == set()
    # Closed: nothing of them is under way, on neither side.
    assert eventually(lambda: pending(slow) == 0)
    tally = Tally()
    with PipelineClient(slow.grpc_url) as client:
        one_case(client, scans[0], tally)
    row = record(tally.row(f"a case after {BURST} at once of which those that waited were given up", group="Overload"))
    assert row.answered == 1


def test_a_deadline_that_passes_ends_the_tries(slow: TritonServer, scans: list[bytes]) -> None:
    with PipelineClient(slow.grpc_url, timeout_s=0.5) as client:
        futures = [client.submit(scans[0], "ct", ALL_OPEN) for _ in range(BURST)]
        errors = [error for future in futures if (error := future.exception(30)) is not None]
    assert errors
    assert all("busy" in str(error) or "within 0.5 s" in str(error) for error in errors)
    assert eventually(lambda: pending(slow) == 0)


def give_up(client: PipelineClient, xray: bytes, count: int, server: TritonServer) -> None:
    """Send X-rays and take them back while they wait: X-rays alone, which Triton 24.10 survives (serving/calls.py)."""
    futures = [client.submit(xray, "xray") for _ in range(count)]
    assert eventually(lambda: pending(server) == count)
    assert all(future.cancel() for future in futures)


def hang_up(client: PipelineClient, xray: bytes, count: int, server: TritonServer) -> None:
    """Send X-rays and close the connection under them, as a client does that dies."""
    connection = wire.connect(client.url)
    for _ in range(count):
        request = wire.request(xray, "xray", ALL_OPEN)
        connection.async_infer(callback=lambda result, error: None, **request)
    assert eventually(lambda: pending(server) == count)
    connection.close()


@pytest.mark.parametrize(("leave", "how"), [(give_up, "were taken back"), (hang_up, "whose client hung up")])
def test_what_is_taken_back_frees_its_work(standing: Standing, leave: Callable[..., None], how: str) -> None:
    count, xray, tally = STANDING_DOOR // 2, phantom.png_bytes(phantom.chest_xray(1, 128)), Tally()
    server = standing.server
    with PipelineClient(server.grpc_url, cancel_on_server=True) as client:
        before = computed(server, "recognition")
        with standing.still(xray):
            leave(client, xray, count, server)
            # Triton says nowhere that it has heard of it: another word with it comes after.
            assert client.is_ready()
            time.sleep(0.5)
        assert eventually(lambda: pending(server) == 0)
        report = client.predict(xray, "xray")
        assert report.modality == "xray"
        tally.answer(report.latency_ms / 1000)
        # The one that it stood still over, and the one after: of those that were taken back hardly any.
        assert computed(server, "recognition") - before < 2 + count // 2
    record(tally.row(f"a case after {count} X-rays that waited and {how}", group="Overload"))


def test_a_page_in_front_of_a_full_server_says_that_it_is_busy(
    standing: Standing, scans: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    xray, url = phantom.png_bytes(phantom.chest_xray(1, 128)), standing.server.grpc_url
    with PipelineClient(url, timeout_s=120, retry_busy=False) as client:
        with standing.still(xray):
            futures = [client.submit(xray, "xray") for _ in range(STANDING_DOOR + 4)]
            assert eventually(lambda: any(future.done() for future in futures))
            # The page's own client tries for 30 s.
            with monkeypatch.context() as shorter:
                shorter.setattr(case, "PipelineClient", partial(PipelineClient, timeout_s=1))
                with pytest.raises(ServerBusy) as busy:
                    case.read_case(url, scans[0], "ct", {})
        html = panels.alert(busy.value)
        assert "The server is busy" in html
        assert "try again in a while" in html
        errors = [future.exception(60) for future in futures]
        assert {type(error) for error in errors} == {ServerBusy, type(None)}
    _, report = case.read_case(url, scans[0], "ct", {})
    assert report.modality == "ct"


PAGE_QUEUE = 1
SHORT_PATIENCE = f"""
from functools import partial
from demo import app, case
app._QUEUE = {PAGE_QUEUE}
case.PipelineClient = partial(case.PipelineClient, timeout_s=2)
"""


@pytest.mark.slow
def test_a_served_page_says_that_triton_is_busy_and_turns_away_more_than_it_lets_wait(standing: Standing) -> None:
    xray, url, tally = phantom.png_bytes(phantom.chest_xray(1, 128)), standing.server.grpc_url, Tally()
    with (
        served_page(url, setup=SHORT_PATIENCE) as page,
        PipelineClient(url, timeout_s=120, retry_busy=False) as client,
    ):
        (path,) = upload(page, xray).json()
        with standing.still(xray):
            futures = [client.submit(xray, "xray") for _ in range(STANDING_DOOR + 4)]
            assert eventually(lambda: any(future.done() for future in futures))
            sent = [send(page, path, "xray") for _ in range(CASES_AT_ONCE + PAGE_QUEUE + 6)]
            taken = [answer.json()["event_id"] for answer in sent if answer.is_success]
            for answer in (answer for answer in sent if not answer.is_success):
                full = answer.status_code == 503 and "Queue is full" in answer.text
                (tally.refuse if full else tally.mistake)()
            turned_away = tally.refused
            for event_id in taken:
                error = said_of(page, event_id)["error"]
                busy = error["type"] == "ServerBusy" and "the server is busy, try again" in error["message"]
                (tally.refuse if busy else tally.mistake)()
        # As soon as Triton goes on, so does the page.
        assert [future.exception(60) for future in futures].count(None) >= STANDING_DOOR
        (tally.answer if ask(page, path, "xray")["modality"] == "xray" else tally.mistake)()
    row = record(tally.row("a page in front of a full server, asked for more than it lets wait", group="Overload"))
    assert turned_away > 0
    assert row.refused > turned_away
    assert (row.answered, row.lost, row.wrong) == (1, 0, 0)


@pytest.mark.slow
@pytest.mark.long
def test_the_shipped_server_bears_a_burst(triton: TritonServer) -> None:
    scan = phantom.png_bytes(phantom.ct_slice(3).pixels)
    tally, count = Tally(), BURST if IS_LONG else 60
    with Sampler(triton.pid) as memory, PipelineClient(triton.grpc_url, timeout_s=120) as client:
        alone = client.predict(scan, "ct", ALL_OPEN)
        futures = [client.submit(scan, "ct", ALL_OPEN) for _ in range(count)]
        for future in futures:
            report = future.result(120)
            right = report.diagnosis == pytest.approx(alone.diagnosis, abs=0.02)
            (tally.answer if right else tally.mistake)(report.latency_ms / 1000)
        after = client.predict(scan, "ct", ALL_OPEN)
    recovery = Tally()
    right = after.diagnosis == pytest.approx(alone.diagnosis, abs=0.02)
    (recovery.answer if right else recovery.mistake)(after.latency_ms / 1000)
    what = f"{count} CT cases at once by our client, the shipped networks and queues (memory: of the whole server)"
    row = record(tally.row(what, group="Overload", peak_bytes=memory.peak_pss_bytes))
    assert (row.answered, row.wrong) == (count, 0)
    row = record(recovery.row(f"a case right after those {count}, the shipped networks and queues", group="Overload"))
    assert row.answered == 1
    assert row.slowest_s is not None
    assert row.slowest_s < RECOVERY_S
    assert eventually(lambda: pending(triton) == 0)
