"""`lungstreams serve` as its users run it: a process that looks after a Triton."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from loadtest.memory import ProcessMemory, of_group, pss_bytes, rss_bytes, rss_bytes_of
from serving.errors import ServerError
from serving.process import children_of
from serving.triton_arguments import LOOPBACK
from tests.demo.page_process import free_port
from tests.processes import is_triton
from tests.soak.growth import Sample

STOP_TIMEOUT_S = 60.0


class Service:
    """A server on free ports of loopback. Use as a context manager.

    Args:
        arguments: More of them for ``lungstreams serve``.

    Attributes:
        url: ``host:port`` of gRPC.
        metrics_url: ``host:port`` of the metrics.
        exit_status: Of ``lungstreams serve``, once it was left.
    """

    def __init__(self, *arguments: str) -> None:
        self.url = ""
        self.metrics_url = f"{LOOPBACK}:{free_port()}"
        self.exit_status: int | None = None
        self._arguments = arguments
        self._ends = 0
        self._changed_at_s = float("-inf")
        self._is_down = False

    def __enter__(self) -> Service:
        ports = ("--grpc-port=0", "--http-port=0", f"--metrics-port={self.metrics_url.split(':')[1]}")
        command = [sys.executable, "-m", "lungstreams", "serve", *ports, *self._arguments]
        # A group of its own: Ctrl-C is for us, who stop it when the last answer has come.
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        ready = re.fullmatch(r"ready grpc=(\S+)\n", line)
        if ready is None:
            self._stop()
            raise ServerError(f"expected a server that is ready, got {line!r}")
        self.url = ready[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def ends(self) -> int:
        """How often ``lungstreams serve`` said that Triton had gone or hung."""
        return self._ends

    @property
    def up_for_s(self) -> float:
        """For how long there has been no word of an end: 0 until Triton is back."""
        return 0.0 if self._is_down else time.monotonic() - self._changed_at_s

    @property
    def triton_pid(self) -> int | None:
        """Process id of Triton; None while there is none."""
        return next(filter(is_triton, children_of(self._process.pid)), None)

    def processes(self) -> tuple[ProcessMemory, ...]:
        """Triton and its stubs; none while there are none."""
        pid = self.triton_pid
        with suppress(ServerError):
            return () if pid is None else of_group(pid)
        return ()

    def sample(self, since_s: float) -> tuple[Sample, Sample]:
        """The memory of Triton with its stubs, and of the process that looks after them."""
        at_s, own, processes = time.monotonic() - since_s, self._process.pid, self.processes()
        pids = frozenset(process.pid for process in processes)
        own_bytes = rss_bytes_of(own)
        return (
            Sample(at_s, pids, rss_bytes(processes), pss_bytes(processes)),
            Sample(at_s, frozenset({own}), own_bytes, own_bytes),
        )

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {line}")
            if "starting it again" in line:
                self._is_down = True
                self._ends += 1
            elif "is back at" in line:
                self._changed_at_s, self._is_down = time.monotonic(), False

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self.exit_status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
