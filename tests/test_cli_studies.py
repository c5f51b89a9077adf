"""`lungstreams predict` on CT studies: what a script and a person get."""

from __future__ import annotations

import csv
import json
import re
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from lungstreams.masks import MaskFolder
from lungstreams.predicting import parse_exports
from lungstreams.reading import Ask, Reader
from lungstreams.sources import Source
from serving import phantom
from serving.client import PipelineClient
from serving.errors import RequestError
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES
from serving.process import SHM, WORK_PREFIX
from serving.studies import open_volume
from serving.study_reading import read_volume
from serving.tritonserver import TritonServer
from tests.serving.test_study_reading import ALL_OPEN, hu_of
from tests.serving.volume_files import (
    PATIENT,
    PATIENT_ID,
    affine_ras,
    dicom_frames,
    dicom_series,
    file_of,
    nifti_bytes,
    zipped,
)
from tests.test_cli import ALL_OPEN as OPENED
from tests.test_cli import cases_of, lungstreams, only_line

pytestmark = pytest.mark.triton

SIDE = 72
# Slice, row, column -> LPS in mm.
AFFINE = np.array([[0, 0, 0.7, 0], [0, 0.8, 0, 0], [5.0, 0, 0, 0], [0, 0, 0, 1]])
CASE_KEYS = {
    *("file", "modality", "diagnosis", "manifestations", "masks", "area_fraction", "status", "models", "latency_ms"),
    *("study", "request_id", "doubts"),
}
CANARIES = (PATIENT, "Erika", PATIENT_ID, "19700101", "Canary")


def chest(count: int) -> np.ndarray:
    return np.stack([hu_of(phantom.ct_slice(seed, SIDE).pixels) for seed in range(count)])


def series(count: int, uid: str, gap: bool = False) -> list[Dataset]:
    files = dicom_series(chest(count), AFFINE, uid, SeriesDescription="Canary", StudyDescription="Canary")
    return [file for i, file in enumerate(files) if not (gap and i == 1)]


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("studies")
    stored = np.ascontiguousarray(chest(5).transpose(2, 1, 0))
    (folder / "chest.nii.gz").write_bytes(
        nifti_bytes(stored, affine_ras((0, 1, 2), (-1, -1, 1), (0.8, 0.7, 5)), packed=True)
    )
    two = [*series(4, "1.2.3"), *series(3, "1.2.4")]
    (folder / "two.zip").write_bytes(zipped(two))
    for i, file in enumerate(series(4, "1.2.5", gap=True)):
        (folder / "gap" / f"Canary{i}").parent.mkdir(exist_ok=True)
        (folder / "gap" / f"{i}").write_bytes(file_of(file))
    return folder


@pytest.fixture(scope="module")
def run(toy_triton: TritonServer, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    out = tmp_path_factory.mktemp("out")
    files = [studies / "chest.nii.gz", studies / "two.zip", studies / "gap" / "0"]
    exported = ["--export", "json", "--export", "overlay"]
    return lungstreams("predict", *files, "--json", "--out", out, *OPENED, *exported, "--url", toy_triton.grpc_url), out


def test_a_study_is_one_case_with_the_keys_of_a_scan_and_more(
    run: tuple[Any, Path], studies: Path, toy_triton: TritonServer
) -> None:
    case, _, single = cases_of(run[0])
    assert set(case) == CASE_KEYS | {"exports"}
    assert set(single) == CASE_KEYS - {"study"} | {"exports", "burden"}
    assert case["doubts"] == []
    assert "doubts" not in case["study"]
    assert tuple(case["diagnosis"]) == DIAGNOSIS_NAMES
    assert tuple(case["manifestations"]) == MANIFESTATION_NAMES
    assert set(case["status"].values()) == {"ran"}
    with PipelineClient(toy_triton.grpc_url) as client:
        expected = read_volume(client, open_volume(studies / "chest.nii.gz"), ALL_OPEN)
    assert case["diagnosis"] == pytest.approx(expected.diagnosis)
    assert case["study"]["shape"] == [5, SIDE, SIDE]
    assert case["study"]["burden"] == expected.burden.to_json()
    assert case["study"]["spacing_mm"] == pytest.approx([5, 0.7, 0.8])
    assert case["study"]["complete"] is True
    assert [one["index"] for one in case["study"]["slices"]] == [0, 1, 2, 3, 4]
    for stream in STREAM_NAMES:
        masks = expected.masks[stream]
        assert masks is not None
        image, source = nibabel.load(case["masks"][stream]), nibabel.load(studies / "chest.nii.gz")
        np.testing.assert_allclose(image.affine, source.affine)
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), masks.array())


