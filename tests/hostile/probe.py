"""What becomes of one file: every way that `serving` reads it, with what that cost."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from serving import phantom
from serving.errors import AmbiguousStudy, LungstreamsError
from serving.pipeline import THRESHOLDS
from serving.preprocessing import prepare
from serving.studies import open_volume

Verdict = Literal["answered", "refused", "wrong", "lost"]

_SELF = Path("/proc/self")


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        verdict: ``answered`` if one way of reading gave a result, ``refused`` if each gave an error of ours that says
            what was expected and what came, ``wrong`` if one failed otherwise, ``lost`` if its process died or hung.
        says: The last error, or what was wrong.
        cpu_s: Seconds of processor time.
        peak_bytes: How far the process's memory rose over what it was before.
    """

    verdict: Verdict
    says: str
    cpu_s: float
    peak_bytes: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def warm_up() -> None:
    """Import and cache what the first file would be charged for."""
    prepare(phantom.png_bytes(phantom.ct_slice(size_px=64).pixels), "auto", list(THRESHOLDS.values()))


def probe(data: bytes) -> Outcome:
    """Read a file as a scan and as a study."""
    _reset_peak()
    before_bytes, before_s = _resident_bytes(), time.process_time()
    results = [_try(as_scan, data), _try(as_study, data)]
    cpu_s, peak_bytes = time.process_time() - before_s, max(0, _peak_bytes() - before_bytes)
    wrong = [says for verdict, says in results if verdict == "wrong"]
    if wrong:
        return Outcome("wrong", "; ".join(wrong), cpu_s, peak_bytes)
    answered = any(verdict == "answered" for verdict, _ in results)
    says = "; ".join(says for _, says in results)
    return Outcome("answered" if answered else "refused", says, cpu_s, peak_bytes)


def as_scan(data: bytes) -> None:
    """What the server does."""
    prepare(data, "auto", list(THRESHOLDS.values()))


def as_study(data: bytes) -> None:
    """What a reader of volumes does: its first slice and its last."""
    try:
        volume = open_volume(data)
    except AmbiguousStudy:
        volume = open_volume(data, series=0)
    for index in {0, volume.shape[0] - 1}:
        volume.slice_scan(index)


def _try(read: Callable[[bytes], None], data: bytes) -> tuple[Verdict, str]:
    try:
        read(data)
    except LungstreamsError as refused:
        says = str(refused)
        clear = "expected" in says and "got" in says and "MemoryError" not in says
        return ("refused" if clear else "wrong"), says
    # Whatever else comes out of it is what is looked for here.
    except Exception as error:
        return "wrong", f"{type(error).__name__}: {error}"
    return "answered", ""


def _reset_peak() -> None:
    # 5 sets the peak back to what is resident now (proc_pid_clear_refs(5)).
    (_SELF / "clear_refs").write_text("5", encoding="ascii")


def _resident_bytes() -> int:
    return int((_SELF / "statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def _peak_bytes() -> int:
    status = (_SELF / "status").read_text(encoding="ascii", errors="replace")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
