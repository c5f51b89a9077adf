"""Waits until nobody computes: the turns of a comparison must not reach into each other.

ONNX Runtime's threads spin for a while after a run, TensorFlow's and OpenVINO's wait in their own ways, and a server
may still be clearing up. So between two turns the processor time of this process and of every server is looked at,
until it stands still, instead of trusting a pause to be long enough.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

PAUSE_S: Final = 0.05
"""The least pause between two turns."""
WINDOW_S: Final = 0.02
QUIET_CORES: Final = 0.1
"""Cores that may be in use while it counts as quiet: a server polls, an interpreter wakes up."""
LIMIT_S: Final = 2.0

_CPUCLOCK_SCHED: Final = 2


def settle(groups: Iterable[int] = (), limit_s: float = LIMIT_S) -> float:
    """Waits until this process and others use less than `QUIET_CORES`.

    Args:
        groups: Process groups of the servers.
        limit_s: The longest wait, in seconds.

    Returns:
        Cores that were in use at the end; `QUIET_CORES` or more if the limit came first.
    """
    groups = tuple(groups)
    deadline = time.monotonic() + limit_s
    time.sleep(PAUSE_S)
    while True:
        before, started = processor_s(groups), time.monotonic()
        time.sleep(WINDOW_S)
        # A process that ended in between takes its time along.
        busy = max(0.0, processor_s(groups) - before) / (time.monotonic() - started)
        if busy < QUIET_CORES or time.monotonic() >= deadline:
            return busy


def processor_s(groups: Iterable[int]) -> float:
    """Processor time of this process and of all in the groups so far, in seconds, to the nanosecond (Linux)."""
    own = time.process_time()
    return own + sum(_of_process(pid) for pid in _members(frozenset(groups)))


def _members(groups: frozenset[int]) -> list[int]:
    if not groups:
        return []
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):  # it has ended
                if os.getpgid(int(entry.name)) in groups:
                    members.append(int(entry.name))
    return members


def _of_process(pid: int) -> float:
    # What clock_getcpuclockid(3) gives for a process: /proc counts in hundredths of a second, which is too coarse.
    with suppress(OSError):
        return time.clock_gettime((~pid) << 3 | _CPUCLOCK_SCHED)
    return 0.0
