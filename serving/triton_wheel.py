"""What the ``nvidia-pytriton`` wheel carries, and how Triton's Python backend is made to run from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from serving.backends.onnxruntime.request_log import REQUEST_LOG_VARIABLE
from serving.errors import ServerStartError
from serving.pipeline import SEGMENTATION
from serving.process import STUB

_TWIN: Final = Path(__file__).parent / "backends" / "onnxruntime"


def find_wheel() -> Path:
    """The wheel's ``tritonserver`` folder.

    Raises:
        ServerStartError: If the wheel is not installed.
    """
    spec = find_spec("pytriton")
    root = Path(spec.origin).parent / "tritonserver" if spec is not None and spec.origin else None
    if root is None or not (root / "bin" / "tritonserver").is_file():
        raise ServerStartError(
            "expected the wheel nvidia-pytriton, which carries Triton, got an environment without it"
        )
    return root


_ALLOCATOR: Final = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20)}
"""For glibc (mallopt(3)): keep the pages of an image for the next one. By default each buffer of a scan goes back to
the kernel and is faulted in anew: preparing an X-ray took 4.2 ms so, and takes 3.4 ms."""


def stub_environment(
    wheel: Path, threads: int | None, accelerator: str | None = None, request_log: Path | None = None
) -> dict[str, str]:
    """The environment of Triton and its Python stubs: this process's, with what they find libraries and packages by.

    Args:
        wheel: Of `find_wheel`.
        threads: Of `ServerConfig`.
        accelerator: Of `ServerConfig`.
        request_log: Of `ServerConfig`.
    """
    libraries = [
        wheel.parents[1] / "nvidia_pytriton.libs",
        sysconfig.get_config_var("LIBDIR"),
        f"{sys.base_prefix}/lib",
    ]
    # The stub finds its packages through the first python3 on PATH, and ignores PYTHONPATH.
    environment = {
        **_ALLOCATOR,
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(str(path) for path in libraries if path),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        # The twin computes on the CPU, so KIND_AUTO must not find a GPU.
        "CUDA_VISIBLE_DEVICES": "",
    }
    by_model = _threads_by_model(len(os.sched_getaffinity(0))) if threads is None else None
    for name, value in (
        ("LUNGSTREAMS_THREADS", threads),
        ("LUNGSTREAMS_THREADS_BY_MODEL", by_model),
        ("LUNGSTREAMS_ACCELERATOR", accelerator),
        (REQUEST_LOG_VARIABLE, None if request_log is None else request_log.absolute()),
    ):
        environment.pop(name, None)
        if value is not None:
            environment[name] = str(value)
    return environment


def _threads_by_model(cores: int) -> str:
    """Half of the cores for each stream of stage 3: two at least run at once, that of a finding and that of all."""
    return ",".join(f"{step.model}={max(1, cores // 2)}" for step in SEGMENTATION)


def lay_out_backends(wheel: Path, target: Path, environment: dict[str, str]) -> None:
    """Make a backend directory: the wheel's Python backend with the stub of this interpreter, and our twin.

    Args:
        wheel: Of `find_wheel`.
        target: The directory to make.
        environment: Of `stub_environment`.

    Raises:
        ServerStartError: If the wheel has no stub for this interpreter, or the stub finds no libpython.
    """
    # Copies: Triton refuses links that lead out of the backend directory.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / STUB
    if not stub.is_file():
        found = sorted(path.name for path in stub.parents[1].iterdir())
        raise ServerStartError(f"expected CPython {', '.join(found)}, got {version}: the wheel has no stub for it")
    # Without arguments it complains and ends; with 127 when the loader did not find its libraries.
    probe = subprocess.run([stub], env=environment, capture_output=True, check=False)
    if probe.returncode == 127:
        raise ServerStartError(
            f"expected a shared libpython{version} for {sys.executable}, got: {probe.stderr.decode().strip()}. "
            f"Install Debian's package libpython{version}, or a Python that was built with --enable-shared"
        )
    python = target / "python"
    python.mkdir(parents=True)
    for file in (wheel / "backends" / "python").iterdir():
        if file.is_file():
            shutil.copy2(file, python)
    shutil.copy2(stub, python)
    (target / "onnxruntime").mkdir()
    for name in ("model.py", "openvino_session.py", "request_log.py", "hanging.py"):
        shutil.copy2(_TWIN / name, target / "onnxruntime")
