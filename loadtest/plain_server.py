"""The server most people would write: FastAPI in front of ONNX Runtime sessions, one after the other.

Not ours, but what ours is compared with. One uvicorn process, a ``def`` endpoint in FastAPI's pool of threads,
sessions as `onnxruntime.InferenceSession` makes them by default, JSON with masks as PNG. Only the preprocessing and
the order of the stages are shared with us, so that it does the same work.

Run as ``python -m loadtest.plain_server NETWORKS PORT_FILE`` by `loadtest.competitors.PlainServer`.
"""

from __future__ import annotations

import base64
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Form, HTTPException, UploadFile
from jaxtyping import UInt8

from loadtest.cases import CASES
from loadtest.networks import follow, output_of
from loadtest.raw import NETWORKS
from serving.arithmetic import exact
from serving.errors import RequestError, ScanError
from serving.labels import Modality
from serving.pipeline import MASK, THRESHOLD_NAMES


def create_app(networks: Path) -> FastAPI:
    """The app over a folder with ``<model>.onnx`` for each model, from `loadtest.networks.unpack`."""
    sessions = {
        step.model: ort.InferenceSession(
            networks / f"{step.model}.onnx", exact(ort.SessionOptions()), providers=["CPUExecutionProvider"]
        )
        for step in NETWORKS
    }
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    def predict(
        scan: UploadFile, modality: Annotated[Modality, Form()], thresholds: Annotated[list[float], Form()]
    ) -> dict[str, Any]:
        ran: list[str] = []

        def call(model: str, image: UInt8[np.ndarray, "1 512 512 3"]) -> Any:
            ran.append(model)
            return sessions[model].run(None, {"image": image})[0]

        try:
            asked = dict(zip(THRESHOLD_NAMES, thresholds, strict=True))
            case = replace(CASES["ct_open"], modality=modality, thresholds=asked)
            answer = follow(scan.file.read(), case, call)
        except (ScanError, RequestError, ValueError) as error:
            raise HTTPException(400, str(error)) from error
        return {
            output_of(step): encode_mask(answer[output_of(step)][0])
            if step.outputs[0] == MASK
            else answer[output_of(step)][0].tolist()
            for step in NETWORKS
            if step.model in ran
        }

    return app


def encode_mask(mask: UInt8[np.ndarray, "h w"]) -> str:
    """A mask as PNG in base64."""
    _, png = cv2.imencode(".png", mask)
    return base64.b64encode(png.tobytes()).decode("ascii")


def decode_mask(text: str) -> UInt8[np.ndarray, "h w"]:
    """The mask again."""
    png = np.frombuffer(base64.b64decode(text), np.uint8)
    return np.asarray(cv2.imdecode(png, cv2.IMREAD_UNCHANGED), np.uint8)


def main(networks: Path, port_file: Path) -> None:
    """Serves on a free port of loopback, which it writes into a file once the networks are loaded."""
    app = create_app(networks)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind(("127.0.0.1", 0))
        unfinished = port_file.with_suffix(".unfinished")
        unfinished.write_text(str(listener.getsockname()[1]), encoding="ascii")
        unfinished.rename(port_file)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
