from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image

from lungstreams import cli
from serving import phantom, pipeline
from serving.activation import CAUTION, render_heat, restore_map
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, MANIFESTATIONS, STREAM_NAMES
from serving.lungs import within_body
from serving.measuring import NO_LUNG
from serving.preprocessing import preprocess
from serving.results import restore_mask
from serving.scans import decode, from_hu
from serving.tritonserver import TritonServer
from tests.processes import is_triton
from tests.reliability import Tally, record
from tests.serving.test_measuring import BODY, CHEST, LEFT_LUNG, RIGHT_LUNG, area, drawn
from tests.toy_models import expected_activation, expected_mask

COMMAND = [sys.executable, "-m", "lungstreams"]
ALL_OPEN = [f"--threshold={name}=0" for name in pipeline.THRESHOLD_NAMES]
REQUESTS = "requests.jsonl"
ANY_PORTS = ["--grpc-port=0", "--http-port=0", "--metrics-port=0"]


def lungstreams(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LUNGSTREAMS_")}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
        env={**clean, "COLUMNS": "120", **environment},
    )


def only_line(text: str) -> str:
    lines = text.splitlines()
    assert len(lines) == 1, text
    return lines[0]


def cases_of(run: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.stdout.splitlines()]


def taken_port() -> tuple[socket.socket, int]:
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.listen()
    return holder, holder.getsockname()[1]


@pytest.fixture
def dead_url() -> str:
    holder, port = taken_port()
    holder.close()
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    slice_px = phantom.ct_slice(seed=5, size_px=300).pixels[:, 30:]
    (folder / "slice.png").write_bytes(phantom.png_bytes(slice_px))
    (folder / "slice.dcm").write_bytes(phantom.dicom_bytes(slice_px, modality="ct", pixel_spacing_mm=(0.8, 0.8)))
    Image.fromarray(phantom.chest_xray(seed=5, size_px=320)).save(folder / "chest.jpeg", quality=90)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    return folder


