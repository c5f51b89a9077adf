from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest

from demo import panels
from demo.case import View, read_case
from demo.examples import draw_examples
from demo.watch import Health, ServerWatch
from serving import phantom, pipeline
from serving.burden import Area, SliceBurden
from serving.errors import CanNotExport, InferenceFailed, RequestError, ServerBusy, ServerUnreachable, UnreadableScan
from serving.labels import STREAM_NAMES, Modality
from serving.results import CaseReport, build_report
from serving.scans import Scan, decode
from serving.tritonserver import TritonServer
from tests.demo.page_process import free_port, served_page


def report_of(
    modality: Modality = "ct",
    findings: tuple[float, float, float] = (0.9, 0.7, 0.12),
    thresholds: Mapping[str, float] | None = None,
    marked: tuple[str, ...] = ("all", "ground_glass"),
) -> CaseReport:
    """The report of an answer in which the streams `marked` found a corner of the slice."""
    corner = np.zeros(pipeline.MODEL_HW, np.uint8)
    corner[:64, :128] = 1
    tensors = {
        pipeline.DIAGNOSIS.name: np.array([0.25, 0.6, 0.1, 0.05], np.float32),
        pipeline.FINDINGS.name: np.array(findings, np.float32),
        **{pipeline.mask_output(s): corner if s in marked else np.zeros_like(corner) for s in STREAM_NAMES},
    }
    models = {model: "7" for model in pipeline.MODEL_NAMES}
    scan = Scan(np.zeros((128, 256), np.uint8), modality, "png")
    return build_report(
        scan, tensors, thresholds, models=models, latency_ms=731.4, stage_ms={"preprocess": 12.2, "recognition": 60.8}
    )


@pytest.fixture(scope="module")
def dead_url() -> str:
    return f"127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def page(dead_url: str) -> Iterator[str]:
    """The address of a page whose Triton is not there."""
    with served_page(dead_url) as url:
        yield url


def fetch(url: str) -> str:
    with urlopen(url, timeout=30) as answer:
        return str(answer.read().decode())


def test_a_stream_that_found_something_says_how_much_of_the_slice() -> None:
    # 64 x 128 of 512 x 512 is 1/32.
    assert "<strong>3.12 %</strong> of the slice" in panels.manifestations(report_of())


def test_burden_is_pixels_and_per_cent_or_why_there_is_none() -> None:
    assert panels.burden(report_of("xray")) == ""
    report = report_of()
    sides = {"both": Area(50, None, 25.0), "right": Area(50, None, 50.0), "left": Area(0, None, 0.0)}
    lung = {"both": Area(200, None, 100.0), "right": Area(100, None, 100.0), "left": Area(100, None, 100.0)}
    html = panels.burden(replace(report, burden=SliceBurden(lung, {"infected": sides, "ground_glass": sides})))
    assert "<b>25.0 %</b><span>50 px</span>" in html
    assert html.index("Ground-glass") < html.index("Any of them") < html.index(">Lung<")
    together = {"both": lung["both"], "right": None, "left": None}
    html = panels.burden(replace(report, burden=SliceBurden(together, {"infected": together})))
    assert "can not be told apart" in html
    assert "Right" not in html
    html = panels.burden(replace(report, burden=SliceBurden(dict.fromkeys(lung), {"infected": sides}, "No lung.")))
    assert "No lung." in html
    assert "<table" not in html


def test_found_nothing_found_not_run_and_not_applicable_are_told_apart() -> None:
    html = panels.manifestations(report_of())
    assert html.count("ran, nothing found") == 1
    assert html.count("not run: gate closed (p = 0.12 &lt; threshold 0.50)") == 1
    assert "Not applicable" not in html
    xray = panels.manifestations(report_of("xray"))
    assert "Not applicable" in xray
    assert "X-ray" in xray
    assert "nothing found" not in xray
    assert "not run" not in xray


def test_a_gate_closed_by_the_diagnosis_says_so_for_every_stream() -> None:
    html = panels.manifestations(report_of(thresholds={"covid19": 0.5}))
    assert html.count("not run: gate closed by COVID-19 (p = 0.25 &lt; threshold 0.50)") == len(STREAM_NAMES)
    assert "nothing found" not in html
    assert "aria-valuenow" not in html


