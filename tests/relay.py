"""A TCP proxy on a free loopback port, for tests that do something to what passes."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from typing import TypeVar

Self = TypeVar("Self", bound="Relay")


class Relay:
    """Connects each client to a server; what passes between the two is up to a subclass.

    Args:
        target: Host and port of the server.

    Attributes:
        url: Where clients are to connect.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self: Self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        hang_up(self._listener)
        self._close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._connect(client)

    def _connect(self, client: socket.socket) -> None:
        """A client has come."""
        server = socket.create_connection(self._target)
        self._ends += [client, server]
        self._carry(client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        """Hand bytes on between the two, in threads of its own."""
        raise NotImplementedError

    def _close(self) -> None:
        """End every connection."""
        for end in self._ends:
            hang_up(end)


def hang_up(end: socket.socket) -> None:
    """Close a socket, and wake whoever waits for it in another thread."""
    with contextlib.suppress(OSError):  # The other side was quicker.
        end.shutdown(socket.SHUT_RDWR)
    end.close()
