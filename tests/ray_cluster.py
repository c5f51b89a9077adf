"""A Ray cluster of two nodes on this machine, one core each: a program of its own, with Ray's processes below it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_STORE_BYTES = 80 * 1024 * 1024
_PROGRAM = f"""
import sys
from ray.cluster_utils import Cluster
node = dict(num_cpus=1, include_dashboard=False, object_store_memory={_STORE_BYTES})
cluster = Cluster(initialize_head=True, head_node_args=node)
cluster.add_node(**node)
print(cluster.address, flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class TwoNodes:
    """The cluster.

    Attributes:
        address: HOST:PORT of its head.
        pid: Of the program.
        folder: Below which Ray keeps its sockets and logs.
    """

    address: str
    pid: int
    folder: Path

    def busy(self) -> list[psutil.Process]:
        """Workers that have a case in hand: Ray gives them the name of what they do."""
        return [each for each in descendants(self.pid) if _title(each).startswith("ray::read_case")]


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Start the cluster; end it."""
    # A short name: Ray puts sockets below it.
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    (folder / "ray").mkdir()
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # On loopback.
        "RAY_TMPDIR": str(folder),
    }
    with (folder / "said").open("w") as said:
        program = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, **settings},
        )
    started = []
    try:
        assert program.stdin is not None
        assert program.stdout is not None
        address = program.stdout.readline().strip()
        assert address, (folder / "said").read_text()
        started = descendants(program.pid)
        yield TwoNodes(address, program.pid, folder)
    finally:
        for each in (*started, *descendants(program.pid)):
            if each.is_running():
                each.kill()
        program.communicate()
        shutil.rmtree(folder, ignore_errors=True)


def descendants(pid: int) -> list[psutil.Process]:
    """Processes below one, and below those."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
