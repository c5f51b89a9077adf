from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from serving.errors import DatasetError
from train import devices
from train.experiments import EXPERIMENTS

_ZEN4 = "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16 avx512_vnni\n"
_OLD = "processor\t: 0\nflags\t\t: fpu avx2\n"


@pytest.mark.parametrize(("text", "has"), [(_ZEN4, True), (_OLD, False), ("flags: amx_bf16", True), ("", False)])
def test_a_processor_says_whether_it_has_bfloat16(tmp_path, text, has):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    assert devices.cpu_has_bfloat16(path) == has


def test_a_system_that_does_not_say_has_none(tmp_path):
    assert not devices.cpu_has_bfloat16(tmp_path / "nothing")


def test_automatic_precision_is_what_the_device_gains_by(tmp_path, monkeypatch):
    zen4, old = tmp_path / "zen4", tmp_path / "old"
    zen4.write_text(_ZEN4)
    old.write_text(_OLD)
    inception, deeplab = EXPERIMENTS["recognition_finetuned"], EXPERIMENTS["all_first"]
    monkeypatch.setattr(devices, "accelerators", list)
    assert devices.precision_of(inception, cpu_info=zen4) == "mixed_bfloat16"
    assert devices.precision_of(inception, cpu_info=old) == "float32"
    assert devices.precision_of(deeplab, cpu_info=zen4) == "float32"
    assert devices.precision_of(deeplab, "mixed_float16", cpu_info=old) == "mixed_float16"
    monkeypatch.setattr(devices, "accelerators", lambda: ["gpu:0"])
    assert devices.precision_of(deeplab, cpu_info=old) == "mixed_bfloat16"


def test_a_policy_ends_with_its_block():
    before = keras.mixed_precision.dtype_policy().name
    with devices.policy("mixed_bfloat16"):
        layer = keras.layers.Dense(2)
    assert layer.compute_dtype == "bfloat16"
    assert layer.variable_dtype == "float32"
    assert keras.mixed_precision.dtype_policy().name == before
    with pytest.raises(ZeroDivisionError), devices.policy("mixed_bfloat16"):
        _ = 1 / 0
    assert keras.mixed_precision.dtype_policy().name == before


def test_one_device_is_left_as_it_is():
    with devices.distributed(None, 7) as n:
        assert n == 1
        assert keras.distribution.distribution() is None


def test_several_devices_need_jax():
    if keras.backend.backend() == "jax":
        pytest.skip("this is about the other backends")
    with pytest.raises(DatasetError, match="expected KERAS_BACKEND=jax, got tensorflow"), devices.distributed(2, 8):
        pass


_TWO_DEVICES = """
import json, sys, keras, numpy as np
from serving.errors import DatasetError
from train import devices
def trained(n):
    keras.utils.set_random_seed(1)
    with devices.distributed(n, 8) as sharing:
        model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, activation="tanh"), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=True)
        rng = np.random.default_rng(0)
        model.fit(rng.normal(size=(32, 5)), rng.normal(size=(32, 1)), batch_size=8, shuffle=False, verbose=0)
        placed = len(model.weights[0].value.sharding.device_set)
    return sharing, placed, [w.tolist() for w in model.get_weights()]
refused = []
for n, batch in ((3, 9), (2, 7)):
    try:
        with devices.distributed(n, batch): pass
    except DatasetError as error:
        refused.append(str(error))
print(json.dumps({"one": trained(1), "two": trained(2), "refused": refused}))
"""


@pytest.mark.long
def test_two_devices_train_what_one_does():
    """On JAX, whose processor can stand for two devices; `keras.distribution` is Keras' own."""
    assert importlib.util.find_spec("jax"), "expected jax, which the dev extra installs"
    environment = os.environ | {
        "KERAS_BACKEND": "jax",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    done = subprocess.run(
        [sys.executable, "-c", _TWO_DEVICES], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    (one, on_one, alone), (two, on_two, together) = told["one"], told["two"]
    assert (one, on_one, two, on_two) == (1, 1, 2, 2)
    for a, b in zip(alone, together, strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert told["refused"] == [
        "expected at most 2 devices, got 3",
        "expected a batch that divides among 2 devices, got 7",
    ]
