"""Studies through a real Triton whose answers can be computed from the slices."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from tritonclient import grpc as triton_grpc

from serving import phantom, pipeline
from serving.client import PipelineClient
from serving.dicom_pixels import LUNG_LEVEL_HU, LUNG_WIDTH_HU
from serving.errors import RequestError, ServerMismatch, ServerUnreachable, UnreadableScan
from serving.labels import MANIFESTATION_NAMES, STREAM_NAMES
from serving.lungs import LEFT, RIGHT, find_lungs, lungs_of_grey, within_body
from serving.preprocessing import preprocess
from serving.results import restore_mask
from serving.studies import open_volume
from serving.study_reading import StudyReading, read_volume
from serving.study_report import StudyReport
from serving.tritonserver import TritonServer
from serving.volumes import Layout, Volume
from serving.voxels import Memory
from tests.serving.volume_files import affine_ras, dicom_slice, file_of, nifti_bytes, zipped
from tests.toy_models import QUADRANTS, STRIPS, expected_mask, expected_means

pytestmark = pytest.mark.triton

ALL_OPEN = dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0)
SLICES, SIDE = 11, 96


def hu_of(pixels: np.ndarray) -> np.ndarray:
    """Hounsfield units that the lung window shows as these pixels."""
    return np.rint(LUNG_LEVEL_HU + (pixels / 255.0 - 0.5) * LUNG_WIDTH_HU).astype(np.int16)


def chest() -> np.ndarray:
    """A chest of another drawing in each slice, in axial order; the outermost slices show no lung."""
    drawn = np.stack([hu_of(phantom.ct_slice(seed, SIDE).pixels) for seed in range(SLICES)])
    drawn[[0, -1]] = np.where(np.hypot(*np.mgrid[-48:48, -48:48]) < 40, 60, -1000)
    return drawn


@pytest.fixture(scope="module")
def volume() -> Volume:
    # Stored as most NIfTI files are: columns, rows, slices, from the patient's left, from the feet.
    stored = chest().transpose(2, 1, 0)[::-1]
    return open_volume(nifti_bytes(np.ascontiguousarray(stored), affine_ras((0, 1, 2), (1, -1, 1), (0.8, 0.7, 5.0))))


@pytest.fixture
def client(toy_triton: TritonServer) -> Iterator[PipelineClient]:
    with PipelineClient(toy_triton.grpc_url) as connected:
        yield connected


@pytest.fixture(scope="module")
def whole(toy_triton: TritonServer, volume: Volume) -> StudyReport:
    with PipelineClient(toy_triton.grpc_url) as client:
        return read_volume(client, volume, ALL_OPEN)


def asked(server: TritonServer) -> int:
    """How many requests the server's door has taken since its start."""
    with triton_grpc.InferenceServerClient(server.grpc_url) as triton:
        (stats,) = triton.get_inference_statistics("preprocess").model_stats
        return int(stats.inference_stats.success.count)


def expected_masks(volume: Volume, stream: str) -> np.ndarray:
    """What the toys mark in the body."""
    scans = [volume.slice_scan(i) for i in range(volume.shape[0])]
    masks = np.stack([restore_mask(expected_mask(preprocess(scan), stream), scan) for scan in scans])
    places = [within_body(scan.pixels, lungs) for scan, lungs in zip(scans, find_lungs(volume).slices(), strict=True)]
    inside = np.stack([place for place in places if place is not None])
    assert masks[~inside].any()
    return np.where(inside, masks, 0)


