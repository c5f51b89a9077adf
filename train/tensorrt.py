"""``lungstreams export --target tensorrt``: what is published, for an NVIDIA GPU.

::

    model.onnx -- ungated, in float or symmetric int8 --> networks/*.onnx -- trtexec --> plan_repository
                                  | add_gate
                                  +--> accelerated_repository, where ONNX Runtime builds the engines itself

Everything goes into a folder of its own; the published repository is read only. Rendering needs no GPU. Building does,
and was not run on one: see docs/tensorrt.md.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from serving.errors import ExportError
from train.digest import sha256_of
from train.tensorrt_configs import TRTEXEC_FOLDER, EnginePrecision
from train.tensorrt_render import REPORT_NAME, SCRIPT_NAME, as_json, render_all

_log = logging.getLogger(__name__)


def main(
    repository: Path,
    out: Path,
    precision: EnginePrecision = "fp16",
    *,
    render_only: bool = False,
    data_folder: Path | None = None,
) -> Path:
    """Render everything that TensorRT needs, and build the engines unless told not to.

    Args:
        repository: The published model repository.
        out: A folder that is new or empty, outside of `repository`.
        precision: ``fp16``, or ``int8`` with the rest in fp16.
        render_only: Leave the building to ``build_engines.sh``.
        data_folder: Root of the scans, for int8 of a version that was published in fp32; None for the default.

    Returns:
        The report, ``tensorrt.json`` in `out`.

    Raises:
        ExportError: If there is no GPU or no ``trtexec`` to build with (nothing is written then), if a model is not
            published, or if an engine could not be built.
        ParityError: If a network for TensorRT does not say what is published.
    """
    if not render_only:
        check_can_build()
    report = render_all(repository, out, precision, calibration=lambda p: _training_scans(p, data_folder))
    if not render_only:
        build(out)
    return report


def check_can_build() -> None:
    """Hold this machine against what building an engine needs.

    Raises:
        ExportError: If it has no NVIDIA GPU, or no ``trtexec``.
    """
    missing = []
    if not _sees_gpu():
        missing.append("no GPU that nvidia-smi sees")
    if trtexec() is None:
        missing.append("no trtexec on PATH")
    if missing:
        raise ExportError(
            f"expected an NVIDIA GPU and trtexec to build engines with, got {' and '.join(missing)}; "
            f"--render-only writes everything but the engines"
        )


def build(out: Path) -> None:
    """Run the commands of the script, and note in the report what was built. Takes minutes for each engine.

    Args:
        out: What `render_all` wrote.

    Raises:
        ExportError: If a command fails.
    """
    report = json.loads((out / REPORT_NAME).read_text(encoding="utf-8"))
    for model, entry in report["models"].items():
        command = [str(trtexec()), *entry["command"][1:]]
        _log.info("building the engine of %s", model)
        run = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
        if run.returncode or not (out / entry["engine"]).is_file():
            words = (run.stderr.strip() or run.stdout.strip()).splitlines()
            raise ExportError(
                f"expected trtexec to build {entry['engine']}, got: {words[-1] if words else 'nothing'}. "
                f"What was rendered is in {out}; its {SCRIPT_NAME} builds all engines"
            )
        entry["engine_sha256"] = sha256_of(out / entry["engine"])
        (out / REPORT_NAME).write_text(as_json(report), encoding="utf-8")


def _sees_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    run = subprocess.run([tool, "--list-gpus"], capture_output=True, text=True, check=False)
    return run.returncode == 0 and "GPU" in run.stdout


def trtexec() -> str | None:
    """Where ``trtexec`` is: on PATH, or where NVIDIA's Triton image has it."""
    return shutil.which("trtexec", path=os.pathsep.join([os.environ.get("PATH", os.defpath), TRTEXEC_FOLDER]))


def _training_scans(provenance: Mapping[str, Any], data_folder: Path | None) -> UInt8[np.ndarray, "n 512 512 3"]:
    # Not at the top: it brings Keras, which only this case needs.
    from train.publish import calibration_scans

    return calibration_scans(str(provenance.get("experiment")), data_folder)
