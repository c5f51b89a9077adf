"""What a measurement was taken on. A latency without this says nothing."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

TELLING_FLAGS: Final = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "i8mm")
"""Instruction sets that change which kernels ONNX Runtime takes."""

PACKAGES: Final = ("onnxruntime", "nvidia-pytriton", "tritonclient", "numpy", "opencv-python-headless")


@dataclass(frozen=True)
class Machine:
    """A machine and its software.

    Attributes:
        cpu: The processor's name.
        cores: Logical cores that it has.
        usable_cores: Those that this process may run on.
        load_average: Mean number of runnable threads over the last minute: above 0 others were busy as well.
        memory_gib: Main memory.
        flags: Those of `TELLING_FLAGS` that it has.
        system: Kernel and architecture.
        python: Version of the interpreter.
        packages: Versions of `PACKAGES`.
    """

    cpu: str
    cores: int
    usable_cores: int
    load_average: float
    memory_gib: float
    flags: tuple[str, ...]
    system: str
    python: str
    packages: dict[str, str]


def describe() -> Machine:
    """Looks at the machine this runs on (Linux)."""
    fields = _first_values(Path("/proc/cpuinfo"))
    flags = set((fields.get("flags") or fields.get("Features", "")).split())
    memory_kib = int(_first_values(Path("/proc/meminfo"))["MemTotal"].split()[0])
    return Machine(
        cpu=fields.get("model name") or platform.processor() or "unknown",
        cores=os.cpu_count() or 1,
        usable_cores=len(os.sched_getaffinity(0)),
        load_average=round(os.getloadavg()[0], 2),
        memory_gib=round(memory_kib / 2**20, 1),
        flags=tuple(flag for flag in TELLING_FLAGS if flag in flags),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        packages={name: version(name) for name in PACKAGES},
    )


def _first_values(path: Path) -> dict[str, str]:
    """The first value of each key of a `key: value` file of /proc."""
    values: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, colon, value = line.partition(":")
        if colon:
            values.setdefault(key.strip(), value.strip())
    return values
