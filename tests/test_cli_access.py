"""Who may call, from the command line: what starts, what refuses to, and in how many words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from demo import guard
from serving import phantom
from tests.certificates import Authority
from tests.demo.page_process import free_port
from tests.test_cli import ANY_PORTS, Serving, cases_of, lungstreams, only_line


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"), "authority")


@pytest.fixture(scope="module")
def files(authority: Authority) -> dict[str, list[object]]:
    """Options of a server and of a client that know each other."""
    server, client = authority.issue("server"), authority.issue("client")
    return {
        "server": ["--tls-cert", server.cert, "--tls-key", server.key, "--client-ca", authority.cert],
        "client": ["--tls-ca", authority.cert, "--tls-cert", client.cert, "--tls-key", client.key],
    }


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    path = tmp_path / "slice.png"
    path.write_bytes(phantom.png_bytes(phantom.ct_slice(1).pixels))
    return path


@pytest.fixture(scope="module")
def public(toy_repository: Path, files: dict[str, list[object]]) -> Iterator[Serving]:
    serving = Serving("serve", "--repository", toy_repository, *ANY_PORTS, "--threads=1", "--public", *files["server"])
    yield serving
    serving.kill()


def test_a_public_server_answers_those_whom_it_knows(
    public: Serving, files: dict[str, list[object]], scan: Path
) -> None:
    assert public.first_line.startswith("ready grpc=0.0.0.0:")
    url = public.first_line.strip().replace("ready grpc=0.0.0.0", "localhost")
    run = lungstreams("predict", scan, "--url", url, "--json", *files["client"])
    assert (run.returncode, run.stderr) == (0, "")
    assert cases_of(run)[0]["modality"] == "ct"
    stranger = lungstreams("predict", scan, "--url", url)
    assert stranger.returncode == 2
    assert "it may expect TLS" in only_line(stranger.stderr)


@pytest.mark.triton
def test_the_page_asks_a_server_that_speaks_tls(public: Serving, files: dict[str, list[object]]) -> None:
    url = public.first_line.strip().replace("ready grpc=0.0.0.0", "localhost")
    page = Serving("demo", "--url", url, "--port", free_port(), *files["client"])
    try:
        address = page.first_line.removeprefix("ready page=").strip().rstrip("/")
        # 503 of a page that does not get through, which is an error here.
        with urlopen(f"{address}{guard.READY_PATH}", timeout=60) as answer:
            assert json.load(answer)["ready"] is True
    finally:
        page.kill()


class TestServe:
    def test_public_needs_tls(self) -> None:
        run = lungstreams("serve", "--public")
        assert run.returncode == 2
        assert "--public: expected --tls-cert and --tls-key, got neither; --insecure" in only_line(run.stderr)

    def test_an_explicit_override_is_warned_of(self) -> None:
        run = lungstreams("serve", "--public", "--insecure", "--repository=nowhere", *ANY_PORTS)
        assert run.returncode == 2
        assert [line for line in run.stderr.splitlines() if "warning: --insecure" in line]
        assert [line for line in run.stderr.splitlines() if "known holes" in line]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            (["--host=0.0.0.0"], "expected --host with --public"),
            (["--client-ca=ca.pem"], "expected --client-ca with --tls-cert and --tls-key"),
            (["--public", "--tls-cert=server.pem"], "expected --tls-cert and --tls-key together"),
            (["--public", "--insecure", "--host=box"], "expected an IPv4 address"),
            (["--public", "--tls-cert=none.pem", "--tls-key=none.key"], "none.pem: expected a readable PEM file"),
        ],
    )
    def test_what_can_not_be_is_refused(self, options: list[str], expected: str) -> None:
        run = lungstreams("serve", *options)
        assert run.returncode == 2
        assert expected in run.stderr.splitlines()[-1]
        assert run.stdout == ""

    def test_an_expired_certificate_is_one_line(self, authority: Authority) -> None:
        old = authority.issue("old", days=-1)
        run = lungstreams("serve", "--public", "--tls-cert", old.cert, "--tls-key", old.key)
        assert run.returncode == 2
        assert "old.pem: expected a certificate that is valid now" in only_line(run.stderr)

    def test_a_weak_admin_key_is_refused_unseen(self) -> None:
        run = lungstreams("serve", *ANY_PORTS, LUNGSTREAMS_ADMIN_KEY="swordfish")
        assert run.returncode == 2
        assert "admin key: expected" in only_line(run.stderr)
        assert "swordfish" not in run.stderr


class TestDemo:
    def test_another_host_needs_users(self) -> None:
        run = lungstreams("demo", "--url", "127.0.0.1:1", "--host", "0.0.0.0", "--port", free_port())
        assert run.returncode == 2
        assert "expected users (--users) for a page at 0.0.0.0" in only_line(run.stderr)

    def test_users_that_others_can_read_are_one_line(self, tmp_path: Path) -> None:
        users = tmp_path / "users"
        users.write_text("reader:swordfish\n")
        users.chmod(0o644)
        run = lungstreams("demo", "--users", users, "--port", free_port())
        assert run.returncode == 2
        assert "chmod 600" in only_line(run.stderr)

    def test_half_a_client_is_refused_before_anything_starts(self, authority: Authority) -> None:
        run = lungstreams("demo", "--tls-key", authority.cert)
        assert run.returncode == 2
        assert "got a key without a certificate" in only_line(run.stderr)


def test_help_teaches_it() -> None:
    assert "--client-ca" in lungstreams("serve", "--help").stdout
    assert "--tls-ca" in lungstreams("loadtest", "--help").stdout


def test_a_load_test_speaks_tls(public: Serving, files: dict[str, list[object]], tmp_path: Path) -> None:
    url = public.first_line.strip().replace("ready grpc=0.0.0.0", "localhost")
    options = ("--duration=1", "--users=1", "--cases=xray", "--budget-s=25", "--out", tmp_path)
    run = lungstreams("loadtest", "--url", url, *options, *files["client"])
    assert run.returncode == 0, run.stderr
    (case,) = json.loads((tmp_path / "verdict.json").read_text())["cases"]
    assert (case["requests"] > 0, case["failures"]) == (True, 0)
