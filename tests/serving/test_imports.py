from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import serving

# What a serving process must do without: it is big, it is slow to import, or it patches sockets.
FORBIDDEN = {"tensorflow", "keras", "gradio", "locust", "gevent", "torch", "jax", "train", "demo", "loadtest"}

PROBE = """
import importlib, json, sys
importlib.import_module(sys.argv[1])
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""

# Each in a process of its own, which has what others wrote already: that takes most of the time.
EACH_FIRST = """
import importlib, os, sys
import cv2, nibabel, numpy, pydicom, scipy.ndimage, tritonclient.grpc
for module in sys.argv[1:]:
    child = os.fork()
    if not child:
        importlib.import_module(module)
        print(module, flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(1)
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


def test_each_module_can_be_imported_first() -> None:
    # An import cycle fails only for whoever comes in by the wrong door.
    run = subprocess.run([sys.executable, "-c", EACH_FIRST, *MODULES], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.split(), run.stderr) == (0, MODULES, "")


def test_who_can_not_be_imported_first_is_named(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import other\nvalue = 1\n")
    (tmp_path / "other.py").write_text("from one import value\n")
    run = subprocess.run(
        [sys.executable, "-c", EACH_FIRST, "other", "one"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode != 0
    assert run.stdout.split() == ["other"]
    assert "cannot import name 'value'" in run.stderr


def test_the_probe_would_see_it() -> None:
    assert "loadtest" in loaded_by("loadtest")


def test_the_command_line_loads_none_of_it_before_it_is_asked_to() -> None:
    assert not loaded_by("lungstreams.cli") & (FORBIDDEN | {"cv2", "onnxruntime", "tritonclient"})