def test_a_study_has_no_explanation_and_a_folder_of_scans_has_one_each(
    studies: Path, toy_triton: TritonServer, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    scans.mkdir()
    (scans / "slice.png").write_bytes(phantom.png_bytes(phantom.ct_slice(seed=1, size_px=SIDE).pixels))
    shutil.copy(studies / "chest.nii.gz", scans)
    out, url = tmp_path / "out", toy_triton.grpc_url
    run = lungstreams("predict", scans, "--json", "--explain", "--out", out, "--url", url)
    schema = json.loads(
        (Path(__file__).parents[1] / "docs" / "schema" / "case.schema.json").read_text(encoding="utf-8")
    )
    for case in cases_of(run):
        jsonschema.Draft202012Validator({"$ref": "#/$defs/line", "$defs": schema["$defs"]}).validate(case)
    assert "explanation" in schema["$defs"]["line"]["properties"]
    pictures = {Path(case["file"]).name: case["explanation"] for case in cases_of(run)}
    assert pictures["chest.nii.gz"] is None
    assert Path(pictures["slice.png"]).name.startswith("slice.png.why.")
    assert Path(pictures["slice.png"]).is_file()
    # What was asked for differs, so that the record does not count.
    again = lungstreams("predict", scans, "--json", "--out", out, "--url", url)
    assert not any("explanation" in case for case in cases_of(again))
    assert len(cases_of(again)) == 2


def test_several_series_are_listed_and_none_is_guessed(
    run: tuple[Any, Path], studies: Path, toy_triton: TritonServer
) -> None:
    assert run[0].returncode == 1
    case = cases_of(run[0])[1]
    assert case["error"]["type"] == "AmbiguousStudy"
    assert len(case["error"]["choices"]) == 2
    assert "3 slices" in case["error"]["choices"][1]
    listed = lungstreams("predict", studies / "two.zip", "--list-series")
    assert listed.returncode == 0
    assert [line.split(": ")[1] for line in listed.stdout.splitlines()[1:]] == case["error"]["choices"]
    url = toy_triton.grpc_url
    (chosen,) = cases_of(lungstreams("predict", studies / "two.zip", "--series", 1, "--json", "--url", url))
    assert chosen["study"]["shape"][0] == 3
    assert chosen["study"]["series"] == case["error"]["choices"][1]
    assert set(chosen["masks"].values()) == {None}
    beyond = lungstreams("predict", studies / "two.zip", "--series", 2, "--url", url)
    assert beyond.returncode == 1
    assert "expected a series in [0, 2), got 2" in only_line(beyond.stderr)


def test_exports_lie_beside_the_masks(run: tuple[Any, Path]) -> None:
    study, _, single = cases_of(run[0])
    for case, stem in ((study, "chest"), (single, "0")):
        assert set(case["exports"]) == {"json", "overlay"}
        written = [Path(path) for paths in case["exports"].values() for path in paths]
        assert all(path.parent == run[1] and path.name.startswith(f"{stem}.") for path in written)
        assert json.loads(Path(case["exports"]["json"][0]).read_text())


def test_a_folder_is_read_as_a_study_and_says_what_is_missing(
    studies: Path, tmp_path: Path, toy_triton: TritonServer
) -> None:
    given = ("predict", studies / "gap", "--out", tmp_path, "--json", "--url", toy_triton.grpc_url, *OPENED)
    done = lungstreams(*given, "--export", "nifti", "--export", "json")
    (case,) = cases_of(done)
    assert case["file"] == str(studies / "gap")
    assert case["study"]["shape"][0] == 3
    assert any("missing" in problem for problem in case["study"]["problems"])
    # Slices that are not equally far apart have no grid in NIfTI: a picture each.
    for stream in STREAM_NAMES:
        pictures = sorted(Path(case["masks"][stream]).iterdir())
        assert [path.name for path in pictures] == ["0000.png", "0001.png", "0002.png"]
        with Image.open(pictures[0]) as png:
            assert (png.mode, png.size) == ("P", (SIDE, SIDE))
    assert case["exports"]["nifti"] == []
    assert "equally far apart" in case["export_errors"]["nifti"]
    assert len(case["exports"]["json"]) == 1
    assert done.returncode == 1


def test_a_segmentation_over_its_limit_is_an_error_of_that_file_alone(
    studies: Path, tmp_path: Path, toy_triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, file in enumerate(series(2, "1.2.9")):
        file.StudyInstanceUID, file.FrameOfReferenceUID, file.SliceThickness = "1.2.4", "1.2.5", 5
        (tmp_path / f"{i}.dcm").write_bytes(file_of(file))
    slices = [tmp_path / f"{i}.dcm" for i in range(2)]
    sources = [Source("both", tuple(slices), is_study=True), Source("one", (slices[0],), is_study=False)]
    # Both streams of six segments see something in both slices: two slices are too many, one is not.
    monkeypatch.setattr("serving.exports.segmentations.MAX_SEG_VOXELS", 6 * SIDE * SIDE)
    with PipelineClient(toy_triton.grpc_url) as client:
        reader = Reader(client, Ask("auto", ALL_OPEN, exports=("json", "seg")), MaskFolder(tmp_path / "out"))
        (both,), (one,) = (cases for _, cases in reader.read(sources))
    assert "error" not in both.data
    assert both.data["exports"]["seg"] == []
    assert "voxels of segments" in both.data["export_errors"]["seg"]
    assert Path(both.data["exports"]["json"][0]).is_file()
    assert both.failed
    assert "export_errors" not in one.data
    assert Path(one.data["exports"]["seg"][0]).is_file()


def test_files_of_a_study_that_can_not_be_read_are_named_by_their_place(
    tmp_path: Path, toy_triton: TritonServer
) -> None:
    study = tmp_path / "study.zip"
    files = [file_of(file) for file in series(5, "1.2.8")]
    # One whose header ends too early, and one whose pixels do.
    files[1], files[3] = files[1][:200], files[3][: -SIDE * SIDE]
    with zipfile.ZipFile(study, "w") as archive:
        for i, data in enumerate(files):
            archive.writestr(f"{PATIENT}{i}", data)
    done = lungstreams("predict", study, "--json", "--out", tmp_path / "out", "--url", toy_triton.grpc_url, *OPENED)
    (case,) = cases_of(done)
    (left_out,) = case["study"]["left_out"]
    assert (left_out["files"], left_out["which"]) == (1, ["file 2 of 5"])
    assert case["study"]["complete"] is False
    assert case["study"]["shape"][0] == 4
    said = "slice 3 of 4 is missing, since it can not be read (file 4 of 5: expected "
    assert any(problem.startswith(said) for problem in case["study"]["problems"])
    table = lungstreams("predict", study, "--url", toy_triton.grpc_url, *OPENED)
    text = " ".join(table.stdout.split())
    assert "file 2 of 5" in text
    assert said in text
    assert PATIENT not in done.stdout + table.stdout
    (tmp_path / "in").mkdir()
    study.rename(tmp_path / "in" / study.name)
    in_short = lungstreams("predict", tmp_path / "in", "--url", toy_triton.grpc_url, *OPENED).stdout
    assert ": Incomplete: 3 of 4 slices were read. ct, " in in_short


def test_what_is_no_study_of_the_chest_is_flagged_before_its_scores(tmp_path: Path, toy_triton: TritonServer) -> None:
    solid = np.full((SIDE, SIDE, 3), -1000, np.int16)
    solid[10:-10, 20:-20] = 40
    study = tmp_path / "in" / "solid.nii"
    study.parent.mkdir()
    study.write_bytes(nifti_bytes(solid, affine_ras((0, 1, 2), (-1, -1, 1), (0.8, 0.7, 5))))
    said, url = "No lung was found in any slice: this may be no study of the chest.", toy_triton.grpc_url
    shown = " ".join(lungstreams("predict", study, "--url", url).stdout.split())
    assert f"{said} What follows is not to be trusted." in shown
    assert shown.index("not to be trusted") < shown.index("COVID-19")
    in_short = lungstreams("predict", study.parent, "--out", tmp_path / "out", "--url", url).stdout
    assert in_short.startswith(f"{study}: {said} What follows is not to be trusted. ct, ")
    (line,) = (json.loads(text) for text in (tmp_path / "out" / "cases.jsonl").read_text().splitlines())
    assert line["doubts"] == [said]
    assert not any("chest" in problem for problem in line["study"]["problems"])
    with (tmp_path / "out" / "cases.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["doubts"], "chest" in row["problems"]) == (said, False)


def test_frames_of_one_file_are_a_study(tmp_path: Path, toy_triton: TritonServer) -> None:
    (tmp_path / "frames.dcm").write_bytes(file_of(dicom_frames(chest(3))))
    (case,) = cases_of(lungstreams("predict", tmp_path / "frames.dcm", "--json", "--url", toy_triton.grpc_url))
    assert case["study"]["shape"] == [3, SIDE, SIDE]


def test_the_table_says_the_burden_in_numbers_and_words(studies: Path, toy_triton: TritonServer) -> None:
    done = lungstreams("predict", studies / "chest.nii.gz", "--url", toy_triton.grpc_url, *OPENED)
    assert (done.returncode, done.stderr) == (0, "")
    text = " ".join(done.stdout.split())
    for expected in (
        *(r"COVID-19 │ \d+\.\d%", "┃ ml ┃ of lung ┃ right ┃ left ┃", r"% of the lungs are marked \(right"),
        *("5 slices of 72 x 72 pixels, 5.00 x 0.70 x 0.80 mm", "Note: values are taken for Hounsfield units"),
        "not a medical device",
    ):
        assert re.search(expected, text), (expected, text)


def test_exports_that_there_are_not_or_that_have_no_place_are_refused(tmp_path: Path) -> None:
    assert parse_exports(["pdf", "json", "pdf"], tmp_path) == ("pdf", "json")
    assert parse_exports([], None) == ()
    with pytest.raises(RequestError, match=r"export: expected one of json, csv, .*, got 'cube'"):
        parse_exports(["cube"], tmp_path)
    with pytest.raises(RequestError, match="expected a folder to write to, got none: add --out DIR"):
        parse_exports(["json"], None)


def test_nothing_names_the_patient(studies: Path, tmp_path: Path, toy_triton: TritonServer) -> None:
    secret = tmp_path / "in"
    secret.mkdir()
    for i, file in enumerate(series(3, "1.2.6")):
        (secret / f"{i}").write_bytes(file_of(file))
    (secret / "two.zip").write_bytes((studies / "two.zip").read_bytes())
    broken = series(1, "1.2.7")[0]
    broken.PixelData = broken.PixelData[:99]
    (secret / "broken.dcm").write_bytes(file_of(broken))
    given = ("-v", "predict", secret, "--out", tmp_path / "out", "--url", toy_triton.grpc_url, *OPENED)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    done = lungstreams(*given, TMPDIR=str(temporary))
    assert done.returncode == 1
    assert list(temporary.rglob("*")) == []
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"cases.jsonl", "cases.csv", "in.all.nii.gz", "two.zip.2.all.nii.gz"} < {path.name for path in written}
    listed = lungstreams("-v", "predict", secret, "--list-series")
    said = "\n".join([done.stdout, done.stderr, listed.stdout, listed.stderr, *map(str, written)]).encode()
    for path in written:
        data = path.read_bytes()
        said += nibabel.load(path).header.binaryblock if path.name.endswith(".gz") else data
    assert toy_triton.config.request_log is not None
    said += toy_triton.config.request_log.read_bytes()
    for canary in CANARIES:
        assert canary.encode() not in said, canary


def test_what_the_server_keeps_in_memory_of_a_patient_is_its_owners_alone(
    tmp_path: Path, toy_triton: TritonServer
) -> None:
    (tmp_path / "slice.dcm").write_bytes(file_of(series(1, "1.2.9")[0]))
    done = lungstreams("predict", tmp_path / "slice.dcm", "--url", toy_triton.grpc_url)
    assert done.returncode == 0
    regions = [path for path in SHM.glob(f"{WORK_PREFIX}*") if path.name.startswith(toy_triton.log_path.parent.name)]
    # As docs/security.md says: the last scans are there as they came, with all that is in their headers.
    assert any(PATIENT_ID.encode() in region.read_bytes() for region in regions)
    assert {stat.filemode(region.stat().st_mode) for region in regions} == {"-rw-------"}
    # That they go with the server is tests/serving/test_tritonserver.py's.
