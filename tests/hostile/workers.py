"""Processes that read hostile files, one at a time each, so that a file can take no more down than its own.

As a program (``python -m tests.hostile.workers``) this is such a process: it reads names of files from its input, a
line each, and answers each by a line of JSON.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import IO

from tests.hostile.bombs import BOMBS
from tests.hostile.mutations import mutant
from tests.hostile.probe import Outcome, probe, warm_up
from tests.reliability import ROOT

WALL_S = 60.0
"""When a file counts as hanging. Far over the promise of processor time, since machines are shared."""

ADDRESS_SPACE_BYTES = 8 * 2**30
"""A seat belt for the machine; what a file may take is judged by what it took."""

_NICE = 10


def file_named(name: str) -> bytes:
    """The bytes of a bomb by its name, or of a mutation by its number."""
    return mutant(int(name))[1] if name.isdecimal() else BOMBS[name].make()


def outcomes(names: Iterable[str], workers: int = 2) -> Iterator[tuple[str, Outcome]]:
    """Read files in processes, and say what became of each, in no particular order.

    Args:
        names: As `file_named` takes them.
        workers: How many processes.
    """
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    count = 0
    for name in names:
        waiting.put(name)
        count += 1
    done: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()
    threads = [threading.Thread(target=_serve, args=(waiting, done), daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for _ in range(count):
        yield done.get()
    for thread in threads:
        thread.join()


def _serve(waiting: queue.SimpleQueue[str], done: queue.SimpleQueue[tuple[str, Outcome]]) -> None:
    process = _start()
    try:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            outcome = _ask(process, name)
            if outcome is None:
                process.kill()
                why = f"the process ended with {process.wait()}, or did not answer within {WALL_S:g} s"
                outcome = Outcome("lost", why, WALL_S, 0)
                _close(process)
                process = _start()
            done.put((name, outcome))
    finally:
        _close(process)


def _start() -> subprocess.Popen[str]:
    # Warnings are errors: what `serving` expects, it does not warn of.
    command = [sys.executable, "-W", "error", "-m", "tests.hostile.workers"]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _close(process: subprocess.Popen[str]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except BrokenPipeError:
                pass
    process.wait()


def _ask(process: subprocess.Popen[str], name: str) -> Outcome | None:
    stdin, stdout = _pipes(process)
    try:
        stdin.write(f"{name}\n")
        stdin.flush()
    except BrokenPipeError:
        return None
    if not select.select([stdout], [], [], WALL_S)[0]:
        return None
    line = stdout.readline()
    return Outcome(**json.loads(line)) if line else None


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def main() -> None:
    """Answer until the input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    os.nice(_NICE)
    # What a decoder prints is no answer.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        warm_up()
        for line in sys.stdin:
            answers.write(json.dumps(probe(file_named(line.rstrip("\n"))).as_dict()) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
