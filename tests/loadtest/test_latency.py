from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxruntime as ort
import pytest

from loadtest import latency, raw
from loadtest.cases import CASES
from serving.arithmetic import PRECISE
from serving.errors import RepositoryError, RequestError
from serving.pipeline import STEPS
from serving.tritonserver import TritonServer

ROUNDS = 2


@pytest.fixture(scope="module")
def measured(toy_triton: TritonServer) -> latency.Latency:
    return latency.measure(toy_triton, ROUNDS)


@pytest.mark.triton
@pytest.mark.slow
def test_both_ways_are_measured_as_often_on_each_case(measured: latency.Latency) -> None:
    assert list(measured.cases) == [*CASES, "xray_all"]
    for name, case in measured.cases.items():
        # Of an X-ray the client asks the diagnosis alone.
        every = {step.model for step in STEPS if name != "xray" or step.stage < 2}
        assert len(case.ensemble_ms) == len(case.raw_ms) == ROUNDS
        assert all(milliseconds > 0 for milliseconds in case.ensemble_ms + case.raw_ms)
        assert set(case.ensemble_steps_ms) == set(case.raw_steps_ms) == set(case.around_steps_ms) == every


@pytest.mark.triton
@pytest.mark.slow
def test_both_ways_give_the_same_answers(measured: latency.Latency) -> None:
    for case in measured.cases.values():
        assert case.probability_difference < 1e-5
        assert case.mask_difference == 0


@pytest.mark.triton
@pytest.mark.slow
def test_the_tables_name_every_case_and_every_step(measured: latency.Latency) -> None:
    text = "\n".join(latency.sections(measured))
    for word in ("triton 2.", *CASES, "xray_all", *(step.model for step in STEPS)):
        assert word in text
    rows = [line for line in text.splitlines() if line.startswith("| ct_open")]
    assert rows
    assert not any(" - " in row for row in rows)


def test_no_round_at_all_is_refused() -> None:
    with pytest.raises(RequestError, match="expected 1 round or more, got 0"):
        latency.measure(TritonServer(), 0)


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
    expected = {**twin.spinning(ort.__version__), **PRECISE}
    assert expected
    for key, value in expected.items():
        assert ours.get_session_config_entry(key) == servers.get_session_config_entry(key) == value
    assert raw.SPINNING == twin.spinning(ort.__version__)
    assert twin.PRECISE == PRECISE
