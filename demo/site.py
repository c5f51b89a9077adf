"""What every tab of one page is about."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

from demo.audit import Audit
from serving.tls import ClientTls


@dataclass(frozen=True)
class Site:
    """One page.

    Attributes:
        url: ``host:port`` of Triton's gRPC endpoint.
        folder: For files of the page; only this user can read it.
        kept_s: How long what a visitor sent, and what was made of it, is kept, in seconds.
        sweep_s: How often the page looks for what is older, in seconds.
        tls: For a Triton that speaks TLS.
        audit: Where cases are noted.
    """

    url: str
    folder: Path
    kept_s: int
    sweep_s: int
    tls: ClientTls | None = None
    audit: Audit = field(default_factory=Audit)


class Stops:
    """Who is reading, so that they can be told to stop: a flag for each session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flags: dict[str, threading.Event] = {}

    def start(self, session: str | None) -> threading.Event:
        """The flag of a reading that begins; one of the same session that is still on is stopped.

        Args:
            session: Gradio's; None for a program, which nobody can stop.
        """
        flag = threading.Event()
        if session is not None:
            with self._lock:
                earlier = self._flags.get(session)
                self._flags[session] = flag
            if earlier is not None:
                earlier.set()
        return flag

    def stop(self, session: str | None) -> None:
        """Raise the flag of a session, if it is reading."""
        with self._lock:
            flag = self._flags.get(session or "")
        if flag is not None:
            flag.set()

    def end(self, flag: threading.Event) -> None:
        """Forget a flag: its reading has ended."""
        with self._lock:
            for session in [session for session, own in self._flags.items() if own is flag]:
                del self._flags[session]