def test_no_manifestation_at_its_threshold_closes_all() -> None:
    html = panels.manifestations(report_of(findings=(0.01, 0.01, 0.01)))
    assert "not run: gate closed (no manifestation reached its threshold)" in html


@pytest.mark.parametrize(
    ("p", "threshold", "said"),
    [
        (0.12, 0.5, "p = 0.12 &lt; threshold 0.50"),
        (0.4999, 0.5, "p = 0.4999 &lt; threshold 0.5000"),
        (0.496, 0.5, "p = 0.496 &lt; threshold 0.500"),
    ],
)
def test_a_closed_gate_is_said_with_enough_digits_to_see_why(p: float, threshold: float, said: str) -> None:
    assert panels.below(p, threshold) == said


@pytest.mark.parametrize(
    ("fraction", "said"), [(0.0318, "3.18 %"), (0.318, "31.8 %"), (1.0, "100.0 %"), (1e-6, "&lt; 0.01 %")]
)
def test_areas_are_in_per_cent_of_the_slice(fraction: float, said: str) -> None:
    assert panels.area(fraction) == said


def test_the_diagnosis_names_the_highest_score_and_shows_all_four() -> None:
    html = panels.diagnosis(report_of())
    assert "Highest score: <strong>Normal</strong>" in html
    for value in ("25.0 %", "60.0 %", "10.0 %", "5.0 %"):
        assert f'aria-valuetext="{value}"' in html


def test_models_say_their_version_and_their_time() -> None:
    html = panels.how(report_of())
    assert "731 ms in all" in html
    assert "<code>recognition</code></td><td>7</td>" in html
    assert "61 ms" in html
    assert "not run" in html


def test_an_xray_claims_no_version_of_models_that_were_not_asked() -> None:
    html = panels.how(report_of("xray"))
    assert "<code>segment_all</code></td><td>—</td>" in html
    assert html.count("not applicable") == len(STREAM_NAMES) + 1


def test_messages_are_escaped() -> None:
    html = panels.alert(UnreadableScan("expected PNG, got <script>alert(1)</script>"))
    assert "<script>" not in html
    assert "Expected PNG, got &lt;script&gt;" in html


@pytest.mark.parametrize(
    ("error", "title"),
    [
        (UnreadableScan("x"), "This file can not be read as a scan"),
        (RequestError("x"), "These settings do not fit"),
        (CanNotExport("x"), "This file can not be made of this case"),
        (InferenceFailed("x"), "The server did not answer"),
        (ServerBusy("x"), "The server is busy"),
    ],
)
def test_an_alert_says_whose_fault_it_is(error: Exception, title: str) -> None:
    assert title in panels.alert(error)  # type: ignore[arg-type]


def test_the_banner_is_there_only_while_the_server_is_not() -> None:
    assert panels.server_banner(Health(True), "h:1") == ""
    down = panels.server_banner(Health(False, "Triton is not reachable", "expected an answer"), "h:1")
    assert 'role="alert"' in down
    assert "Triton is not reachable at <code>h:1</code>" in down


def test_the_watch_says_why_a_server_can_not_be_used(dead_url: str) -> None:
    health = ServerWatch(dead_url).health()
    assert not health.ready
    assert health.title == "Triton is not reachable"
    assert dead_url in health.reason


def test_a_file_that_is_no_scan_is_refused_without_a_server(dead_url: str) -> None:
    with pytest.raises(UnreadableScan, match="expected PNG, JPEG or DICOM"):
        read_case(dead_url, b"hello", "auto", {})


def test_a_scan_without_a_server_says_that_there_is_none(dead_url: str) -> None:
    data = phantom.png_bytes(phantom.ct_slice().pixels)
    with pytest.raises(ServerUnreachable):
        read_case(dead_url, data, "ct", {})


def test_a_view_draws_only_what_is_chosen_and_ran() -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 1
    pixels = np.full((64, 64), 90, np.uint8)
    view = View(pixels, {"all": mask, "ground_glass": mask})
    plain = np.repeat(pixels[..., None], 3, axis=-1)
    np.testing.assert_array_equal(view.draw([], 1.0), plain)
    np.testing.assert_array_equal(view.draw(["consolidation"], 1.0), plain)
    assert (view.draw(["ground_glass"], 1.0)[32, 32] != 90).all()


