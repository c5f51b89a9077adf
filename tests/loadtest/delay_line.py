"""A slow network in front of a real server: what comes in on one side goes out on the other, some time later."""

from __future__ import annotations

import queue
import socket
import threading
import time

from tests.relay import Relay


class DelayLine(Relay):
    """A TCP proxy on a free loopback port that hands every byte of the server's on `delay_s` late.

    Args:
        target: Host and port of the server.
        delay_s: How late, in seconds. A delay line and not a throttle: the bandwidth stays what it is.
    """

    def __init__(self, target: tuple[str, int], delay_s: float) -> None:
        super().__init__(target)
        self._delay_s = delay_s

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        for source, sink, delay_s in ((client, server, 0.0), (server, client, self._delay_s)):
            line: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
            threading.Thread(target=_take, args=(source, line, delay_s), daemon=True).start()
            threading.Thread(target=_give, args=(sink, line), daemon=True).start()


def _take(source: socket.socket, line: queue.SimpleQueue[tuple[float, bytes]], delay_s: float) -> None:
    while True:
        try:
            data = source.recv(2**16)
        except OSError:
            data = b""
        line.put((time.monotonic() + delay_s, data))
        if not data:
            return


def _give(sink: socket.socket, line: queue.SimpleQueue[tuple[float, bytes]]) -> None:
    while True:
        due_s, data = line.get()
        time.sleep(max(0.0, due_s - time.monotonic()))
        try:
            if not data:
                sink.shutdown(socket.SHUT_WR)
                return
            sink.sendall(data)
        except OSError:
            return
