from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import full_width
from loadtest.cases import CASES
from loadtest.competitors import KerasInProcess, OnnxRuntimeInProcess
from loadtest.difference import Difference
from loadtest.full_width import FINGERPRINT_NAME, FullWidth, FullWidthConfig, build
from loadtest.networks import unpack
from loadtest.random_networks import check_alive, narrowed_network
from loadtest.side_by_side import LIMITS
from loadtest.wire import check_answer
from serving.errors import ExportError, RepositoryError
from serving.pipeline import RECOGNITION, SEGMENTATION
from serving.repository import check
from tests.toy_models import toy_network
from train.deeplab import CLASSIFIER_LAYER, DeepLabConfig
from train.inception import InceptionV3Config
from train.manifestation_cnn import ManifestationCnnConfig

NARROW = FullWidthConfig(
    streams=DeepLabConfig(n_classes=4, width=0.05, input_downsample=4),
    recognition=InceptionV3Config(n_classes=4, backbone_hw=(128, 128), batch_norm=False),
    manifestations=ManifestationCnnConfig(n_blocks=3, n_kernels=4, downsample=8),
    calibration_images=2,
)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> FullWidth:
    return build(tmp_path_factory.mktemp("width") / "new" / "narrow", NARROW)


@pytest.fixture(scope="module")
def networks(narrow: FullWidth, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Path]]:
    work = tmp_path_factory.mktemp("bare")
    return {precision: unpack(path, work / precision) for precision, path in narrow.repositories.items()}


@pytest.fixture(scope="module")
def models(narrow: FullWidth) -> Mapping[str, Any]:
    return narrow.keras_models()


@pytest.mark.slow
@pytest.mark.long
def test_both_repositories_are_whole(narrow: FullWidth) -> None:
    for repository in narrow.repositories.values():
        assert check(repository) == []
    assert not [path for path in narrow.folder.parent.iterdir() if path != narrow.folder]


@pytest.mark.slow
@pytest.mark.long
def test_keras_has_the_weights_of_the_fp32_repository(
    models: Mapping[str, Any], networks: Mapping[str, Mapping[str, Path]]
) -> None:
    with KerasInProcess(lambda: models) as keras, OnnxRuntimeInProcess("fp32", networks["fp32"]) as onnx:
        for case in (CASES["xray"], CASES["ct_open"]):
            scan = case.scans()[3]
            answer = keras.answer(scan, case)
            check_answer(case, answer)
            assert Difference().widened(answer, onnx.answer(scan, case)).within(LIMITS["fp32"])
    assert len(np.unique(answer["mask_all"])) > 1
    assert (answer["mask_all"] == 0).mean() > 0.5


@pytest.mark.slow
@pytest.mark.long
def test_the_streams_of_two_classes_share_what_the_widest_has(models: Mapping[str, Any]) -> None:
    widest, stream = (models[step.model] for step in SEGMENTATION[:2])
    wide, slim = (model.get_layer(CLASSIFIER_LAYER).get_weights() for model in (widest, stream))
    np.testing.assert_array_equal(wide[0][..., :2], slim[0])
    np.testing.assert_array_equal(wide[1][:2], slim[1])
    assert widest is not stream


@pytest.mark.slow
@pytest.mark.long
def test_what_is_built_is_found_again(narrow: FullWidth, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(full_width, "_build", refuse)
    assert build(narrow.folder, NARROW).repositories == narrow.repositories
    with pytest.raises(AssertionError, match="built again"):
        build(narrow.folder, dataclasses.replace(NARROW, seed=NARROW.seed + 1))
    assert json.loads((narrow.folder / FINGERPRINT_NAME).read_text())["config"]["seed"] == NARROW.seed


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RepositoryError, match="expected an empty folder or an older build"):
        build(tmp_path, NARROW)
    assert (tmp_path / "thesis.tex").exists()


def test_the_default_is_the_papers_width() -> None:
    streams = FullWidthConfig().streams
    assert (streams.width, streams.output_stride, streams.atrous_rates) == (1.0, 16, (6, 12, 18))
    assert (streams.input_downsample, streams.n_classes) == (1, 4)
    assert FullWidthConfig().recognition.backbone_hw == (256, 256)


def test_a_network_that_says_the_same_of_all_is_refused() -> None:
    with pytest.raises(ExportError, match="expected recognition to tell images apart"):
        check_alive(np.full((2, 4), 0.25, np.float32), RECOGNITION)
    with pytest.raises(ExportError, match="expected recognition to tell images apart"):
        check_alive(np.array([[0.2, np.nan], [0.3, 0.1]], np.float32), RECOGNITION)


def test_a_mask_of_one_class_is_refused() -> None:
    masks = np.zeros((2, 8, 8), np.uint8)
    masks[1] = 1
    with pytest.raises(ExportError, match="with two classes or more"):
        check_alive(masks, SEGMENTATION[0])


def test_a_network_without_a_last_convolution_can_not_be_narrowed() -> None:
    with pytest.raises(ExportError, match="expected a network that ends in one convolution"):
        narrowed_network(toy_network(SEGMENTATION[0]), 2)
