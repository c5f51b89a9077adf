"""What each step says of a request: whole lines of many processes, ids that never mix, and nothing of anybody."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.utils import InferenceServerException

from serving import phantom, pipeline, wire
from serving.backends.onnxruntime.request_log import JsonLines, StepLog, sayable
from serving.client import PipelineClient
from serving.errors import LungstreamsError, RequestError, ScanError, ServerStartError, ServerUnreachable
from serving.triton_wheel import stub_environment
from serving.tritonserver import ServerConfig, TritonServer

OPEN = dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0)
ID = "0123456789abcdef" * 2


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def log(toy_triton: TritonServer) -> Path:
    assert toy_triton.config.request_log is not None
    return toy_triton.config.request_log


@pytest.fixture
def client(toy_triton: TritonServer) -> Iterator[PipelineClient]:
    with PipelineClient(toy_triton.grpc_url) as client:
        yield client


@pytest.fixture(scope="module")
def ct() -> bytes:
    return phantom.png_bytes(phantom.ct_slice(seed=3, size_px=128).pixels)


@pytest.mark.triton
def test_requests_side_by_side_never_mix(client: PipelineClient, log: Path, ct: bytes) -> None:
    waiting = {}
    for number in range(24):
        request_id, modality = wire.new_request_id(), ("ct", "xray")[number % 2]
        waiting[request_id] = modality, client.submit(ct, modality, OPEN, request_id=request_id)  # type: ignore[arg-type]
    for request_id, (modality, future) in waiting.items():
        report = future.result()
        assert (report.request_id, report.modality) == (request_id, modality)
    found: dict[str, Counter[str]] = {request_id: Counter() for request_id in waiting}
    for line in lines_of(log):
        if line["request_id"] in found:
            found[line["request_id"]][line["step"]] += 1
            assert (line["outcome"], line["version"], line["items"]) == ("ok", "1", 1)
            assert 1 <= line["batch"] <= pipeline.MAX_BATCH_SIZE
            assert line["ms"] > 0
            assert line["time"].endswith("+00:00")
    for request_id, (modality, _) in waiting.items():
        assert found[request_id] == Counter(wire.asked_models(modality)), request_id  # type: ignore[arg-type]


@pytest.mark.triton
def test_an_error_is_told_by_its_kind_and_another_callers_id_not_at_all(client: PipelineClient, log: Path) -> None:
    before = len(lines_of(log))
    for request_id in (ID, "Mustermann^Erika", ""):
        with pytest.raises(InferenceServerException, match="expected PNG"):
            client._triton.infer(**wire.request(b"words of Erika", "ct", OPEN, request_id=request_id))
    said = lines_of(log)[before:]
    assert [(line["request_id"], line["step"], line["outcome"]) for line in said] == [
        (request_id, "preprocess", "UnreadableScan") for request_id in (ID, "other", "-")
    ]
    assert "Erika" not in log.read_text()


@pytest.mark.triton
def test_errors_bear_the_id_of_their_case(client: PipelineClient, ct: bytes) -> None:
    refusals: list[tuple[type[LungstreamsError], tuple[Any, ...]]] = [
        (ScanError, (b"words",)),
        (RequestError, (ct, "ct", {"mood": 0.5})),
    ]
    for kind, asked in refusals:
        with pytest.raises(kind) as caught:
            client.predict(*asked, request_id=ID)
        assert caught.value.request_id == ID
        with pytest.raises(kind) as drawn:
            client.predict(*asked)
        assert sayable(drawn.value.request_id) == drawn.value.request_id != ID


@pytest.mark.triton
def test_what_the_server_and_the_deadline_say_bears_it_too(toy_triton: TritonServer, ct: bytes) -> None:
    with PipelineClient("127.0.0.1:1") as gone, pytest.raises(ServerUnreachable) as nobody:
        gone.predict(ct, "ct", request_id=ID)
    assert nobody.value.request_id == ID
    with PipelineClient(toy_triton.grpc_url, timeout_s=0.0001) as hasty:
        late = hasty.submit(ct, "ct", request_id=ID).exception()
    assert isinstance(late, LungstreamsError)
    assert late.request_id == ID


def test_a_server_without_a_log_says_nothing_to_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Even where whoever starts it has one in mind for another.
    monkeypatch.setenv("LUNGSTREAMS_REQUEST_LOG", str(tmp_path / "log"))
    assert "LUNGSTREAMS_REQUEST_LOG" not in stub_environment(tmp_path, None)
    assert StepLog.of_stub({"model_name": "m", "model_version": "1"}, {}, print) is None
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_can_not_be_written_is_refused_before_anything_starts(toy_repository: Path, tmp_path: Path) -> None:
    config = ServerConfig(toy_repository, 0, 0, 0, request_log=tmp_path)
    with pytest.raises(ServerStartError, match=r"request log: expected a file that can be written at .*: Is a dir"):
        TritonServer(config).start()


def test_lines_of_many_processes_are_whole(tmp_path: Path) -> None:
    log, each, writers = tmp_path / "log", 300, 4
    program = """
import sys
from pathlib import Path
from serving.backends.onnxruntime.request_log import JsonLines
lines = JsonLines(Path(sys.argv[1]), print)
for number in range(int(sys.argv[2])):
    lines.write(*({"writer": sys.argv[3], "number": number, "text": "x" * 200} for _ in range(8)))
"""
    running = [subprocess.Popen([sys.executable, "-c", program, log, str(each), str(w)]) for w in range(writers)]
    assert [process.wait(120) for process in running] == [0] * writers
    numbers: dict[str, list[int]] = {str(w): [] for w in range(writers)}
    writers_in_turn = []
    for line in lines_of(log):
        numbers[line["writer"]].append(line["number"])
        writers_in_turn.append(line["writer"])
    assert all(found == [number for number in range(each) for _ in range(8)] for found in numbers.values())
    # What was written together stays together.
    assert all(len(set(writers_in_turn[at : at + 8])) == 1 for at in range(0, len(writers_in_turn), 8))


def test_a_file_that_was_rotated_away_is_begun_anew_and_for_its_owner_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines = JsonLines(log, print)
    lines.write({"number": 1})
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    log.rename(tmp_path / "log.1")
    lines.write({"number": 2})
    assert (lines_of(tmp_path / "log.1"), lines_of(log)) == ([{"number": 1}], [{"number": 2}])
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    log.write_bytes(b"")  # as logrotate's copytruncate
    lines.write({"number": 3})
    assert lines_of(log) == [{"number": 3}]


def test_a_log_that_fails_later_costs_no_request_and_warns_once(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    warned: list[str] = []
    lines = JsonLines(folder / "log", warned.append)
    (folder / "log").unlink()
    folder.rmdir()
    for _ in range(3):
        lines.write({})
    assert len(warned) == 1
    assert "lines of the log are lost: No such file or directory" in warned[0]
    folder.mkdir()
    lines.write({"back": True})
    assert lines_of(folder / "log") == [{"back": True}]


@pytest.mark.parametrize(
    ("request_id", "said"),
    [
        (ID, ID),
        ("01234567-89ab-CDEF-0123-456789abcdef", "01234567-89ab-CDEF-0123-456789abcdef"),
        ("", "-"),
        ("19700101", "other"),
        ("Mustermann", "other"),
        (ID + "\n", "other"),
        (ID + "x", "other"),
        ("0123456789ab-cdef" * 2, "other"),
    ],
)
def test_only_an_id_that_nobody_makes_of_a_name_is_written(request_id: str, said: str) -> None:
    assert sayable(request_id) == said
