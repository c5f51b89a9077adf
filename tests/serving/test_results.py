from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from serving import pipeline
from serving.activation import ActivationMaps
from serving.errors import GeometryError, InferenceFailed, RequestError, ServerMismatch
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES, STREAM_NAMES, Modality
from serving.results import CaseReport, build_report, resolve_thresholds, restore_mask
from serving.scans import Scan

H, W = pipeline.MODEL_HW


def scan(height: int = 300, width: int = 200, modality: Modality = "ct") -> Scan:
    return Scan(np.zeros((height, width), np.uint8), modality, "png")


def tensors(
    diagnosis: tuple[float, ...] = (0.7, 0.1, 0.1, 0.1), findings: tuple[float, ...] = (0.9, 0.2, 0.6)
) -> dict[str, np.ndarray[Any, Any]]:
    answer: dict[str, np.ndarray[Any, Any]] = {
        "diagnosis": np.array(diagnosis, np.float32),
        "manifestations": np.array(findings, np.float32),
    }
    for i, stream in enumerate(STREAM_NAMES):
        mask = np.zeros((H, W), np.uint8)
        mask[: 64 * (i + 1)] = 1
        answer[pipeline.mask_output(stream)] = mask
    return answer


def report(thresholds: Mapping[str, float] | None = None, **kwargs: Any) -> CaseReport:
    # Said here, so that new default thresholds for new weights change nothing of what is tested.
    half = dict.fromkeys(MANIFESTATION_NAMES, 0.5)
    return build_report(scan(), tensors(**kwargs), {**half, **(thresholds or {})})


