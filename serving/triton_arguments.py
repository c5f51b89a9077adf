"""The command line of the embedded Triton."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from serving.tls import ServerTls

if TYPE_CHECKING:
    from serving.tritonserver import ServerConfig

LOOPBACK: Final = "127.0.0.1"
ADMIN_HEADER: Final = "lungstreams"
"""Header that carries `ServerConfig.admin_key`; Triton puts `GRPC_HEADER_PREFIX` before it in gRPC's metadata."""
GRPC_HEADER_PREFIX: Final = "triton-grpc-protocol-"

RESTRICTED: Final = ("shared-memory", "model-repository", "trace", "logging")
"""Calls that nobody makes to read a scan. CVE-2025-23319 and 23320 let a caller register the Python backend's own
shared memory by the first, CVE-2025-23316 is in the second, and the last two write files where the caller says."""

EXIT_TIMEOUT_S: Final = 10
"""How long Triton may take for the requests that it has when it is told to stop."""

_MIB: Final = 2**20

# What the requests of the largest batch need grows on demand; this is what every instance starts with.
_SHM_BYTES: Final = 4 * _MIB
# A 160 MB network is read, optimised and warmed up before its stub reports for duty; 30 s is too little then.
_STUB_TIMEOUT_S: Final = 300


def arguments(config: ServerConfig, wheel: Path, work: Path) -> list[str]:
    """The program and its arguments.

    Args:
        config: What to serve and where; its ports are chosen.
        wheel: Of `serving.triton_wheel.find_wheel`.
        work: The server's work folder, with the backends in it.
    """
    options = {
        "model-repository": config.repository.resolve(),
        "backend-directory": work / "backends",
        **_control_arguments(config),
        "exit-on-error": "true",
        "exit-timeout-secs": EXIT_TIMEOUT_S,
        "http-address": LOOPBACK,
        "grpc-address": config.host,
        "metrics-address": LOOPBACK,
        "http-port": config.http_port,
        "grpc-port": config.grpc_port,
        "metrics-port": config.metrics_port,
        "metrics-config": "summary_latencies=true",
        "allow-gpu-metrics": "false",
        "pinned-memory-pool-byte-size": 0,
        **_tls_arguments(config.tls),
    }
    # Without a key of the caller's there is one all the same, and it is thrown away.
    lock = f"{','.join(RESTRICTED)}:{ADMIN_HEADER}={config.admin_key or secrets.token_hex()}"
    # Both names: each backend, ours included, reads its own settings.
    settings = {
        "shm-region-prefix-name": work.name,
        "shm-default-byte-size": _SHM_BYTES,
        "stub-timeout-seconds": _STUB_TIMEOUT_S,
    }
    return [
        str(wheel / "bin" / "tritonserver"),
        "--disable-auto-complete-config",
        f"--http-restricted-api={lock}",
        f"--grpc-restricted-protocol={lock}",
        *(f"--{name}={value}" for name, value in options.items()),
        *(
            f"--backend-config={b},{name}={value}"
            for b in ("python", "onnxruntime")
            for name, value in settings.items()
        ),
    ]


def _control_arguments(config: ServerConfig) -> dict[str, object]:
    if config.model_control == "none":
        return {"model-control-mode": "none"}
    # Every model of the repository at the start, as without control.
    return {"model-control-mode": "explicit", "load-model": "*"}


def _tls_arguments(tls: ServerTls | None) -> dict[str, object]:
    if tls is None:
        return {}
    files = {"grpc-server-cert": tls.cert.resolve(), "grpc-server-key": tls.key.resolve()}
    if tls.client_ca is None:
        return {"grpc-use-ssl": "true", **files}
    return {"grpc-use-ssl-mutual": "true", **files, "grpc-root-cert": tls.client_ca.resolve()}
