from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import httpx
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from demo import guard
from demo.guard import PageAccess, SecurityHeaders, read_users
from demo.watch import ServerWatch
from serving.errors import RequestError
from tests.demo.page_process import free_port, served_page

HTML = "<html><script>1</script><script type='module' src='/a.js'></script></html>"


@pytest.fixture(scope="module")
def page() -> Iterator[str]:
    """The address of a page whose Triton is not there."""
    with served_page(f"127.0.0.1:{free_port()}") as url:
        yield url


@pytest.fixture
def users(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text("# who reads\n\nreader:long:password\nother:another password\n")
    path.chmod(0o600)
    return path


def answer(request: Request) -> HTMLResponse:
    return HTMLResponse(HTML)


def pieces(request: Request) -> StreamingResponse:
    return StreamingResponse(iter([HTML[:20], HTML[20:]]), media_type="text/html")


def client(path: str = "/", endpoint: object = answer) -> TestClient:
    app = Starlette(routes=[Route(path, endpoint)], middleware=[Middleware(SecurityHeaders)])  # type: ignore[arg-type]
    return TestClient(app)


@pytest.mark.parametrize("endpoint", [answer, pieces])
def test_the_pages_scripts_bear_the_mark_of_this_answer_alone(endpoint: object) -> None:
    first, second = (client(endpoint=endpoint).get("/") for _ in range(2))
    marks = [re.search(r"'nonce-([\w-]+)'", got.headers["content-security-policy"]) for got in (first, second)]
    assert marks[0] is not None
    assert marks[1] is not None
    assert marks[0][1] != marks[1][1]
    assert first.text.count(f'<script nonce="{marks[0][1]}"') == HTML.count("<script") == 2
    assert int(first.headers["content-length"]) == len(first.content)


def test_a_script_in_a_file_that_somebody_uploaded_is_not_marked() -> None:
    assert client("/file/x.html").get("/file/x.html").text == HTML


def test_a_script_that_was_not_marked_may_not_run() -> None:
    policy = client().get("/").headers["content-security-policy"]
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "unsafe-inline" not in scripts
    assert "default-src 'none'" in policy
    assert not re.search(r"https?:|\*", policy)


def test_the_pages_own_script_is_known_by_its_text_since_gradio_puts_it_in_later() -> None:
    own = "\nalert('ours');\n"
    app = Starlette(
        routes=[Route("/", answer)], middleware=[Middleware(SecurityHeaders, head=f"<meta><script>{own}</script>")]
    )
    digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
    policy = TestClient(app).get("/").headers["content-security-policy"]
    assert re.findall(r"'sha256-[^']+'", policy) == [f"'sha256-{digest}'"]


def test_every_answer_of_the_page_has_the_headers(page: str) -> None:
    for path in ("/", "/config", guard.HEALTH_PATH, "/theme.css"):
        with urlopen(f"{page}{path}", timeout=60) as got:
            headers = got.headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert "camera=()" in headers["Permissions-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json"])
def test_the_interface_is_not_described_to_whoever_asks(page: str, path: str) -> None:
    with pytest.raises(HTTPError, match="404") as missing:
        urlopen(f"{page}{path}", timeout=60)
    missing.value.close()


def test_a_page_without_triton_lives_but_is_not_ready(page: str) -> None:
    with urlopen(f"{page}{guard.HEALTH_PATH}", timeout=60) as got:
        assert json.load(got) == {"page": "ok"}
    with pytest.raises(HTTPError, match="503") as unready:
        urlopen(f"{page}{guard.READY_PATH}", timeout=60)
    with unready.value as got:
        assert json.load(got) == {"ready": False, "triton": "Triton is not reachable"}


def test_gradios_monitoring_is_off(page: str) -> None:
    assert httpx.get(f"{page}/monitoring", timeout=60).status_code == 403


def test_users_come_out_of_a_file(users: Path) -> None:
    access = PageAccess(read_users(users))
    assert access.allows("reader", "long:password")
    for user, password in (("reader", "another password"), ("nobody", "long:password"), ("nobody", ""), ("reader", "")):
        assert not access.allows(user, password)


def test_a_password_of_other_letters_is_compared_too(users: Path) -> None:
    assert not PageAccess(read_users(users)).allows("reader", "pässwörd")


def test_a_file_of_users_that_others_can_read_is_refused(users: Path) -> None:
    users.chmod(0o640)
    with pytest.raises(RequestError, match="for its owner alone: chmod 600"):
        read_users(users)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got none"),
        ("swordfish-secret\n", "expected user:password as line 1"),
        (":swordfish-secret\n", "expected user:password as line 1"),
    ],
)
def test_a_file_that_holds_no_users_is_refused_without_a_word_of_it(users: Path, text: str, message: str) -> None:
    users.write_text(text)
    with pytest.raises(RequestError, match=message) as caught:
        read_users(users)
    assert "swordfish" not in str(caught.value)


def test_a_missing_file_of_users_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"expected a readable text file at .*nowhere"):
        read_users(tmp_path / "nowhere")


def test_a_short_password_is_refused_without_a_word_of_it() -> None:
    with pytest.raises(RequestError, match="8 characters or more, got one of 5 for reader") as caught:
        PageAccess({"reader": "qwert"})
    assert "qwert" not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "::", "box"])
def test_a_page_leaves_loopback_with_users_or_an_explicit_override(host: str) -> None:
    watch = ServerWatch("127.0.0.1:1")
    with pytest.raises(RequestError, match=f"expected users .* for a page at {host}"):
        guard.options(host, watch, PageAccess())
    assert guard.options(host, watch, PageAccess({"reader": "long password"}))["auth"] is not None
    assert guard.options(host, watch, PageAccess(insecure=True))["auth"] is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.5", "::1", "localhost"])
def test_at_loopback_it_needs_none(host: str) -> None:
    assert guard.options(host, ServerWatch("127.0.0.1:1"), PageAccess())["auth"] is None
