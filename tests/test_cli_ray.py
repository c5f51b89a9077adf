"""`lungstreams predict --engine ray`: the same batch on a cluster, with workers and drivers that are killed."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from lungstreams.cluster import check_reach
from lungstreams.cluster_task import Job, Mark, marked, read_case
from lungstreams.reading import Ask
from lungstreams.sources import Source
from serving import phantom
from serving.errors import RequestError
from serving.tritonserver import TritonServer
from tests.ray_cluster import TwoNodes, descendants, two_nodes
from tests.reliability import Tally, record
from tests.serving.volume_files import affine_ras, nifti_bytes
from tests.test_cli import ALL_OPEN, COMMAND, lungstreams, only_line
from tests.test_cli_batch import Batch, batch, count, eventually, lines_of, rows_of
from tests.test_cli_studies import chest

__all__ = ["batch"]

FILES = 160
EVERY = 4
"""One in so many of the files can be read."""
GROUP = "More machines"
CANARY = "Canary"
AS_XRAY = ("--json", "--modality=xray")
"""Whose steps form a chain: a client that is killed over them does not take Triton with it."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for i in range(FILES):
        pixels = np.full((48, 48), i, np.uint8)
        (folder / f"{i:04d}.png").write_bytes(phantom.png_bytes(pixels) if i % EVERY == 0 else b"\x89PNG")
    return folder


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """For sockets, whose paths must not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ls-"))
    yield folder
    shutil.rmtree(folder)


def told(value: Any) -> Any:
    """What a case says, without what differs from run to run."""
    if isinstance(value, dict):
        return {key: told(one) for key, one in value.items() if key not in ("latency_ms", "request_id", "resume")}
    return [told(one) for one in value] if isinstance(value, list) else value


def counted(out: Path, many: Path) -> Tally:
    """What became of the files of `many`, by the batch's record."""
    tally = Tally()
    lines = lines_of(out)
    for path in many.iterdir():
        found = [line for line in lines if line["file"] == str(path)]
        if len(found) != 1:
            (tally.mistake if found else tally.lose)()
        elif "error" in found[0]:
            tally.refuse()
        else:
            tally.answer()
    return tally


def once_each(out: Path, many: Path) -> None:
    """Each file of `many` has one line and one row, and those that can be read are read."""
    lines = lines_of(out)
    assert sorted(line["file"] for line in lines) == sorted(map(str, many.iterdir()))
    assert sorted(row["file"] for row in rows_of(out)) == sorted(map(str, many.iterdir()))
    read = {int(Path(line["file"]).stem): line for line in lines if "error" not in line}
    assert set(read) == set(range(0, FILES, EVERY))
    scores = [read[value]["diagnosis"]["covid19"] for value in sorted(read)]
    assert scores == sorted(scores)
    assert scores == pytest.approx([value / 255 for value in sorted(read)], abs=0.02)
    assert {line["error"]["type"] for line in lines if "error" in line} == {"UnreadableScan"}


