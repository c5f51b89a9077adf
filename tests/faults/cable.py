"""The network between a client and a server, as a TCP proxy that goes silent, breaks, and is mended."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading

from tests.relay import Relay

_ABORT = struct.pack("ii", 1, 0)
"""SO_LINGER that makes closing a reset."""


class Cable(Relay):
    """Hands bytes on between a free loopback port and a server.

    Args:
        target: ``host:port`` of the server.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        super().__init__((host, int(port)))
        self._flows = threading.Event()
        self._flows.set()
        self._broken = False
        self._room: int | None = None
        self._each = self._breaks = 0

    def silence(self, after_bytes: int = 0) -> None:
        """Hand nothing on any more, in either direction, once so many bytes more have gone to the server.

        Connections are still made: whoever sends finds nobody who refuses, and nobody who answers.
        """
        self._room, self._breaks = after_bytes, 0
        if not after_bytes:
            self._flows.clear()

    def break_off(self) -> None:
        """Reset every connection, and those that come."""
        self._broken = True
        self._reset()

    def break_after(self, each_bytes: int, times: int = 1) -> None:
        """Reset every connection once so many bytes more have gone to the server, so often; those that come work."""
        self._each, self._room, self._breaks = each_bytes, each_bytes, times

    def mend(self) -> None:
        """All is as before. What was held back in the silence goes on its way, as the kernels see to that."""
        self._broken, self._room = False, None
        self._flows.set()

    def _connect(self, client: socket.socket) -> None:
        if self._broken:
            _abort(client)
        else:
            super()._connect(client)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._hand_on, args=(source, sink), daemon=True).start()

    def _close(self) -> None:
        self._reset()
        self._flows.set()

    def _hand_on(self, source: socket.socket, sink: socket.socket) -> None:
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
        if self._room > 0:
            return
        self._room = None
        if not self._breaks:
            self._flows.clear()
            return
        self._breaks -= 1
        if self._breaks:
            self._room = self._each
        self._reset()

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
