"""A new version of a network on a server that runs: checked, put into the repository whole, loaded, or undone.

::

    examine -- refused: nothing was written -- write beside the versions -- rename -- load -- read back -- published
                                                                               |        |
                                                                            remove the folder: the old version serves on

For a server with explicit model control (`ServerConfig.model_control`), by whoever has its admin key. Triton keeps the
old version until the new one is loaded and warmed up, and lets requests that are under way end on it; docs/decisions.md
has what was tried.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tritonclient.utils import InferenceServerException

from serving import pipeline, wire
from serving.candidates import Candidate, examine, read_candidate
from serving.errors import ExportError, RepositoryError, ServerError, ServerNotReady, ServerUnreachable
from serving.pipeline import Step
from serving.repository import CONFIG_NAME
from serving.tls import ClientTls
from serving.triton_arguments import ADMIN_HEADER, GRPC_HEADER_PREFIX
from serving.version_folders import publish_version, unpublished_version

LOAD_TIMEOUT_S: Final = 300.0
"""For reading, optimising and warming up the network, as long as a stub may take at a server's start."""

_ASK_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True)
class Published:
    """What came of it.

    Attributes:
        folder: The new version.
        before: The version that was served before; None if there was none.
    """

    folder: Path
    before: int | None


class Publisher:
    """Publishes versions on one server. Use as a context manager.

    Args:
        repository: The folder that the server serves.
        url: Host and port of its gRPC.
        admin_key: What opens its model control.
        tls: For a server that speaks TLS.
    """

    def __init__(self, repository: Path, url: str, admin_key: str, tls: ClientTls | None = None) -> None:
        self.repository = repository
        self.url = url
        self._headers = {f"{GRPC_HEADER_PREFIX}{ADMIN_HEADER}": admin_key}
        self._triton = wire.connect(url, tls)

    def __enter__(self) -> Publisher:
        return self

    def __exit__(self, *_: object) -> None:
        self._triton.close()

    def publish(self, model: str, source: Path, *, allow_change: bool = False) -> Published:
        """Publish a network as the next version of a model, and see it served.

        Args:
            model: A model of the pipeline that ONNX Runtime serves.
            source: An ONNX file, or a folder as `train.export` writes it.
            allow_change: See `serving.candidates.examine`.

        Raises:
            ExportError: If the candidate is refused, or the server can not load it. The old version serves on.
            RepositoryError: If the repository lacks the model, or can not be written.
            ServerError: If the server can not be asked. Nothing is published.
        """
        step = _step(model)
        folder = self.repository / step.model
        if not (folder / CONFIG_NAME).is_file():
            raise RepositoryError(f"expected the model {step.model} in {self.repository}, got no such folder")
        before = self.served(step.model)
        served = folder / str(before) if before is not None else None
        candidate = examine(read_candidate(step, source), served, allow_change=allow_change)
        version = _write(candidate, folder)
        try:
            self._load(step.model)
            self._read_back(step.model, version)
        except BaseException:
            self._undo(step.model, version)
            raise
        return Published(version, before)

    def served(self, model: str) -> int | None:
        """The version of a model that a request gets, None if it has none.

        Raises:
            ServerUnreachable: If nothing answers, or the key is not the server's.
        """
        try:
            index = self._triton.get_model_repository_index(headers=self._headers, client_timeout=_ASK_TIMEOUT_S)
        except InferenceServerException as fault:
            if "restricted" in (fault.message() or ""):
                raise ServerUnreachable(f"expected the admin key of {self.url}, got another") from fault
            raise wire.translate(fault, self.url, timeout_s=_ASK_TIMEOUT_S, inferring=False) from fault
        ready = [int(entry.version) for entry in index.models if entry.name == model and entry.state == "READY"]
        return max(ready, default=None)

    def _load(self, model: str) -> None:
        try:
            self._triton.load_model(model, headers=self._headers, client_timeout=LOAD_TIMEOUT_S)
        except InferenceServerException as fault:
            text = (fault.message() or "").splitlines()[0]
            if "not allowed" in text:
                raise ServerError(
                    f"expected a server with explicit model control at {self.url} (--model-control explicit), "
                    f"got one without: {text}"
                ) from fault
            raise ExportError(f"{self.url} could not load the new {model} and serves the old one: {text}") from fault

    def _read_back(self, model: str, version: Path) -> None:
        served = self.served(model)
        if served != int(version.name):
            raise ServerError(
                f"expected version {version.name} of {model} to be served at {self.url}, got {served}: "
                f"is {self.repository} the folder that it serves?"
            )
        try:
            ready = self._triton.is_model_ready(pipeline.ENSEMBLE_NAME, client_timeout=_ASK_TIMEOUT_S)
        except InferenceServerException as fault:
            raise wire.translate(fault, self.url, timeout_s=_ASK_TIMEOUT_S, inferring=False) from fault
        if not ready:
            raise ServerNotReady(f"expected {pipeline.ENSEMBLE_NAME} to be ready with the new {model}, got not")

    def _undo(self, model: str, version: Path) -> None:
        shutil.rmtree(version, ignore_errors=True)
        # It serves the old version already; where it had taken the new one, it goes back to what is in the folder.
        with suppress(InferenceServerException):
            self._triton.load_model(model, headers=self._headers, client_timeout=LOAD_TIMEOUT_S)


def _step(model: str) -> Step:
    try:
        return pipeline.step(model)
    except KeyError as error:
        raise ExportError(error.args[0]) from None


def _write(candidate: Candidate, folder: Path) -> Path:
    """The candidate's version folder, whole and on the disk when it is seen."""
    try:
        with unpublished_version(folder) as unpublished:
            for name, content in candidate.files().items():
                with (unpublished / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            return publish_version(unpublished)
    except OSError as error:
        raise RepositoryError(f"expected a folder that can be written at {folder}, got: {error}") from error
