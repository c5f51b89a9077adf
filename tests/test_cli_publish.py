"""Publishing a version from the command line, on a server that was started from it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import phantom
from tests.test_cli import ALL_OPEN, ANY_PORTS, Serving, cases_of, lungstreams, only_line
from tests.toy_models import STRIPS, means_network
from tests.version_files import FINDINGS, exported, gated, other_findings, truncated

KEY = "not-a-secret-of-anyone"


@pytest.fixture(scope="module")
def repository(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(toy_repository, tmp_path_factory.mktemp("published") / "model_repository"))


@pytest.fixture(scope="module")
def url(repository: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LUNGSTREAMS_ADMIN_KEY", KEY)
        serving = Serving("serve", "--repository", repository, *ANY_PORTS, "--threads=1", "--model-control=explicit")
    yield serving.first_line.strip().removeprefix("ready grpc=")
    serving.kill()


@pytest.mark.triton
def test_a_version_is_published_seen_by_a_client_and_a_bad_one_is_one_line(
    url: str, repository: Path, tmp_path: Path
) -> None:
    at = ("--repository", repository, "--url", url)
    scan = tmp_path / "slice.png"
    scan.write_bytes(phantom.png_bytes(phantom.ct_slice(1, 128).pixels))
    good = exported(tmp_path / "good", other_findings())
    run = lungstreams("repository", "publish", FINDINGS.model, good, *at, LUNGSTREAMS_ADMIN_KEY=KEY)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"published {repository / FINDINGS.model / '2'} (before: 1)\n"
    bad = exported(tmp_path / "bad", truncated(), reference=False)
    run = lungstreams("repository", "publish", FINDINGS.model, bad, *at, LUNGSTREAMS_ADMIN_KEY=KEY)
    assert (run.returncode, run.stdout) == (2, "")
    assert "a graph that ONNX Runtime loads" in only_line(run.stderr)
    other = exported(tmp_path / "other", gated(means_network(STRIPS)), reference=False)
    run = lungstreams("repository", "publish", FINDINGS.model, other, *at, LUNGSTREAMS_ADMIN_KEY=KEY)
    assert run.returncode == 2
    assert re.search("version 2, which is served: .* needs --allow-change$", only_line(run.stderr))
    allowed = ("repository", "publish", FINDINGS.model, other, *at, "--allow-change")
    assert lungstreams(*allowed, LUNGSTREAMS_ADMIN_KEY=KEY).returncode == 0
    run = lungstreams("predict", scan, "--url", url, "--json", *ALL_OPEN)
    assert cases_of(run)[0]["models"][FINDINGS.model] == "3"
    assert lungstreams("repository", "check", "--repository", repository).returncode == 0


def test_who_has_no_key_is_told_where_it_is_looked_for(tmp_path: Path) -> None:
    run = lungstreams("repository", "publish", FINDINGS.model, tmp_path)
    assert run.returncode == 2
    assert "expected the server's admin key in LUNGSTREAMS_ADMIN_KEY, got none" in only_line(run.stderr)


def test_a_server_with_explicit_control_needs_a_key() -> None:
    run = lungstreams("serve", *ANY_PORTS, "--model-control=explicit")
    assert run.returncode == 2
    assert "expected an admin key with explicit model control" in only_line(run.stderr)
