"""One load from several processes or machines: what locust's workers tell their master beside its own statistics.

Locust's own reports hold rounded response times, and its master waits half a second for the last of them: whatever was
under way then is lost, which is the slowest. So our master tells its workers to finish, and each answers with the exact
samples of all that it asked.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import gevent
from locust.runners import MasterRunner, WorkerRunner

from loadtest.gate import Samples

_FINISH: Final = "lungstreams_finish"
_DONE: Final = "lungstreams_done"


def pack(samples: Mapping[str, Samples], seconds: float) -> dict[str, Any]:
    """A worker's run as a message.

    Args:
        samples: By case.
        seconds: From the start of the run to the end of its last request.
    """
    return {"samples": {name: [s.latencies_ms, s.failures] for name, s in samples.items()}, "seconds": seconds}


def unpack(message: Mapping[str, Any], samples: MutableMapping[str, Samples]) -> float:
    """Adds a worker's run to what the master has.

    Args:
        message: Of `pack`.
        samples: By case; added to.

    Returns:
        The worker's seconds.
    """
    for name, (latencies_ms, failures) in message["samples"].items():
        kept = samples.setdefault(name, Samples())
        kept.latencies_ms.extend(latencies_ms)
        kept.failures += failures
    return float(message["seconds"])


class Crew:
    """The workers of one master.

    Args:
        runner: The master's.
        samples: What the workers' samples are added to.
    """

    def __init__(self, runner: MasterRunner, samples: MutableMapping[str, Samples]) -> None:
        self.seconds = 0.0
        self.lost = 0
        self._runner = runner
        self._samples = samples
        self._done: set[str] = set()
        runner.register_message(_DONE, self._take)

    def begin(self) -> None:
        """Forgets the run before."""
        self.seconds, self.lost = 0.0, 0
        self._done.clear()

    def finish(self, timeout_s: float) -> None:
        """Tells the workers to wait for what is under way, and waits for their samples.

        Args:
            timeout_s: Longest wait, in seconds. Who has not answered by then counts as `lost`.
        """
        workers = {client.id for client in self._runner.clients.all}
        self._runner.send_message(_FINISH)
        deadline = time.monotonic() + timeout_s
        # A worker that died is dropped from the clients after some missed heartbeats.
        while not workers & {c.id for c in self._runner.clients.all} <= self._done and time.monotonic() < deadline:
            gevent.sleep(0.05)
        self.lost = len(workers - self._done)

    def _take(self, msg: Any, **_: Any) -> None:
        self._done.add(msg.node_id)
        self.seconds = max(self.seconds, unpack(msg.data, self._samples))


def answer(runner: WorkerRunner, run: Any) -> None:
    """Makes a worker answer its master's `Crew.finish`.

    Args:
        runner: The worker's.
        run: Has the `samples` and `seconds` to answer with.
    """

    def finish(**_: Any) -> None:
        runner.stop()
        runner.send_message(_DONE, pack(run.samples, run.seconds))

    # Concurrent: it waits for requests, while locust's own messages go on.
    runner.register_message(_FINISH, finish, concurrent=True)
