"""A server that comes back by itself: Triton that ended, hangs or lost a backend is started again, at the same ports.

Triton 24.10 can be brought down from outside: a client that is killed with CT slices under way takes it along now and
then, since its closed connection cancels them (`serving.calls`). And it never starts a backend process again that was
killed, as by the kernel where memory is short, and says that it is ready. Whoever waits for answers then gets an error
at once, and clients try again; nobody has to come and start the server.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from serving.errors import ServerStartError
from serving.process import last_word
from serving.tritonserver import TritonServer

LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True)
class Patience:
    """How a server is looked after.

    Attributes:
        poll_s: How often it is looked at, in seconds.
        hung_s: How long it may give no sign of readiness before it counts as hung.
        first_pause_s: Before the first restart; doubled with each that follows soon, up to `LONGEST_PAUSE_S`.
        settled_s: Whoever ran that long starts with the first pause again.
        starts: Starts that may fail one after the other.
    """

    poll_s: float = 1.0
    hung_s: float = 30.0
    first_pause_s: float = 0.2
    settled_s: float = 60.0
    starts: int = 5


def keep_up(server: TritonServer, said: Callable[[str], None], patience: Patience | None = None) -> None:
    """Look after a started server for as long as the caller lives: leave by an exception, as of a signal.

    Args:
        server: Started. Its ports stay what they are.
        said: Gets a line when it went and a line when it is back.
        patience: How long to wait for what.

    Raises:
        ServerStartError: If it can not be started again, after `Patience.starts` tries.
    """
    patience = patience or Patience()
    pause_s = patience.first_pause_s
    while True:
        up_since = time.monotonic()
        why = _until_it_fails(server, patience)
        if time.monotonic() - up_since >= patience.settled_s:
            pause_s = patience.first_pause_s
        said(f"Triton {why}; starting it again")
        # What it has under way is lost in any case, or fails: clients ask again, and sooner so.
        server.stop(grace_s=0)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        _start(server, said, patience)


def _until_it_fails(server: TritonServer, patience: Patience) -> str:
    ready_at = time.monotonic()
    while server.is_alive():
        if server.has_lost_backend():
            return "lost one of its backend processes"
        if server.is_ready():
            ready_at = time.monotonic()
        elif time.monotonic() - ready_at > patience.hung_s:
            return f"gave no sign of readiness for {patience.hung_s:g} s"
        time.sleep(patience.poll_s)
    return f"ended by itself (exit status {server.wait()}: {last_word(server.log_path)})"


def _start(server: TritonServer, said: Callable[[str], None], patience: Patience) -> None:
    pause_s = patience.first_pause_s
    for tries_left in reversed(range(patience.starts)):
        try:
            server.start()
        except ServerStartError as error:
            if not tries_left:
                raise
            said(f"Triton can not be started: {error}; trying again")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        else:
            said(f"Triton is back at {server.grpc_url}")
            return
