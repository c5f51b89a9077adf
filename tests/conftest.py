"""Servers that tests share. Each is started once a session, on free ports, and stopped at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.repository import DEFAULT_REPOSITORY, check
from serving.tritonserver import ServerConfig, TritonServer
from tests.toy_models import write_toy_repository


def pytest_configure(config: pytest.Config) -> None:
    """Marks that belong to helpers of the tests, and not to the project."""
    config.addinivalue_line("markers", "reliability: counts for docs/reliability.md, see tests/reliability.py")


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
