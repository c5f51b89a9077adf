"""What runs on a worker of a Ray cluster: one source through the pipeline, by the very code of a run without Ray.

It imports nothing of Ray. A worker reads the source's files itself and writes masks itself: both lie on a file system
that all machines share, at the same paths. Where they do not, the case says so.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from lungstreams.cases import CaseResult, failed_case
from lungstreams.masks import MaskFolder
from lungstreams.reading import OF_ONE_CASE, Ask, Reader
from lungstreams.sources import Source
from serving.client import PipelineClient
from serving.tls import ClientTls

_MARK_NAME: Final = ".shared"


@dataclass(frozen=True)
class Mark:
    """Something that only who sees the same folder knows.

    Attributes:
        folder: Where it lies; as the driver named it.
        word: What is in it.
    """

    folder: Path
    word: str

    def check(self) -> None:
        """Hold this machine's folder against the driver's.

        Raises:
            OSError: If it is another one, or none.
        """
        try:
            seen = (self.folder / _MARK_NAME).read_text(encoding="utf-8")
        except (OSError, ValueError):
            seen = ""
        if seen != self.word:
            raise OSError(
                errno.EIO, f"expected --out {self.folder} on every machine of the cluster, got one without it"
            )


@contextmanager
def marked(folder: Path) -> Iterator[Mark]:
    """Mark a folder, which is made if it is not there, for as long as the block lasts.

    Raises:
        OSError: If it can not be written.
    """
    mark = Mark(folder, secrets.token_hex())
    folder.mkdir(parents=True, exist_ok=True)
    try:
        (folder / _MARK_NAME).write_text(mark.word, encoding="utf-8")
        yield mark
    finally:
        (folder / _MARK_NAME).unlink(missing_ok=True)


@dataclass(frozen=True)
class Job:
    """What is the same for every case of a run.

    Attributes:
        url: Triton's gRPC address, as a worker calls it.
        ask: What is asked.
        tls: For a server that speaks TLS; its files are read on the worker.
        mark: Of the folder of masks and exports; None where nothing is written.
        working_folder: The driver's: what is relative is meant from there.
    """

    url: str
    ask: Ask
    tls: ClientTls | None
    mark: Mark | None
    working_folder: Path


def read_case(job: Job, source: Source, there: bool) -> tuple[CaseResult, ...]:
    """The cases of a source.

    The connection is of this call alone, and closed by it however it ends: nothing is under way in a server when Ray
    ends this process.

    Args:
        job: See `Job`.
        source: Has a place below the folder of masks, if there is one.
        there: Whether the driver sees its files.

    Raises:
        ServerError: If the server can not be asked at all.
        TlsError: If a file of `Job.tls` is not on this machine.
    """
    # Ray keeps what a worker logs, and a library may quote a file.
    logging.disable(logging.CRITICAL)
    with suppress(OSError):
        os.chdir(job.working_folder)
    try:
        if there and not all(path.exists() for path in source.paths):
            raise FileNotFoundError(
                errno.ENOENT, "expected the file on every machine of the cluster, got one that does not see it"
            )
        if job.mark is not None:
            job.mark.check()
    except OF_ONE_CASE as error:
        return (failed_case(source.name, error),)
    masks = None if job.mark is None else MaskFolder(job.mark.folder)
    with PipelineClient(job.url, tls=job.tls) as client:
        ((_, cases),) = Reader(client, job.ask, masks).read([source])
    return cases
