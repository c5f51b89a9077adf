"""What a run computes on, and in which precision.

Precision is Keras' own: weights, optimizer and loss stay in float32, layers compute in the policy's type. Several
accelerators share a batch by `keras.distribution.DataParallel`, which Keras has for JAX alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import keras

from serving.errors import DatasetError
from train.deeplab import DeepLabConfig
from train.experiments import Experiment

Precision = Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"]
_CPU_INFO: Final = Path("/proc/cpuinfo")
_BFLOAT16_FLAGS: Final = frozenset({"avx512_bf16", "amx_bf16"})

_log = logging.getLogger(__name__)


def accelerators() -> list[str]:
    """GPUs and TPUs that Keras' backend sees, as it names them; empty on a machine that has none."""
    devices: list[str] = keras.distribution.list_devices()
    return [name for name in devices if not name.lower().startswith("cpu")]


def cpu_has_bfloat16(cpu_info: Path = _CPU_INFO) -> bool:
    """Whether the processor multiplies bfloat16 in hardware; False where the system does not say."""
    try:
        text = cpu_info.read_text(encoding="utf-8")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _BFLOAT16_FLAGS.isdisjoint(flags.split())


def precision_of(run: Experiment, asked: Precision = "auto", *, cpu_info: Path = _CPU_INFO) -> str:
    """Name of the `keras.dtype_policies` policy that a run computes in.

    Args:
        run: Which.
        asked: ``auto`` takes bfloat16 on accelerators, and on processors with bfloat16 for Inception-v3, which it made
            1.8 times as fast. DeepLab is bound by its depthwise convolutions and gains nothing on a processor.
        cpu_info: Where Linux lists the processor's features.
    """
    if asked != "auto":
        return asked
    if accelerators():
        return "mixed_bfloat16"
    gains = not isinstance(run.model, DeepLabConfig)
    return "mixed_bfloat16" if gains and cpu_has_bfloat16(cpu_info) else "float32"


@contextmanager
def policy(name: str) -> Iterator[None]:
    """Layers that are made inside compute in this policy; afterwards the former one is back."""
    former = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.mixed_precision.set_dtype_policy(former)


@contextmanager
def distributed(n_devices: int | None, batch_size: int) -> Iterator[int]:
    """Share each batch among several devices; everything made inside is laid out for them.

    Args:
        n_devices: How many; None is all accelerators that are there.
        batch_size: Of the run.

    Yields:
        How many share a batch; 1 leaves Keras as it is.

    Raises:
        DatasetError: If the machine has fewer, the backend can not, or the batch does not divide among them.
    """
    devices = accelerators() or keras.distribution.list_devices()
    n = max(len(accelerators()), 1) if n_devices is None else n_devices
    if n_devices is None and n > 1 and (keras.backend.backend() != "jax" or batch_size % n):
        _log.warning("one of %d devices is used: sharing needs KERAS_BACKEND=jax and a batch that divides by them", n)
        n = 1
    if n == 1:
        yield 1
        return
    if keras.backend.backend() != "jax":
        raise DatasetError(f"{n} devices: expected KERAS_BACKEND=jax, got {keras.backend.backend()}")
    if not 1 < n <= len(devices):
        raise DatasetError(f"expected at most {len(devices)} devices, got {n}")
    if batch_size % n:
        raise DatasetError(f"expected a batch that divides among {n} devices, got {batch_size}")
    former = keras.distribution.distribution()
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices[:n]))
    try:
        yield n
    finally:
        keras.distribution.set_distribution(former)