class TestPredictAsJson:
    @pytest.fixture(scope="class")
    @classmethod
    def run(
        cls, toy_triton: TritonServer, scans: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[subprocess.CompletedProcess[str], Path]:
        masks = tmp_path_factory.mktemp("out") / "masks"
        files = [scans / name for name in ("slice.png", "broken.png", "slice.dcm", "missing.png", "chest.jpeg")]
        url = toy_triton.grpc_url
        return lungstreams("predict", *files, "--json", "--out", masks, *ALL_OPEN, LUNGSTREAMS_URL=url), masks

    def test_is_one_object_a_file_in_their_order(self, run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
        names = [Path(case["file"]).name for case in cases_of(run[0])]
        assert names == ["slice.png", "broken.png", "slice.dcm", "missing.png", "chest.jpeg"]

    def test_bad_files_are_reported_and_the_others_done(
        self, run: tuple[subprocess.CompletedProcess[str], Path]
    ) -> None:
        done, broken, dicom, missing, chest = cases_of(run[0])
        assert run[0].returncode == 1
        assert set(broken) == {"file", "error", "request_id"}
        assert broken["error"]["type"] == "UnreadableScan"
        assert "PNG" in broken["error"]["message"]
        assert missing["error"] == {"type": "FileNotFoundError", "message": "No such file or directory"}
        assert all("error" not in case for case in (done, dicom, chest))
        assert run[0].stderr == ""

    def test_a_ct_slice_has_everything(self, run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
        for case in (cases_of(run[0])[0], cases_of(run[0])[2]):
            assert set(case) == {
                *("file", "modality", "diagnosis", "manifestations", "masks", "area_fraction", "status", "models"),
                *("latency_ms", "doubts", "request_id", "burden"),
            }
            assert case["doubts"] == []
            assert case["modality"] == "ct"
            assert tuple(case["diagnosis"]) == DIAGNOSIS_NAMES
            assert tuple(case["manifestations"]) == MANIFESTATION_NAMES
            assert set(case["status"]) == {"manifestations", *STREAM_NAMES}
            assert set(case["status"].values()) == {"ran"}
            assert case["models"] == dict.fromkeys(pipeline.MODEL_NAMES, "1")
            assert case["latency_ms"] > 0

    def test_an_xray_is_not_applicable(self, run: tuple[subprocess.CompletedProcess[str], Path]) -> None:
        case = cases_of(run[0])[4]
        assert case["modality"] == "xray"
        assert set(case["status"].values()) == {"not_applicable"}
        assert set(case["manifestations"].values()) == {None}
        assert case["masks"] == dict.fromkeys(STREAM_NAMES)
        assert case["area_fraction"] == dict.fromkeys(STREAM_NAMES)
        assert case["burden"] is None

    def test_masks_look_right_and_read_back_as_ids(
        self, run: tuple[subprocess.CompletedProcess[str], Path], scans: Path
    ) -> None:
        case = cases_of(run[0])[0]
        scan = decode((scans / "slice.png").read_bytes())
        image = preprocess(scan)
        for stream in STREAM_NAMES:
            with Image.open(case["masks"][stream]) as png:
                assert png.format == "PNG"
                assert png.mode == "P"
                ids, colours = np.asarray(png), np.asarray(png.convert("RGB"))
            marked = restore_mask(expected_mask(image, stream), scan)
            np.testing.assert_array_equal(
                ids, np.where(within_body(scan.pixels, np.zeros(scan.size_hw, np.uint8)), marked, 0)
            )
            labels = MANIFESTATIONS if stream == "all" else [m for m in MANIFESTATIONS if m.name == stream]
            for class_id in set(np.unique(ids)) - {0}:
                assert set(map(tuple, colours[ids == class_id])) == {labels[class_id - 1].colour_rgb}
            assert case["area_fraction"][stream] == pytest.approx((ids > 0).mean())

    def test_files_of_one_name_do_not_overwrite_each_others_masks(
        self, run: tuple[subprocess.CompletedProcess[str], Path]
    ) -> None:
        written = {path.name for path in run[1].iterdir()}
        assert written == {f"{prefix}.{stream}.png" for prefix in ("slice", "slice.2") for stream in STREAM_NAMES}
        assert Path(cases_of(run[0])[2]["masks"]["all"]).name == "slice.2.all.png"


class TestBurden:
    def test_a_slice_has_pixels_and_per_cent_of_the_lung_and_one_without_lung_says_so(
        self, toy_triton: TritonServer, tmp_path: Path
    ) -> None:
        for name, hu in (("chest", CHEST), ("belly", drawn(BODY))):
            (tmp_path / f"{name}.png").write_bytes(phantom.png_bytes(from_hu(hu).pixels))
        files, url = [tmp_path / "chest.png", tmp_path / "belly.png"], toy_triton.grpc_url
        chest, belly = cases_of(
            lungstreams(*("predict", *files, "--modality=ct", "--json", *ALL_OPEN, "--out", tmp_path, "--url", url))
        )
        lung = {side: amount["pixels"] for side, amount in chest["burden"]["lung"].items()}
        right, left = area(RIGHT_LUNG), area(LEFT_LUNG)
        # What the toys mark as consolidation is lung, too: more than is drawn, never less.
        assert lung["both"] == lung["right"] + lung["left"] >= 0.99 * (right + left)
        for stream in STREAM_NAMES:
            with Image.open(chest["masks"][stream]) as png:
                marked = np.count_nonzero(np.asarray(png))
            found = chest["burden"]["found"][stream]["both"]
            assert found == {"pixels": marked, "mm2": None, "percent": pytest.approx(100 * marked / lung["both"])}
        assert belly["burden"]["note"] == NO_LUNG
        assert belly["burden"]["lung"]["both"]["percent"] is None
        shown = lungstreams("predict", *files, "--modality=ct", *ALL_OPEN, "--url", url).stdout
        words = " ".join(shown.split())
        assert f"of {lung['both']:,} pixels)" in words
        assert NO_LUNG in words
        assert f"{chest['burden']['found']['ground_glass']['right']['percent']:.1f} %" in shown


class TestPredictDoubts:
    def test_what_is_no_chest_scan_is_flagged_above_its_table(self, toy_triton: TritonServer, tmp_path: Path) -> None:
        noise = tmp_path / "noise.png"
        noise.write_bytes(phantom.png_bytes(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)))
        url = toy_triton.grpc_url
        shown = lungstreams("predict", noise, "--modality=xray", "--url", url).stdout
        assert "This does not look like a chest X-ray. What follows is not to be trusted." in shown
        assert shown.index("not to be trusted") < shown.index("COVID-19")
        (case,) = cases_of(lungstreams("predict", noise, "--modality=xray", "--json", "--url", url))
        assert case["doubts"] == ["This does not look like a chest X-ray."]
        in_short = lungstreams("predict", tmp_path, "--modality=xray", "--url", url).stdout
        assert "This does not look like a chest X-ray. What follows is not to be trusted. xray, " in in_short


class TestPredictWhy:
    def test_heat_of_the_likeliest_diagnosis_is_written_and_named(
        self, toy_triton: TritonServer, scans: Path, tmp_path: Path
    ) -> None:
        files = [scans / name for name in ("slice.png", "slice.dcm", "chest.jpeg", "broken.png")]
        run = lungstreams(
            "predict", *files, "--json", "--explain", "--out", tmp_path, LUNGSTREAMS_URL=toy_triton.grpc_url
        )
        *cases, broken = cases_of(run)
        assert "explanation" not in broken
        for case, file, stem in zip(cases, files, ("slice", "slice.2", "chest"), strict=False):
            likeliest = max(case["diagnosis"], key=case["diagnosis"].__getitem__)
            assert case["explanation"] == str(tmp_path / f"{stem}.why.{likeliest}.png")
            scan = decode(file.read_bytes())
            cells = expected_activation(preprocess(scan))[DIAGNOSIS_NAMES.index(likeliest)]
            with Image.open(case["explanation"]) as png:
                heat = np.asarray(png)
            assert np.abs(heat.astype(int) - render_heat(scan.pixels, restore_map(cells, scan.size_hw))).max() <= 1

    def test_there_must_be_a_place_for_the_pictures(self, scans: Path, dead_url: str) -> None:
        run = lungstreams("predict", scans / "slice.png", "--explain", "--url", dead_url)
        assert run.returncode == 2
        assert "add --out DIR" in only_line(run.stderr)

    def test_the_table_names_it_beside_the_likeliest(
        self, toy_triton: TritonServer, scans: Path, tmp_path: Path
    ) -> None:
        url = toy_triton.grpc_url
        run = lungstreams("predict", scans / "chest.jpeg", "--explain", "--out", tmp_path, "--url", url, COLUMNS="400")
        (picture,) = tmp_path.iterdir()
        assert picture.name.startswith("chest.why.")
        assert [line for line in run.stdout.splitlines() if picture.name in line]
        assert CAUTION.partition(":")[0] in " ".join(run.stdout.split())


class TestPredict:
    def test_closed_gates_are_not_run_rather_than_nothing_found(self, toy_triton: TritonServer, scans: Path) -> None:
        run = lungstreams(
            *("predict", scans / "slice.png", "--url", toy_triton.grpc_url, "--json", "--threshold=covid19=1")
        )
        (case,) = cases_of(run)
        assert run.returncode == 0
        assert set(case["status"].values()) == {"not_run"}
        assert case["manifestations"] == dict.fromkeys(MANIFESTATION_NAMES)
        assert case["masks"] == dict.fromkeys(STREAM_NAMES)

    def test_the_table_is_for_people(self, toy_triton: TritonServer, scans: Path, tmp_path: Path) -> None:
        run = lungstreams(
            *("predict", scans / "slice.png", scans / "chest.jpeg", "--url", toy_triton.grpc_url),
            *("--out", tmp_path, "--threshold=consolidation=1", "--threshold=ground_glass=0"),
        )
        assert run.returncode == 0, run.stderr
        assert run.stderr == ""
        for text in ("COVID-19", "Ground-glass opacity", "not run", "not applicable", "not a medical device"):
            assert re.search(text, run.stdout), text
        assert (tmp_path / "slice.ground_glass.png").exists()
        assert not (tmp_path / "slice.consolidation.png").exists()

    def test_a_file_of_another_modality_is_a_failure_of_that_file(self, toy_triton: TritonServer, scans: Path) -> None:
        run = lungstreams(
            *("predict", scans / "slice.dcm", scans / "slice.png", "--url", toy_triton.grpc_url, "--modality=xray")
        )
        assert run.returncode == 1
        # With what its lines in a log can be found by.
        assert re.match(
            r"lungstreams: .*slice.dcm: RequestError: .* \(request id [0-9a-f]{32}\)$", only_line(run.stderr)
        )
        assert "slice.png" in run.stdout

    def test_no_server_is_one_line_that_says_how_to_start_one(self, scans: Path, dead_url: str) -> None:
        run = lungstreams("predict", scans / "slice.png", "--url", dead_url)
        assert run.returncode == 2
        line = only_line(run.stderr)
        assert dead_url in line
        assert "lungstreams serve" in line
        assert run.stdout == ""

    @pytest.mark.parametrize(
        ("argument", "expected"),
        [
            ("--threshold=fever=0.5", "expected one of covid19"),
            ("--threshold=covid19", "expected NAME=VALUE"),
            ("--threshold=covid19=high", "expected NAME=VALUE"),
            ("--threshold=covid19=1.5", "expected a number in [0, 1], got 1.5"),
            ("--threshold=covid19=nan", "expected a number in [0, 1], got nan"),
            ("--modality=mri", "expected one of auto, ct, xray, got 'mri'"),
            ("--treshold=covid19=1", "No such option"),
        ],
    )
    def test_what_can_not_be_asked_is_one_line(self, scans: Path, dead_url: str, argument: str, expected: str) -> None:
        run = lungstreams("predict", scans / "slice.png", "--url", dead_url, argument)
        assert run.returncode == 2
        assert expected in only_line(run.stderr)


class Serving:
    """A command that says when it is ready, and then serves until it is told to stop."""

    def __init__(self, *arguments: object, command: Sequence[object] = COMMAND) -> None:
        words = [*map(str, command), *map(str, arguments)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.watchdog = threading.Timer(240, self.process.kill)
        self.watchdog.start()
        self.first_line = self.process.stdout.readline()

    def stop(self, number: int) -> tuple[int, str, str]:
        """Exit status, what else there was of standard output, and standard error."""
        self.process.send_signal(number)
        rest, errors = self.process.communicate(timeout=120)
        self.watchdog.cancel()
        return self.process.returncode, rest, errors

    def kill(self) -> None:
        self.watchdog.cancel()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def serving(toy_repository: Path, tmp_path: Path) -> Iterator[Serving]:
    log = f"--request-log={tmp_path / REQUESTS}"
    running = Serving("serve", "--repository", toy_repository, *ANY_PORTS, "--threads=1", log)
    yield running
    running.kill()


def children_of(pid: int) -> set[int]:
    found = {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }
    return found.union(*(children_of(child) for child in found)) if found else found


class TestServe:
    @pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
    def test_says_that_it_is_ready_serves_and_stops_cleanly(
        self, serving: Serving, scans: Path, number: signal.Signals, tmp_path: Path
    ) -> None:
        ready = re.fullmatch(r"ready grpc=(127\.0\.0\.1:\d+)\n", serving.first_line)
        assert ready, serving.first_line
        (case,) = cases_of(lungstreams("predict", scans / "slice.png", "--url", ready[1], "--json"))
        assert case["modality"] == "ct"
        assert (tmp_path / REQUESTS).read_text().count(case["request_id"]) == len(pipeline.STEPS)
        started = children_of(serving.process.pid)
        assert started
        assert serving.stop(number) == (0, "", "")
        assert not [child for child in started if Path(f"/proc/{child}").exists()]
        assert lungstreams("predict", scans / "slice.png", "--url", ready[1]).returncode == 2

    @pytest.mark.long
    def test_a_server_that_dies_is_reported_and_comes_back(self, serving: Serving, scans: Path) -> None:
        url = serving.first_line.removeprefix("ready grpc=").strip()
        for child in children_of(serving.process.pid):
            if is_triton(child):
                os.kill(child, signal.SIGKILL)
        assert serving.process.stderr is not None
        gone, back = serving.process.stderr.readline(), serving.process.stderr.readline()
        assert "Triton ended by itself (exit status -9" in gone
        assert back == f"lungstreams: Triton is back at {url}\n"
        (case,) = cases_of(lungstreams("predict", scans / "slice.png", "--url", url, "--json"))
        assert case["modality"] == "ct"
        assert serving.stop(signal.SIGTERM) == (0, "", "")

    @pytest.mark.reliability
    def test_a_taken_port_is_one_line(self, toy_repository: Path) -> None:
        holder, port = taken_port()
        with holder:
            run = lungstreams("serve", "--repository", toy_repository, *ANY_PORTS[1:], "--grpc-port", port)
        assert run.returncode == 2
        assert str(port) in only_line(run.stderr)
        assert run.stdout == ""
        tally = Tally()
        tally.refuse()
        record(tally.row("serve with its port taken", group="Faults"))

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--grpc-port=99999"], "expected 0 to 65535, got 99999"),
            (["--grpc-port=many"], "--grpc-port"),
            (["--threads=0"], "expected at least 1 thread, got 0"),
            (["--repository=nowhere", *ANY_PORTS], "expected a model repository at nowhere, got no such folder"),
            (
                ["--request-log=nowhere/log", *ANY_PORTS],
                "can be written at nowhere/log, got: No such file or directory",
            ),
        ],
    )
    def test_what_can_not_be_served_is_one_line(self, arguments: list[str], expected: str) -> None:
        run = lungstreams("serve", *arguments)
        assert run.returncode == 2
        assert expected in only_line(run.stderr)
        assert run.stdout == ""


class TestDemo:
    def test_says_where_the_page_is_and_stops_cleanly(self, toy_triton: TritonServer, dead_url: str) -> None:
        demo = Serving("demo", "--url", toy_triton.grpc_url, "--port", dead_url.split(":")[1])
        try:
            ready = re.fullmatch(r"ready page=(http://127\.0\.0\.1:\d+/)\n", demo.first_line)
            assert ready, demo.first_line
            with urlopen(ready[1], timeout=60) as page:
                assert page.status == 200
            assert demo.stop(signal.SIGTERM) == (0, "", "")
        finally:
            demo.kill()

    @pytest.mark.reliability
    def test_a_taken_port_is_one_line(self, toy_triton: TritonServer) -> None:
        holder, port = taken_port()
        with holder:
            run = lungstreams("demo", "--url", toy_triton.grpc_url, "--port", port)
        assert run.returncode == 2
        assert str(port) in only_line(run.stderr)
        tally = Tally()
        tally.refuse()
        record(tally.row("demo with its port taken", group="Faults"))

    def test_an_audit_log_that_can_not_be_written_is_one_line(self, dead_url: str) -> None:
        run = lungstreams("demo", "--url", dead_url, "--audit-log", "nowhere/log")
        assert run.returncode == 2
        said = "audit log: expected a file that can be written at nowhere/log, got: No such file or directory"
        assert only_line(run.stderr) == f"lungstreams: {said}"

    def test_a_request_log_of_a_server_that_is_not_ours_is_warned_of(self, capsys: pytest.CaptureFixture[str]) -> None:
        cli._not_ours("box:8001", Path("log"))
        assert "warning: --request-log has no effect" in only_line(capsys.readouterr().err)
        cli._not_ours("box:8001", None)
        assert capsys.readouterr().err == ""


class TestRepository:
    def test_a_good_one_is_ok(self, toy_repository: Path) -> None:
        run = lungstreams("repository", "check", "--repository", toy_repository)
        assert (run.returncode, run.stderr) == (0, "")
        assert only_line(run.stdout).startswith("ok ")

    def test_write_mends_the_configs_and_check_names_what_is_missing(self, tmp_path: Path) -> None:
        assert lungstreams("repository", "write", "--repository", tmp_path).returncode == 0
        config = tmp_path / "recognition" / "config.pbtxt"
        written = config.read_text()
        config.write_text(written.replace("TYPE_FP32", "TYPE_FP16"))
        broken = lungstreams("repository", "check", "--repository", tmp_path)
        assert broken.returncode == 1
        assert lungstreams("repository", "write", "--repository", tmp_path).returncode == 0
        assert config.read_text() == written
        rest = lungstreams("repository", "check", "--repository", tmp_path)
        assert rest.returncode == 1  # There are no models yet.
        assert set(rest.stdout.splitlines()) < set(broken.stdout.splitlines())


class TestHelp:
    @pytest.mark.parametrize(
        "command",
        [
            *("serve", "demo", "predict", "train", "evaluate", "export", "bench", "loadtest"),
            *("repository check", "repository publish"),
            *("data", "data check", "data download"),
        ],
    )
    def test_every_command_teaches_by_example(self, command: str) -> None:
        run = lungstreams(*command.split(), "--help")
        assert run.returncode == 0
        assert f"$ lungstreams {command}" in run.stdout

    def test_alone_it_shows_the_commands(self) -> None:
        run = lungstreams()
        assert run.returncode == 0
        commands = (
            "serve",
            "demo",
            "predict",
            "data",
            "train",
            "evaluate",
            "export",
            "bench",
            "loadtest",
            "repository",
        )
        for command in commands:
            assert command in run.stdout
        assert "not a medical device" in run.stdout

    def test_an_unknown_command_is_one_line(self) -> None:
        run = lungstreams("prdict")
        assert run.returncode == 2
        assert "prdict" in only_line(run.stderr)

    def test_a_missing_extra_says_how_to_get_it(self, tmp_path: Path) -> None:
        # What `import keras` finds where the extra was not installed, on a path that is searched first.
        blocker = "import sys\nfor name in ('keras', 'tensorflow', 'onnx', 'tf2onnx'):\n    sys.modules[name] = None\n"
        (tmp_path / "sitecustomize.py").write_text(blocker)
        run = lungstreams("train", "recognition_first", PYTHONPATH=str(tmp_path))
        assert run.returncode == 2
        assert only_line(run.stderr).endswith("pip install 'lungstreams[train]'")
