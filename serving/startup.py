"""A start of Triton 24.10 that was disturbed, told from one that can not work.

Triton gives a backend process a second to answer. Where the machine holds one up for longer (it was paused, or has
far more to do than cores), Triton counts the process as "not healthy" while it starts, and then ends with an error,
crashes, waits for it for ever, or says that it is ready without it; each was seen. None of these says anything about
the models: the same start works a moment later.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from serving.errors import ServerStartError
from serving.process import instances_of, last_word, processor_s

STARTS: Final = 3
"""Disturbed starts that follow each other until it is an error."""

NOT_HEALTHY: Final = "is not healthy"
"""Triton's word for a backend process that did not answer within a second."""

IDLE_WINDOW_S: Final = 30.0
"""Whoever starts and does next to nothing for that long waits for something that will not come."""

IDLE_SHARE: Final = 0.04
"""Of one core. A server that waits takes 0.015 of it; one that starts takes all that it can get."""

LOST_S: Final = 5.0
"""How long Triton has to say why one of its processes ended."""


class DisturbedStart(ServerStartError):
    """A start that failed for no reason of its own."""


class StartWatch:
    """Looks at one start from outside, every now and then.

    Args:
        pid: Triton's, which is that of its process group too.
        log_path: Its log.
        clock: Of seconds.
    """

    def __init__(self, pid: int, log_path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._pid = pid
        self._log_path = log_path
        self._clock = clock
        self._seen: frozenset[str] = frozenset()
        self._all_there_at = self._window_from = clock()
        self._spent_s = 0.0

    def look(self) -> None:
        """Look once.

        Raises:
            DisturbedStart: If it will not end well.
        """
        now = self._clock()
        running = self._running()
        if running >= self._seen:
            self._all_there_at = now
        elif now - self._all_there_at > LOST_S and "failed to load" not in (word := last_word(self._log_path)):
            raise DisturbedStart(f"Triton lost {self._missing(running)} while starting: {word}")
        if now - self._window_from > IDLE_WINDOW_S:
            spent_s = processor_s(self._pid)
            if spent_s - self._spent_s < IDLE_SHARE * (now - self._window_from):
                raise DisturbedStart(f"Triton hangs while starting; its last word: {last_word(self._log_path)}")
            self._window_from, self._spent_s = now, spent_s

    def ready(self) -> frozenset[str]:
        """The instances of a server that says that it is ready, as `serving.process.instances_of`.

        Raises:
            DisturbedStart: If one of them has ended.
        """
        running = self._running()
        if not running >= self._seen:
            raise DisturbedStart(f"Triton lost {self._missing(running)} while starting, and is ready without")
        return running

    def ended(self, status: int) -> ServerStartError:
        """What to say of a server that ended while it started.

        Args:
            status: Its exit status, as of `subprocess`: below 0 is a signal.
        """
        word = last_word(self._log_path)
        kind = DisturbedStart if status < 0 or NOT_HEALTHY in word else ServerStartError
        return kind(f"Triton ended while starting: {word}")

    def _running(self) -> frozenset[str]:
        running = instances_of(self._pid)
        self._seen |= running
        return running

    def _missing(self, running: frozenset[str]) -> str:
        return ", ".join(sorted(self._seen - running))
