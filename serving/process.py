"""The embedded server's process: start it so that it never outlives us, end it with everything that is its own.

What belongs to a server beside its processes carries the name of its work folder: the folder itself, in the
system's temporary directory, and its regions in ``/dev/shm``. The name holds our process id, so what a killed
process left behind is known and swept by the next start.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from serving.errors import ServerStartError

SHM: Final = Path("/dev/shm")
WORK_PREFIX: Final = "lungstreams-triton-"

STUB: Final = "triton_python_backend_stub"

# Becomes the server, and asks the kernel for SIGTERM when whoever started it dies, however that happens. A program
# of its own rather than `preexec_fn`, which must not be used where other threads run (gRPC's do).
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def make_work_folder() -> Path:
    """A new folder whose name marks what is ours."""
    return Path(tempfile.mkdtemp(prefix=f"{WORK_PREFIX}{os.getpid()}-"))


def close_regions(work: Path) -> None:
    """Let nobody but their owner read a server's shared memory: what was sent to it last lies there.

    Triton makes it readable by all, whatever the umask.
    """
    for region in SHM.glob(f"{work.name}*"):
        with suppress(OSError):  # gone meanwhile
            region.chmod(0o600)


def remove_work_folder(work: Path) -> None:
    """Remove a server's work folder and its shared memory."""
    for region in SHM.glob(f"{work.name}*"):
        with suppress(OSError):  # another user's, who shares this machine
            region.unlink()
    shutil.rmtree(work, ignore_errors=True)


def sweep() -> None:
    """Remove the work folders and the shared memory of processes that are gone."""
    names = {path.name for root in (Path(tempfile.gettempdir()), SHM) for path in root.glob(f"{WORK_PREFIX}*")}
    for name in names:
        owner = re.match(rf"{WORK_PREFIX}(\d+)-", name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            remove_work_folder(Path(tempfile.gettempdir()) / name)


def spawn(arguments: Sequence[str], environment: Mapping[str, str], log_path: Path) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own that is told to stop when this process dies.

    Args:
        arguments: The program and its arguments.
        environment: All of its environment.
        log_path: Where both of its outputs go.

    Returns:
        The process; its id is the group's.

    Raises:
        ServerStartError: If it can not be started.
    """
    command = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *arguments]
    started: list[subprocess.Popen[bytes]] = []
    failed: list[OSError] = []
    ready = threading.Event()

    def keep() -> None:
        try:
            with log_path.open("wb") as log:
                process = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Ctrl-C in a terminal is for us; we stop the server ourselves.
                    start_new_session=True,
                )
        except OSError as error:
            failed.append(error)
            ready.set()
            return
        started.append(process)
        ready.set()
        process.wait()

    # The kernel's "parent" is the thread that forked, not the process: this one lives as long as the server.
    threading.Thread(target=keep, name="triton-keeper", daemon=True).start()
    ready.wait()
    if failed:
        raise ServerStartError(f"expected to run {arguments[0]}, got: {failed[0]}")
    return started[0]


def children_of(pid: int) -> frozenset[int]:
    """The processes that a process has started and that have not ended."""
    # Not by the kernel's own lists of children (proc(5)): they may leave some out while others come and go.
    return frozenset(process for process in _processes() if runs_below(process, pid))


def runs_below(pid: int, parent: int) -> bool:
    """Whether a process runs, and is a child of `parent`. One that nobody has waited for yet does not run."""
    state, above = _state_and_parent(pid)
    return state not in "ZX" and above == parent


def is_stopped(pid: int) -> bool:
    """Whether a process was stopped, as by SIGSTOP, and not continued since."""
    return _state_and_parent(pid)[0] == "T"


def _processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())


def _state_and_parent(pid: int) -> tuple[str, int]:
    state, parent, *_ = _stat(pid) or ("X", "0")
    return state, int(parent)


def _stat(pid: int) -> list[str]:
    """What proc(5) says of a process from its state on; nothing of one that has ended."""
    try:
        # "17 (a name (of any kind)) S 1 17 ..."
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def command_of(pid: int) -> tuple[str, ...]:
    """The command line of a process; nothing of one that has ended."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ()
    # Each word ends in a zero.
    return tuple(words.decode(errors="replace").split("\0")[:-1])


def instance_of(command: Sequence[str]) -> str | None:
    """The model instance that a stub of Triton's Python backend runs, as in ``preprocess_0_1``; None of another.

    A model whose config names no instance group has ``counter_0`` instead.
    """
    # It ends in the instance's name and the backend's folder.
    return command[-2] if len(command) > 2 and Path(command[0]).name == STUB else None


def instances_of(server: int) -> frozenset[str]:
    """Names of a server's model instances whose backend process runs, as in ``preprocess_0_1``.

    Not their process ids: a new version of a model brings processes of its own, and ends the old ones.
    """
    running = (child for child in children_of(server) if not is_stopped(child))
    names = (instance_of(command_of(child)) for child in running)
    return frozenset(name for name in names if name is not None)


def processor_s(group: int) -> float:
    """Processor time that the living processes of a group have taken, in seconds."""
    stats = (_stat(pid) for pid in _processes())
    ticks = sum(int(stat[11]) + int(stat[12]) for stat in stats if stat and int(stat[2]) == group)
    return ticks / os.sysconf("SC_CLK_TCK")


def end(process: subprocess.Popen[bytes], *, grace_s: float) -> None:
    """Stop a process of `spawn` and all of its group: politely, then for good.

    Args:
        process: The process.
        grace_s: How long it may take after SIGTERM, in seconds; 0 for good at once.
    """
    if not grace_s:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    with suppress(ProcessLookupError):
        process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_s)
    # Stubs notice within a second that their server is gone.
    if not _group_ends(process.pid, within_s=2.0):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _group_ends(process.pid, within_s=2.0)
    process.wait()


def _group_ends(group: int, *, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


# "E1124 03:57:13.745349 8539 model_lifecycle.cc:654] "failed to load 'recognition' version 1: Internal: ..."
_LOG_LINE: Final = re.compile(r'^[EF]\d{4} [\d:.]+ \d+ [\w.]+:\d+\] *"?(?P<text>.*?)"?$')


def last_word(log_path: Path) -> str:
    """The one line of a server's log that says what went wrong.

    Args:
        log_path: Log of Triton and its stubs.

    Returns:
        The first failed model's error if there is one, else the first error, else the last line.
    """
    try:
        lines = [line.strip() for line in log_path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    errors = [match["text"] for match in map(_LOG_LINE.match, lines) if match]
    for wanted in ("failed to load", "failed to warm", ""):
        for text in errors:
            if wanted in text:
                return text.split("\\n")[0]
    return lines[-1] if lines else "nothing in its log"
