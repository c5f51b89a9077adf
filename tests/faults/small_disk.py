"""A disk that can be full: a tmpfs of its own where we may mount one, else a limit on the size of files."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE_BYTES = 12 * 2**20
NO_ROOM_WORDS = (os.strerror(errno.ENOSPC), os.strerror(errno.EFBIG))
_FILLING = "filling"


class SmallDisk:
    """A folder that is full now and then.

    Args:
        folder: Where it is.
        is_mounted: Whether it is a file system of its own.
    """

    def __init__(self, folder: Path, *, is_mounted: bool) -> None:
        self.folder = folder
        self._is_mounted = is_mounted

    @contextmanager
    def full(self, pid: int = 0, left_bytes: int = 0) -> Iterator[None]:
        """No room in the block.

        Args:
            left_bytes: That much is left. Python's `tempfile` takes another folder than one without any room.
            pid: A process that runs already and writes there; those that are started in the block need not be named.
        """
        if not self._is_mounted:
            with _limited(0, left_bytes), _limited(pid, left_bytes):
                yield
            return
        filling = self.folder / _FILLING
        filling.write_bytes(bytes(shutil.disk_usage(self.folder).free - left_bytes))
        try:
            yield
        finally:
            filling.unlink()

    def used_bytes(self) -> int:
        """What files in it take up, that of `full` left out."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and path.name != _FILLING)


@contextmanager
def _limited(pid: int, size: int) -> Iterator[None]:
    """Files that a process, and what it starts, may not make longer."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


@contextmanager
def small_disk(folder: Path) -> Iterator[SmallDisk]:
    """A disk at an empty folder."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(folder)]
    is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield SmallDisk(folder, is_mounted=is_mounted)
    finally:
        if is_mounted:
            # Lazily: a page that ends may still be about to tidy up in it.
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
