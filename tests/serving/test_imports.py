from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

import serving

# What a serving process must do without: it is big, it is slow to import, or it patches sockets.
FORBIDDEN = {"tensorflow", "keras", "gradio", "locust", "gevent", "torch", "jax", "train", "demo", "loadtest"}

PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

# `backends` holds what Triton's stub runs, which has a module of its own that exists nowhere else.
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(serving.__path__, "serving.")
    if not module.ispkg and not module.name.startswith("serving.backends.")
)


def loaded_by(module: str) -> set[str]:
    run = subprocess.run([sys.executable, "-c", PROBE, module], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


def test_the_modules_are_found() -> None:
    assert {"serving.pipeline", "serving.client", "serving.tritonserver"} <= set(MODULES)


def test_all_of_serving_loads_nothing_of_training_nor_of_the_front_ends() -> None:
    everything = f"import importlib, json, sys\nfor name in {MODULES!r}: importlib.import_module(name)\n"
    report = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    run = subprocess.run([sys.executable, "-c", everything + report], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "serving" in loaded
    assert not loaded & FORBIDDEN


@pytest.mark.parametrize("module", MODULES)
def test_each_module_can_be_imported_first(module: str) -> None:
    # An import cycle fails only for whoever comes in by the wrong door.
    assert "serving" in loaded_by(module)


def test_the_probe_would_see_it() -> None:
    assert "loadtest" in loaded_by("loadtest")


def test_the_command_line_loads_none_of_it_before_it_is_asked_to() -> None:
    assert not loaded_by("lungstreams.cli") & (FORBIDDEN | {"cv2", "onnxruntime", "tritonclient"})
