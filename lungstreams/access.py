"""Who may call, as options: TLS of a client and of the embedded server, and the users of the page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lungstreams.console import URL_VARIABLE, complain, fail
from serving.variables import TLS_CA_VARIABLE, TLS_CERT_VARIABLE, TLS_KEY_VARIABLE

if TYPE_CHECKING:
    from serving.tls import ClientTls, ServerTls

PUBLIC_HOST: Final = "0.0.0.0"
ADMIN_KEY_VARIABLE: Final = "LUNGSTREAMS_ADMIN_KEY"
"""By environment alone: a command line can be read by everyone on the machine."""

Url = Annotated[
    str | None,
    typer.Option(
        envvar=URL_VARIABLE, metavar="HOST:PORT", help="Triton's gRPC address. [dim]Default 127.0.0.1:8001[/dim]"
    ),
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca", envvar=TLS_CA_VARIABLE, metavar="FILE", help="Speak TLS to a Triton whose certificate this signed."
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", envvar=TLS_CERT_VARIABLE, metavar="FILE", help="Our certificate, if it asks for one."),
]
TlsKey = Annotated[
    Path | None,
    typer.Option("--tls-key", envvar=TLS_KEY_VARIABLE, metavar="FILE", help="The private key of --tls-cert."),
]
Users = Annotated[
    Path | None,
    typer.Option(
        envvar="LUNGSTREAMS_USERS",
        metavar="FILE",
        help="Who may use the page: lines of user:password, in a file that its owner alone can read.",
    ),
]


def client_tls(ca: Path | None, cert: Path | None, key: Path | None) -> ClientTls | None:
    """How to speak to Triton: by TLS if any file was given.

    Raises:
        TlsError: If a file can not be used.
    """
    if ca is None and cert is None and key is None:
        return None
    from serving.tls import ClientTls

    return ClientTls(ca, cert, key)


def server_access(
    host: str | None, cert: Path | None, key: Path | None, client_ca: Path | None, *, public: bool, insecure: bool
) -> tuple[str, ServerTls | None]:
    """Where the embedded server's gRPC listens, and what it shows; ends the command where that would be careless.

    Raises:
        TlsError: If a file can not be used.
    """
    from serving.tls import ServerTls
    from serving.triton_arguments import LOOPBACK

    if (cert is None) != (key is None):
        fail("expected --tls-cert and --tls-key together, got one of them")
    if client_ca is not None and cert is None:
        fail("expected --client-ca with --tls-cert and --tls-key, got it alone")
    tls = ServerTls(cert, key, client_ca) if cert is not None and key is not None else None
    if not public:
        if host is not None:
            fail("expected --host with --public, got it alone")
        return LOOPBACK, tls
    if tls is None and not insecure:
        fail("--public: expected --tls-cert and --tls-key, got neither; --insecure lets every caller read along")
    _warn(tls)
    return host or PUBLIC_HOST, tls


def _warn(tls: ServerTls | None) -> None:
    if tls is None:
        complain("warning: --insecure: scans cross the network unencrypted, and whoever reaches the port may ask")
    elif tls.client_ca is None:
        complain("warning: whoever reaches the port may ask; --client-ca lets in whom it has signed, and nobody else")
    complain("warning: this Triton is of release 24.10 and has known holes; docs/security.md says what to use instead")


def admin_key() -> str | None:
    """What opens the embedded server's restricted calls; None where nobody chose one."""
    return os.environ.get(ADMIN_KEY_VARIABLE) or None
