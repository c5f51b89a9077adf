"""A slow network in front of a real server: what comes in on one side goes out on the other, some time later."""

from __future__ import annotations

import queue
import socket
import threading
import time
from types import TracebackType


class DelayLine:
    """A TCP proxy on a free loopback port that hands every byte of the server's on `delay_s` late.

    Args:
        target: Host and port of the server.
        delay_s: How late, in seconds. A delay line and not a throttle: the bandwidth stays what it is.
    """

    def __init__(self, target: tuple[str, int], delay_s: float) -> None:
        self._target = target
        self._delay_s = delay_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> DelayLine:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in [self._listener, *self._open]:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # The other side was quicker.
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._open += [client, server]
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
