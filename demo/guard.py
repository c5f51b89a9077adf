"""What stands between the page and whoever calls it: who may listen in, headers, users, health, a full disk.

::

    blocks.launch(..., **guard.options(host, watch, access))
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import logging
import re
import secrets
import stat
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from demo.watch import ServerWatch
from serving.errors import RequestError, is_no_room

_log: Final = logging.getLogger(__name__)

HEALTH_PATH: Final = "/healthz"
READY_PATH: Final = "/readyz"
MIN_PASSWORD: Final = 8
NO_ROOM: Final = "The disk of this page's machine is full: nothing was kept. Try again later, or tell who runs it."

_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' {known}'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; "
    "worker-src 'self' blob:; manifest-src 'self'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Gradio compiles the `js` of an event where the page runs, hence `unsafe-eval`, and sets styles on elements. What it
may not is run a script out of the page's text that this server did not mark, or talk to anyone else."""

_SCRIPT: Final = re.compile(rb"<script(?=[\s>])")
_INLINE: Final = re.compile(r"<script[^>]*>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True)
class PageAccess:
    """Who may use the page.

    Attributes:
        users: User -> password. None lets in whoever reaches the page.
        insecure: Lets it leave loopback without users, for a proxy that asks for them.
    """

    users: dict[str, str] | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        for user, password in (self.users or {}).items():
            if len(password) < MIN_PASSWORD:
                raise RequestError(
                    f"users of the page: expected passwords of {MIN_PASSWORD} characters or more, "
                    f"got one of {len(password)} for {user}"
                )

    def allows(self, user: str, password: str) -> bool:
        """Whether a password is a user's, in a time that does not tell whether there is such a user."""
        known = (self.users or {}).get(user)
        same = hmac.compare_digest((known or "").encode(), password.encode())
        return same and known is not None


def read_users(path: Path) -> dict[str, str]:
    """The users of a file of lines ``user:password``; empty ones and those with ``#`` in front are passed over.

    Raises:
        RequestError: If it can not be read, others than its owner may read it, or it is no such file.
    """
    try:
        mode = path.stat().st_mode
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"users of the page: expected a readable text file at {path}, got: {error}") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RequestError(f"users of the page: expected {path} for its owner alone: chmod 600 {path}")
    users = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, separator, password = line.partition(":")
        if not separator or not user.strip():
            # Without the line: it may be a password.
            raise RequestError(f"users of the page: expected user:password as line {number} of {path}, got none")
        users[user.strip()] = password
    if not users:
        raise RequestError(f"users of the page: expected lines of user:password in {path}, got none")
    return users


def check_host(host: str, access: PageAccess) -> None:
    """Holds an address against who may use the page there.

    Raises:
        RequestError: If others reach the address and nothing says who of them may use the page.
    """
    if not _is_loopback(host) and access.users is None and not access.insecure:
        raise RequestError(f"expected users (--users) for a page at {host}, which other machines reach, got none")


def options(host: str, watch: ServerWatch, access: PageAccess, head: str = "") -> dict[str, Any]:
    """What `gradio.Blocks.launch` needs to keep the page.

    Args:
        host: Address that the page listens at.
        watch: Says whether Triton is ready.
        access: Who may use it.
        head: What the page's `head` is; scripts in it may run. Gradio puts them in where the page runs, so that they
            are known by their text.

    Raises:
        RequestError: If others reach the address and nothing says who of them may use the page.
    """
    check_host(host, access)

    def health(_: Request) -> JSONResponse:
        return JSONResponse({"page": "ok"})

    # Not async: asking Triton blocks, and Starlette then gives it a thread.
    def ready(_: Request) -> JSONResponse:
        found = watch.health()
        return JSONResponse({"ready": found.ready, "triton": found.title}, status_code=200 if found.ready else 503)

    return {
        "auth": access.allows if access.users is not None else None,
        # Gradio's own page about who uses this one.
        "enable_monitoring": False,
        "app_kwargs": {
            "middleware": [Middleware(SecurityHeaders, head=head), Middleware(FullDisk)],
            "routes": [Route(HEALTH_PATH, health), Route(READY_PATH, ready)],
            # FastAPI's own pages about the interface load scripts from elsewhere; its schema asks for no user.
            "docs_url": None,
            "redoc_url": None,
            "openapi_url": None,
        },
    }


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class SecurityHeaders:
    """ASGI middleware: headers on every answer, and a mark of this answer's own on the scripts of a page.

    Args:
        app: What is wrapped.
        head: See `options`.
    """

    def __init__(self, app: ASGIApp, head: str = "") -> None:
        self.app = app
        digests = (hashlib.sha256(script.encode()).digest() for script in _INLINE.findall(head))
        self._known = "".join(f"'sha256-{base64.b64encode(digest).decode()}' " for digest in digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; see ASGI."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # The page itself alone: in an uploaded file nothing is to be marked as ours.
        is_page = scope["path"] == scope.get("root_path", "") + "/"
        await self.app(scope, receive, _Marked(send, self._known, is_page=is_page))


class FullDisk:
    """ASGI middleware: says in words that an upload found no room, in place of an error of the server's.

    Args:
        app: What is wrapped.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on; see ASGI."""
        started = False

        async def pass_on(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, pass_on)
        except OSError as error:
            if started or scope["type"] != "http" or not is_no_room(error):
                raise
            _log.warning("an upload found no room: %s", error.strerror)
            await PlainTextResponse(NO_ROOM, HTTPStatus.INSUFFICIENT_STORAGE)(scope, receive, send)


class _Marked:
    """Sends one answer on. A page is held until it is whole, since its length changes; all else goes by piece."""

    def __init__(self, send: Send, known: str, *, is_page: bool) -> None:
        self._send = send
        self._known = known
        self._is_page = is_page
        self._nonce = secrets.token_urlsafe(16)
        self._start: Message | None = None
        self._body = bytearray()

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers["Content-Security-Policy"] = _POLICY.format(nonce=self._nonce, known=self._known)
            if self._is_page and headers.get("content-type", "").startswith("text/html"):
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            await self._send_page(self._start)
            return
        await self._send(message)

    async def _send_page(self, start: Message) -> None:
        body = _SCRIPT.sub(b'<script nonce="%s"' % self._nonce.encode(), bytes(self._body))
        headers = MutableHeaders(scope=start)
        headers["Content-Length"] = str(len(body))
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
