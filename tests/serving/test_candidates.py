"""What may become a version, and what may not: judged by its bytes, before any server sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving import pipeline
from serving.candidates import Candidate, examine, read_candidate
from serving.errors import ExportError, ParityError
from serving.pipeline import PREPROCESS, RECOGNITION, Step
from serving.repository import DEFAULT_REPOSITORY, ONNX_NAME, PROVENANCE_NAME, REFERENCE_NAME, versions
from tests.toy_models import STRIPS, mask_network, means_network, toy_network
from tests.version_files import (
    FINDINGS,
    STREAM,
    always_open,
    exported,
    gated,
    other_findings,
    scaled,
    truncated,
    unknown_class,
    wrong_outputs,
)


@pytest.fixture
def served(toy_repository: Path) -> Path:
    return toy_repository / FINDINGS.model / "1"


def refusal(candidate: Candidate, served: Path | None, *, allow_change: bool = False) -> str:
    with pytest.raises(ExportError) as caught:
        examine(candidate, served, allow_change=allow_change)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_with_its_reference_may_answer_otherwise_than_what_is_served(tmp_path: Path, served: Path) -> None:
    candidate = read_candidate(FINDINGS, exported(tmp_path / "1", other_findings()))
    assert set(candidate.files()) == {ONNX_NAME, PROVENANCE_NAME, REFERENCE_NAME}
    assert examine(candidate, served) == candidate
    assert examine(candidate, None) == candidate


@pytest.mark.parametrize(
    ("network", "step", "says"),
    [
        (truncated, FINDINGS, "a graph that ONNX Runtime loads"),
        (lambda: b"", FINDINGS, "a graph that ONNX Runtime loads"),
        (wrong_outputs, FINDINGS, "expected the outputs manifestations, manifestations_scores, got findings"),
        (lambda: gated(toy_network(RECOGNITION), RECOGNITION), FINDINGS, "expected the inputs gates, image, scores"),
        (lambda: scaled(float("nan")), FINDINGS, "finite numbers in manifestations, got NaN"),
        (lambda: scaled(1.0), FINDINGS, "expected probabilities in [0, 1], got"),
        (lambda: gated(toy_network(RECOGNITION), RECOGNITION), RECOGNITION, "expected diagnoses that sum to 1"),
        (unknown_class, STREAM, "expected class ids in 0..3, got 9"),
    ],
    ids=["truncated", "empty", "outputs", "another model", "NaN", "no probabilities", "sum", "class"],
)
@pytest.mark.parametrize("allow_change", [False, True])
def test_a_bad_network_is_refused_whatever_is_allowed(
    network: Callable[[], bytes], step: Step, says: str, allow_change: bool, tmp_path: Path
) -> None:
    candidate = read_candidate(step, exported(tmp_path / "1", network(), step, reference=False))
    assert says in refusal(candidate, None, allow_change=allow_change)


def test_a_gate_that_does_not_close_is_refused(tmp_path: Path) -> None:
    candidate = read_candidate(FINDINGS, exported(tmp_path / "1", always_open(), reference=False))
    says = "expected manifestations to read 0.0 behind a closed gate, got something else"
    assert says in refusal(candidate, None, allow_change=True)


def test_another_network_than_the_one_that_its_reference_is_of_is_refused(tmp_path: Path, served: Path) -> None:
    folder = exported(tmp_path / "1", other_findings())
    (folder / ONNX_NAME).write_bytes(gated(means_network(STRIPS)))
    with pytest.raises(ParityError, match=r"against its own reference.npz: expected .* up to 0.02, got"):
        examine(read_candidate(FINDINGS, folder), served, allow_change=True)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x05\x06" + bytes(18)], ids=["empty", "text", "no array"])
def test_a_reference_that_can_not_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = exported(tmp_path / "1", other_findings())
    (folder / REFERENCE_NAME).write_bytes(content)
    assert "expected answers in reference.npz" in refusal(read_candidate(FINDINGS, folder), None)


def test_a_reference_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path / "1", other_findings())
    np.savez(folder / REFERENCE_NAME, answers=np.zeros((1, 3), np.float32))
    assert "against its own reference.npz: expected float32 (3, 3)" in refusal(read_candidate(FINDINGS, folder), None)


@pytest.mark.parametrize(("key", "value"), [("model", "recognition"), ("label_order", ["consolidation"])])
def test_the_provenance_of_another_model_is_refused(tmp_path: Path, key: str, value: object) -> None:
    folder = exported(tmp_path / "1", other_findings())
    described = json.loads((folder / PROVENANCE_NAME).read_text())
    (folder / PROVENANCE_NAME).write_text(json.dumps({**described, key: value}))
    assert f"expected {key}" in refusal(read_candidate(FINDINGS, folder), None)


def test_without_a_reference_it_is_held_against_what_is_served(tmp_path: Path, served: Path) -> None:
    candidate = read_candidate(FINDINGS, exported(tmp_path / "1", other_findings(), reference=False))
    assert "against version 1, which is served: expected" in refusal(candidate, served)
    assert "needs --allow-change" in refusal(candidate, served)
    assert examine(candidate, served, allow_change=True) == candidate


def test_a_stream_that_marks_other_pixels_is_refused(tmp_path: Path, toy_repository: Path) -> None:
    served = toy_repository / STREAM.model / "1"
    # The toy of a specialised stream in the place of the all-class one: it never says 2.
    candidate = read_candidate(
        STREAM, exported(tmp_path / "1", gated(mask_network("ground_glass"), STREAM), STREAM, reference=False)
    )
    assert "expected pixel_disagreement up to 0.02" in refusal(candidate, served)


def test_a_file_alone_is_published_if_it_answers_as_what_is_served(tmp_path: Path, served: Path) -> None:
    file = exported(tmp_path / "1", gated(means_network(STRIPS)), provenance=False, reference=False) / ONNX_NAME
    described = examine(read_candidate(FINDINGS, file), served).provenance
    assert described is not None
    assert json.loads(described)["held_against"] == "version 1, on 3 drawn scans"
    assert json.loads(described)["label_order"] == ["ground_glass", "consolidation", "pleural_effusion"]


def test_a_file_alone_that_answers_otherwise_means_nothing(tmp_path: Path, served: Path) -> None:
    file = exported(tmp_path / "1", other_findings()) / ONNX_NAME
    candidate = read_candidate(FINDINGS, file)
    assert "needs --allow-change" in refusal(candidate, served)
    assert "nothing says what its numbers mean" in refusal(candidate, served, allow_change=True)
    assert "nothing says what its numbers mean" in refusal(candidate, None)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"expected an ONNX file at .*nowhere, got: No such file"):
        read_candidate(FINDINGS, tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"expected an ONNX file at .*model.onnx, got: No such file"):
        read_candidate(FINDINGS, tmp_path)
    with pytest.raises(ExportError, match="expected a model that ONNX Runtime serves, got 'preprocess'"):
        read_candidate(PREPROCESS, tmp_path)


@pytest.mark.parametrize("model", ["recognition", "manifestations", "segment_consolidation"])
def test_what_is_published_would_be_published_again(model: str) -> None:
    folder = DEFAULT_REPOSITORY / model
    step = pipeline.step(model)
    newest = folder / str(versions(folder)[-1])
    candidate = read_candidate(step, newest)
    assert examine(candidate, newest) == candidate
