"""Servers that tests share. Each is started once a session, on free ports, and stopped at its end."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.repository import DEFAULT_REPOSITORY, check
from serving.tritonserver import ServerConfig, TritonServer
from tests import reliability
from tests.toy_models import write_toy_repository


def pytest_configure(config: pytest.Config) -> None:
    """Marks that belong to helpers of the tests, and not to the project."""
    config.addinivalue_line("markers", "reliability: counts for docs/reliability.md, see tests/reliability.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Tells the rows of docs/reliability.md how their test ended."""
    report = yield
    if call.when == "call":
        reliability.ended(failed=report.failed)
    return report


@pytest.fixture(scope="session")
def triton() -> Iterator[TritonServer]:
    """A started server over the published model repository."""
    problems = check(DEFAULT_REPOSITORY)
    if problems:
        # tests/serving/test_repository.py fails for the same reason; here it would fail a hundred times.
        pytest.skip(f"needs the published models: {problems[0]}")
    with TritonServer(ServerConfig(DEFAULT_REPOSITORY, grpc_port=0, http_port=0, metrics_port=0)) as server:
        yield server


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of `tests.toy_models`. Copy it before changing it."""
    return write_toy_repository(tmp_path_factory.mktemp("toys") / "model_repository")


@pytest.fixture(scope="session")
def toy_triton(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A started server over `tests.toy_models`: every answer can be computed from the image. Logs its requests."""
    log = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    config = ServerConfig(toy_repository, grpc_port=0, http_port=0, metrics_port=0, threads=1, request_log=log)
    with TritonServer(config) as server:
        yield server