def test_examples_are_what_their_buttons_say(tmp_path: Path) -> None:
    examples = draw_examples(tmp_path)
    found = [
        (scan.source_format, scan.modality) for scan in (decode(example.path.read_bytes()) for example in examples)
    ]
    assert found == [("png", "ct"), ("dicom", "ct"), ("png", "xray")]
    assert all(max(decode(e.thumbnail.read_bytes(), "ct").size_hw) == 96 for e in examples)


def test_the_page_is_served_while_no_server_answers(page: str) -> None:
    assert panels.RESEARCH_USE in fetch(page)
    components = json.loads(fetch(f"{page}/config"))["components"]
    assert [c["props"]["format"] for c in components if c["type"] == "image"] == ["png"]
    sliders = {c["props"].get("elem_id"): c["props"]["value"] for c in components if c["type"] == "slider"}
    assert sliders.items() >= {f"threshold-{name}": value for name, value in pipeline.THRESHOLDS.items()}.items()


def test_the_page_listens_to_this_machine_only(page: str) -> None:
    port = int(page.rsplit(":", 1)[1])
    # Loopback too, but another address of it: a server at 0.0.0.0 would answer.
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.2", port), timeout=5):
        pass


def test_the_page_brings_its_own_fonts(page: str) -> None:
    css = fetch(f"{page}/theme.css")
    assert "IBM Plex Sans" in css
    assert "http" not in css.replace("http://www.w3.org/2000/svg", "")
    assert json.loads(fetch(f"{page}/config"))["stylesheets"] == []


def test_the_page_sends_no_telemetry(page: str) -> None:
    assert json.loads(fetch(f"{page}/config"))["analytics_enabled"] is False


def test_the_icons_of_the_examples_outlive_the_uploads() -> None:
    # In a process of its own: see `page_process`.
    program = """
import sys
from pathlib import Path
from gradio.route_utils import delete_files_created_by_app
from demo.app import build_app
blocks = build_app("127.0.0.1:1")
icons = [Path(b.icon["path"]) for b in blocks.blocks.values() if getattr(b, "icon", None)]
delete_files_created_by_app(blocks, age=0)
sys.exit(0 if len(icons) == 4 and all(icon.exists() for icon in icons) else 1)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_what_is_uploaded_is_kept_where_nobody_else_can_read_it_and_removed_at_the_end(tmp_path: Path) -> None:
    program = """
import os
from demo.folders import make_private_folder
folder = make_private_folder()
print(oct(folder.stat().st_mode & 0o777), folder, os.environ["GRADIO_TEMP_DIR"], sep="|")
"""
    environment = {name: value for name, value in os.environ.items() if name != "GRADIO_TEMP_DIR"}
    environment["TMPDIR"] = str(tmp_path)
    ran = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True, env=environment
    )
    mode, folder, cache = ran.stdout.strip().split("|")
    assert mode == "0o700"
    assert Path(cache).is_relative_to(folder)
    assert not Path(folder).exists()


def test_what_a_killed_page_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from demo.folders import make_private_folder
print(make_private_folder(), flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.stdin.read()
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start(how: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", program, how]
        return subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment)

    with start("alive") as alive:
        kept = Path(alive.stdout.readline().strip())  # type: ignore[union-attr]
        with start("killed") as killed:
            left = Path(killed.stdout.readline().strip())  # type: ignore[union-attr]
        assert left.exists()
        with start("next") as after:
            assert Path(after.stdout.readline().strip()).exists()  # type: ignore[union-attr]
            assert not left.exists()
            assert kept.exists()
            after.communicate(timeout=60)
        alive.communicate(timeout=60)


@pytest.mark.triton
def test_a_phantom_goes_through_the_real_models(triton: TritonServer) -> None:
    data = phantom.png_bytes(phantom.ct_slice().pixels)
    view, report = read_case(triton.grpc_url, data, "ct", dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0))
    assert set(view.masks) == set(STREAM_NAMES)
    assert view.draw(STREAM_NAMES, 0.5).shape == (*report.size_hw, 3)
    assert ServerWatch(triton.grpc_url).health().ready


@pytest.mark.triton
def test_switching_a_layer_asks_the_server_nothing(toy_triton: TritonServer) -> None:
    data = phantom.png_bytes(phantom.ct_slice().pixels)
    view, _ = read_case(toy_triton.grpc_url, data, "ct", dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0))
    one, other = view.draw(["all"], 0.5), view.draw(["pleural_effusion"], 0.5)
    assert (one != other).any()