@pytest.mark.slow
@pytest.mark.triton
def test_a_cluster_says_and_writes_what_this_process_does(
    cluster: TwoNodes, toy_triton: TritonServer, tmp_path: Path
) -> None:
    scans = tmp_path / "scans" / CANARY
    scans.mkdir(parents=True)
    for i in range(4):
        (scans / f"{i}.png").write_bytes(phantom.png_bytes(phantom.ct_slice(i, 64).pixels))
    stored = np.ascontiguousarray(chest(3).transpose(2, 1, 0))
    volume = nifti_bytes(stored, affine_ras((0, 1, 2), (-1, -1, 1), (0.8, 0.7, 5)), packed=True)
    (scans / "study.nii.gz").write_bytes(volume)
    (scans / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    def predict(place: str, *more: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
        (tmp_path / place).mkdir(exist_ok=True)
        shutil.copytree(tmp_path / "scans", tmp_path / place / "scans", dirs_exist_ok=True, copy_function=shutil.copy2)
        asked = ("scans", "--out", "out", "--json", "--explain", "--export", "csv", "--url", toy_triton.grpc_url)
        run = subprocess.run(
            [*COMMAND, "predict", *asked, *ALL_OPEN, *more],
            cwd=tmp_path / place,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert run.returncode == 1
        return run, {line["file"]: told(line) for line in lines_of(tmp_path / place / "out")}

    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    run, lines = predict("ray", *on_ray)
    local, expected = predict("local")
    assert lines == expected
    assert len(lines) == 6
    assert {case["file"]: told(case) for case in map(json.loads, run.stdout.splitlines())} == expected
    assert only_line(run.stderr) == only_line(local.stderr)
    places = [tmp_path / place / "out" / "masks" for place in ("ray", "local")]
    written, there = ({path.relative_to(place) for path in place.rglob("*")} for place in places)
    assert written == there
    for path in (path for path in there if path.suffix == ".png"):
        assert (places[0] / path).read_bytes() == (places[1] / path).read_bytes()

    # The record is the same record: either engine goes on with the other's.
    for place, more in (("ray", ()), ("local", on_ray)):
        again, lines = predict(place, *more)
        assert "done by an earlier run: 6" in only_line(again.stderr)
        assert again.stdout == ""
        assert lines == expected
    assert not [path for path in cluster.folder.rglob("*.*") if path.is_file() and CANARY in path.read_text("latin-1")]


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.reliability
@pytest.mark.long
def test_workers_and_drivers_that_are_killed_lose_no_case_and_double_none(
    cluster: TwoNodes, toy_triton: TritonServer, many: Path, tmp_path: Path, batch: Callable[..., Batch]
) -> None:
    out = tmp_path / "out"
    asked = (*AS_XRAY, "--url", toy_triton.grpc_url, "--engine", "ray", "--ray-address", cluster.address)
    running = batch("predict", many, "--out", out, *asked)
    assert eventually(lambda: count(out / "cases.jsonl") > 20)
    assert eventually(lambda: len(cluster.busy()) > 0)
    cluster.busy()[0].kill()
    assert running.end()[0] == 1
    row = record(counted(out, many).row("a batch on Ray, a worker of which is killed", group=GROUP))
    assert (row.answered, row.refused) == (FILES // EVERY, FILES - FILES // EVERY)
    once_each(out, many)
    only_line(running.err.read_text())

    killed = batch("predict", many, "--out", out, *asked, "--no-resume")
    assert eventually(lambda: 20 < count(out / "cases.jsonl") < FILES // 2)
    killed.kill()
    kept = count(out / "cases.jsonl")
    assert 20 < kept < FILES - 20
    resumed = batch("predict", many, "--out", out, *asked)
    assert resumed.end()[0] == 1
    assert f"done by an earlier run: {kept:,}" in only_line(resumed.err.read_text())
    row = record(counted(out, many).row("a batch on Ray whose command is killed, and given again", group=GROUP))
    assert (row.answered, row.refused) == (FILES // EVERY, FILES - FILES // EVERY)
    once_each(out, many)


@pytest.mark.long
@pytest.mark.reliability
@pytest.mark.triton
def test_a_case_that_every_worker_dies_over_is_an_error(
    cluster: TwoNodes, toy_triton: TritonServer, many: Path, batch: Callable[..., Batch]
) -> None:
    on_ray = ("--engine", "ray", "--ray-address", cluster.address)
    running = batch("predict", many / "0000.png", *AS_XRAY, "--url", toy_triton.grpc_url, *on_ray)

    def ended() -> bool:
        for worker in cluster.busy():
            worker.kill()
        return running.process.poll() is not None

    assert eventually(ended, within_s=240)
    assert running.process.returncode == 1
    error = json.loads(running.out.read_text())["error"]
    assert error["type"] == "InferenceFailed"
    assert error["message"].startswith("expected a worker to read it, got 4 that died over it")
    tally = Tally()
    tally.refuse()
    record(tally.row("a case on Ray that every worker dies over", group=GROUP))


@pytest.mark.slow
@pytest.mark.triton
def test_a_cluster_of_its_own_is_on_loopback_and_leaves_nothing(
    toy_triton: TritonServer,
    many: Path,
    tmp_path: Path,
    short_folder: Path,
    batch: Callable[..., Batch],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TMPDIR", str(short_folder))
    out, asked = tmp_path / "out", (*AS_XRAY, "--url", toy_triton.grpc_url)
    running = batch("predict", many, "--out", out, *asked, "--engine", "ray")
    assert eventually(lambda: count(out / "cases.jsonl") > 20)
    # Held meanwhile, or a quick batch would be done before it is stopped.
    running.process.send_signal(signal.SIGSTOP)
    started = descendants(running.process.pid)
    heard = [
        one.laddr.ip for each in started if each.is_running() for one in each.net_connections("tcp") if not one.raddr
    ]
    assert len(heard) > 3
    assert {address.removeprefix("::ffff:") for address in heard} == {"127.0.0.1"}
    running.process.send_signal(signal.SIGINT)
    running.process.send_signal(signal.SIGCONT)
    assert running.end()[0] == 130
    kept = count(out / "cases.jsonl")
    assert only_line(running.err.read_text()).endswith(f"stopped; {kept:,} cases were done and are kept")
    assert kept < FILES
    assert eventually(lambda: not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in started))
    assert list(short_folder.iterdir()) == []

    rest = lungstreams("predict", many, "--out", out, *asked)
    assert f"done by an earlier run: {kept:,}" in rest.stderr
    once_each(out, many)


@pytest.mark.triton
def test_where_no_cluster_is_it_is_one_line(toy_triton: TritonServer, many: Path) -> None:
    asked = ("predict", many, "--url", toy_triton.grpc_url, "--engine", "ray", "--ray-address")
    run = lungstreams(*asked, "127.0.0.1:1")
    assert run.returncode == 2
    assert "--ray-address: expected the HOST:PORT of a cluster's head, got 127.0.0.1:1: " in only_line(run.stderr)


def test_an_address_for_nothing_is_refused(many: Path) -> None:
    run = lungstreams("predict", many, "--ray-address", "127.0.0.1:6379")
    assert run.returncode == 2
    assert only_line(run.stderr) == "lungstreams: --ray-address: expected --engine ray with it, got it alone"


def test_without_the_extra_it_is_one_line(many: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ray'] = None\n")
    run = lungstreams("predict", many, "--engine", "ray", PYTHONPATH=str(tmp_path))
    assert run.returncode == 2
    assert only_line(run.stderr).endswith("pip install 'lungstreams[ray]'")


def test_other_machines_are_not_sent_to_this_ones_loopback() -> None:
    nodes = [{"NodeManagerAddress": f"192.0.2.{i}", "Alive": i < 3} for i in range(1, 4)]
    check_reach("127.0.0.1:8001", nodes[:1])
    check_reach("triton:8001", nodes)
    for url in ("127.0.0.1:8001", "localhost:8001", "[::1]:8001"):
        with pytest.raises(RequestError, match="expected an address that the 2 machines of the cluster reach"):
            check_reach(url, nodes)


class TestAMachineThatDoesNotShare:
    @pytest.fixture(autouse=True)
    def as_it_was(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        # A task is alone in its process, and moves to where the driver is.
        monkeypatch.chdir(tmp_path)
        yield
        logging.disable(logging.NOTSET)

    def case(self, folder: Path, there: bool = True, mark: Mark | None = None) -> dict[str, Any]:
        job = Job("127.0.0.1:1", Ask("xray", {}), None, mark, folder)
        (case,) = read_case(job, Source("a.png", (Path("a.png"),), is_study=False, place=Path("a.png")), there)
        return dict(case.data)

    def test_a_file_that_it_does_not_see_says_so(self, tmp_path: Path) -> None:
        said = self.case(tmp_path / "not here")["error"]
        assert said["type"] == "FileNotFoundError"
        assert said["message"] == "expected the file on every machine of the cluster, got one that does not see it"

    def test_a_file_that_is_nowhere_is_what_it_is_without_a_cluster(self, tmp_path: Path) -> None:
        assert self.case(tmp_path, there=False)["error"]["message"] == "No such file or directory"

    def test_a_folder_that_is_another_gets_no_masks(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(b"\x89PNG")
        with marked(Path("out")) as mark:
            assert self.case(tmp_path, mark=mark)["error"]["type"] == "UnreadableScan"
        with marked(Path("out")):
            said = self.case(tmp_path, mark=mark)["error"]
        assert said["message"] == "expected --out out on every machine of the cluster, got one without it"
        assert list((tmp_path / "out").iterdir()) == []
