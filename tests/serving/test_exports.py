"""Cases as files: what can be made of which, JSON against its schema, CSV, pictures, and how files get into place."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

from lungstreams.cases import failed_case, scan_case
from lungstreams.cases import study_case as lines_study
from serving.client import PipelineClient
from serving.errors import AmbiguousStudy, CanNotExport, RequestError, ScanError, UnreadableScan
from serving.exports import KINDS, Case, possible, write
from serving.exports.pictures import MOST_TILES, chosen_slices
from serving.exports.tables import CASE_COLUMNS, SLICE_COLUMNS
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.phantom import chest_xray, ct_slice, dicom_bytes, png_bytes
from serving.series import LeftOut
from serving.studies import open_volume
from serving.study_reading import read_volume
from serving.tritonserver import TritonServer
from serving.volumes import Layout, Volume
from serving.voxels import Memory
from tests.serving.export_cases import drawn_case, study_case, study_report, xray_report
from tests.serving.volume_files import affine_ras, block, nifti_bytes

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schema/case.schema.json").read_text())
VALID = jsonschema.Draft202012Validator(SCHEMA)
PIXELS = ct_slice(3).pixels
AFFINE = affine_ras((2, 1, 0), (1, 1, 1), (2.5, 0.75, 0.5))


def study(**kwargs: Any) -> Case:
    return study_case(open_volume(nifti_bytes(block(), AFFINE)), **kwargs)


def xray() -> Case:
    pixels = chest_xray(1, 256)
    return Case.of_scan(png_bytes(pixels), xray_report(pixels.shape))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def of_schema(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/$defs/{name}", "$defs": SCHEMA["$defs"]})


def test_the_kinds_are_those_that_were_agreed_on() -> None:
    assert tuple(KINDS) == ("json", "csv", "overlay", "nifti", "seg", "sr", "pdf")
    assert all(KINDS.values())


def test_what_writes_dicom_and_pdf_is_loaded_by_whoever_writes_them() -> None:
    probe = "import sys, serving.exports; print(sorted({'highdicom', 'reportlab'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_can_be_made_of_what() -> None:
    assert possible(drawn_case(png_bytes(PIXELS))) == ("json", "csv", "overlay", "pdf")
    assert possible(xray()) == ("json", "csv", "pdf")
    assert possible(study()) == ("json", "csv", "overlay", "nifti", "pdf")


def test_what_can_not_be_made_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CanNotExport, match=r"^seg: expected DICOM images, .* got another format"):
        write(drawn_case(png_bytes(PIXELS)), ["json", "seg"], tmp_path, "case")
    with pytest.raises(RequestError, match=r"expected one of json, csv, .*, got 'docx'"):
        write(xray(), ["json", "docx"], tmp_path, "case")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("prefix", ["", ".", "..", "a/b", "../a", "/etc/x", "a\\b", "a\0"])
def test_a_prefix_that_is_no_file_name_is_refused(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(RequestError, match="prefix: expected the beginning of a file name"):
        write(xray(), ["json"], tmp_path, prefix)


def test_a_case_that_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "study.nii"
    path.write_bytes(nifti_bytes(block(), AFFINE))
    case = study_case(open_volume(path))
    write(case, ["json"], tmp_path / "out", "case")
    before = {file: file.read_bytes() for file in (tmp_path / "out").iterdir()}

    class Gone(Memory):
        def plane(self, axis: int, index: int) -> np.ndarray:
            raise UnreadableScan("expected a file that can be read, got none")

    gone = replace(case, volume=replace(case.volume, source=Gone(block())))
    with pytest.raises(ScanError):
        write(gone, ["json", "csv", "overlay"], tmp_path / "out", "case")
    assert {file: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before


def test_files_are_written_over_and_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text("old")
    made = write(xray(), ["pdf", "json", "pdf"], tmp_path, "case")
    assert list(made) == ["pdf", "json"]
    assert made["json"] == (tmp_path / "case.json",)
    assert json.loads((tmp_path / "case.json").read_text())["kind"] == "scan"
    assert {file.name for file in tmp_path.iterdir()} == {"case.pdf", "case.json"}


@pytest.mark.parametrize("make", [lambda: drawn_case(png_bytes(PIXELS)), xray, study])
def test_the_same_case_gives_the_same_bytes(tmp_path: Path, make: Any) -> None:
    kinds = [kind for kind in possible(make()) if kind not in ("seg", "sr")]
    first, second = (
        {path.name: path.read_bytes() for paths in write(make(), kinds, folder, "case").values() for path in paths}
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second


def test_a_report_of_another_scan_is_refused() -> None:
    with pytest.raises(RequestError, match=r"expected a scan of \(512, 512\) as in the report"):
        drawn_case(png_bytes(ct_slice(3, 256).pixels))
    volume = open_volume(nifti_bytes(block(), AFFINE))
    other = open_volume(nifti_bytes(block((50, 51, 54)), AFFINE))
    with pytest.raises(RequestError, match="expected a volume of"):
        Case.of_volume(other, study_report(volume, np.zeros(volume.shape, np.uint8)))


@pytest.mark.parametrize("make", [lambda: drawn_case(png_bytes(PIXELS)), xray, study, lambda: study(read=3)])
def test_documents_are_of_the_schema_which_knows_every_key(tmp_path: Path, make: Any) -> None:
    case = make()
    (path,) = write(case, ["json"], tmp_path, "case")["json"]
    document = json.loads(path.read_text("utf-8"))
    VALID.validate(document)
    assert set(document) <= set(SCHEMA["$defs"][document["kind"]]["properties"])
    assert document["software"]["name"] == "lungstreams"
    assert "Research use only" in document["note"]


def test_the_schema_refuses_what_it_should(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    (path,) = write(study(), ["json"], tmp_path, "case")["json"]
    good = json.loads(path.read_text("utf-8"))
    for key, value in {"modality": "xray", "diagnosis": {"covid19": 1}, "slices": [], "verified": True}.items():
        assert not VALID.is_valid({**good, key: value}), key
    for key in SCHEMA["$defs"]["study"]["required"]:
        assert not VALID.is_valid({name: value for name, value in good.items() if name != key}), key


def test_the_lines_of_predict_are_of_the_schema() -> None:
    scan, volume = drawn_case(png_bytes(PIXELS)).single, study(read=5).study
    assert scan is not None
    assert volume is not None
    nothing = dict.fromkeys(STREAM_NAMES)
    for case in (scan_case("scan.png", scan, nothing), lines_study("s", volume, nothing, "CT", [LeftOut(2, "why")])):
        line = json.loads(case.line)
        of_schema("line").validate(line)
        assert set(line) <= set(SCHEMA["$defs"]["line"]["properties"])
        assert set(line.get("study", ())) <= set(SCHEMA["$defs"]["line"]["properties"]["study"]["properties"])
        for key in ("masks", "status"):
            assert not of_schema("line").is_valid({name: value for name, value in line.items() if name != key})
    for error in (UnreadableScan("expected PNG"), AmbiguousStudy(["CT", "CT"]), OSError(2, "No such file")):
        failed = json.loads(failed_case("a.png", error).line)
        of_schema("failed_line").validate(failed)
        assert not of_schema("line").is_valid(failed)


def test_a_row_a_case_in_columns_that_do_not_move(tmp_path: Path) -> None:
    for i, case in enumerate((drawn_case(dicom_bytes(PIXELS)), xray(), study())):
        path = write(case, ["csv"], tmp_path, f"case{i}")["csv"][0]
        (row,) = rows_of(path)
        assert tuple(row) == CASE_COLUMNS
        assert row["case"] == f"case{i}"
    scan, plain, volume = (rows_of(tmp_path / f"case{i}.csv")[0] for i in range(3))
    assert (scan["kind"], scan["modality"], scan["row_spacing_mm"], scan["p_ground_glass"]) == (
        "scan",
        "ct",
        "0.7",
        "0.9",
    )
    assert (plain["p_ground_glass"], plain["status_all"], plain["lung_ml_both"]) == ("", "not_applicable", "")
    assert (volume["kind"], volume["slices"], volume["slice_spacing_mm"]) == ("study", "49", "2.5")
    report = study().study
    assert report is not None
    assert float(volume["infected_ml_left"]) == report.burden.found["infected"]["left"].ml
    assert int(volume["infected_px_left"]) == report.burden.found["infected"]["left"].pixels


def test_the_burden_of_a_slice_is_in_its_row_and_its_document(tmp_path: Path) -> None:
    case = drawn_case(dicom_bytes(PIXELS))
    assert case.single is not None
    burden = case.single.burden
    assert burden is not None
    written = write(case, ["csv", "json"], tmp_path, "case")
    (row,) = rows_of(written["csv"][0])
    for name, sides in burden.found.items():
        for side, area in sides.items():
            assert area is not None
            assert int(row[f"{name}_px_{side}"]) == area.pixels
            assert float(row[f"{name}_percent_{side}"]) == area.percent
    lung = burden.lung["right"]
    assert lung is not None
    assert int(row["lung_px_right"]) == lung.pixels > 10_000
    assert (row["infected_ml_both"], row["burden_note"]) == ("", "")
    document = json.loads(written["json"][0].read_text())
    VALID.validate(document)
    assert document["burden"] == burden.to_json()
    assert not VALID.is_valid({**document, "burden": {**document["burden"], "lung": {"both": None}}})
    # Cropped to the lungs.
    cropped = drawn_case(png_bytes(PIXELS))
    report = replace(case.single, burden=replace(burden, note="why", lung=dict.fromkeys(burden.lung)))
    bare = replace(cropped, report=report)
    (row,) = rows_of(write(bare, ["csv"], tmp_path, "bare")["csv"][0])
    assert (row["burden_note"], row["lung_px_both"]) == ("why", "")
    VALID.validate(json.loads(write(bare, ["json"], tmp_path, "bare")["json"][0].read_text()))


def test_a_row_a_slice_of_a_study(tmp_path: Path) -> None:
    case = study(read=7)
    assert case.study is not None
    path = write(case, ["csv"], tmp_path, "case")["csv"][1]
    rows = rows_of(path)
    assert path.name == "case.slices.csv"
    assert tuple(rows[0]) == SLICE_COLUMNS
    assert [row["slice"] for row in rows] == [str(i) for i in range(7)]
    assert [float(row["p_covid19"]) for row in rows] == [one.diagnosis["covid19"] for one in case.study.slices]
    assert "only 7 of 49 slices were read" in rows_of(tmp_path / "case.csv")[0]["problems"]


@pytest.mark.parametrize("name", ["=1+1", "+cmd", "-2", "@sum", "\ttab"])
def test_no_cell_is_a_formula(tmp_path: Path, name: str) -> None:
    (row,) = rows_of(write(xray(), ["csv"], tmp_path, name)["csv"][0])
    assert row["case"] == f"'{name}"


def test_a_scans_picture_has_its_pixels_and_its_masks(tmp_path: Path) -> None:
    case = drawn_case(png_bytes(PIXELS))
    (path,) = write(case, ["overlay"], tmp_path, "case")["overlay"]
    rgb = np.asarray(Image.open(path))
    marked = np.any([case.masks()[name] for name in MANIFESTATION_NAMES], axis=0)
    grey = np.repeat(PIXELS[..., None], 3, axis=-1)
    assert rgb.shape == grey.shape
    np.testing.assert_array_equal(rgb[~marked], grey[~marked])
    assert (rgb[marked] != grey[marked]).any(axis=-1).mean() > 0.99


def test_a_montage_shows_the_most_affected_slices_apart() -> None:
    ids = np.zeros((60, 60, 60), np.uint8)
    for index in range(60):
        ids[index, : min(index, 50), :5] = 1
    volume = Volume(Memory(np.full((60, 60, 60), -900, np.int16)), np.eye(4), Layout())
    chosen = chosen_slices(study_report(volume, ids))
    assert len(chosen) == MOST_TILES
    assert chosen == tuple(sorted(chosen))
    # From 50 on all are alike: the first of them is the first to be taken.
    assert {50, 54, 58} <= set(chosen)
    assert min(np.diff(chosen)) >= 4
    spread = chosen_slices(study_report(volume, np.zeros_like(ids)), 4)
    assert spread == (0, 20, 39, 59)


def test_a_montage_is_of_slices_that_show_lung() -> None:
    ids = np.ones((12, 60, 60), np.uint8)
    ids[6:, 10:] = 0
    report = study_report(Volume(Memory(np.full(ids.shape, -900, np.int16)), np.eye(4), Layout()), ids)
    without = [replace(one, lung_px=1000 if one.index >= 6 else 10) for one in report.slices]
    assert min(chosen_slices(replace(report, slices=tuple(without)))) == 6
    # Marks that are only beside the lungs are shown, too.
    ids[6:] = 0
    only = study_report(Volume(Memory(np.full(ids.shape, -900, np.int16)), np.eye(4), Layout()), ids)
    beside = [replace(one, lung_px=1000 if one.index >= 6 else 10) for one in only.slices]
    assert max(chosen_slices(replace(only, slices=tuple(beside)))) == 5


def test_a_montage_is_a_picture_of_tiles(tmp_path: Path) -> None:
    (path,) = write(study(), ["overlay"], tmp_path, "case")["overlay"]
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert image.width <= 4 * 326 + 6


@pytest.mark.triton
def test_real_answers_become_every_file(triton: TritonServer, tmp_path: Path) -> None:
    with PipelineClient(triton.grpc_url) as client:
        data = dicom_bytes(PIXELS)
        scan = Case.of_scan(data, client.predict(data, thresholds={"ground_glass": 0.0}))
        # A stack of one drawn slice, flat: three slices are enough to ask for.
        hu = np.stack([PIXELS.astype(np.int16) * 6 - 1350] * 3)
        volume = Volume(Memory(hu), np.diag([5.0, 0.7, 0.7, 1.0])[[2, 1, 0, 3]], Layout())
        volume_case = Case.of_volume(volume, read_volume(client, volume, {"ground_glass": 0.0}))
    for name, case in {"scan": scan, "study": volume_case}.items():
        made = write(case, possible(case), tmp_path, name)
        VALID.validate(json.loads((tmp_path / f"{name}.json").read_text("utf-8")))
        assert all(path.stat().st_size for paths in made.values() for path in paths)
    assert "nifti" in possible(volume_case)