class TestAnswers:
    def test_each_slice_says_what_its_pixels_say_in_order(self, whole: StudyReport, volume: Volume) -> None:
        assert [one.index for one in whole.slices] == list(range(SLICES))
        for one in whole.slices:
            image = preprocess(volume.slice_scan(one.index))
            np.testing.assert_allclose(list(one.diagnosis.values()), expected_means(image, QUADRANTS), atol=5e-4)
            np.testing.assert_allclose(list(one.manifestations.values()), expected_means(image, STRIPS), atol=5e-4)
        assert whole.complete
        assert whole.thresholds == ALL_OPEN
        assert whole.models == dict.fromkeys(pipeline.MODEL_NAMES, "1")
        assert whole.shape == (SLICES, SIDE, SIDE)
        assert whole.spacing_mm == pytest.approx((5.0, 0.7, 0.8))
        assert whole.problems == volume.problems
        assert whole.doubts == ()
        assert whole.latency_ms > 0

    def test_masks_lie_on_their_slices(self, whole: StudyReport, volume: Volume) -> None:
        for stream in STREAM_NAMES:
            masks, expected = whole.masks[stream], expected_masks(volume, stream)
            assert masks is not None
            np.testing.assert_array_equal(masks.array(), expected)
            assert whole.area_fraction[stream] == pytest.approx(float((expected > 0).mean()))

    def test_slices_without_lung_do_not_count(self, whole: StudyReport) -> None:
        assert [one.index for one in whole.counted] == list(range(1, SLICES - 1))

    def test_the_burden_is_what_the_masks_say_where_slices_count(self, whole: StudyReport, volume: Volume) -> None:
        masks = {name: expected_masks(volume, name) > 0 for name in MANIFESTATION_NAMES}
        counts = np.zeros((SLICES, 1, 1), bool)
        counts[[one.index for one in whole.counted]] = True
        assert any((mask & ~counts).any() for mask in masks.values())
        lungs = np.stack(list(find_lungs(volume).slices()))
        masks = {name: mask & counts for name, mask in masks.items()}
        assert {RIGHT, LEFT} < set(np.unique(lungs))
        tissue = (lungs > 0) | masks["ground_glass"] | masks["consolidation"]
        voxel_ml = 0.8 * 0.7 * 5.0 / 1000
        counted = {"infected": np.logical_or.reduce(list(masks.values())), **masks}
        for name, mask in counted.items():
            sides = whole.burden.found[name]
            assert sides["both"].pixels == mask.sum() == sides["right"].pixels + sides["left"].pixels
            assert sides["both"].ml == pytest.approx(mask.sum() * voxel_ml)
            assert sides["both"].percent == pytest.approx(100 * mask.sum() / tissue.sum())
            for side, label in (("right", RIGHT), ("left", LEFT)):
                assert sides[side].pixels >= (mask & (lungs == label)).sum()
        assert whole.burden.lung["both"].pixels == tissue.sum()
        assert whole.burden.lung["both"].ml == pytest.approx(tissue.sum() * voxel_ml)

    def test_one_slice_after_the_other_gives_the_same(
        self, client: PipelineClient, volume: Volume, whole: StudyReport
    ) -> None:
        one_by_one = read_volume(client, volume, ALL_OPEN, in_flight=0)
        assert one_by_one.slices == whole.slices
        assert one_by_one.burden == whole.burden


class TestGates:
    def test_a_closed_stage_2_says_nothing_of_the_burden(self, client: PipelineClient, volume: Volume) -> None:
        report = read_volume(client, volume, {"covid19": 1.0})
        assert set(report.status.values()) == {"not_run"}
        assert set(report.masks.values()) == {None}
        assert report.burden.found == {}
        assert report.burden.lung["both"].pixels > 0

    def test_thresholds_reach_every_slice(self, client: PipelineClient, volume: Volume, whole: StudyReport) -> None:
        name = "ground_glass"
        scores = sorted(float(one.manifestations[name] or 0) for one in whole.slices)
        between = (scores[4] + scores[5]) / 2
        report = read_volume(client, volume, {**dict.fromkeys(MANIFESTATION_NAMES, 1.0), name: between})
        ran = [one.index for one in report.slices if one.status[name] == "ran"]
        assert ran == [one.index for one in whole.slices if (one.manifestations[name] or 0) > between]
        assert len(ran) == SLICES - 5
        mask, everywhere = report.masks[name], whole.masks[name]
        assert mask is not None
        assert everywhere is not None
        assert mask.marked() == tuple(ran)
        np.testing.assert_array_equal(mask.array()[ran], everywhere.array()[ran])
        assert report.masks["consolidation"] is None
        assert report.area_fraction["consolidation"] is None
        assert report.burden.found["consolidation"]["both"].pixels == 0
        counted = [one.index for one in report.counted]
        assert report.burden.found[name]["both"].pixels == mask.array()[counted].sum()

    def test_an_unknown_threshold_is_refused_before_anything_is_read(
        self, client: PipelineClient, volume: Volume
    ) -> None:
        with pytest.raises(RequestError, match="expected one of covid19"):
            StudyReading(client, volume, {"fever": 0.5})


