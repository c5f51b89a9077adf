"""Who may call the embedded server: tried on real ones, with certificates made for the occasion."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from tritonclient.utils import InferenceServerException

from serving import wire
from serving.client import PipelineClient
from serving.errors import ServerNotReady, ServerStartError, ServerUnreachable
from serving.tls import ClientTls, ServerTls
from serving.triton_arguments import ADMIN_HEADER, GRPC_HEADER_PREFIX
from serving.tritonserver import ServerConfig, TritonServer
from tests.certificates import Authority, Pair

KEY = "not-a-secret-of-anyone"
MODEL = "recognition"
RESTRICTED_CALLS = {
    "get_model_repository_index": ("POST", "/v2/repository/index"),
    "get_trace_settings": ("GET", "/v2/trace/setting"),
    "get_log_settings": ("GET", "/v2/logging"),
    "get_system_shared_memory_status": ("GET", "/v2/systemsharedmemory/status"),
}


@dataclass(frozen=True)
class Pki:
    """An authority that everybody here trusts, one that nobody knows, and what they have signed."""

    ours: Authority
    theirs: Authority
    server: Pair
    client: Pair
    stranger: Pair


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    ours, theirs = Authority(folder, "ours"), Authority(folder, "theirs")
    return Pki(ours, theirs, ours.issue("server"), ours.issue("client"), theirs.issue("stranger"))


@pytest.fixture(scope="module")
def small_repository(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One toy network: a server over it starts in two seconds."""
    folder = tmp_path_factory.mktemp("access") / "small"
    shutil.copytree(toy_repository / MODEL, folder / MODEL)
    return folder


def started(repository: Path, pki: Pki, **options: Any) -> TritonServer:
    tls = ServerTls(pki.server.cert, pki.server.key, options.pop("client_ca", None))
    return TritonServer(ServerConfig(repository, 0, 0, 0, threads=1, tls=tls, **options))


@pytest.fixture(scope="module")
def one_way(small_repository: Path, pki: Pki) -> Iterator[TritonServer]:
    with started(small_repository, pki, host="0.0.0.0") as server:
        yield server


@pytest.fixture(scope="module")
def mutual(small_repository: Path, pki: Pki) -> Iterator[TritonServer]:
    with started(small_repository, pki, client_ca=pki.ours.cert, admin_key=KEY) as server:
        yield server


def complaint(server: TritonServer, tls: ClientTls | None) -> str:
    """What our client says of a server of which it can not get an answer."""
    with PipelineClient(server.grpc_url, tls=tls) as client, pytest.raises(ServerUnreachable) as caught:
        client.check()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def is_let_in(server: TritonServer, tls: ClientTls) -> bool:
    with PipelineClient(server.grpc_url, tls=tls) as client, pytest.raises(ServerNotReady):
        client.check()  # It answers: that it lacks the other models.
    return True


@pytest.mark.triton
class TestTls:
    def test_who_trusts_the_servers_authority_is_served(self, one_way: TritonServer, pki: Pki) -> None:
        assert is_let_in(one_way, ClientTls(pki.ours.cert))

    def test_who_trusts_another_authority_hangs_up(self, one_way: TritonServer, pki: Pki) -> None:
        assert "expected" in complaint(one_way, ClientTls(pki.theirs.cert))
        assert "certificate that we trust" in complaint(one_way, ClientTls(pki.theirs.cert))

    def test_a_client_that_speaks_plainly_is_told_what_may_be_wrong(self, one_way: TritonServer) -> None:
        assert "it may expect TLS" in complaint(one_way, None)

    def test_a_server_that_speaks_plainly_is_named(self, toy_triton: TritonServer, pki: Pki) -> None:
        assert "to speak TLS" in complaint(toy_triton, ClientTls(pki.ours.cert))

    def test_http_and_metrics_stay_on_loopback_while_grpc_is_public(self, one_way: TritonServer) -> None:
        config = one_way.config
        for port, reached in ((config.grpc_port, True), (config.http_port, False), (config.metrics_port, False)):
            with socket.socket() as caller:
                caller.settimeout(5)
                # Another address of this machine: what is bound to 127.0.0.1 alone does not answer there.
                assert (caller.connect_ex(("127.0.0.2", port)) == 0) is reached


@pytest.mark.triton
class TestMutualTls:
    def test_a_client_of_the_known_authority_is_served(self, mutual: TritonServer, pki: Pki) -> None:
        assert is_let_in(mutual, ClientTls(pki.ours.cert, pki.client.cert, pki.client.key))

    def test_a_client_without_a_certificate_is_kept_out(self, mutual: TritonServer, pki: Pki) -> None:
        assert "the certificate of a client that it knows" in complaint(mutual, ClientTls(pki.ours.cert))

    def test_a_client_of_another_authority_is_kept_out(self, mutual: TritonServer, pki: Pki) -> None:
        stranger = ClientTls(pki.ours.cert, pki.stranger.cert, pki.stranger.key)
        assert "the certificate of a client that it knows" in complaint(mutual, stranger)


@pytest.mark.triton
class TestRestrictedCalls:
    @pytest.mark.parametrize("call", RESTRICTED_CALLS)
    def test_grpc_asks_for_the_key(self, mutual: TritonServer, pki: Pki, call: str) -> None:
        client = wire.connect(mutual.grpc_url, ClientTls(pki.ours.cert, pki.client.cert, pki.client.key))
        header = f"{GRPC_HEADER_PREFIX}{ADMIN_HEADER}"
        try:
            for headers in (None, {header: "another-key-altogether"}):
                with pytest.raises(InferenceServerException, match="restricted"):
                    getattr(client, call)(headers=headers)
            getattr(client, call)(headers={header: KEY})
        finally:
            client.close()

    @pytest.mark.parametrize("call", RESTRICTED_CALLS)
    def test_http_asks_for_the_key(self, mutual: TritonServer, call: str) -> None:
        method, path = RESTRICTED_CALLS[call]
        url, data = f"http://{mutual.http_url}{path}", b"" if method == "POST" else None
        with pytest.raises(HTTPError, match="403") as refused:
            urlopen(Request(url, data, method=method))
        refused.value.close()
        with urlopen(Request(url, data, {ADMIN_HEADER: KEY}, method=method)) as answer:
            assert answer.status == 200

    def test_without_a_key_of_ones_own_nobody_gets_in(self, toy_triton: TritonServer) -> None:
        client = wire.connect(toy_triton.grpc_url)
        try:
            with pytest.raises(InferenceServerException, match="restricted"):
                client.get_model_repository_index(headers={f"{GRPC_HEADER_PREFIX}{ADMIN_HEADER}": ""})
        finally:
            client.close()


class TestConfig:
    @pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1"])
    def test_grpc_leaves_loopback_with_tls_or_an_explicit_override(self, pki: Pki, host: str) -> None:
        with pytest.raises(ServerStartError, match=f"expected TLS for gRPC at {host}"):
            ServerConfig(host=host)
        ServerConfig(host=host, tls=ServerTls(pki.server.cert, pki.server.key))
        ServerConfig(host=host, insecure=True)

    def test_a_host_is_an_address(self) -> None:
        with pytest.raises(ServerStartError, match=r"host: expected an IPv4 address .* got 'box'"):
            ServerConfig(host="box")

    @pytest.mark.parametrize("key", ["", "short", "a,key=that breaks out of its place"])
    def test_a_key_that_is_weak_or_would_change_the_command_line_is_refused_unseen(self, key: str) -> None:
        with pytest.raises(ServerStartError, match="admin key: expected") as caught:
            ServerConfig(admin_key=key)
        assert not key or key not in str(caught.value)