class TestRestoreMask:
    @pytest.mark.parametrize(
        "size_hw", [(512, 512), (64, 1000), (1023, 777), (513, 511), (1500, 1499), (300, 200), (2048, 256), (49, 5001)]
    )
    def test_each_pixel_takes_the_model_pixel_that_its_centre_falls_into(self, size_hw: tuple[int, int]) -> None:
        mask = np.random.default_rng(1).integers(0, 4, (H, W), dtype=np.uint8)
        restored = restore_mask(mask, scan(*size_hw))
        assert restored.shape == size_hw
        assert restored.dtype == np.uint8
        height, width = size_hw
        for row in (0, 1, height // 3, height // 2, height - 2, height - 1):
            for column in (0, 1, width // 3, width // 2, width - 2, width - 1):
                expected = mask[int((row + 0.5) * H / height), int((column + 0.5) * W / width)]
                assert restored[row, column] == expected, (row, column)

    @pytest.mark.parametrize("size_hw", [(300, 200), (513, 511), (1023, 777), (1500, 1499)])
    def test_is_symmetric_under_flips_where_no_centre_falls_on_a_border(self, size_hw: tuple[int, int]) -> None:
        # A resize that is off by half a pixel is not.
        mask = np.random.default_rng(2).integers(0, 4, (H, W), dtype=np.uint8)
        centres = [(2 * np.arange(size) + 1) * 512 % (2 * size) != 0 for size in size_hw]
        inner = np.ix_(*centres)
        flipped = restore_mask(np.ascontiguousarray(mask[::-1, ::-1]), scan(*size_hw))[::-1, ::-1]
        np.testing.assert_array_equal(restore_mask(mask, scan(*size_hw))[inner], flipped[inner])

    @pytest.mark.parametrize("size_hw", [(201, 333), (700, 301), (1024, 1536), (97, 2001)])
    def test_puts_a_lesion_back_where_preprocessing_found_it(self, size_hw: tuple[int, int]) -> None:
        height, width = size_hw
        lesion = np.zeros(size_hw, np.uint8)
        top, bottom, left, right = height // 5, height // 2, 2 * width // 3, 9 * width // 10
        lesion[top:bottom, left:right] = 1
        # As `preprocess` stretches, but to fractions of a pixel covered.
        in_model = cv2.resize(lesion * 255, (W, H), interpolation=cv2.INTER_LINEAR) > 127
        restored = restore_mask(in_model.astype(np.uint8), scan(*size_hw))
        rows, columns = np.nonzero(restored)
        found = np.array([rows.min(), rows.max() + 1, columns.min(), columns.max() + 1])
        slack_px = [np.ceil(height / 512), np.ceil(height / 512), np.ceil(width / 512), np.ceil(width / 512)]
        assert (np.abs(found - [top, bottom, left, right]) <= slack_px).all(), found

    def test_invents_no_class(self) -> None:
        mask = np.zeros((H, W), np.uint8)
        mask[:, 256:] = 3
        assert set(np.unique(restore_mask(mask, scan(801, 903)))) == {0, 3}

    def test_gives_an_array_of_its_own(self) -> None:
        mask = np.zeros((H, W), np.uint8)
        restored = restore_mask(mask, scan(512, 512))
        restored[:] = 1
        assert not mask.any()

    @pytest.mark.parametrize("mask", [np.zeros((300, 200), np.uint8), np.zeros((H, W), np.int64)])
    def test_refuses_what_is_not_in_model_space(self, mask: np.ndarray[Any, Any]) -> None:
        with pytest.raises(GeometryError, match=r"expected uint8 of shape \(512, 512\), got"):
            restore_mask(mask, scan())


class TestStatus:
    def test_a_stream_runs_at_its_own_threshold_and_all_at_any(self) -> None:
        status = report().status
        assert status == {
            "manifestations": "ran",
            "all": "ran",
            "ground_glass": "ran",
            "consolidation": "not_run",
            "pleural_effusion": "ran",
        }

    def test_nothing_found_closes_every_stream_but_not_stage_2(self) -> None:
        got = report(findings=(0.1, 0.2, 0.3))
        assert got.status["manifestations"] == "ran"
        assert {got.status[stream] for stream in STREAM_NAMES} == {"not_run"}
        assert got.manifestations["pleural_effusion"] == pytest.approx(0.3)
        assert set(got.masks.values()) == {None}
        assert set(got.area_fraction.values()) == {None}

    def test_a_closed_stage_2_closes_the_streams_even_with_their_thresholds_at_zero(self) -> None:
        got = report({"covid19": 0.8, **dict.fromkeys(MANIFESTATION_NAMES, 0.0)})
        assert set(got.status.values()) == {"not_run"}
        assert set(got.manifestations.values()) == {None}

    def test_zero_opens_everything(self) -> None:
        got = report(dict.fromkeys(pipeline.THRESHOLD_NAMES, 0.0), diagnosis=(0, 1, 0, 0), findings=(0, 0, 0))
        assert set(got.status.values()) == {"ran"}

    @pytest.mark.parametrize("p", [0.1, 0.3, 0.7, 0.9])
    def test_scores_meet_thresholds_in_float32_as_in_the_graph(self, p: float) -> None:
        # float32 rounds 0.7 and 0.9 down: as doubles they would not reach their own thresholds.
        assert report({"ground_glass": p}, findings=(p, 0, 0)).status["ground_glass"] == "ran"
        assert report({"ground_glass": p + 1e-6}, findings=(p, 0, 0)).status["ground_glass"] == "not_run"

    def test_an_xray_is_not_applicable_rather_than_healthy(self) -> None:
        got = build_report(scan(modality="xray"), {"diagnosis": tensors()["diagnosis"]})
        assert set(got.status.values()) == {"not_applicable"}
        assert set(got.manifestations.values()) == {None}
        assert set(got.masks) == set(STREAM_NAMES)
        assert set(got.masks.values()) == {None}
        assert got.diagnosis["covid19"] == pytest.approx(0.7)


class TestReport:
    def test_scores_keep_the_order_of_the_labels(self) -> None:
        got = report(diagnosis=(0.1, 0.2, 0.3, 0.4), findings=(0.5, 0.6, 0.7))
        assert tuple(got.diagnosis) == DIAGNOSIS_NAMES
        assert tuple(got.diagnosis.values()) == pytest.approx((0.1, 0.2, 0.3, 0.4))
        assert tuple(got.manifestations) == MANIFESTATION_NAMES
        assert got.manifestations["consolidation"] == pytest.approx(0.6)

    def test_area_is_a_fraction_of_the_scan_and_not_of_the_model_image(self) -> None:
        got = report(dict.fromkeys(MANIFESTATION_NAMES, 0.0))
        assert got.masks["ground_glass"] is not None
        assert got.masks["ground_glass"].shape == (300, 200)
        # Stream i marks the upper (i + 1) * 64 of 512 rows; of 300 rows those whose centres are above.
        for i, stream in enumerate(STREAM_NAMES):
            rows = sum((row + 0.5) / 300 < (i + 1) / 8 for row in range(300))
            assert got.area_fraction[stream] == pytest.approx(rows / 300)

    def test_every_class_counts_in_the_area_of_all(self) -> None:
        answer = tensors()
        answer["mask_all"] = np.repeat(np.arange(4, dtype=np.uint8), 128)[:, None].repeat(512, 1)
        got = build_report(scan(512, 512), answer)
        assert got.area_fraction["all"] == pytest.approx(0.75)
        assert set(np.unique(got.masks["all"])) == {0, 1, 2, 3}  # type: ignore[arg-type]

    def test_json_has_everything_but_the_masks(self) -> None:
        got = build_report(
            scan(),
            tensors(),
            {"covid19": 0.25, "consolidation": 0.5},
            models={"recognition": "3"},
            latency_ms=12.5,
            stage_ms={"recognition": 3},
        )
        data = json.loads(json.dumps(got.to_json(), allow_nan=False))
        assert data["size_hw"] == [300, 200]
        assert data["modality"] == "ct"
        assert data["thresholds"] == {**pipeline.THRESHOLDS, "covid19": 0.25, "consolidation": 0.5}
        assert data["models"] == {"recognition": "3"}
        assert data["latency_ms"] == 12.5
        assert data["area_fraction"]["consolidation"] is None
        assert "masks" not in data

    def test_a_row_of_nan_is_a_scan_that_the_server_could_not_read(self) -> None:
        with pytest.raises(InferenceFailed, match="could not read"):
            report(diagnosis=(float("nan"),) * 4)

    def test_a_missing_output_names_those_that_came(self) -> None:
        answer = tensors()
        del answer["manifestations"]
        with pytest.raises(ServerMismatch, match="manifestations: expected this output, got diagnosis, mask_all"):
            build_report(scan(), answer)

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("diagnosis", np.zeros(3, np.float32)),
            ("diagnosis", np.zeros(4, np.float64)),
            ("manifestations", np.full(3, np.nan, np.float32)),
            ("manifestations", np.array([1.5, 0, 0], np.float32)),
            ("mask_ground_glass", np.zeros((256, 256), np.uint8)),
            ("mask_ground_glass", np.full((H, W), 2, np.uint8)),
            ("mask_all", np.full((H, W), 4, np.uint8)),
        ],
    )
    def test_an_answer_that_the_pipeline_can_not_give_is_a_mismatch(
        self, name: str, wrong: np.ndarray[Any, Any]
    ) -> None:
        with pytest.raises(ServerMismatch, match="expected"):
            build_report(scan(), {**tensors(), name: wrong}, {"ground_glass": 0.0})

    def test_a_report_refuses_a_mask_of_another_size(self) -> None:
        got = report()
        with pytest.raises(GeometryError, match=r"expected the scan's size \(300, 200\), got \(200, 300\)"):
            replace(got, masks={**got.masks, "all": np.zeros((200, 300), np.uint8)})

    def test_a_report_refuses_a_mask_of_a_stream_that_did_not_run(self) -> None:
        got = report()
        with pytest.raises(ServerMismatch, match="consolidation"):
            replace(got, masks={**got.masks, "consolidation": np.zeros((300, 200), np.uint8)})