class TestStopping:
    def test_stopping_early_keeps_what_was_read_and_sends_no_more(
        self, client: PipelineClient, toy_triton: TritonServer, volume: Volume, whole: StudyReport
    ) -> None:
        before = asked(toy_triton)
        with StudyReading(client, volume, ALL_OPEN, in_flight=2) as reading:
            for one in reading:
                if one.index == 3:
                    break
        report = reading.report()
        assert report.slices == whole.slices[:4]
        assert not report.complete
        assert report.masks["all"] is not None
        assert report.masks["all"].marked() == (0, 1, 2, 3)
        client.close()
        assert 4 <= asked(toy_triton) - before <= 5

    def test_it_goes_on_where_it_stopped_and_an_earlier_report_stays(
        self, client: PipelineClient, volume: Volume, whole: StudyReport
    ) -> None:
        with StudyReading(client, volume, ALL_OPEN) as reading:
            first = [one.index for one in islice(reading, 4)]
            halted = reading.report()
            reading.stop()
            rest = [one.index for one in reading]
            assert first + rest == list(range(SLICES))
            assert list(reading) == []
            assert reading.report().slices == whole.slices
            assert reading.report().burden == whole.burden
        assert len(halted.slices) == 4
        assert halted.masks["all"] is not None
        assert halted.masks["all"].marked() == (0, 1, 2, 3)

    def test_two_loops_over_one_reading_share_its_slices(
        self, client: PipelineClient, volume: Volume, whole: StudyReport
    ) -> None:
        with StudyReading(client, volume, ALL_OPEN, in_flight=3) as reading:
            one, other = iter(reading), iter(reading)
            seen = [next(one).index, next(other).index, next(one).index]
            seen += [each.index for each in other]
            seen += [each.index for each in one]
            assert seen == list(range(SLICES))
            assert reading.report().slices == whole.slices

    def test_what_progress_raises_stops_it(
        self, client: PipelineClient, toy_triton: TritonServer, volume: Volume
    ) -> None:
        def progress(done: int, of: int) -> None:
            assert of == SLICES
            if done == 2:
                raise KeyboardInterrupt

        before = asked(toy_triton)
        with pytest.raises(KeyboardInterrupt):
            read_volume(client, volume, in_flight=2, progress=progress)
        client.close()
        assert asked(toy_triton) - before <= 4

    def test_nothing_read_is_nothing_to_report(self, client: PipelineClient, volume: Volume) -> None:
        with pytest.raises(ServerMismatch, match="got none"):
            StudyReading(client, volume).report()


class TestFailures:
    def test_a_server_that_is_not_there(self, volume: Volume) -> None:
        with PipelineClient("127.0.0.1:9") as client, pytest.raises(ServerUnreachable):
            read_volume(client, volume)


def test_lungs_of_a_capture_come_from_its_grey(client: PipelineClient) -> None:
    grey = [phantom.ct_slice(seed, SIDE).pixels for seed in range(3)]
    files = [
        dicom_slice(np.int16(pixels) - 1024, None, spacing=None, InstanceNumber=i, RescaleType="normalized")
        for i, pixels in enumerate(grey)
    ]
    volume = open_volume(zipped(files))
    assert not volume.source.is_hu
    with StudyReading(client, volume, ALL_OPEN) as reading:
        for one in reading:
            expected = lungs_of_grey(volume.slice_scan(one.index).pixels)
            np.testing.assert_array_equal(reading.lungs_of(one.index), expected)
            assert one.lung_px == np.count_nonzero(expected) > 0
        report = reading.report()
    assert report.spacing_mm is None
    assert report.burden.lung["both"].ml is None
    assert report.burden.found["infected"]["both"].percent is not None


