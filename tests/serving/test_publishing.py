"""New versions on a real server under load: no request fails, a bad one is never seen, and the old one serves on."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from serving import phantom, pipeline, wire
from serving.errors import ExportError, RepositoryError, ServerError, ServerStartError, ServerUnreachable
from serving.labels import ALL_STREAM
from serving.pipeline import mask_output
from serving.preprocessing import preprocess
from serving.publishing import Publisher
from serving.repository import CONFIG_NAME, ONNX_NAME, versions
from serving.scans import decode
from serving.triton_arguments import ADMIN_HEADER, GRPC_HEADER_PREFIX
from serving.tritonserver import ServerConfig, TritonServer
from tests.reliability import Tally, record
from tests.toy_models import QUADRANTS, STRIPS, expected_mask, expected_means, means_network, toy_network
from tests.version_files import (
    BANDS,
    FINDINGS,
    STREAM,
    exported,
    gated,
    other_findings,
    scaled,
    truncated,
    wrong_outputs,
)
from tests.waiting import eventually

pytestmark = pytest.mark.triton

KEY = "not-a-secret-of-anyone"
CLIENTS = 6
ALL_OPEN = dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0)
ROUNDING = 1e-3
GROUP = "New versions"

Regions = Any


@pytest.fixture(scope="module")
def repository(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(toy_repository, tmp_path_factory.mktemp("published") / "model_repository"))


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    config = ServerConfig(repository, 0, 0, 0, threads=1, admin_key=KEY, model_control="explicit")
    with TritonServer(config) as started:
        yield started


@pytest.fixture
def publisher(server: TritonServer, repository: Path) -> Iterator[Publisher]:
    with Publisher(repository, server.grpc_url, KEY) as publisher:
        yield publisher


class Load:
    """Clients that ask without a pause, each for a scan of its own, and know both answers that it may get."""

    def __init__(self, server: TritonServer, tally: Tally) -> None:
        self.tally = tally
        self.complaints: list[str] = []
        self.bands_alone = self.strips_alone = False
        """From when on every request that is sent must be answered so."""
        self._server = server
        self._over = False
        self._answered = 0

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._clients = [self._pool.submit(self._call, number) for number in range(CLIENTS)]
        assert self.goes_on(CLIENTS)
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._pool.shutdown()
        for client in self._clients:
            client.result()

    def goes_on(self, cases: int) -> bool:
        """Whether so many more come to be answered."""
        wanted = self._answered + cases
        return eventually(lambda: self._answered >= wanted, within_s=120)

    def _call(self, number: int) -> None:
        scan = phantom.png_bytes(phantom.ct_slice(number, 128).pixels)
        image = preprocess(decode(scan, "ct"))
        diagnosis, mask = expected_means(image, QUADRANTS), expected_mask(image, ALL_STREAM.name)
        strips, bands = expected_means(image, STRIPS), expected_means(image, BANDS)
        assert np.abs(strips - bands).max() > 10 * ROUNDING
        triton = wire.connect(self._server.grpc_url)
        while not self._over:
            allowed = [bands] if self.bands_alone else [strips] if self.strips_alone else [strips, bands]
            started_s = time.perf_counter()
            try:
                answer = triton.infer(**wire.request(scan, "ct", ALL_OPEN))
            except InferenceServerException as fault:
                self.complaints.append(str(fault))
                self.tally.lose(time.perf_counter() - started_s)
                continue
            findings = answer.as_numpy(FINDINGS.outputs[0].name)[0]
            right = (
                np.allclose(answer.as_numpy("diagnosis")[0], diagnosis, atol=ROUNDING)
                and np.array_equal(answer.as_numpy(mask_output(ALL_STREAM.name))[0], mask)
                and any(np.allclose(findings, each, atol=ROUNDING) for each in allowed)
            )
            if not right:
                self.complaints.append(f"scan {number}: expected one of {allowed}, got {findings}")
            (self.tally.answer if right else self.tally.mistake)(time.perf_counter() - started_s)
            self._answered += 1
        triton.close()


def findings_now(server: TritonServer) -> str:
    """Which of both networks answers."""
    scan = phantom.png_bytes(phantom.ct_slice(1, 128).pixels)
    image = preprocess(decode(scan, "ct"))
    triton = wire.connect(server.grpc_url)
    got = triton.infer(**wire.request(scan, "ct", ALL_OPEN)).as_numpy(FINDINGS.outputs[0].name)[0]
    triton.close()
    told = {name: np.allclose(got, expected_means(image, by), atol=ROUNDING) for name, by in REGIONS.items()}
    return next(name for name, same in told.items() if same)


REGIONS: dict[str, Regions] = {"strips": STRIPS, "bands": BANDS}


def in_folder(repository: Path) -> dict[str, bytes]:
    return {str(path.relative_to(repository)): path.read_bytes() for path in repository.rglob("*") if path.is_file()}


def load_call(server: TritonServer, model: str) -> None:
    triton = wire.connect(server.grpc_url)
    try:
        triton.load_model(model, headers={f"{GRPC_HEADER_PREFIX}{ADMIN_HEADER}": KEY})
    finally:
        triton.close()


def is_ready_as_a_whole(server: TritonServer) -> bool:
    try:
        with urlopen(f"http://{server.http_url}/v2/health/ready", timeout=10) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.reliability
def test_good_versions_are_published_under_load_and_no_request_fails(
    server: TritonServer, repository: Path, publisher: Publisher, tmp_path: Path
) -> None:
    tally = Tally()
    newest = versions(repository / FINDINGS.model)[-1]
    with Load(server, tally) as load:
        for number, regions in enumerate((BANDS, STRIPS, BANDS)):
            source = exported(tmp_path / str(number), gated(means_network(regions)))
            published = publisher.publish(FINDINGS.model, source)
            assert (published.before, published.folder.name) == (newest + number, str(newest + number + 1))
            # From here on what is sent is answered by the new version, and by no other.
            load.bands_alone, load.strips_alone = regions == BANDS, regions == STRIPS
            assert load.goes_on(4 * CLIENTS)
            load.bands_alone = load.strips_alone = False
        source = exported(tmp_path / "stream", gated(toy_network(STREAM), STREAM), STREAM)
        assert publisher.publish(STREAM.model, source).before == 1
        assert load.goes_on(2 * CLIENTS)
    what = f"{CLIENTS} clients while three versions of stage 2 and one of a stream are published"
    row = record(tally.row(what, group=GROUP))
    assert load.complaints == []
    assert (row.lost, row.wrong, row.refused) == (0, 0, 0)
    assert row.answered == row.requests > 14 * CLIENTS
    assert findings_now(server) == "bands"
    assert server.is_ready()
    # The processes of the old versions ended, which is no loss.
    assert not server.has_lost_backend()


@pytest.mark.reliability
def test_a_bad_version_is_refused_before_it_is_seen(
    server: TritonServer, repository: Path, publisher: Publisher, tmp_path: Path
) -> None:
    before, served, tally = in_folder(repository), publisher.served(FINDINGS.model), Tally()
    bad: dict[str, tuple[Callable[[], bytes], str]] = {
        "truncated": (truncated, "a graph that ONNX Runtime loads"),
        "outputs": (wrong_outputs, "expected the outputs"),
        "nan": (lambda: scaled(float("nan")), "got NaN"),
    }
    with Load(server, tally) as load:
        for name, (network, says) in bad.items():
            with pytest.raises(ExportError, match=says):
                publisher.publish(FINDINGS.model, exported(tmp_path / name, network(), reference=False))
        swapped = exported(tmp_path / "swapped", gated(means_network(STRIPS)))
        (swapped / ONNX_NAME).write_bytes(other_findings())
        with pytest.raises(ExportError, match=r"against its own reference\.npz"):
            publisher.publish(FINDINGS.model, swapped)
        assert load.goes_on(CLIENTS)
    row = record(tally.row(f"{CLIENTS} clients while four bad versions are refused", group=GROUP))
    assert load.complaints == []
    assert row.answered == row.requests
    assert in_folder(repository) == before
    assert publisher.served(FINDINGS.model) == served


@pytest.mark.reliability
@pytest.mark.parametrize("where", ["beside what is served", "in the place of what is served"])
def test_a_version_that_is_broken_behind_our_back_leaves_the_old_one_serving(
    server: TritonServer, repository: Path, publisher: Publisher, where: str
) -> None:
    served, tally, now = publisher.served(FINDINGS.model), Tally(), findings_now(server)
    folder = repository / FINDINGS.model / str(served)
    whole = (folder / ONNX_NAME).read_bytes()
    beside = folder.with_name(str(int(folder.name) + 1))
    with Load(server, tally) as load:
        load.bands_alone, load.strips_alone = now == "bands", now == "strips"
        if where.startswith("beside"):
            beside.mkdir()
            (beside / ONNX_NAME).write_bytes(truncated())
        else:
            (folder / ONNX_NAME).write_bytes(truncated())
        with pytest.raises(InferenceServerException, match="load failed for model 'manifestations'"):
            load_call(server, FINDINGS.model)
        assert load.goes_on(4 * CLIENTS)
    row = record(tally.row(f"{CLIENTS} clients while a broken network is loaded {where}", group="Faults"))
    assert load.complaints == []
    assert row.answered == row.requests
    assert publisher.served(FINDINGS.model) == served
    assert findings_now(server) == now
    # What `lungstreams serve` looks at: it would take a server down that serves, if it asked for the whole.
    assert eventually(server.is_ready)
    if where.startswith("beside"):
        assert not is_ready_as_a_whole(server)
    shutil.rmtree(beside, ignore_errors=True)
    (folder / ONNX_NAME).write_bytes(whole)
    load_call(server, FINDINGS.model)


def test_what_the_server_can_not_load_is_removed_again(
    server: TritonServer, repository: Path, publisher: Publisher, tmp_path: Path
) -> None:
    config = repository / FINDINGS.model / CONFIG_NAME
    good, served, now = config.read_text(encoding="utf-8"), publisher.served(FINDINGS.model), findings_now(server)
    # Nothing is the matter with the network; the server refuses the model all the same.
    config.write_text(good + 'parameters { key: "execution_mode" value { string_value: "7" } }\n', encoding="utf-8")
    try:
        before = in_folder(repository)
        source = exported(tmp_path / "good", gated(means_network(STRIPS if now == "bands" else BANDS)))
        with pytest.raises(ExportError, match="could not load the new manifestations and serves the old one") as e:
            publisher.publish(FINDINGS.model, source)
        assert "\n" not in str(e.value)
        assert in_folder(repository) == before
    finally:
        config.write_text(good, encoding="utf-8")
    assert publisher.served(FINDINGS.model) == served
    assert findings_now(server) == now
    # It can be published once the fault is mended.
    assert publisher.publish(FINDINGS.model, source).before == served
    assert findings_now(server) != now


def test_a_repository_that_is_not_the_servers_is_left_as_it_was(
    server: TritonServer, repository: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(repository, tmp_path / "other"))
    before = in_folder(other)
    with Publisher(other, server.grpc_url, KEY) as publisher:
        with pytest.raises(ServerError, match=r"is .*other the folder that it serves"):
            publisher.publish(FINDINGS.model, exported(tmp_path / "good", other_findings()))
    assert in_folder(other) == before


def test_nothing_is_written_for_who_has_another_key(server: TritonServer, repository: Path, tmp_path: Path) -> None:
    before = in_folder(repository)
    with Publisher(repository, server.grpc_url, KEY[::-1]) as stranger:
        with pytest.raises(ServerUnreachable, match="expected the admin key of"):
            stranger.publish(FINDINGS.model, exported(tmp_path / "good", other_findings()))
    assert in_folder(repository) == before


def test_models_that_there_are_not_are_named(repository: Path, publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected one of preprocess, recognition"):
        publisher.publish("../recognition", tmp_path)
    shutil.copytree(repository / STREAM.model, tmp_path / "part" / STREAM.model)
    with Publisher(tmp_path / "part", publisher.url, KEY) as of_a_part:
        with pytest.raises(RepositoryError, match="expected the model manifestations in"):
            of_a_part.publish(FINDINGS.model, tmp_path)


def test_two_who_publish_at_once_get_versions_of_their_own(
    server: TritonServer, repository: Path, tmp_path: Path
) -> None:
    source = exported(tmp_path / "good", gated(toy_network(STREAM), STREAM), STREAM)
    together = threading.Barrier(2)

    def publish(_: int) -> str:
        with Publisher(repository, server.grpc_url, KEY) as publisher:
            together.wait(60)
            try:
                return publisher.publish(STREAM.model, source).folder.name
            except ServerError as error:
                return str(error)

    with ThreadPoolExecutor(2) as pool:
        names = list(pool.map(publish, range(2)))
    newest = versions(repository / STREAM.model)[-1]
    assert str(newest) in names
    assert len(set(names)) == 2


def test_a_server_without_model_control_is_told(toy_repository: Path, tmp_path: Path) -> None:
    repository = tmp_path / "small"
    shutil.copytree(toy_repository / FINDINGS.model, repository / FINDINGS.model)
    before = in_folder(repository)
    source = exported(tmp_path / "good", other_findings())
    with TritonServer(ServerConfig(repository, 0, 0, 0, threads=1, admin_key=KEY)) as plain:
        with Publisher(repository, plain.grpc_url, KEY) as publisher:
            with pytest.raises(ServerError, match=r"explicit model control at .* \(--model-control explicit\)"):
                publisher.publish(FINDINGS.model, source)
        assert in_folder(repository) == before
    with Publisher(repository, plain.grpc_url, KEY) as publisher, pytest.raises(ServerUnreachable):
        publisher.publish(FINDINGS.model, source)


def test_explicit_control_needs_a_key() -> None:
    with pytest.raises(ServerStartError, match="expected an admin key with explicit model control"):
        ServerConfig(model_control="explicit")
    with pytest.raises(ServerStartError, match="expected an authority for clients' certificates"):
        ServerConfig(model_control="explicit", admin_key=KEY, host="0.0.0.0", insecure=True)
    with pytest.raises(ServerStartError, match="expected a model control of none, explicit, got 'poll'"):
        ServerConfig(model_control="poll")  # type: ignore[arg-type]
