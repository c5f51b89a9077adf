"""Whether Triton answers, asked often and by many pages at once."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Final

from serving.client import PipelineClient
from serving.errors import ServerError, ServerMismatch, ServerNotReady
from serving.tls import ClientTls

_FRESH_S: Final = 1.0
"""Pages that ask within this time share one answer."""

_PROBE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True)
class Health:
    """What a probe found.

    Attributes:
        ready: Every model of the pipeline can be asked.
        title: What is the matter, in a few words.
        reason: Why, in one sentence; empty when ready.
    """

    ready: bool
    title: str = "Triton is ready"
    reason: str = ""


class ServerWatch:
    """Probes one server, at most once a second however many pages are open.

    Args:
        url: ``host:port`` of Triton's gRPC endpoint.
        tls: For a Triton that speaks TLS.
    """

    def __init__(self, url: str, tls: ClientTls | None = None) -> None:
        self.url = url
        self._tls = tls
        self._lock = threading.Lock()
        self._health: Health | None = None
        self._probed_at_s = 0.0

    def health(self) -> Health:
        """The server's state, not older than a second."""
        with self._lock:
            now_s = time.monotonic()
            if self._health is None or now_s - self._probed_at_s > _FRESH_S:
                was_ready = self._health is not None and self._health.ready
                self._health = self._probe(was_ready)
                self._probed_at_s = time.monotonic()
            return self._health

    def versions(self) -> dict[str, str]:
        """Version of each model that the server serves; empty if it does not answer."""
        try:
            with PipelineClient(self.url, timeout_s=_PROBE_TIMEOUT_S, tls=self._tls) as client:
                return client.versions()
        except ServerError:
            return {}

    def _probe(self, was_ready: bool) -> Health:
        # A client a probe: the page then holds nothing that would have to be closed with it, and the state that a
        # channel is in after losing its server never decides what the visitor sees.
        try:
            with PipelineClient(self.url, timeout_s=_PROBE_TIMEOUT_S, tls=self._tls) as client:
                if not (was_ready and client.is_ready()):
                    client.check()
        except ServerError as error:
            return Health(False, _title(error), str(error))
        return Health(True)


def _title(error: ServerError) -> str:
    if isinstance(error, ServerNotReady):
        return "Triton is not ready"
    if isinstance(error, ServerMismatch):
        return "Triton serves other models"
    return "Triton is not reachable"
