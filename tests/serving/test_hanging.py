"""The watchdog of a step: it ends a process that hangs, in native code that holds the interpreter, too."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from serving.backends.onnxruntime.hanging import HUNG_S, HUNG_VARIABLE, hung_s, no_longer_than

PROGRAM = """
import ctypes, time
from serving.backends.onnxruntime.hanging import no_longer_than
with no_longer_than(0.5):
    time.sleep(0.01)
time.sleep(0.8)
print("outlived it", flush=True)
def step_that_hangs():
    # PyDLL keeps the interpreter's lock: nothing of Python runs meanwhile.
    ctypes.PyDLL(None).pause()
with no_longer_than(0.5):
    step_that_hangs()
"""


def test_a_step_in_time_is_let_be_and_one_that_hangs_ends_the_process_and_says_where() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "outlived it\n"
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "step_that_hangs" in done.stderr


def test_what_a_step_raises_comes_through() -> None:
    with pytest.raises(KeyError, match="mine"), no_longer_than(60):
        raise KeyError("mine")


def test_the_environment_sets_the_limit() -> None:
    assert hung_s({}) == HUNG_S
    assert hung_s({HUNG_VARIABLE: "2.5"}) == 2.5


@pytest.mark.parametrize("text", ["0", "-1", "", "soon", "inf", "nan"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=f"{HUNG_VARIABLE}: expected seconds above 0, got '{text}'"):
        hung_s({HUNG_VARIABLE: text})
    assert math.isfinite(HUNG_S)
