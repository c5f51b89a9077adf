"""Two Tritons behind Debian's nginx, with the configuration that ships: one of them dies, and no case is lost."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from serving import phantom, wire
from serving.client import PipelineClient
from serving.errors import ServerUnreachable
from serving.limits import MAX_FILE_BYTES
from serving.pipeline import DIAGNOSIS, THRESHOLDS
from serving.preprocessing import preprocess
from serving.scans import decode
from serving.tls import ClientTls
from serving.tritonserver import ServerConfig, TritonServer
from tests.certificates import Authority
from tests.demo.page_process import free_port
from tests.reliability import Tally, record
from tests.toy_models import QUADRANTS, expected_means

pytestmark = pytest.mark.triton

NGINX = Path("/usr/sbin/nginx")
CONFIG = Path(__file__).resolve().parents[2] / "deploy" / "nginx" / "lungstreams.conf"
CALLERS = 4
PATIENCE_S = 60.0
TOLERANCE = 5e-4
"""float32 in another order; two cases differ by more, as `test_cases_are_told_apart` holds."""

OPEN = dict.fromkeys(THRESHOLDS, 0.0)


@dataclass(frozen=True)
class Proxy:
    """An nginx that runs, and how to call it."""

    url: str
    tls: ClientTls
    log: Path

    def lost(self) -> int:
        """How many inferences nginx gave back to the client, to be sent again."""
        return len(re.findall(r"/ModelInfer 204 ", self.log.read_text()))

    def servers_asked(self) -> list[str]:
        """Of each inference that was answered, the servers in the order that they were asked, by commas."""
        lines = [line for line in self.log.read_text().splitlines() if line.split()[2].endswith("/ModelInfer")]
        return [re.split(r"\s", line, maxsplit=6)[6].replace(" ", "") for line in lines]


@pytest.fixture(scope="module")
def second(toy_repository: Path) -> Iterator[TritonServer]:
    config = ServerConfig(toy_repository, grpc_port=0, http_port=0, metrics_port=0, threads=1)
    server = TritonServer(config).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def proxy(toy_triton: TritonServer, second: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The shipped configuration with this machine's addresses and files in the place of its own."""
    tmp_path = tmp_path_factory.mktemp("nginx")
    if not NGINX.exists():
        pytest.fail(f"expected Debian's nginx at {NGINX}: apt-get install nginx")
    authority = Authority(tmp_path, "clients")
    authority.issue("server")
    client = authority.issue("client")
    port = free_port()
    text = CONFIG.read_text(encoding="utf-8")
    for shipped, ours in (
        ("10.0.0.11:8001", toy_triton.grpc_url),
        ("10.0.0.12:8001", second.grpc_url),
        ("listen 8443", f"listen 127.0.0.1:{port}"),
        ("/etc/nginx/lungstreams/", f"{tmp_path}/"),
        ("/var/log/nginx/", f"{tmp_path}/"),
        # So that the test need not wait for it.
        ("fail_timeout=5s", "fail_timeout=1s"),
    ):
        assert shipped in text
        text = text.replace(shipped, ours)
    (tmp_path / "lungstreams.conf").write_text(text)
    folders = " ".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    main = tmp_path / "nginx.conf"
    main.write_text(
        f"daemon off; master_process off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ client_body_temp_path {tmp_path}/body; {folders} include {tmp_path}/lungstreams.conf; }}\n"
    )
    # Its log of before it has read the configuration is not ours to write, where we are not root.
    command = [str(NGINX), "-p", str(tmp_path), "-c", str(main), "-e", str(tmp_path / "error.log")]
    with subprocess.Popen(command) as process:
        try:
            found = Proxy(
                f"localhost:{port}", ClientTls(authority.cert, client.cert, client.key), tmp_path / "lungstreams.log"
            )
            assert eventually(lambda: process.poll() is not None or is_up(found))
            assert process.poll() is None, (tmp_path / "error.log").read_text()
            yield found
        finally:
            process.terminate()


def is_up(proxy: Proxy) -> bool:
    with PipelineClient(proxy.url, tls=proxy.tls) as client:
        return client.is_ready()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def unique_scan(number: int) -> tuple[bytes, np.ndarray]:
    """A scan that no other is like, and the diagnosis that a toy network has for it."""
    # Noise makes a file of 100 kB: of a smaller one nginx would have all before it asks, and could ask again itself.
    grey = np.random.default_rng(number).integers(0, 30, (512, 512), np.uint8)
    grey[:256, 256:] += np.uint8(200 - number % 180)
    grey[256:, : 1 + number % 250] = 210
    data = phantom.png_bytes(grey)
    return data, expected_means(preprocess(decode(data, "ct")), QUADRANTS)


