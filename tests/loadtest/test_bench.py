from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from loadtest import bench, raw
from loadtest.cases import CASES
from loadtest.machine import describe
from serving.errors import RepositoryError, RequestError
from serving.pipeline import STEPS
from serving.tritonserver import TritonServer

ROUNDS = 2


@pytest.fixture(scope="module")
def reports(toy_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bench") / "new"
    bench.main(toy_triton.config.repository, ROUNDS, out)
    return out


@pytest.mark.triton
@pytest.mark.slow
def test_both_ways_are_measured_as_often_on_each_case(reports: Path) -> None:
    document = json.loads((reports / "bench.json").read_text())
    assert list(document["cases"]) == list(CASES)
    for measured in document["cases"].values():
        assert len(measured["ensemble_ms"]) == len(measured["raw_ms"]) == ROUNDS
        assert all(milliseconds > 0 for milliseconds in measured["ensemble_ms"] + measured["raw_ms"])
        assert set(measured["ensemble_steps_ms"]) == set(measured["raw_steps_ms"]) == {step.model for step in STEPS}


@pytest.mark.triton
@pytest.mark.slow
def test_both_ways_give_the_same_answers(reports: Path) -> None:
    for measured in json.loads((reports / "bench.json").read_text())["cases"].values():
        assert measured["probability_difference"] < 1e-5
        assert measured["mask_difference"] == 0


@pytest.mark.triton
@pytest.mark.slow
def test_the_table_names_the_machine_every_case_and_every_step(reports: Path) -> None:
    text = (reports / "bench.md").read_text()
    for word in (describe().cpu, "triton 2.", *CASES, *(step.model for step in STEPS)):
        assert word in text
    rows = [line for line in text.splitlines() if line.startswith("| ct_open")]
    assert rows
    assert not any(" - " in row for row in rows)


def test_no_round_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="expected 1 round or more, got 0"):
        bench.main(tmp_path, 0, tmp_path)


def test_a_repository_without_versions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="expected a version folder"):
        raw.RawPipeline(tmp_path, {})


def test_the_newest_version_is_the_one_that_runs(tmp_path: Path) -> None:
    for name in ("2", "10", "notes"):
        (tmp_path / "recognition" / name).mkdir(parents=True)
    assert raw.served_version(tmp_path, "recognition") == 10


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The server's backend, whose import needs a module that exists inside Triton only."""
    name = "serving.backends.onnxruntime.model"
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))
    monkeypatch.delitem(sys.modules, name, raising=False)
    yield import_module(name)
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"intra_op_thread_count": "1"},
        {"intra_op_thread_count": "3", "inter_op_thread_count": "2", "execution_mode": "1"},
        {"intra_op_thread_count": "0", "execution_mode": "0"},
    ],
)
def test_raw_sessions_have_the_servers_thread_settings(twin: Any, parameters: dict[str, str]) -> None:
    ours = raw.session_options(parameters)
    config = {"parameters": {key: {"string_value": value} for key, value in parameters.items()}}
    servers = twin.session_options(config, {})
    for name in ("intra_op_num_threads", "inter_op_num_threads", "execution_mode", "graph_optimization_level"):
        assert getattr(ours, name) == getattr(servers, name), name
    for key in ("session.intra_op.allow_spinning", "session.inter_op.allow_spinning"):
        assert ours.get_session_config_entry(key) == servers.get_session_config_entry(key) == "0"