class Endless(Memory):
    """One slice, as often as wanted."""

    def __init__(self, hu: np.ndarray, count: int) -> None:
        super().__init__(hu[None])
        self._count = count

    @property
    def shape(self) -> tuple[int, int, int]:
        _, h, w = super().shape
        return self._count, h, w

    def plane(self, axis: int, index: int) -> np.ndarray:
        return super().plane(axis, 0)


def test_memory_does_not_grow_with_the_study(client: PipelineClient) -> None:
    side = 256
    hu = hu_of(phantom.ct_slice(1, side).pixels)

    def peak(count: int) -> int:
        # So thin that the lungs' coarse grid, whose size is bounded elsewhere, is the same for both.
        volume = Volume(Endless(hu, count), np.diag([0.02, 0.7, 0.7, 1]), Layout())
        tracemalloc.start()
        try:
            assert len(read_volume(client, volume, ALL_OPEN, in_flight=4).slices) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(4)
    # Packed, masks of 32 more slices are 1 MiB; unpacked, they would be 8. How many answers wait at the peak is chance.
    assert peak(40) - peak(8) < 2**22


def test_what_may_be_no_study_of_the_chest_is_doubted(client: PipelineClient) -> None:
    affine = affine_ras((0, 1, 2), (1, -1, 1), (0.8, 0.7, 5.0))
    tissue = np.full((SIDE, SIDE, 3), -1000, np.int16)
    tissue[10:-10, 20:-20] = 40
    (said,) = read_volume(client, open_volume(nifti_bytes(tissue, affine))).doubts
    assert said == "No lung was found in any slice: this may be no study of the chest."
    # A box with as much air inside as lungs have.
    tissue[12:-12, 24:-24] = -850
    report = read_volume(client, open_volume(nifti_bytes(tissue, affine)))
    (said,) = report.doubts
    assert said.startswith("3 of 3 slices that show lung do not look like slices of a chest: this may be no study")
    # Said once: what shows both does not say it twice.
    assert not any("chest" in problem for problem in report.problems)


def test_a_slice_that_can_not_be_read_is_left_out_and_said(client: PipelineClient) -> None:
    files = [file_of(dicom_slice(hu, (0.0, 0.0, 5.0 * i))) for i, hu in enumerate(chest())]
    whole, broken = read_volume(client, open_volume(zipped(files))), 4
    files[broken] = files[broken][: -SIDE * SIDE]
    report = read_volume(client, open_volume(zipped(files)), ALL_OPEN)
    assert [one.index for one in report.slices] == [i for i in range(SLICES) if i != broken]
    assert not report.complete
    said = (
        f"slice {broken + 1} of {SLICES} is missing, since it can not be read (file {broken + 1} of {SLICES}: expected "
    )
    assert any(problem.startswith(said) for problem in report.problems)
    whole = read_volume(
        client, open_volume(zipped([dicom_slice(hu, (0.0, 0.0, 5.0 * i)) for i, hu in enumerate(chest())]))
    )
    # Its neighbours are read as they would have been: only its own lung is not there.
    assert [one.lung_px for one in report.slices] == pytest.approx(
        [one.lung_px for one in whole.slices if one.index != broken], rel=0.05, abs=50
    )
    for stack in report.masks.values():
        assert stack is not None
        assert broken not in stack.marked()


def test_a_study_of_which_no_slice_can_be_read_says_why(client: PipelineClient) -> None:
    files = [file_of(dicom_slice(hu, (0.0, 0.0, 5.0 * i)))[: -SIDE * SIDE] for i, hu in enumerate(chest()[:3])]
    with pytest.raises(UnreadableScan, match="file 1 of 3: expected"):
        read_volume(client, open_volume(zipped(files)))
