"""The evaluation's way through a real embedded Triton, with networks whose answers are known."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from serving import phantom, pipeline
from serving.errors import ParityError
from serving.pipeline import segmentation_model
from serving.repository import ONNX_NAME
from serving.tritonserver import TritonServer
from tests.toy_models import expected_mask
from train import scoring
from train.batches import Arrays, in_batches, in_three_channels
from train.data import HU_OFFSET, Example, load_image
from train.evaluate import Answered, onnx_predictor
from train.experiments import EXPERIMENTS
from train.report_triton import triton_markdown
from train.targets import Code
from train.through_triton import answers_of, compared, goes_as_file, refuse

MODELS = {
    "recognition": "recognition_first",
    "manifestations": "manifestations_first",
    segmentation_model("ground_glass"): "ground_glass_first",
}
CODES = ((0, Code.MEDSEG_BACKGROUND), (1, Code.GROUND_GLASS))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resampling is not what is tested here."""
    monkeypatch.setattr(scoring, "BOOTSTRAP_ROUNDS", 20)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT slice and an X-ray as files, and a slice of 16-bit Hounsfield units."""
    folder = tmp_path_factory.mktemp("scans")
    cv2.imwrite(str(folder / "ct.png"), phantom.ct_slice(size_px=300, seed=1).pixels)
    cv2.imwrite(str(folder / "xray.png"), phantom.chest_xray(size_px=300, seed=2))
    hu = np.random.default_rng(3).integers(-1000, 300, (256, 200))
    cv2.imwrite(str(folder / "hu.png"), (hu + HU_OFFSET).astype(np.uint16))
    return folder


def examples_of(model: str) -> list[Example]:
    if model == "recognition":
        return [
            Example("ct.png", "ct", "a", "files", "test", (1.0, 0, 0, 0)),
            Example("xray.png", "xray", "b", "files", "test", (0, 1.0, 0, 0)),
        ]
    target = (1.0, 0.0, 0.0) if model == "manifestations" else ()
    return [
        Example("ct.png", "ct", "a", "files", "test", target, codes=CODES),
        Example("hu.png", "ct", "b", "hounsfield", "test", target, codes=CODES, stored_hu=True),
        Example("ct.png", "ct", "c", "equalised", "test", target, codes=CODES, clahe=False),
    ]


@pytest.fixture(scope="module")
def answered(root: Path, toy_repository: Path) -> dict[str, Answered]:
    """ONNX Runtime's answers."""
    result = {}
    for model, experiment in MODELS.items():
        examples = examples_of(model)
        images = np.stack([load_image(e, root) for e in examples])
        codes = np.where(images > 100, Code.GROUND_GLASS, Code.MEDSEG_BACKGROUND).astype(np.uint8)
        arrays = Arrays(examples, images, codes if model.startswith("segment") else None)
        predict = onnx_predictor(toy_repository / model / "1" / ONNX_NAME, model)
        result[model] = Answered(EXPERIMENTS[experiment], arrays, in_batches(predict, images, 8), [])
    return result


@pytest.fixture(scope="module")
def got(root: Path, answered: Mapping[str, Answered], toy_triton: TritonServer) -> dict[str, np.ndarray]:
    """The running Triton's answers."""
    return answers_of(toy_triton.grpc_url, {model: a.arrays for model, a in answered.items()}, root)


def figures(answered: Mapping[str, Answered]) -> dict[str, dict[str, object]]:
    return {model: a.figures() for model, a in answered.items()}


@pytest.mark.triton
def test_a_running_triton_agrees_on_files_and_on_pictures(
    answered: dict[str, Answered], got: dict[str, np.ndarray]
) -> None:
    found = compared(answered, got, figures(answered))
    refuse(found)
    stream = found[segmentation_model("ground_glass")]
    assert (stream["n_scans"], stream["as_files"]) == (3, 1)
    assert stream["as_pictures_by_source"] == {"equalised": 1, "hounsfield": 1}
    assert stream["differing_part_of_mask_pixels"] == 0
    assert found["recognition"]["as_files"] == 2
    assert found["recognition"]["max_probability_difference"] < 1e-5
    assert (
        stream["headlines"]["ground_glass/dice"]
        == figures(answered)[segmentation_model("ground_glass")]["ground_glass"]["dice"]
    )  # type: ignore[index]
    assert "3 of 3 models agree" in triton_markdown(found)


@pytest.mark.triton
def test_each_scans_answer_is_its_own(answered: dict[str, Answered], got: dict[str, np.ndarray]) -> None:
    model = segmentation_model("ground_glass")
    for image, mask in zip(answered[model].arrays.images, got[model], strict=True):
        np.testing.assert_array_equal(mask, expected_mask(in_three_channels(image[None])[0], "ground_glass"))
    assert not np.array_equal(got[model][0], got[model][2])


@pytest.mark.triton
@pytest.mark.parametrize("model", MODELS)
def test_a_changed_answer_is_refused(answered: dict[str, Answered], got: dict[str, np.ndarray], model: str) -> None:
    changed = copy.deepcopy(got)
    if model.startswith("segment"):
        changed[model][0, :100] ^= 1
    else:
        changed[model][0, 0] -= 0.01
    found = compared(answered, changed, figures(answered))
    assert [name for name, entry in found.items() if not entry["agrees"]] == [model]
    with pytest.raises(ParityError, match=model):
        refuse(found)
    assert "2 of 3 models agree" in triton_markdown(found)


@pytest.mark.triton
def test_other_figures_are_refused_though_the_answers_agree(
    answered: dict[str, Answered], got: dict[str, np.ndarray]
) -> None:
    published = copy.deepcopy(figures(answered))
    published["recognition"]["xray"]["four_classes"]["accuracy"] = 0.1234  # type: ignore[index]
    with pytest.raises(ParityError, match=r"recognition.*xray/four_classes/accuracy 0.1234 and"):
        refuse(compared(answered, got, published))


def test_what_the_ensemble_would_prepare_otherwise_goes_as_a_picture() -> None:
    plain = Example("a.png", "ct", "g", "s", "test")
    assert goes_as_file(plain)
    for change in ({"stored_hu": True}, {"clahe": False}, {"slice_index": 3}):
        assert not goes_as_file(dataclasses.replace(plain, **change))  # type: ignore[arg-type]


def test_an_answer_too_few_is_refused(answered: dict[str, Answered]) -> None:
    few = {model: a.answers[:1] for model, a in answered.items()}
    with pytest.raises(ParityError, match="expected answers of shape"):
        compared(answered, few, figures(answered))


def test_a_nan_does_not_agree(answered: dict[str, Answered]) -> None:
    broken = {model: a.answers.copy() for model, a in answered.items()}
    broken["manifestations"][0, 2] = np.nan
    assert not compared(answered, broken, figures(answered))["manifestations"]["agrees"]


def test_every_model_of_the_test_is_one_of_the_pipeline() -> None:
    assert set(MODELS) <= set(pipeline.MODEL_NAMES)