def padded(png: bytes, size: int) -> bytes:
    """The same picture as a file of so many bytes: with a chunk before its end that means nothing to anyone."""
    end = png.rindex(b"IEND") - 4
    content = b"paDd" + bytes(size - len(png) - 12)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    return png[:end] + chunk + png[end:]


class Load:
    """Callers that ask without a pause, each over a channel of its own, until they are told to stop."""

    def __init__(self, proxy: Proxy) -> None:
        self.tally = Tally()
        self.wrong: list[str] = []
        self._proxy = proxy
        self._over = False

    def __enter__(self) -> Load:
        self._pool = ThreadPoolExecutor(CALLERS)
        self._callers = [self._pool.submit(self._call, caller) for caller in range(CALLERS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._pool.shutdown()
        for caller in self._callers:
            caller.result()

    def goes_on(self, cases: int) -> bool:
        """Whether so many more come to be answered."""
        wanted = self._done() + cases
        return eventually(lambda: self._done() >= wanted)

    def _done(self) -> int:
        return self.tally.row("", group="").requests

    def _call(self, caller: int) -> None:
        number = caller
        with PipelineClient(self._proxy.url, tls=self._proxy.tls) as client:
            while not self._over:
                data, expected = unique_scan(number)
                started_s = time.monotonic()
                try:
                    got = client.tensors(data, "ct", OPEN)[DIAGNOSIS.name]
                    count = self.tally.answer
                    if not np.allclose(got, expected, atol=TOLERANCE):
                        self.wrong.append(f"case {number}: expected {expected}, got {got}")
                        count = self.tally.mistake
                except Exception as error:
                    self.wrong.append(f"case {number}: {type(error).__name__}: {error}")
                    count = self.tally.lose
                count(time.monotonic() - started_s)
                number += CALLERS


def test_cases_are_told_apart() -> None:
    answers = np.array([unique_scan(number)[1] for number in range(40)])
    distances = np.abs(answers[:, np.newaxis] - answers).max(axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 2 * TOLERANCE


@pytest.mark.slow
@pytest.mark.reliability
def test_a_server_that_is_killed_loses_no_case_and_is_asked_again_when_it_is_back(
    proxy: Proxy, toy_triton: TritonServer, second: TritonServer
) -> None:
    with Load(proxy) as load:
        assert eventually(lambda: {toy_triton.grpc_url, second.grpc_url} <= set(proxy.servers_asked()))
        # Held first, so that cases are under way in it when it dies.
        os.kill(second.pid, signal.SIGSTOP)
        assert load.goes_on(12)
        os.kill(second.pid, signal.SIGKILL)
        assert load.goes_on(20)
        before = len(proxy.servers_asked())
        second.stop()
        second.start()
        assert eventually(lambda: second.grpc_url in proxy.servers_asked()[before:])
        assert load.goes_on(20)
    row = record(
        load.tally.row("one of two Tritons behind nginx killed (SIGKILL) under four callers", group="More machines")
    )
    assert load.wrong == []
    assert row.answered == row.requests
    # This is what nothing was lost by: those under way in it were sent again by the client, and whoever came later and
    # found it dead by nginx.
    assert proxy.lost() >= 1
    assert f"{second.grpc_url},{toy_triton.grpc_url}" in proxy.servers_asked()


def test_who_has_no_certificate_is_kept_out(proxy: Proxy) -> None:
    with PipelineClient(proxy.url, tls=ClientTls(proxy.tls.ca)) as client:
        with pytest.raises(ServerUnreachable, match="does not let us in: expected a certificate"):
            client.check()


def test_what_a_reader_needs_passes_and_the_rest_does_not(proxy: Proxy) -> None:
    with PipelineClient(proxy.url, tls=proxy.tls) as client:
        client.check()
        data, _ = unique_scan(1)
        assert client.predict(data, "ct").modality == "ct"
    triton = wire.connect(proxy.url, proxy.tls)
    try:
        for call in (
            triton.get_model_repository_index,
            triton.get_trace_settings,
            triton.get_system_shared_memory_status,
        ):
            with pytest.raises(InferenceServerException, match="not called through this proxy"):
                call()
    finally:
        triton.close()


def test_a_file_of_the_largest_size_passes(proxy: Proxy) -> None:
    limit = re.search(r"client_max_body_size (\d+)m;", CONFIG.read_text(encoding="utf-8"))
    assert limit is not None
    # A MiB for what surrounds the file in the request.
    assert int(limit[1]) * 2**20 >= MAX_FILE_BYTES + 2**20
    data = phantom.png_bytes(np.zeros((512, 512), np.uint8))
    triton = wire.connect(proxy.url, proxy.tls)
    try:
        answer = triton.infer(**wire.request(padded(data, MAX_FILE_BYTES), "ct", OPEN))
        assert answer.as_numpy(DIAGNOSIS.name).shape == (1, *DIAGNOSIS.shape)
    finally:
        triton.close()
