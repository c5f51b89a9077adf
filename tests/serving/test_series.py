"""Series of DICOM files: grouped, sorted by position, and their faults said without a word about the patient."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    BasicTextSRStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    RLELossless,
    SegmentationStorage,
)

from serving.errors import (
    AmbiguousStudy,
    GeometryError,
    RequestError,
    ScanError,
    ScanTooLarge,
    ScanTooSmall,
    UnreadableScan,
    UnsupportedScan,
)
from serving.scans import decode
from serving.series import Study, read_study
from serving.studies import open_volume
from tests.serving.dicom_files import GRADIENT, edited
from tests.serving.volume_files import PATIENT, PATIENT_ID, dicom_series, dicom_slice, file_of, shuffled, zipped

AFFINE = np.array([[0, 0, 0.5, -10], [0, 0.75, 0, -20], [2.5, 0, 0, 30], [0, 0, 0, 1]])
HU = (np.random.default_rng(3).integers(-1000, 400, (9, 50, 60))).astype(np.int16)


def slices(series: str = "1.2.3", **elements: object) -> list[Dataset]:
    return dicom_series(HU, AFFINE, series, **elements)


def study(*files: Dataset | bytes) -> Study:
    return read_study(zipped(files))


def test_slices_are_sorted_by_position_whatever_names_and_numbers_say() -> None:
    volume = open_volume(zipped(shuffled(slices())))
    np.testing.assert_array_equal(np.stack(list(volume.slices_hu())), HU)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert volume.problems == ()


def test_a_folder_is_searched_and_read_like_a_zip(tmp_path: Path) -> None:
    for i, dataset in enumerate(shuffled(slices())):
        folder = tmp_path / f"part{i % 2}"
        folder.mkdir(exist_ok=True)
        dataset.save_as(folder / f"{PATIENT}{i}.dcm", enforce_file_format=True)
    (tmp_path / ".hidden").write_bytes(b"no scan")
    (tmp_path / "loop").symlink_to(tmp_path)
    volume = open_volume(tmp_path)
    np.testing.assert_array_equal(np.stack(list(volume.slices_hu())), HU)
    listed = open_volume(sorted(tmp_path.rglob("*.dcm")))
    np.testing.assert_array_equal(listed.slice_hu(4), HU[4])
    (tmp_path / "study.zip").write_bytes(zipped(slices()))
    np.testing.assert_array_equal(open_volume(tmp_path / "study.zip").slice_hu(4), HU[4])


def test_missing_slices_are_said_and_no_exact_affine_is_claimed() -> None:
    files = slices()
    del files[5], files[3]
    volume = open_volume(zipped(shuffled(files)))
    said = "2 slices are missing in 2 places (slices are 2.50 mm apart, the widest gap is 5.00 mm)"
    assert said in volume.problems
    assert volume.affine is None
    assert volume.shape == (7, 50, 60)
    np.testing.assert_array_equal(volume.slice_hu(3), HU[4])
    total = sum(float(volume.voxel_ml(i).item()) for i in range(7))  # type: ignore[union-attr]
    # The gaps are bridged: what is left reaches as far as all of them did.
    assert total * 50 * 60 == pytest.approx(HU.size * 0.5 * 0.75 * 2.5 / 1000)


def test_two_phases_in_one_place_are_said_and_the_first_is_used() -> None:
    again = dicom_series(HU - 7, AFFINE)
    for dataset in again:
        dataset.InstanceNumber += 1000
    volume = open_volume(zipped(shuffled(slices() + again)))
    assert any(problem.startswith("9 slices are in the place of another") for problem in volume.problems)
    np.testing.assert_array_equal(np.stack(list(volume.slices_hu())), HU)
    assert len(volume.instances) == 9


def test_a_file_that_was_sent_twice_is_used_once() -> None:
    files = slices()
    volume = open_volume(zipped([*files, files[2]]))
    assert volume.shape[0] == 9
    assert "1 file(s) were sent twice; each is used once" in volume.problems


def test_uneven_distances_are_said() -> None:
    files = slices()
    files[4].ImagePositionPatient = [-10, -20, 41]
    (series,) = study(*files).series
    assert "slices are not equally far apart: 1.50 to 3.50 mm" in series.problems


def test_slices_that_are_shifted_sideways_are_said() -> None:
    files = slices()
    files[4].ImagePositionPatient = [-10, -14, 40]
    volume = open_volume(zipped(files))
    assert any("shifted sideways against each other by up to 6.0 mm" in problem for problem in volume.problems)
    assert volume.affine is None


def test_a_tilted_gantry_is_said_and_its_affine_is_sheared() -> None:
    sheared = AFFINE.copy()
    sheared[1, 0] = 2.5 * np.tan(np.radians(20))
    volume = open_volume(zipped(dicom_series(HU, sheared)))
    assert any("sheared by 20 degrees" in problem for problem in volume.problems)
    np.testing.assert_allclose(volume.affine, sheared, atol=1e-5)
    assert volume.voxel_ml(0).item() == pytest.approx(0.5 * 0.75 * 2.5 / 1000)  # type: ignore[union-attr]


def test_several_series_are_listed_and_none_is_guessed() -> None:
    second = dicom_series(HU[:4], AFFINE, "1.2.4", SeriesDescription=f"of {PATIENT}")
    data = zipped(shuffled(slices() + second))
    with pytest.raises(AmbiguousStudy) as refused:
        open_volume(data)
    assert len(refused.value.choices) == 2
    assert sorted(open_volume(data, number).shape[0] for number in (0, 1)) == [4, 9]
    titles = [series.title for series in read_study(data).series]
    assert any(
        title.startswith(f"of {PATIENT}: CT, axial, 4 slices of 60 x 50, 2.50 x 0.75 x 0.50 mm") for title in titles
    )
    for said in (str(refused.value), repr(read_study(data)), repr(open_volume(data, 0))):
        assert "Mustermann" not in said
        assert PATIENT_ID not in said
        assert "19700101" not in said
    again = pickle.loads(pickle.dumps(refused.value))
    assert (again.choices, str(again)) == (refused.value.choices, str(refused.value))
    with pytest.raises(RequestError, match=r"expected a series in \[0, 2\), got 2"):
        open_volume(data, 2)


def test_of_many_series_the_first_are_named_in_the_message() -> None:
    with pytest.raises(AmbiguousStudy, match=r"got 25 series: 0: .*; 19: .*; and 5 more$") as refused:
        open_volume(zipped([dicom_slice(HU[0], series=f"1.2.{i}") for i in range(25)]))
    assert len(refused.value.choices) == 25


def test_mixed_orientations_and_sizes_are_said_and_listed_apart() -> None:
    turned = AFFINE[:, [2, 1, 0, 3]]
    sagittal = dicom_series(np.zeros((3, 50, 60), np.int16), turned)
    small = dicom_series(HU[:2, :48], AFFINE + np.array([0, 0, 0, 100.0]) * np.eye(4)[2][:, None])
    found = study(*shuffled(slices() + sagittal + small)).series
    assert sorted((len(series.planes), series.orientation, series.size_hw) for series in found) == [
        (2, "axial", (48, 60)),
        (3, "sagittal", (50, 60)),
        (9, "axial", (50, 60)),
    ]
    assert all(series.problems[0].startswith("the series mixes ") for series in found)
    assert any("orientations" in series.problems[0] for series in found)
    assert any("sizes" in series.problems[0] for series in found)


def test_what_is_no_slice_is_left_out_with_a_reason() -> None:
    scout = dicom_slice(HU[0], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    report = dicom_slice(HU[0], SOPClassUID=BasicTextSRStorage, Modality="SR")
    del report.PixelData
    segments = dicom_slice(HU[0], SOPClassUID=SegmentationStorage, Modality="SEG")
    files = [*slices(), scout, report, segments, segments, b"readme", zipped([b"x"]), file_of(scout)[:700]]
    found = study(*files)
    assert len(found.series) == 1
    said = {left.why: left.files for left in found.left_out}
    assert said["expected an axial CT slice, got a CT localizer"] == 1
    assert said["expected a DICOM image, got one without pixels (Basic Text SR Storage)"] == 1
    assert said["expected a DICOM of modality CT, CR, DX, DR, RG, got SEG"] == 2
    assert said["expected a DICOM file, got another format"] == 1
    assert said["expected a DICOM file, got an archive, which is not opened"] == 1
    assert sum(said.values()) == 7


def test_a_study_without_images_says_why() -> None:
    with pytest.raises(UnreadableScan, match=r"expected a study with .*, got none \(2 x expected a DICOM file"):
        study(b"one", b"another")
    with pytest.raises(UnreadableScan, match=r"got none \(no files\)"):
        study()
    with pytest.raises(UnsupportedScan, match="got a CT localizer"):
        open_volume(file_of(dicom_slice(HU[0], ImageType=["A", "B", "LOCALIZER"])))


def test_one_slice_is_a_volume_of_one_and_looks_as_decode_shows_it() -> None:
    dataset = dicom_slice(HU[0], SliceThickness=5, PixelPaddingValue=1324)
    volume = open_volume(file_of(dataset))
    scan = decode(file_of(dataset))
    np.testing.assert_array_equal(volume.slice_scan(0).pixels, scan.pixels)
    assert volume.slice_scan(0).pixel_spacing_mm == scan.pixel_spacing_mm
    assert (volume.slice_hu(0) == -2000).sum() == (HU[0] == 300).sum() > 0
    assert volume.spacing_mm == pytest.approx((5, 0.75, 0.5))


def test_a_slice_of_no_known_thickness_has_no_ml() -> None:
    volume = open_volume(file_of(dicom_slice(HU[0])))
    assert (volume.spacing_mm, volume.voxel_ml(0), volume.affine) == (None, None, None)
    assert volume.slice_scan(0).pixel_spacing_mm == (0.75, 0.5)
    assert any("no volumes in ml" in problem for problem in volume.problems)


def test_slices_without_position_are_in_order_of_their_numbers_and_have_no_ml() -> None:
    files = [dicom_slice(HU[k], None, InstanceNumber=k) for k in range(9)]
    volume = open_volume(zipped(shuffled(files)))
    np.testing.assert_array_equal(np.stack(list(volume.slices_hu())), HU)
    assert "slices do not say where they lie: they are in order of their numbers" in volume.problems
    assert (volume.affine, volume.spacing_mm, volume.voxel_ml(0)) == (None, None, None)


def test_radiographs_are_listed_and_make_no_volume() -> None:
    found = read_study(edited())
    assert found.series[0].summary.startswith("XRAY, unknown, 1 slice of 96 x 64")
    with pytest.raises(UnsupportedScan, match="expected a CT series for a volume, got xray"):
        open_volume(edited())


def test_files_without_a_series_belong_to_no_other() -> None:
    files = slices()[:3]
    for dataset in files:
        del dataset.SeriesInstanceUID
    assert [len(series.planes) for series in study(*files).series] == [1, 1, 1]


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEG2000Lossless, ImplicitVRLittleEndian, "deflated", ExplicitVRBigEndian]
)
def test_transfer_syntaxes_read_alike(syntax: UID | str) -> None:
    files = slices()
    for dataset in files:
        if syntax == "deflated":
            dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
        elif UID(syntax).is_compressed:
            dataset.compress(UID(syntax), generate_instance_uid=False)
        else:
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            if syntax == ExplicitVRBigEndian:
                dataset.PixelData = np.frombuffer(dataset.PixelData, "<i2").astype(">i2").tobytes()
                dataset["PixelData"].VR = "OW"
    if syntax == ExplicitVRBigEndian:
        streams = []
        for dataset in files:
            stream = io.BytesIO()
            pydicom.dcmwrite(stream, dataset, implicit_vr=False, little_endian=False, enforce_file_format=True)
            streams.append(stream.getvalue())
        volume = open_volume(zipped(streams))
    else:
        volume = open_volume(zipped(files))
    np.testing.assert_array_equal(np.stack(list(volume.slices_hu())), HU)


def multi_frame(order: list[int], *, compressed: bool = False) -> Dataset:
    """An enhanced CT whose frames are in this order."""
    dataset = dicom_slice(HU[0], None, None, SOPClassUID=EnhancedCTImageStorage, NumberOfFrames=len(order))
    del dataset.RescaleSlope, dataset.RescaleIntercept
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.75, 0.5], 2.5
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.PixelValueTransformationSequence = Sequence([rescale])
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = [-10, -20, 30 + 2.5 * k]
        frame.PlanePositionSequence = Sequence([position])
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frames)
    stored = [(HU[k].astype(np.int32) + 1024).astype("<i2") for k in order]
    if compressed:
        dataset.file_meta.TransferSyntaxUID = RLELossless
        parts = []
        for frame in stored:
            single = dicom_slice(frame.astype(np.int16) - 1024)
            single.compress(RLELossless)
            parts.append(pydicom.encaps.get_frame(single.PixelData, 0, number_of_frames=1))
        dataset.PixelData = encapsulate(parts)
        dataset["PixelData"].VR = "OB"
    else:
        dataset.PixelData = b"".join(frame.tobytes() for frame in stored)
    return dataset


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("in_memory", [False, True])
def test_frames_of_an_enhanced_ct_are_slices_in_order_of_position(
    compressed: bool, in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_memory:
        monkeypatch.setattr("serving.dicom_frames.MAX_FILE_BYTES", 4096)
    order = [4, 0, 8, 1, 7, 2, 6, 3, 5]
    path = tmp_path / "enhanced"
    path.write_bytes(file_of(multi_frame(order, compressed=compressed)))
    for source in (path, path.read_bytes(), zipped([path.read_bytes()])):
        volume = open_volume(source)
        np.testing.assert_array_equal(np.stack(list(volume.slices_hu())), HU)
        np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
        masks = np.arange(HU.size, dtype=np.int32).reshape(HU.shape)
        by_instance = volume.masks_by_instance(masks)
        (uid,) = {uid for uid, _ in by_instance}
        for frame, k in enumerate(order):
            np.testing.assert_array_equal(by_instance[uid, frame], masks[k])


def test_frames_without_functional_groups_for_each_are_refused() -> None:
    dataset = multi_frame([0, 1, 2])
    dataset.PerFrameFunctionalGroupsSequence = dataset.PerFrameFunctionalGroupsSequence[:2]
    with pytest.raises(UnreadableScan, match="expected functional groups of 3 frames, got 2"):
        open_volume(file_of(dataset))


def test_a_truncated_multi_frame_file_reads_up_to_where_it_ends() -> None:
    whole = file_of(multi_frame(list(range(9))))
    volume = open_volume(whole[: -HU[0].nbytes // 2])
    np.testing.assert_array_equal(volume.slice_hu(7), HU[7])
    with pytest.raises(UnreadableScan, match="expected 6,000 bytes of pixels, got 3,000"):
        volume.slice_hu(8)


def test_a_multi_frame_capture_is_shown_in_grey_and_has_no_hu() -> None:
    grey = np.random.default_rng(0).integers(0, 256, (3, 64, 96)).astype(np.uint8)
    dataset = dicom_slice(
        HU[0],
        None,
        None,
        SOPClassUID=MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
        NumberOfFrames=3,
        Rows=64,
        Columns=96,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelRepresentation=0,
        PixelData=grey.tobytes(),
    )
    del dataset.RescaleSlope, dataset.RescaleIntercept
    volume = open_volume(file_of(dataset))
    np.testing.assert_array_equal(np.stack([volume.slice_scan(i).pixels for i in range(3)]), grey)
    assert any("no Hounsfield units" in problem for problem in volume.problems)
    with pytest.raises(UnsupportedScan, match="expected Hounsfield units, got a capture of grey values"):
        volume.slice_hu(0)
    assert volume.voxel_ml(0) is None


def test_a_header_without_an_end_is_not_read_to_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dataset, item = multi_frame([0, 1, 2]), Dataset()
    dataset.add_new(0x00091010, "OB", bytes(200_000))
    path = tmp_path / "file"
    path.write_bytes(file_of(dataset))
    monkeypatch.setattr("serving.dicom_headers.MAX_HEADER_BYTES", 100_000)
    # What is not looked at is passed over, and of a sequence without a length nobody knows the end.
    assert open_volume(path).shape == (3, 50, 60)
    item.add_new(0x00091010, "OB", bytes(200_000))
    dataset.ReferencedStudySequence = Sequence([item])
    dataset["ReferencedStudySequence"].is_undefined_length = True
    path.write_bytes(file_of(dataset))
    with pytest.raises(ScanTooLarge, match="expected a DICOM header of at most 100,000 bytes, got more"):
        open_volume(path)


def test_sagittal_slices_with_a_gap_keep_their_volume_and_a_few_are_too_small() -> None:
    hu = np.zeros((60, 50, 64), np.int16)
    turned = AFFINE[:, [2, 1, 0, 3]]
    files = dicom_series(hu, turned)
    del files[20]
    volume = open_volume(zipped(files))
    assert volume.shape == (64, 50, 59)
    ml = volume.voxel_ml(5)
    assert ml is not None
    assert ml.shape == (1, 59)
    assert np.broadcast_to(ml, (50, 59)).sum() == pytest.approx(60 * 50 * 0.5 * 0.75 * 2.5 / 1000)
    # The neighbours of the gap reach further, and they lie at its place along the columns.
    assert set(np.flatnonzero(ml[0] > 1.2 * ml[0].min())) == {19, 20}
    with pytest.raises(ScanTooSmall, match="got 5 x 50"):
        open_volume(zipped(files[:5]))


def test_a_file_that_changes_its_size_after_it_was_listed_is_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}" for i in range(9)]
    for path, dataset in zip(paths, slices(), strict=True):
        path.write_bytes(file_of(dataset))
    volume = open_volume(paths)
    paths[3].write_bytes(file_of(dicom_slice(HU[0, :48])))
    with pytest.raises(GeometryError, match=r"expected a slice of \(50, 60\), got \(48, 60\)"):
        volume.slice_hu(3)


def test_damaged_files_are_read_or_refused_and_nothing_else() -> None:
    whole = file_of(multi_frame(list(range(9)), compressed=True))
    rng = np.random.default_rng(0)
    refusals = []
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 9))):
            data[int(len(data) * rng.random() ** 3)] = int(rng.integers(256))
        try:
            volume = open_volume(bytes(data))
            for i in range(volume.shape[0]):
                volume.slice_scan(i)
        except (ScanError, GeometryError) as refused:
            refusals.append(str(refused))
    assert 10 < len(refusals) < 150
    assert all("expected" in says and "Mustermann" not in says for says in refusals)


def test_jpeg_2000_frames_of_another_size_are_refused_before_decoding() -> None:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4000, 4000), np.uint8)).save(stream, format="JPEG2000", no_jp2=True)
    dataset = dicom_slice(GRADIENT.astype(np.int16))
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    with pytest.raises(UnreadableScan, match=r"expected compressed pixels of 96 x 64 .*, got 4000 x 4000"):
        open_volume(file_of(dataset)).slice_hu(0)


def test_a_file_of_a_series_that_can_not_be_read_is_named_by_its_place_and_its_slice_is_said_to_be_missing() -> None:
    files = [file_of(one) for one in slices()]
    files[4] = files[4][:700]
    volume = open_volume(zipped(files))
    assert volume.shape[0] == len(HU) - 1
    first, *others = volume.problems
    assert first.startswith("file 5 of 9 can not be read: expected ")
    assert any("1 slice is missing in 1 place" in problem for problem in others)
    assert "slices are missing between slices 4 and 5, counted from the feet" in others
    # At an end there is no gap that would show it.
    files = [file_of(one) for one in slices()]
    files[-1] = b"not DICOM"
    assert open_volume(zipped(files)).problems[0] == (
        "file 9 of 9 can not be read: expected a DICOM file, got another format"
    )


def test_a_gap_is_counted_from_the_feet_whatever_way_the_slices_run() -> None:
    # Rows run to the front, so that the normal of slices points to the feet.
    turned = AFFINE * np.array([[1], [-1], [1], [1]])
    volume = open_volume(zipped([one for i, one in enumerate(dicom_series(HU, turned)) if i != 2]))
    assert volume.layout.flipped[0]
    assert "slices are missing between slices 2 and 3, counted from the feet" in volume.problems


def test_frames_in_one_place_are_refused_and_listed() -> None:
    many = [dicom_slice(HU[i], (0.0, 0.0, 5.0), InstanceNumber=i + 1) for i in range(9)]
    with pytest.raises(UnsupportedScan, match="expected slices in different places, got 9 in one place"):
        open_volume(zipped(many))
    assert "8 slices are in the place of another" in study(*many).series[0].summary


def test_an_error_of_a_slice_names_its_file_by_its_place() -> None:
    files = [file_of(one) for one in slices()]
    files[3] = files[3][: -HU[0].nbytes // 2]
    volume = open_volume(zipped(files))
    assert volume.shape == HU.shape
    with pytest.raises(UnreadableScan, match=r"^file 4 of 9: expected 6,000 bytes of pixels, got 3,000"):
        volume.slice_hu(3)
