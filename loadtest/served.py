"""The competitors that answer from a process of their own: a plain server, and ours; and the line-up of all."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Literal

import httpx
import numpy as np

from loadtest.cases import LoadCase
from loadtest.competitors import (
    Competitor,
    KerasInProcess,
    KerasModels,
    OnnxRuntimeInProcess,
    OpenVinoInProcess,
    Precision,
)
from loadtest.networks import closed_answer, output_of
from loadtest.raw import NETWORKS
from loadtest.wire import REQUEST_TIMEOUT_S, Answer, connect, infer
from serving.errors import InferenceFailed, ServerStartError
from serving.pipeline import MASK
from serving.process import end, spawn
from serving.tritonserver import ServerConfig, TritonServer
from serving.wire import wanted_outputs

START_TIMEOUT_S: Final = 180.0
STOP_GRACE_S: Final = 5.0


class PlainServer(Competitor):
    """`loadtest.plain_server` in a process of its own, asked over a connection that is kept.

    Args:
        precision: Of the networks.
        networks: By model, from `loadtest.networks.unpack`, all in one folder.
    """

    way = "FastAPI + ONNX Runtime"
    served = True
    how = "one uvicorn process, a `def` endpoint, default sessions, JSON with masks as PNG; asked with httpx"
    packages = ("fastapi", "uvicorn", "httpx")

    def __init__(self, precision: Precision, networks: Mapping[str, Path]) -> None:
        super().__init__(precision)
        (self._folder,) = {path.parent for path in networks.values()}
        self._resources = ExitStack()
        self._process: Any = None
        self._client: Any = None

    @property
    def group(self) -> int | None:
        """That of uvicorn."""
        return None if self._process is None else int(self._process.pid)

    def start(self) -> None:
        """Starts it and waits until it answers.

        Raises:
            ServerStartError: If it ends, or does not answer within `START_TIMEOUT_S`.
        """
        work = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="lungstreams-plain-")))
        port_file, log = work / "port", work / "log"
        # The child must import the packages that this module is one of, installed or not.
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        arguments = [sys.executable, "-m", "loadtest.plain_server", str(self._folder), str(port_file)]
        self._process = spawn(arguments, environment, log)
        self._resources.callback(end, self._process, grace_s=STOP_GRACE_S)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not port_file.exists():
            self._check_alive(log, deadline)
            time.sleep(0.05)
        address = f"http://127.0.0.1:{port_file.read_text(encoding='ascii')}"
        # Without the environment's proxies.
        self._client = httpx.Client(base_url=address, timeout=REQUEST_TIMEOUT_S, trust_env=False)
        self._resources.callback(self._client.close)
        while not self._is_ready():
            self._check_alive(log, deadline)
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return bool(self._client.get("/health").status_code == httpx.codes.OK)
        except httpx.TransportError:
            return False

    def _check_alive(self, log: Path, deadline: float) -> None:
        if self._process.poll() is None and time.monotonic() < deadline:
            return
        words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing in its log"]
        raise ServerStartError(f"expected the plain server to answer within {START_TIMEOUT_S:g} s, got: {words[-1]}")

    def stop(self) -> None:
        """Ends it and forgets the connection."""
        self._resources.close()
        self._process = None

    def answer(self, scan: bytes, case: LoadCase) -> Answer:
        """Posts the scan as a form and decodes the masks; what is not in the reply did not run.

        Raises:
            InferenceFailed: If it can not be reached, refuses or fails.
        """
        from loadtest.plain_server import decode_mask

        form = {"modality": case.modality, "thresholds": [str(value) for value in case.thresholds.values()]}
        try:
            response = self._client.post("/predict", data=form, files={"scan": ("scan.png", scan, "image/png")})
        except httpx.TransportError as error:
            raise InferenceFailed(f"expected an answer of the plain server, got: {error!r}") from error
        if response.status_code != httpx.codes.OK:
            raise InferenceFailed(f"expected 200 of the plain server, got {response.status_code}: {response.text}")
        document = response.json()
        answer = closed_answer()
        for step in NETWORKS:
            if (value := document.get(output_of(step))) is not None:
                array = decode_mask(value) if step.outputs[0] == MASK else np.array(value, np.float32)
                answer[output_of(step)] = array[np.newaxis]
        return answer


class Lungstreams(Competitor):
    """Ours: the embedded Triton, asked by tritonclient over gRPC.

    Args:
        precision: Of the repository's networks.
        repository: The model repository.
    """

    way = "lungstreams"
    served = True
    ours = True
    how = "the embedded Triton with its defaults, asked over gRPC for the outputs that `serving.client` asks for"

    accelerator: Literal["openvino"] | None = None

    def __init__(self, precision: Precision, repository: Path) -> None:
        super().__init__(precision)
        config = ServerConfig(repository, grpc_port=0, http_port=0, metrics_port=0, accelerator=self.accelerator)
        self._server = TritonServer(config)
        self._client: Any = None

    @property
    def group(self) -> int | None:
        """That of Triton and its stubs."""
        return self._server.pid if self._server.is_alive() else None

    def start(self) -> None:
        """Starts Triton and waits until every model is ready.

        Raises:
            ServerStartError: If it does not start.
        """
        self._server.start()
        self._client = connect(self._server.grpc_url)

    def stop(self) -> None:
        """Closes the connection and stops the server."""
        if self._client is not None:
            self._client.close()
            self._client = None
        self._server.stop()

    def answer(self, scan: bytes, case: LoadCase) -> Answer:
        """Asks for what `serving.client` asks for: of an X-ray the diagnosis alone. What is not asked for did not run.

        Raises:
            InferenceFailed: If it can not be reached, refuses or fails.
        """
        return {**closed_answer(), **infer(self._client, case, scan, wanted_outputs(case.modality))}


class LungstreamsByOpenVino(Lungstreams):
    """Ours, its networks computed by OpenVINO instead of ONNX Runtime."""

    way = "lungstreams by OpenVINO"
    how = "the same with `--accelerator openvino`"
    packages = ("openvino",)
    accelerator = "openvino"


def line_up(
    repositories: Mapping[str, Path], networks: Mapping[str, Mapping[str, Path]], keras_models: KerasModels | None
) -> Sequence[Competitor]:
    """All competitors that there are networks for, none of them started.

    Args:
        repositories: By precision, fp32 or int8; int8 must be there.
        networks: Of each, from `loadtest.networks.unpack`.
        keras_models: Without it, Keras does not take part.
    """
    competitors: list[Competitor] = [] if keras_models is None else [KerasInProcess(keras_models)]
    fp32, int8 = networks.get("fp32"), networks["int8"]
    if fp32 is not None:
        competitors += [
            OnnxRuntimeInProcess("fp32", fp32),
            OpenVinoInProcess("fp32", fp32),
            OpenVinoInProcess("bf16", fp32),
            PlainServer("fp32", fp32),
            Lungstreams("fp32", repositories["fp32"]),
        ]
    return [
        *competitors,
        OnnxRuntimeInProcess("int8", int8),
        OpenVinoInProcess("int8", int8),
        PlainServer("int8", int8),
        Lungstreams("int8", repositories["int8"]),
        LungstreamsByOpenVino("int8", repositories["int8"]),
    ]