class TestThresholds:
    def test_defaults_fill_what_is_left_out_in_wire_order(self) -> None:
        assert resolve_thresholds({"consolidation": 0.2}) == {**pipeline.THRESHOLDS, "consolidation": 0.2}
        assert tuple(resolve_thresholds(None)) == pipeline.THRESHOLD_NAMES

    @pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
    def test_refuses_what_is_no_probability(self, value: float) -> None:
        with pytest.raises(RequestError, match=r"threshold of covid19: expected a number in \[0, 1\]"):
            resolve_thresholds({"covid19": value})

    def test_names_those_that_there_are(self) -> None:
        with pytest.raises(RequestError, match=r"expected one of covid19, ground_glass.*got 'fever'"):
            resolve_thresholds({"fever": 0.5})


class TestActivation:
    def test_a_report_has_maps_where_the_answer_has(self) -> None:
        cells = np.random.default_rng(3).normal(size=pipeline.ACTIVATION.shape).astype(np.float32)
        assert report().activation is None
        for modality in ("ct", "xray"):
            explained = build_report(scan(modality=modality), {**tensors(), "activation": cells})  # type: ignore[arg-type]
            assert explained.activation is not None
            assert tuple(explained.activation) == DIAGNOSIS_NAMES
            assert explained.activation["normal"].shape == (300, 200)
            assert json.dumps(explained.to_json()) == json.dumps(replace(explained, activation=None).to_json())

    def test_maps_of_another_size_are_refused(self) -> None:
        maps = ActivationMaps(np.zeros(pipeline.ACTIVATION.shape, np.float32), (20, 30))
        with pytest.raises(GeometryError, match=r"activation: expected the scan's size \(300, 200\), got \(20, 30\)"):
            replace(report(), activation=maps)

    def test_what_is_no_map_is_refused(self) -> None:
        with pytest.raises(ServerMismatch, match="activation: expected FP32"):
            build_report(scan(), {**tensors(), "activation": np.zeros((4, 8, 8), np.float32)})
