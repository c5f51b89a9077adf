from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest

from serving import phantom
from serving.dicom_pixels import LUNG_LEVEL_HU, LUNG_WIDTH_HU
from serving.errors import DatasetError
from serving.labels import MANIFESTATIONS
from serving.preprocessing import preprocess
from serving.scans import Scan
from train import data, ieee8023, nifti, origins
from train.listing import splits_of
from train.pictures import save_pictures
from train.targets import Code, admissible_table

SIDE_PX = 96


def hu_of(pixels: np.ndarray) -> np.ndarray:
    return LUNG_LEVEL_HU - LUNG_WIDTH_HU / 2 + pixels.astype(np.float32) / 255 * LUNG_WIDTH_HU


def drawn(n: int) -> list[phantom.Phantom]:
    return [phantom.ct_slice(i, SIDE_PX, consolidation=i % 2 == 0, pleural_effusion=i % 3 == 0) for i in range(n)]


def save_volume(path: Path, planes: list[np.ndarray], dtype: type = np.float32) -> None:
    """As medicalsegmentation.com stores them: columns, rows, slices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.stack([plane.T for plane in planes], axis=-1).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-0.7, -0.7, 1, 1])), path)


def save_pair(root: Path, image: str, mask: str, slices: list[phantom.Phantom]) -> None:
    save_volume(root / image, [hu_of(s.pixels) for s in slices])
    save_volume(root / mask, [s.mask for s in slices], np.uint8)


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def medseg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[phantom.Phantom]]:
    root = tmp_path_factory.mktemp("medseg")
    slices = drawn(45)
    save_pair(root, "tr_im.nii.gz", "tr_mask.nii.gz", slices)
    return root, slices


def xray(seed: int) -> bytes:
    return phantom.png_bytes(phantom.chest_xray(seed=seed, size_px=SIDE_PX))


@pytest.fixture(scope="module")
def ieee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ieee")
    (root / "images").mkdir()
    rows: list[dict[str, object]] = []

    def row(patient: object, finding: str, view: str = "PA", name: str = "", modality: str = "X-ray") -> None:
        filename = name or f"{len(rows)}.png"
        rows.append({"patientid": patient, "finding": finding, "view": view, "modality": modality})
        rows[-1] |= {"filename": filename, "folder": "images", "license": "CC BY" if len(rows) % 2 else ""}
        if filename.endswith("png"):
            (root / "images" / filename).write_bytes(xray(len(rows)))

    for patient in range(6):
        row(patient, "Pneumonia/Viral/COVID-19")
        row(patient, "Pneumonia/Viral/COVID-19", "AP Supine")
    row(6, "No Finding")
    row(7, "Pneumonia/Bacterial/Streptococcus")
    row(8, "Pneumonia/Viral/SARS")
    row(9, "Pneumonia")
    row(10, "Tuberculosis")
    row(11, "Pneumonia/Viral/COVID-19", "L")
    row(12, "Pneumonia/Viral/COVID-19", "Axial", "volume.nii.gz", "CT")
    row(13, "No Finding", name="gone.jpg")
    write_table(root / "metadata.csv", rows)
    return root


def write_rsna(root: Path, n: int = 12) -> None:
    names = list(origins.rsna.TARGETS)
    labels, classes = [], []
    (root / "stage_2_train_images").mkdir(parents=True)
    for i in range(n):
        name = names[i % 3]
        boxed = name == "Lung Opacity"
        for _ in range(1 + boxed):
            labels.append({"patientId": f"i{i}", "x": "", "y": "", "width": "", "height": "", "Target": int(boxed)})
            classes.append({"patientId": f"i{i}", "class": name})
        pixels = phantom.chest_xray(seed=i, size_px=SIDE_PX)
        file = root / "stage_2_train_images" / f"i{i}.dcm"
        file.write_bytes(phantom.dicom_bytes(pixels, modality="xray"))
    write_table(root / "stage_2_train_labels.csv", labels)
    write_table(root / "stage_2_detailed_class_info.csv", classes)


def write_classes(root: Path, names: dict[str, int], draw: Callable[[int], bytes] = xray) -> None:
    for name, n in names.items():
        (root / name).mkdir(parents=True)
        for i in range(n):
            (root / name / f"{i}.png").write_bytes(draw(i))


class TestMedicalSegmentation:
    def test_a_slice_stands_upright_and_its_mask_lies_on_it(self, medseg):
        root, slices = medseg
        examples = origins.examples_for("segmentation", root)
        for example in (examples[0], examples[17]):
            phantom_slice = slices[example.slice_index]
            image, codes = data.load_image(example, root), data.load_codes(example, root)
            np.testing.assert_array_equal(image, preprocess(Scan(phantom_slice.pixels, "ct", "png"))[..., 0])
            ids = cv2.resize(phantom_slice.mask, (512, 512), interpolation=cv2.INTER_NEAREST_EXACT)
            assert np.array_equal(codes == Code.GROUND_GLASS, ids == 1)
            assert np.array_equal(codes == Code.CONSOLIDATION, ids == 2)
            assert np.array_equal(codes == Code.ANNOTATED_BACKGROUND, ids == 0)
            assert not np.array_equal(ids, ids.T)

    def test_the_first_axis_is_the_columns(self, tmp_path):
        plane = np.zeros((6, 4), np.float32)
        plane[1, 3] = 7
        save_volume(tmp_path / "v.nii.gz", [np.zeros_like(plane), plane])
        assert nifti.shape(tmp_path / "v.nii.gz") == (4, 6, 2)
        np.testing.assert_array_equal(nifti.read_slice(tmp_path / "v.nii.gz", 1), plane)

    def test_all_three_manifestations_are_known(self, medseg):
        root, slices = medseg
        for example in origins.examples_for("manifestations", root):
            counts = [(slices[example.slice_index].mask == i).sum() for i in (1, 2, 3)]
            assert example.target == tuple(float(n >= data.MIN_PRESENT_PX) for n in counts)

    @pytest.mark.parametrize("stream", ["all", "ground_glass", "consolidation", "pleural_effusion"])
    def test_its_background_is_background_for_every_stream(self, stream):
        assert admissible_table(stream)[Code.ANNOTATED_BACKGROUND].tolist()[0] == 1
        assert admissible_table(stream)[Code.ANNOTATED_BACKGROUND].sum() == 1

    def test_neighbours_stay_together(self, medseg):
        sides: dict[int, set[str]] = {}
        for example in origins.examples_for("segmentation", medseg[0]):
            sides.setdefault(example.slice_index // 10, set()).add(example.split)
        assert all(len(splits) == 1 for splits in sides.values())
        assert set.union(*sides.values()) == {"train", "val", "test"}

    def test_the_fingerprint_tells_slices_apart(self, medseg):
        root, _ = medseg
        examples = origins.examples_for("segmentation", root)[:3]
        other = [dataclasses.replace(examples[0], slice_index=9), *examples[1:]]
        assert data.fingerprint(examples, root) == data.fingerprint(examples[::-1], root)
        assert data.fingerprint(examples, root) != data.fingerprint(other, root)

    def test_whole_scans_are_split_by_scan_and_what_has_no_twin_is_missing(self, tmp_path):
        for i in range(1, 6):
            save_pair(tmp_path, f"rp_im/{i}.nii.gz", f"rp_msk/{i}.nii.gz", drawn(2))
        (tmp_path / "rp_msk/5.nii.gz").unlink()
        (report,) = origins.check(tmp_path)
        assert report.missing == ("1 files are missing: rp_msk/5.nii.gz",)
        examples = origins.examples_for("segmentation", tmp_path)
        assert len(examples) == 8
        assert {e.group for e in examples} == {f"medseg9/{i}.nii.gz" for i in range(1, 5)}
        assert {e.split for e in examples} == {"train", "val", "test"}

    def test_a_missing_mask_is_named(self, tmp_path):
        save_volume(tmp_path / "tr_im.nii.gz", [hu_of(s.pixels) for s in drawn(1)])
        with pytest.raises(DatasetError, match=r"expected tr_im.nii.gz and tr_mask.nii.gz .*found no tr_mask.nii.gz"):
            origins.check(tmp_path)

    def test_a_mask_of_another_size_is_refused(self, tmp_path):
        save_pair(tmp_path, "tr_im.nii.gz", "tr_mask.nii.gz", drawn(2))
        save_volume(tmp_path / "tr_mask.nii.gz", [drawn(1)[0].mask], np.uint8)
        with pytest.raises(DatasetError, match=r"expected tr_mask.nii.gz of the shape .* 2\], got .* 1\]"):
            origins.check(tmp_path)

    def test_grey_values_are_not_taken_for_hounsfield_units(self, tmp_path):
        save_pair(tmp_path, "tr_im.nii.gz", "tr_mask.nii.gz", drawn(1))
        save_volume(tmp_path / "tr_im.nii.gz", [drawn(1)[0].pixels])
        with pytest.raises(DatasetError, match="expected Hounsfield units"):
            origins.check(tmp_path)

    def test_a_class_that_nobody_named_is_refused(self, tmp_path):
        save_pair(tmp_path, "tr_im.nii.gz", "tr_mask.nii.gz", drawn(1))
        save_volume(tmp_path / "tr_mask.nii.gz", [drawn(1)[0].mask + 4], np.uint8)
        with pytest.raises(DatasetError, match=r"expected class ids of 0 to 3, got 4, 5"):
            origins.check(tmp_path)

    def test_a_broken_volume_is_one_error(self, tmp_path):
        save_pair(tmp_path, "tr_im.nii.gz", "tr_mask.nii.gz", drawn(1))
        whole = (tmp_path / "tr_im.nii.gz").read_bytes()
        (tmp_path / "tr_im.nii.gz").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DatasetError, match=r"tr_im.nii.gz: expected a"):
            origins.check(tmp_path)


class TestPictures:
    def test_show_the_scan_with_its_masks_outlined(self, medseg, tmp_path):
        root, slices = medseg
        (report,) = origins.check(root)
        files = save_pictures(report.examples, root, tmp_path / "seen", n=3)
        assert [path.name for path in files] == ["medseg100.00000.png", "medseg100.00022.png", "medseg100.00044.png"]
        shown = cv2.imread(str(files[0]))[..., ::-1]
        ids = cv2.resize(slices[0].mask, (512, 512), interpolation=cv2.INTER_NEAREST_EXACT)
        coloured = (shown == MANIFESTATIONS[0].colour_rgb).all(axis=-1)
        assert coloured.any()
        assert (ids[coloured] == 1).all()
        away = (shown == shown[..., :1]).all(axis=-1)
        np.testing.assert_array_equal(shown[..., 0][away], data.load_image(report.examples[0], root)[away])


class TestIeee8023:
    def test_findings_become_admissible_diagnoses_and_the_rest_is_left_out(self, ieee):
        (report,) = origins.check(ieee)
        totals = {label: sum(counts) for label, counts in report.counts.items()}
        assert totals == {
            "covid19": 12,
            "normal": 1,
            "bacterial_pneumonia": 1,
            "viral_pneumonia": 1,
            "covid19 or viral_pneumonia or bacterial_pneumonia": 1,
        }
        assert report.missing == ("1 files are missing: images/gone.jpg",)
        assert any("1 of neither a frontal nor an axial view" in note for note in report.notes)
        assert any("CC BY (10); not stated (10)" in note for note in report.notes)

    def test_a_patient_is_on_one_side(self, ieee):
        sides: dict[str, set[str]] = {}
        for example in origins.examples_for("recognition", ieee):
            sides.setdefault(example.group, set()).add(example.split)
        assert len(sides) == 10
        assert all(len(splits) == 1 for splits in sides.values())

    def test_the_first_releases_are_read_too(self, tmp_path):
        rows = [{"Patientid": i, "finding": "COVID-19, ARDS", "view": "CT", "filename": f"{i}.png"} for i in range(3)]
        write_table(tmp_path / "metadata.csv", rows)
        write_classes(tmp_path, {"images": 3})
        examples = origins.examples_for("recognition", tmp_path)
        assert {e.modality for e in examples} == {"ct"}
        assert {e.target for e in examples} == {(1.0, 0.0, 0.0, 0.0)}

    @pytest.mark.parametrize("finding", ["todo", "Unknown", "Pneumonia/Fungal/Pneumocystis", "Tuberculosis", ""])
    def test_what_is_none_of_the_four_has_no_target(self, finding):
        assert ieee8023.target_of(finding) is None

    def test_a_missing_column_is_named(self, tmp_path):
        write_table(tmp_path / "metadata.csv", [{"patientid": 1, "finding": "COVID-19"}])
        with pytest.raises(
            DatasetError, match="expected the columns patientid, finding, view, filename, got patientid"
        ):
            origins.check(tmp_path)

    def test_a_table_without_its_pictures_says_so(self, tmp_path):
        write_table(
            tmp_path / "metadata.csv",
            [{"patientid": 1, "finding": "COVID-19", "view": "PA", "filename": "a.png"}],
        )
        with pytest.raises(DatasetError, match=r"got none of 1 \(images/a.png\)"):
            origins.check(tmp_path)


class TestRsna:
    def test_an_opacity_is_either_pneumonia_and_never_covid19(self, tmp_path):
        write_rsna(tmp_path)
        examples = origins.examples_for("recognition", tmp_path)
        assert {e.target for e in examples} == {(0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 1.0)}
        assert len(examples) == 8
        (report,) = origins.check(tmp_path)
        assert any(note.startswith("split by image") for note in report.notes)
        assert "left out: 4 neither normal nor an opacity" in report.notes

    def test_a_radiograph_is_read_from_dicom(self, tmp_path):
        write_rsna(tmp_path)
        example = next(e for e in origins.examples_for("recognition", tmp_path) if e.path.endswith("/i3.dcm"))
        expected = preprocess(Scan(phantom.chest_xray(seed=3, size_px=SIDE_PX), "xray", "dicom"))[..., 0]
        np.testing.assert_array_equal(data.load_image(example, tmp_path), expected)

    def test_the_published_mapping_makes_the_split_by_patient(self, tmp_path):
        write_rsna(tmp_path)
        rows = [{"subset_img_id": f"i{i}", "img_id": f"{i // 3:08d}_{i % 3:03d}.png"} for i in range(12)]
        (tmp_path / "pneumonia-challenge-dataset-mappings_2018.json").write_text(json.dumps(rows))
        examples = origins.examples_for("recognition", tmp_path)
        assert {e.group for e in examples} == {f"rsna/{i:08d}" for i in range(4)}

    def test_tables_that_contradict_each_other_are_refused(self, tmp_path):
        write_rsna(tmp_path)
        rows = [{"patientId": f"i{i}", "class": "Normal"} for i in range(12)]
        write_table(tmp_path / "stage_2_detailed_class_info.csv", rows)
        with pytest.raises(DatasetError, match=r"exactly where stage_2_train_labels.csv has Target 1"):
            origins.check(tmp_path)

    @pytest.mark.parametrize("name", ["stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"])
    def test_a_missing_table_is_named(self, tmp_path, name):
        write_rsna(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(DatasetError, match=f"expected {name}"):
            origins.check(tmp_path)


class TestClassFolders:
    def test_names_are_taken_however_they_are_written(self, tmp_path):
        write_classes(
            tmp_path, {"COVID-19": 4, "Healthy": 4, "Viral Pneumonia": 4, "bacterial_pneumonia": 4, "misc": 1}
        )
        (report,) = origins.check(tmp_path)
        assert {label: sum(n) for label, n in report.counts.items()} == dict.fromkeys(
            ("covid19", "normal", "viral_pneumonia", "bacterial_pneumonia"), 4
        )
        assert "taken for radiographs, by their pixels" in report.notes
        assert any("split by file" in note for note in report.notes)
        assert any("misc/" in note for note in report.notes)

    def test_ct_slices_are_told_from_radiographs(self, tmp_path):
        write_classes(
            tmp_path, {"covid": 4, "normal": 4}, lambda i: phantom.png_bytes(phantom.ct_slice(i, SIDE_PX).pixels)
        )
        assert {e.modality for e in origins.examples_for("recognition", tmp_path)} == {"ct"}

    def test_folders_of_patients_are_kept_together_and_masks_left_alone(self, tmp_path):
        write_classes(tmp_path / "covid", {f"patient{i}": 2 for i in range(3)})
        write_classes(tmp_path / "normal", {"images": 2, "masks": 2})
        examples = origins.examples_for("recognition", tmp_path)
        assert len(examples) == 8
        assert {e.group for e in examples if "covid" in e.path} == {f"class_folders/patient{i}" for i in range(3)}
        assert not [e for e in examples if "masks" in e.path]

    def test_one_class_teaches_nothing(self, tmp_path):
        write_classes(tmp_path, {"covid": 2})
        (tmp_path / "normal").mkdir()
        with pytest.raises(DatasetError, match=r"expected scans of two diagnoses or more .*2 in covid/, 0 in normal/"):
            origins.check(tmp_path)


class TestAnyFolder:
    def test_one_laid_out_in_no_known_way_is_told_which_are_known(self, tmp_path):
        (tmp_path / "scans").mkdir()
        with pytest.raises(DatasetError) as caught:
            origins.examples_for("recognition", tmp_path)
        message = str(caught.value)
        assert "\n" not in message
        for name in ("manifest.csv", "tr_im.nii.gz", "metadata.csv", "stage_2_train_images", "covid", "got scans/"):
            assert name in message

    @pytest.mark.parametrize("task", ["recognition", "nodules"])
    def test_one_that_does_not_fit_the_task_says_what_it_is_for(self, medseg, task):
        with pytest.raises(DatasetError, match=f"expected scans for {task} .*for manifestations and segmentation"):
            origins.examples_for(task, medseg[0])

    def test_one_with_too_few_patients_says_which_split_is_empty(self, tmp_path):
        save_pair(tmp_path, "tr_im.nii.gz", "tr_mask.nii.gz", drawn(3))
        with pytest.raises(DatasetError, match=r"three patients or more .*3 scans of 1, and none for train and val"):
            origins.examples_for("segmentation", tmp_path)

    def test_few_groups_leave_no_split_empty_and_many_follow_their_names(self):
        for n in (3, 9, 49):
            assert set(splits_of(map(str, range(n))).values()) == {"train", "val", "test"}
        many = splits_of(map(str, range(60)))
        assert many == {name: data.split_of(name) for name in many}

    def test_what_can_not_be_decoded_is_named(self, tmp_path):
        write_classes(tmp_path, {"covid": 3, "normal": 3})
        (tmp_path / "covid" / "1.png").write_bytes(b"nothing")
        example = next(e for e in origins.examples_for("recognition", tmp_path) if e.path == "covid/1.png")
        with pytest.raises(DatasetError, match=r"covid/1.png: expected PNG"):
            data.load_image(example, tmp_path)

    def test_the_weights_of_a_run_name_the_origin_and_its_licence(self, medseg):
        licences = origins.licences(medseg[0])
        assert list(licences) == ["medseg100"]
        assert licences["medseg100"].startswith("medicalsegmentation.com: ")
