"""What can go wrong, as one tree.

::

    LungstreamsError
     +-- ScanError                 the file that was sent
     |    +-- UnreadableScan       not an image, truncated, empty, undecodable compression, no pixels
     |    +-- UnsupportedScan      an image, but not one that this pipeline reads (frames, modality, ...)
     |    +-- ScanTooLarge         over a limit; raised before anything is decoded
     |    +-- ScanTooSmall
     |    +-- AmbiguousStudy       several series in one study, and nobody said which
     +-- GeometryError             an array whose shape does not fit the scan that it belongs to
     +-- RequestError              a modality, threshold or output name that the pipeline does not have
     |    +-- CanNotExport         a file format that a case can not be written in
     +-- ServerError               Triton
     |    +-- ServerUnreachable    nothing answers at that address
     |    +-- ServerNotReady       it answers, but a model is not loaded
     |    +-- ServerMismatch       its models are not those of `serving.pipeline`
     |    +-- InferenceFailed      it refused or failed the request
     |    |    +-- ServerBusy      its queues are full: the same request may be sent again
     |    +-- ServerStartError     the embedded server could not be started
     +-- TlsError                  a certificate or key that can not be used
     +-- RepositoryError           a folder that is no model repository of ours
     +-- ExportError               a model that may not be published
     |    +-- ParityError          two forms of a model disagree
     +-- MissingPackage            a package of an extra that is not installed
     +-- DatasetError              training data that is missing or not as its manifest says

Messages say what was expected and what came.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

_LISTED: Final = 20
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_no_room(error: OSError) -> bool:
    """Whether an error says that a disk is full, or that no more of it may be used."""
    return error.errno in _NO_ROOM


class LungstreamsError(Exception):
    """Base of everything that lungstreams raises on purpose."""


class ScanError(LungstreamsError):
    """The file that was sent can not be used."""


class UnreadableScan(ScanError):
    """Not an image, or one that can not be decoded."""


class UnsupportedScan(ScanError):
    """A readable file that is not a scan which this pipeline takes."""


class ScanTooLarge(ScanError):
    """Over a limit of `serving.scans`; raised before decoding."""


class ScanTooSmall(ScanError):
    """Too few pixels to say anything about."""


class AmbiguousStudy(ScanError):
    """Several series in one study; which is meant is not for us to guess.

    Attributes:
        choices: A line about each, in the order in which they are chosen by number, from 0.
    """

    def __init__(self, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)
        listed = "; ".join(f"{i}: {choice}" for i, choice in enumerate(self.choices[:_LISTED]))
        more = f"; and {len(self.choices) - _LISTED} more" if len(self.choices) > _LISTED else ""
        super().__init__(f"expected one series or a choice, got {len(self.choices)} series: {listed}{more}")

    def __reduce__(self) -> tuple[type[AmbiguousStudy], tuple[tuple[str, ...]]]:
        # The default would pass the message in place of the choices, and the error could not cross processes.
        return AmbiguousStudy, (self.choices,)


class GeometryError(LungstreamsError):
    """An array whose shape does not fit the scan it belongs to."""


class RequestError(LungstreamsError):
    """A modality, threshold or output that the pipeline does not have."""


class CanNotExport(RequestError):
    """A case can not be written in a format; the message says what it lacks."""


class ServerError(LungstreamsError):
    """Something about Triton."""


class ServerUnreachable(ServerError):
    """Nothing answers at the address."""


class ServerNotReady(ServerError):
    """The server answers, but a model is not loaded."""


class ServerMismatch(ServerError):
    """The server's models are not those of `serving.pipeline`."""


class InferenceFailed(ServerError):
    """The server refused or failed the request."""


class ServerBusy(InferenceFailed):
    """The server has too much to do and took nothing on; the same request may be sent again."""


class ServerStartError(ServerError):
    """The embedded server could not be started."""


class TlsError(LungstreamsError):
    """A certificate or key that can not be used."""


class RepositoryError(LungstreamsError):
    """A folder that is no model repository of ours."""


class ExportError(LungstreamsError):
    """A model that may not be published."""


class ParityError(ExportError):
    """Two forms of a model, or two ways of asking it, disagree on the same inputs."""


class DatasetError(LungstreamsError):
    """Training data that is missing or not as its manifest says."""


class MissingPackage(LungstreamsError):
    """A package that only one of the extras brings is not installed."""
