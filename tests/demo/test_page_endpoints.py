"""The page as a program meets it: in front of a real Triton, by gradio_client, and by what lies on disk."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

from demo import about
from serving import phantom, pipeline
from serving.phantom_volume import ct_volume, series_zip_bytes
from serving.tritonserver import TritonServer
from tests.demo.page_process import served_page
from tests.serving.volume_files import dicom_frames, dicom_slice, file_of, zipped

pytestmark = [pytest.mark.triton]

PATIENCE_S = 60
KEPT_S = 4
PATIENT = "Mustermann-Erika"
AUDIT = "audit.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page keeps its files."""
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def page(toy_triton: TritonServer, folder: Path) -> Iterator[str]:
    own = {"TMPDIR": str(folder), "GRADIO_TEMP_DIR": str(folder / "cache")}
    with served_page(toy_triton.grpc_url, environment=own, log=folder / "log", audit_log=str(folder / AUDIT)) as url:
        yield url


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("files")
    (place / "scan.png").write_bytes(phantom.png_bytes(phantom.ct_slice(size_px=128).pixels))
    (place / f"{PATIENT}.png").write_bytes((place / "scan.png").read_bytes())
    hu = (phantom.ct_slice(size_px=128).pixels * (1500 / 255) - 1350).astype(np.int16)
    whose = {"StudyInstanceUID": "1.2.4", "FrameOfReferenceUID": "1.2.5", "SliceThickness": 2.5}
    (place / f"{PATIENT}.dcm").write_bytes(file_of(dicom_slice(hu, (0, 0, 0), **whose)))
    (place / "study.zip").write_bytes(series_zip_bytes(ct_volume(1, 3, 64)))
    (place / "words.png").write_bytes(b"only words")
    return place


def run(program: str, folder: Path, *arguments: str) -> str:
    # In a process of its own: gradio_client leaves event loops behind, as Gradio does.
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_the_example_on_the_page_works_as_it_stands(page: str, files: Path) -> None:
    said = run(about.EXAMPLE.replace("http://127.0.0.1:7860", page), files).splitlines()
    score, status = said[0].split()
    assert 0 <= float(score) <= 1
    assert status in ("ran", "not_run")
    assert 0 <= float(said[1].split()[0]) <= 1
    assert [line.split()[0] for line in said[2:]] == ["1", "2"]


def test_errors_are_data_and_endpoints_have_names_for_what_they_take(page: str, files: Path) -> None:
    program = f"""
import json
from gradio_client import Client, handle_file
page = Client({page!r}, verbose=False)
bad = page.predict(handle_file("words.png"), "auto", 0, 0.5, 0.5, 0.5, api_name="/predict")
none = page.predict([handle_file("study.zip")], 4, 0, 0.5, 0.5, 0.5, api_name="/predict_volume")
html = page.predict(handle_file("scan.png"), "ct", 0.45, 0, 0.5, 0.5, 0.5, api_name="/read")
said = page.view_api(print_info=False, return_format="dict")["named_endpoints"]
names = {{name: [one["parameter_name"] for one in end["parameters"]] for name, end in said.items()}}
print(json.dumps([bad, none, "Highest score" in str(html), names]))
"""
    bad, none, has_panels, names = json.loads(run(program, files))
    assert bad["error"]["type"] == "UnreadableScan"
    assert none["error"] == {"type": "RequestError", "message": "expected a series in [0, 1), got 4"}
    assert has_panels
    assert set(names) == {"/read", "/predict", "/predict_volume", "/predict_folder"}
    gates = ["covid19", "ground_glass", "consolidation", "pleural_effusion"]
    assert names["/predict"] == ["path", "modality", *gates]
    assert names["/predict_volume"] == ["paths", "series", *gates]
    assert names["/predict_folder"] == ["paths", *gates]
    assert names["/read"][:7] == ["path", "modality", "opacity", *gates]


