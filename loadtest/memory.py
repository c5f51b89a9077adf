"""What a server's processes hold in memory, as the kernel counts it (Linux).

A page that several processes map, such as a library's or one of ``/dev/shm``, counts whole in each one's resident
set (RSS) and by its share in each one's proportional set (PSS). So the sum of PSS is what the whole server takes, and
the sum of RSS is an upper bound.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Literal

from serving.errors import ServerError
from serving.process import command_of, instance_of

SAMPLE_EVERY_S: Final = 0.1

_PROC: Final = Path("/proc")


@dataclass(frozen=True)
class ProcessMemory:
    """One process.

    Attributes:
        name: The model that it is a stub of, else the name of its program.
        rss_bytes: Resident set size.
        pss_bytes: Proportional set size.
        pid: Its id.
    """

    name: str
    rss_bytes: int
    pss_bytes: int
    pid: int = 0


def pss_bytes(processes: Iterable[ProcessMemory]) -> int:
    """The sum of their PSS."""
    return sum(process.pss_bytes for process in processes)


def rss_bytes(processes: Iterable[ProcessMemory]) -> int:
    """The sum of their RSS."""
    return sum(process.rss_bytes for process in processes)


def of_group(group: int) -> tuple[ProcessMemory, ...]:
    """The processes of a process group, ordered by name. Those that end meanwhile are left out.

    Args:
        group: Its id; of an embedded server that is `TritonServer.pid`.

    Raises:
        ServerError: If there are none.
    """
    found = []
    for folder in _members(group):
        with suppress(OSError, KeyError):
            sizes = _sizes(folder / "smaps_rollup")
            pid = int(folder.name)
            if command := command_of(pid):
                found.append(ProcessMemory(process_name(command), sizes["Rss"], sizes["Pss"], pid))
    if not found:
        raise ServerError(f"expected processes in group {group}, got none")
    return tuple(sorted(found, key=lambda process: process.name))


def process_name(arguments: Sequence[str]) -> str:
    """What to call a process by its command line, see `ProcessMemory.name`."""
    if instance := instance_of(arguments):
        return re.sub(r"(_\d+){1,2}$", "", instance)
    return Path(arguments[0]).name if arguments else ""


def own_rss_bytes() -> int:
    """This process's resident set size."""
    return rss_bytes_of("self")


def rss_bytes_of(pid: int | Literal["self"]) -> int:
    """The resident set size of one process.

    Raises:
        OSError: If there is none of that id.
    """
    return _sizes(_PROC / str(pid) / "smaps_rollup")["Rss"]


class Sampler:
    """Looks at a process group and at this process from time to time, and keeps the peaks. Use as a context manager.

    A look takes the kernel a millisecond or two for each process, so what is timed is not sampled.

    Args:
        group: As `of_group` takes it.
        every_s: Time between two looks in seconds; there is one more on entering and one on leaving.

    Attributes:
        looks: How many there were.
        first_pss_bytes: The group's PSS on entering.
        peak_pss_bytes: The highest of the group's PSS.
        own_growth_bytes: How far this process's RSS rose over what it was on entering.
    """

    def __init__(self, group: int, every_s: float = SAMPLE_EVERY_S) -> None:
        self.looks = 0
        self.first_pss_bytes = 0
        self.peak_pss_bytes = 0
        self.own_growth_bytes = 0
        self._own_first_bytes = 0
        self._group = group
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)

    def __enter__(self) -> Sampler:
        self._own_first_bytes = own_rss_bytes()
        self._look()
        self.first_pss_bytes = self.peak_pss_bytes
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        # A group that is gone is for whoever talks to it to report.
        with suppress(ServerError):
            self._look()

    def _run(self) -> None:
        with suppress(ServerError):
            while not self._stop.wait(self._every_s):
                self._look()

    def _look(self) -> None:
        self.peak_pss_bytes = max(self.peak_pss_bytes, pss_bytes(of_group(self._group)))
        self.own_growth_bytes = max(self.own_growth_bytes, own_rss_bytes() - self._own_first_bytes)
        self.looks += 1


def _members(group: int) -> Iterator[Path]:
    for folder in _PROC.iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            # The program's name stands in brackets and may hold anything; state, parent and group follow it.
            if int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[2]) == group:
                yield folder


def _sizes(path: Path) -> dict[str, int]:
    """By name, the sizes of a file such as ``smaps_rollup``, in bytes."""
    sizes = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[2] == "kB":
            sizes[fields[0].rstrip(":")] = int(fields[1]) * 1024
    return sizes
