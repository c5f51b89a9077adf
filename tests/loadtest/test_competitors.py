from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loadtest.cases import CASES, LoadCase
from loadtest.competitors import Competitor, OnnxRuntimeInProcess, OpenVinoInProcess, check_packages
from loadtest.networks import unpack
from loadtest.quiet import processor_s, settle
from loadtest.served import Lungstreams, PlainServer, line_up
from loadtest.wire import check_answer
from serving.errors import InferenceFailed, MissingPackage, ServerStartError
from serving.labels import STREAMS
from serving.pipeline import mask_output
from serving.preprocessing import prepare
from tests.toy_models import QUADRANTS, STRIPS, expected_mask, expected_means

OPEN, XRAY = CASES["ct_open"], CASES["xray"]


@pytest.fixture(scope="module")
def networks(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return unpack(toy_repository, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def plain(networks: dict[str, Path]) -> Iterator[Competitor]:
    with PlainServer("int8", networks) as server:
        yield server


def check_right(competitor: Competitor, case: LoadCase) -> None:
    """Holds its answer against what a toy must say."""
    scan = case.scans()[1]
    answer = competitor.answer(scan, case)
    check_answer(case, answer)
    image, _ = prepare(scan, case.modality, list(case.thresholds.values()))
    # Sums of a hundred thousand pixels in float32.
    np.testing.assert_allclose(answer["diagnosis"][0], expected_means(image, QUADRANTS), atol=1e-4)
    if case is OPEN:
        np.testing.assert_allclose(answer["manifestations"][0], expected_means(image, STRIPS), atol=1e-4)
        for stream in STREAMS:
            np.testing.assert_array_equal(answer[mask_output(stream.name)][0], expected_mask(image, stream.name))


@pytest.mark.parametrize("case", [OPEN, XRAY], ids=lambda case: case.name)
def test_onnx_runtime_in_process_gives_the_right_answer(case: LoadCase, networks: dict[str, Path]) -> None:
    with OnnxRuntimeInProcess("int8", networks) as competitor:
        assert not competitor.served
        check_right(competitor, case)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_openvino_in_process_gives_the_right_answer(precision: str, networks: dict[str, Path]) -> None:
    with OpenVinoInProcess(precision, networks) as competitor:  # type: ignore[arg-type]
        assert competitor.name == f"OpenVINO {precision}"
        check_right(competitor, OPEN)
        check_right(competitor, XRAY)


def test_answers_of_openvino_outlive_the_next_call(networks: dict[str, Path]) -> None:
    with OpenVinoInProcess("fp32", networks) as competitor:
        first = competitor.answer(OPEN.scans()[0], OPEN)["diagnosis"]
        kept = first.copy()
        competitor.answer(OPEN.scans()[1], OPEN)
        np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("case", [OPEN, XRAY], ids=lambda case: case.name)
def test_the_plain_server_gives_the_right_answer(case: LoadCase, plain: Competitor) -> None:
    assert plain.served
    check_right(plain, case)


def test_the_plain_server_refuses_what_is_no_scan(plain: Competitor) -> None:
    with pytest.raises(InferenceFailed, match="expected 200 of the plain server, got 400"):
        plain.answer(b"not a scan", OPEN)


def test_the_plain_server_obeys_gates(plain: Competitor) -> None:
    shut = replace(OPEN, thresholds=dict(OPEN.thresholds) | {"covid19": 1.0})
    answer = plain.answer(OPEN.scans()[0], shut)
    check_answer(shut, answer)
    assert answer["diagnosis"].any()
    assert not answer["manifestations"].any()


def test_the_plain_server_ends_when_it_is_left(networks: dict[str, Path]) -> None:
    with PlainServer("int8", networks) as server:
        group = server.group
        assert group is not None
        os.killpg(group, 0)
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    assert server.group is None


def test_a_plain_server_that_can_not_load_its_networks_says_why(tmp_path: Path) -> None:
    server = PlainServer("int8", {"recognition": tmp_path / "recognition.onnx"})
    with pytest.raises(ServerStartError, match=r"expected the plain server to answer .*NO_SUCHFILE"), server:
        pass
    assert server.group is None


PARENT = """
import sys, time
from pathlib import Path
from loadtest.served import PlainServer
server = PlainServer("int8", {path.stem: path for path in Path(sys.argv[1]).glob("*.onnx")})
server.start()
print(server.group, flush=True)
time.sleep(600)
"""


def test_the_plain_server_stops_with_its_parent(networks: dict[str, Path], tmp_path: Path) -> None:
    folder = str(next(iter(networks.values())).parent)
    root = str(Path(__file__).resolve().parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, folder],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": root},
    ) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        os.killpg(group, 0)
        parent.send_signal(signal.SIGKILL)
    with suppress(ProcessLookupError):
        for _ in range(300):
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)
        pytest.fail("the server outlived its parent")


@pytest.mark.triton
def test_the_embedded_triton_takes_part(toy_repository: Path) -> None:
    with Lungstreams("int8", toy_repository) as competitor:
        assert competitor.ours
        assert competitor.group is not None
        check_right(competitor, OPEN)
        check_right(competitor, XRAY)
    assert competitor.group is None


def test_a_missing_package_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingPackage) as caught:
        check_packages()
    assert str(caught.value) == (
        "expected the package openvino, got an environment without it: pip install 'lungstreams[bench]'"
    )


def test_the_shipped_repository_has_no_fp32_and_no_keras(networks: dict[str, Path], toy_repository: Path) -> None:
    names = [competitor.name for competitor in line_up({"int8": toy_repository}, {"int8": networks}, None)]
    served = ["FastAPI + ONNX Runtime int8", "lungstreams int8", "lungstreams by OpenVINO int8"]
    assert names == ["ONNX Runtime int8", "OpenVINO int8", *served]


def test_with_both_precisions_everybody_takes_part(networks: dict[str, Path], toy_repository: Path) -> None:
    both = {"fp32": networks, "int8": networks}
    names = [c.name for c in line_up({"fp32": toy_repository, "int8": toy_repository}, both, dict)]
    assert len(set(names)) == 11
    assert names[0] == "Keras/TensorFlow fp32"
    assert "OpenVINO bf16" in names


WORKER = """
import sys, time
while time.process_time() < 0.3: pass
print("done", flush=True)
sys.stdin.read()
"""


def test_the_time_that_other_processes_compute_is_seen() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stdout.readline() == "done\n"
        assert processor_s([worker.pid]) >= processor_s([]) + 0.29
        worker.stdin.close()


def test_a_group_that_is_gone_is_quiet() -> None:
    with subprocess.Popen([sys.executable, "-c", ""], start_new_session=True) as worker:
        pass
    assert settle([worker.pid], limit_s=0) >= 0