def test_what_a_file_is_called_does_not_matter_and_a_study_is_pointed_to_its_tab(page: str, tmp_path: Path) -> None:
    hu = (phantom.ct_slice(size_px=128).pixels * (1500 / 255) - 1350).astype(np.int16)
    sent = {
        **dict.fromkeys(("IM0001", "slice.ima", "slice.dicom"), file_of(dicom_slice(hu))),
        "frames": file_of(dicom_frames(np.stack([hu, hu]))),
        "study.zip": zipped([dicom_slice(hu)]),
        "words": b"only words",
    }
    for name, data in sent.items():
        (tmp_path / name).write_bytes(data)
    program = f"""
import json
from gradio_client import Client, handle_file
page = Client({page!r}, verbose=False)
said = [page.predict(handle_file(name), "auto", 0, 0, 0, 0, api_name="/predict") for name in {[*sent]!r}]
shown = page.predict(handle_file("IM0001"), "ct", 0.45, 0, 0, 0, 0, api_name="/read")
print(json.dumps([said, "Highest score" in str(shown)]))
"""
    (*slices, frames, study, words), is_shown = json.loads(run(program, tmp_path))
    assert [one.get("modality") for one in slices] == ["ct"] * 3, slices
    assert is_shown
    assert frames["error"] == {
        "type": "UnsupportedScan",
        "message": "expected a DICOM of one frame, got 2 frames; the tab Volume reads studies",
    }
    assert study["error"]["message"].endswith("; the tab Volume reads studies")
    assert "Volume" not in words["error"]["message"]


