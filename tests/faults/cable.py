"""The network between a client and a server, as a TCP proxy that goes silent, breaks, and is mended."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from types import TracebackType

_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing a reset."""


class Cable:
    """Hands bytes on between a free loopback port and a server.

    Args:
        target: ``host:port`` of the server.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._flows = threading.Event()
        self._flows.set()
        self._broken = False
        self._room: int | None = None
        self._breaks = False
        self._ends: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Cable:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._reset()
        self._flows.set()

    def silence(self, after_bytes: int = 0) -> None:
        """Hand nothing on any more, in either direction, once so many bytes more have gone to the server.

        Connections are still made: whoever sends finds nobody who refuses, and nobody who answers.
        """
        self._room, self._breaks = after_bytes, False
        if not after_bytes:
            self._flows.clear()

    def break_off(self) -> None:
        """Reset every connection, and those that come."""
        self._broken = True
        self._reset()

    def break_once(self, after_bytes: int) -> None:
        """Reset every connection once so many bytes more have gone to the server; those that come are good."""
        self._room, self._breaks = after_bytes, True

    def mend(self) -> None:
        """All is as before. What was held back in the silence goes on its way, as the kernels see to that."""
        self._broken, self._room = False, None
        self._flows.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._broken:
                _abort(client)
                continue
            server = socket.create_connection(self._target)
            self._ends += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**14):
                if sink.getpeername() == self._target:
                    self._count(len(data))
                self._flows.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _count(self, more: int) -> None:
        if self._room is None:
            return
        self._room -= more
        if self._room <= 0:
            self._room = None
            if self._breaks:
                self._reset()
            else:
                self._flows.clear()

    def _reset(self) -> None:
        ends, self._ends = self._ends, []
        for end in ends:
            _abort(end)


def _abort(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        # Wakes whoever waits for it in another thread, which closing alone does not.
        end.shutdown(socket.SHUT_RD)
    end.close()
