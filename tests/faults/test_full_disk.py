"""No room for files: one line that says so, nothing half written, and all is well as soon as there is room."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo import guard
from serving import phantom
from serving.process import children_of
from serving.tritonserver import TritonServer
from tests.demo.page_process import free_port, served_page, upload
from tests.faults.small_disk import NO_ROOM_WORDS, SmallDisk, small_disk
from tests.reliability import Tally, record
from tests.test_cli import ANY_PORTS, COMMAND, Serving, lungstreams, only_line

pytestmark = [pytest.mark.triton, pytest.mark.reliability]

GROUP = "Faults"
SCAN = phantom.png_bytes(phantom.ct_slice(0, 256).pixels)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder) as disk:
        yield disk


def is_clear(run: subprocess.CompletedProcess[str]) -> bool:
    return any(words in run.stderr for words in NO_ROOM_WORDS) and "Traceback" not in run.stdout + run.stderr


def test_masks_that_find_no_room_are_one_line_and_not_half_written(
    toy_triton: TritonServer, disk: SmallDisk, tmp_path: Path
) -> None:
    tally, scans, out = Tally(), tmp_path / "scans", disk.folder / "out"
    scans.mkdir()
    for name in ("one.png", "two.png"):
        (scans / name).write_bytes(SCAN)
    gates = ["--threshold=covid19=0", "--threshold=ground_glass=0"]
    asks = [scans / "one.png", scans]  # by hand, and as a batch, which is recorded as well
    commands = [("predict", given, "--url", toy_triton.grpc_url, "--out", out, *gates) for given in asks]
    with disk.full():
        for command, code in zip(commands, (1, 2), strict=True):
            run = lungstreams(*command)
            (tally.refuse if is_clear(run) else tally.mistake)()
            assert run.returncode == code
            assert f"{out} can not be written: " in only_line(run.stderr)
            assert disk.used_bytes() == 0
    for command in commands:
        run = lungstreams(*command)
        assert run.returncode == 0, run.stderr
        tally.answer()
    assert (out / "masks" / "two.png.ground_glass.png").stat().st_size
    row = record(tally.row("predict --out on a full disk, and with room again", group=GROUP))
    assert (row.answered, row.refused) == (2, 2)


def test_output_that_finds_no_room_is_one_line(toy_triton: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(SCAN)
    command = [*COMMAND, "predict", str(tmp_path / "one.png"), "--url", toy_triton.grpc_url, "--json"]
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=240, check=False)
    assert run.returncode == 2
    assert NO_ROOM_WORDS[0] in only_line(run.stderr)


def test_a_server_without_room_for_its_files_is_one_line(
    toy_repository: Path, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    tally, command = Tally(), ("serve", "--repository", toy_repository, *ANY_PORTS, "--threads=1")
    monkeypatch.setenv("TMPDIR", str(disk.folder))
    with disk.full(left_bytes=2**16):
        run = lungstreams(*command)
        (tally.refuse if is_clear(run) else tally.mistake)()
        assert run.returncode == 2
        assert f"expected room for the server's temporary files in {disk.folder}" in only_line(run.stderr)
        assert run.stdout == ""
        assert disk.used_bytes() == 0
    serving = Serving(*command)
    assert serving.first_line.startswith("ready grpc=")
    assert serving.stop(signal.SIGTERM) == (0, "", "")
    tally.answer()
    row = record(tally.row("serve with a full disk for temporary files, and with room again", group=GROUP))
    assert (row.answered, row.refused) == (1, 1)


def test_an_upload_that_finds_no_room_is_told_so_and_the_page_lives_on(disk: SmallDisk, tmp_path: Path) -> None:
    tally = Tally()
    own = {"TMPDIR": str(disk.folder), "GRADIO_TEMP_DIR": str(disk.folder / "cache")}
    before = children_of(os.getpid())
    with served_page(f"127.0.0.1:{free_port()}", environment=own, log=tmp_path / "log") as url:
        (page,) = children_of(os.getpid()) - before
        used = disk.used_bytes()
        with disk.full(page):
            for _ in range(3):
                answer = upload(url, SCAN)
                (tally.refuse if (answer.status_code, answer.text) == (507, guard.NO_ROOM) else tally.mistake)()
            assert httpx.get(f"{url}{guard.HEALTH_PATH}", timeout=60).status_code == 200
        assert disk.used_bytes() == used
        assert upload(url, SCAN).status_code == 200
        tally.answer()
    assert "Traceback" not in (tmp_path / "log").read_text()
    row = record(tally.row("uploads to a page whose disk is full, and with room again", group=GROUP))
    assert (row.answered, row.refused) == (1, 3)