def test_what_was_uploaded_drawn_and_taken_away_is_gone_after_the_time_that_the_page_states(
    toy_triton: TritonServer, files: Path, tmp_path: Path
) -> None:
    # No client of Gradio's may press a button of the page: the export is asked for as its own script does.
    program = """
import sys
from pathlib import Path
import httpx
from gradio_client import Client, handle_file
url, folder, *scans = sys.argv[1:]
page = Client(url, verbose=False)
(button,) = [one["id"] for one in page.config["components"] if one["props"].get("elem_id") == "export-seg"]
(number,) = [i for i, one in enumerate(page.config["dependencies"]) if [button, "click"] in one["targets"]]
session = {"session_hash": page.session_hash}
pressed = {**session, "fn_index": number, "trigger_id": button, "event_data": None, "data": [None]}
for scan in scans:
    page.predict(handle_file(scan), "ct", 0.45, 0, 0.5, 0.5, 0.5, api_name="/read")
httpx.post(f"{url}/gradio_api/queue/join", json=pressed).raise_for_status()
with httpx.stream("GET", f"{url}/gradio_api/queue/data", params=session, timeout=60) as answers:
    next(line for line in answers.iter_lines() if '"process_completed"' in line)
print(*(path.name for path in Path(folder).rglob("*")))
"""
    own = {"TMPDIR": str(tmp_path), "GRADIO_TEMP_DIR": str(tmp_path / "cache")}
    with served_page(toy_triton.grpc_url, environment=own, kept_s=KEPT_S, sweep_s=1) as url:
        there: set[str] = set()
        for _ in range(PATIENCE_S // KEPT_S):
            there = set(run(program, files, url, str(tmp_path), f"{PATIENT}.png", f"{PATIENT}.dcm").split())
            # On a busy machine the scan may be gone before its export is asked for, or has been made.
            if there >= {f"{PATIENT}.dcm", "lungstreams.seg.dcm"}:
                break
        assert there >= {f"{PATIENT}.dcm", "lungstreams.seg.dcm"}
        deadline_s = time.monotonic() + PATIENCE_S
        while (left := of_visitors(tmp_path)) and time.monotonic() < deadline_s:
            time.sleep(0.2)
        assert left == []
        # The drawn examples stay.
        assert list(tmp_path.rglob("phantom-ct.png"))


def of_visitors(folder: Path) -> list[str]:
    """Names of all files but those of the drawn examples, and empty ones: of each upload Gradio leaves one behind."""
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and path.stat().st_size and not path.name.startswith("phantom-"):
                found.append(path.name)
    return found


def test_a_case_has_one_id_from_the_page_to_every_step(
    page: str, toy_triton: TritonServer, folder: Path, files: Path
) -> None:
    program = f"""
import json
from gradio_client import Client, handle_file
page = Client({page!r}, verbose=False)
ask = lambda name, *given, of: page.submit(handle_file(name), *given, 0, 0, 0, 0, api_name=of)
both = [ask("scan.png", modality, of="/predict") for modality in ("ct", "xray")]
said = [job.result() for job in both]
said.append(page.predict([handle_file("study.zip")], None, 0, 0, 0, 0, api_name="/predict_volume"))
said.extend(page.predict([handle_file("words.png")], 0, 0, 0, 0, api_name="/predict_folder"))
print(json.dumps([said, str(ask("scan.png", "ct", 0.45, of="/read").result())]))
"""
    answers, shown = json.loads(run(program, files))
    ids = [answer["request_id"] for answer in answers]
    assert len(set(ids)) == len(ids)
    audited = {line["request_id"]: line for line in lines_of(folder / AUDIT)}
    ct, xray, study, words = (audited[request_id] for request_id in ids)
    assert [(line["modality"], line["outcome"]) for line in (ct, xray, study, words)] == [
        *(("ct", "ok"), ("xray", "ok"), ("ct study", "ok")),
        (None, "UnreadableScan"),
    ]
    for line, answer in zip((ct, xray, study), answers, strict=False):
        assert (line["event"], line["user"]) == ("case", "-")
        assert line["models"] == answer["models"]
        assert line["latency_ms"] == pytest.approx(answer["latency_ms"], abs=0.001)
    steps = {request_id: steps_of(toy_triton, request_id) for request_id in ids}
    models = sorted(step.model for step in pipeline.STEPS)
    assert steps[ids[0]] == models
    assert steps[ids[1]] == ["preprocess", "recognition"]
    assert steps[ids[2]] == sorted(models * 3)
    assert steps[ids[3]] == []
    # What a visitor can quote.
    assert [line for line in audited.values() if f"Request id: <code>{line['request_id']}</code>" in shown]


def log_of(server: TritonServer) -> Path:
    assert server.config.request_log is not None
    return server.config.request_log


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def steps_of(server: TritonServer, request_id: str) -> list[str]:
    found = [line for line in lines_of(log_of(server)) if line["request_id"] == request_id]
    assert all((line["version"], line["outcome"]) == ("1", "ok") for line in found)
    return sorted(line["step"] for line in found)


def test_names_of_files_are_not_logged(page: str, files: Path, folder: Path) -> None:
    program = f"""
from gradio_client import Client, handle_file
page = Client({page!r}, verbose=False)
for name in ({PATIENT + ".png"!r}, "words.png"):
    assert page.predict(handle_file(name), "auto", 0, 0.5, 0.5, 0.5, api_name="/predict")
"""
    run(program, files)
    for log in ("log", AUDIT):
        said = (folder / log).read_text()
        assert PATIENT not in said
        assert "words.png" not in said


def test_nothing_of_a_patient_is_in_any_answer_log_metric_or_file_of_ours(
    page: str, toy_triton: TritonServer, folder: Path, tmp_path: Path
) -> None:
    canary = "Canary-4711"
    tags = dict.fromkeys(
        ("PatientID", "StudyDescription", "SeriesDescription", "InstitutionName", "StationName"), canary
    )
    hu = (phantom.ct_slice(size_px=128).pixels * (1500 / 255) - 1350).astype(np.int16)
    slices = [
        dicom_slice(hu, (0, 0, 5.0 * k), PatientName=f"{canary}^Dorothea", PatientBirthDate="19700101", **tags)
        for k in range(3)
    ]
    sent = {"slice.dcm": file_of(slices[0]), "study.zip": zipped(slices), "torn.dcm": file_of(slices[0])[:-999]}
    others = set(folder.rglob("*"))
    for name, data in sent.items():
        assert canary.encode() in data or name.endswith(".zip")
        (tmp_path / name).write_bytes(data)
    program = f"""
from gradio_client import Client, handle_file
page = Client({page!r}, verbose=False)
gates = (0, 0, 0, 0)
print(page.predict(handle_file("slice.dcm"), "auto", *gates, api_name="/predict"))
print(page.predict(handle_file("torn.dcm"), "auto", *gates, api_name="/predict"))
print(page.predict([handle_file("study.zip")], None, *gates, api_name="/predict_volume"))
print(page.predict([handle_file("slice.dcm"), handle_file("torn.dcm")], *gates, api_name="/predict_folder"))
print(page.predict(handle_file("slice.dcm"), "auto", 0.45, *gates, api_name="/read"))
"""
    answers = run(program, tmp_path)
    assert "covid19" in answers
    with urlopen(f"http://{toy_triton.metrics_url}/metrics", timeout=30) as metrics:
        told = {"answers": answers, "metrics": metrics.read().decode(), "Triton's log": toy_triton.log_path.read_text()}
    told["the page's log"] = (folder / "log").read_text()
    told["the audit log"] = (folder / AUDIT).read_text()
    told["the request log"] = log_of(toy_triton).read_text()
    # There is something in which nothing was to be found.
    assert "UnreadableScan" in told["the audit log"]
    assert "segment_all" in told["the request log"]
    for path in folder.rglob("*"):
        # What was uploaded, here and before, is kept as it came, in the private folder, for an hour.
        if path.is_file() and path.name not in sent and path not in others:
            told[str(path)] = path.read_bytes().decode("latin-1") + path.name
    for where, text in told.items():
        for word in (canary, "Dorothea", "19700101"):
            assert word not in text, where
