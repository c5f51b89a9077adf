"""A step that never comes to its end ends its process.

Triton waits for a backend process without limit, and says meanwhile that it is ready. One that is gone is noticed:
`serving.supervision` starts the server anew. The standard library's watchdog runs beside Python, so it also ends what
hangs in native code. It says in the log where that was: names of functions, nothing of a scan.

No import of ours: the ONNX Runtime backend runs from a copy of this folder alone.
"""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

HUNG_VARIABLE: Final = "LUNGSTREAMS_HUNG_S"
"""Seconds after which a step counts as hung."""

HUNG_S: Final = 300.0
"""Without `HUNG_VARIABLE`. The largest batch of the widest networks in fp32 takes a tenth of it on two busy cores."""


def hung_s(environment: Mapping[str, str]) -> float:
    """How long a step may take, in seconds.

    Args:
        environment: Where `HUNG_VARIABLE` is looked up.

    Raises:
        ValueError: If it is no number above 0.
    """
    text = environment.get(HUNG_VARIABLE, str(HUNG_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    # Not what is infinite or NaN either: the watchdog's clock has no such time.
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{HUNG_VARIABLE}: expected seconds above 0, got {text!r}")
    return seconds


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """End this process, with exit status 1 and a traceback on standard error, if the block takes longer.

    Args:
        seconds: The limit. One block at a time in a process: the watchdog is the process's.
    """
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
