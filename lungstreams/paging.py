"""``lungstreams demo``: the page, until it is told to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from lungstreams.console import fail, spinner

if TYPE_CHECKING:
    from serving.tls import ClientTls


def wait() -> None:
    """Do nothing until a signal comes."""
    threading.Event().wait()


def page_launcher(
    host: str, port: int, users: Path | None, tls: ClientTls | None, *, insecure: bool
) -> Callable[[str, Callable[[], None]], None]:
    """What serves the page in front of a Triton. What can be refused is refused here, before any server starts.

    Args:
        host: Address that the page listens at.
        port: Port that it listens at.
        users: File of its users, see `demo.guard.read_users`.
        tls: For a Triton that speaks TLS.
        insecure: See `demo.guard.PageAccess`.

    Returns:
        Called with ``host:port`` of Triton's gRPC and with what to do meanwhile, it serves until that ends, or a signal
        comes.

    Raises:
        RequestError: If the file is none of users, or others reach the address and nothing says who of them may.
    """
    from demo.guard import PageAccess, check_host, read_users

    access = PageAccess(read_users(users) if users is not None else None, insecure)
    check_host(host, access)

    def launch(url: str, meanwhile: Callable[[], None]) -> None:
        with spinner("Starting the page ..."):
            from demo.app import launch as launch_page

            try:
                page = launch_page(url, host, port, prevent_thread_lock=True, access=access, tls=tls)
            except OSError as error:
                # Gradio's own message advises on settings that are not ours; its first sentence says what happened.
                fail(f"the page can not listen at {host}:{port}: {str(error).partition('. ')[0]}")
        try:
            typer.echo(f"ready page={page.local_url}")
            meanwhile()
        finally:
            page.close(verbose=False)

    return launch
