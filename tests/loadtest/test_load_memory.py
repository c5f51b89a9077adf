from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from loadtest.memory import Sampler, of_group, own_rss_bytes, process_name, pss_bytes, rss_bytes
from serving.errors import ServerError
from serving.pipeline import STEPS
from serving.tritonserver import TritonServer

MIB = 2**20
HELD_MIB = 64
CHILD = f"""
import sys
held = b""
for line in sys.stdin:
    held = bytearray(b"x") * ({HELD_MIB} * {MIB}) if line.strip() == "take" else b""
    print("done", flush=True)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    tell(process, "wait")
    yield process
    process.communicate()


def tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_the_sampler_sees_what_a_process_held_in_between(child: subprocess.Popen[str]) -> None:
    with Sampler(child.pid, every_s=0.01) as sampler:
        tell(child, "take")
        seen = sampler.looks
        while sampler.looks < seen + 2:
            time.sleep(0.01)
        tell(child, "give back")
    # Up to the shares of the libraries' pages, which change as other processes come and go.
    assert sampler.peak_pss_bytes - sampler.first_pss_bytes > (HELD_MIB - 1) * MIB
    assert pss_bytes(of_group(child.pid)) < sampler.peak_pss_bytes - HELD_MIB * MIB / 2


def test_the_sampler_sees_this_process_grow(child: subprocess.Popen[str]) -> None:
    with Sampler(child.pid, every_s=60) as sampler:
        held = bytearray(b"x") * (HELD_MIB * MIB)
    assert sampler.own_growth_bytes >= HELD_MIB * MIB / 2
    assert own_rss_bytes() > len(held)


def test_the_sampler_survives_the_end_of_what_it_looks_at(child: subprocess.Popen[str]) -> None:
    with Sampler(child.pid, every_s=0.01) as sampler:
        child.communicate()
    assert sampler.peak_pss_bytes >= sampler.first_pss_bytes > 0


def test_a_group_without_processes_is_refused(child: subprocess.Popen[str]) -> None:
    child.communicate()
    with pytest.raises(ServerError, match=f"expected processes in group {child.pid}, got none"):
        of_group(child.pid)


@pytest.mark.triton
def test_every_process_of_a_server_is_told_by_its_model(toy_triton: TritonServer) -> None:
    processes = of_group(toy_triton.pid)
    names = [process.name for process in processes]
    assert set(names) == {"tritonserver", *(step.model for step in STEPS)}
    assert names.count("preprocess") == 2
    assert all(process.rss_bytes >= process.pss_bytes > 0 for process in processes)
    # They share the interpreter's libraries.
    assert rss_bytes(processes) > pss_bytes(processes)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/x/triton_python_backend_stub", "/y/model.onnx", "336", "segment_all_0_1", "/z"], "segment_all"),
        # Without an instance group.
        (["/x/triton_python_backend_stub", "/y/model.onnx", "336", "segment_all_0", "/z"], "segment_all"),
        (["/x/another", "/y/model.onnx", "336", "segment_all_0_1", "/z"], "another"),
        (["/x/bin/tritonserver", "--model-repository=/y/recognition_0_0"], "tritonserver"),
        ([""], ""),
        ([], ""),
    ],
)
def test_a_process_is_named_by_its_command_line(arguments: list[str], name: str) -> None:
    assert process_name(arguments) == name
