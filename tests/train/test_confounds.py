from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from serving.errors import DatasetError
from serving.labels import DIAGNOSIS_NAMES
from train import confounds, data, frozen, probes, scoring, transfer
from train.confounds import (
    Evidence,
    border_probe,
    measure,
    model_probabilities,
    shares,
    source_only,
    source_probes,
    within,
)
from train.data import Example, Split
from train.leaks import Leak
from train.probes import CT, FOUR, PAIR, asked, auc, features_of, leave_one_source_out, origin, score, without_centre
from train.report_confounds import confounds_markdown
from train.scoring import score_recognition

ONE_HOT = {name: tuple(float(name == n) for n in DIAGNOSIS_NAMES) for name in DIAGNOSIS_NAMES}
ADULT, CHILD = "adult/mixed", "paediatric 1-5y"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A regression for tens of scans and few features, and no more resampling than a test looks at."""
    monkeypatch.setattr(probes, "REGULARISATION", 10.0)
    monkeypatch.setattr(scoring, "BOOTSTRAP_ROUNDS", 50)


def example(i: int, name: str, source: str, modality: str = "xray", split: Split | None = None) -> Example:
    target = (0.0, 1.0, 1.0, 1.0) if name == "other" else ONE_HOT[name]
    return Example(
        path=f"{modality}/{i}",
        modality=modality,  # type: ignore[arg-type]
        group=f"{modality}/g{i}",
        source=f"{modality}: {source}",
        split=split or ("test" if i % 3 == 0 else "train"),
        target=target,
    )


def evidence(examples: Sequence[Example], answers: np.ndarray | None = None) -> Evidence:
    test = [i for i, e in enumerate(examples) if e.split == "test"]
    if answers is None:
        answers = np.array([examples[i].target for i in test])
    images = np.zeros((len(examples), 20, 20), np.uint8)
    ages = {e.path: CHILD if "children" in e.source else ADULT for e in examples}
    return Evidence(examples, images, test, answers, [], ages)


def cohort() -> list[Example]:
    """X-rays: adults of two sources, mostly COVID-19 in one; children of one, whose diagnoses nobody else has. CT."""
    xrays = [example(i, "covid19" if i % 4 else "normal", "A via x" if i % 2 else "A via y") for i in range(100)]
    xrays += [example(100 + i, "normal" if i % 4 else "covid19", "B") for i in range(60)]
    names = ("viral_pneumonia", "bacterial_pneumonia")
    xrays += [example(200 + i, names[i % 2] if i % 5 else "normal", "children") for i in range(60)]
    slices = [
        example(300 + i, "covid19" if i % 2 else "other", "C" if i % 4 < 2 else "D", modality="ct") for i in range(80)
    ]
    return [*xrays, *slices]


def diagnosis(examples: Sequence[Example]) -> np.ndarray:
    """Features that are the diagnosis."""
    return np.array([[3 * t for t in e.target] for e in examples], np.float32)


def sources(examples: Sequence[Example]) -> np.ndarray:
    """Features that are the source and nothing else."""
    names = sorted({origin(e) for e in examples})
    return np.array([[3.0 * (origin(e) == n) for n in names] for e in examples], np.float32)


def test_only_scans_with_an_answer_are_asked() -> None:
    scans = [example(0, "covid19", "A"), example(1, "viral_pneumonia", "A")]
    scans += [example(2, "other", "C", modality="ct"), example(3, "covid19", "C", modality="ct")]
    assert asked(FOUR, scans)[0] == [0, 1]
    assert asked(PAIR, scans)[0] == [0]
    rows, truth = asked(CT, scans)
    assert (rows, truth.tolist()) == ([2, 3], [1, 0])


def test_the_models_answers_are_taken_as_the_results_take_them() -> None:
    scans = [e for e in cohort() if e.split == "test"]
    answers = np.random.default_rng(0).dirichlet(np.ones(4), len(scans))
    figures = score_recognition(scans, answers)
    for question, expected in (
        (FOUR, figures["xray"]["four_classes"]),
        (PAIR, figures["xray"]["covid19_against_normal"]),
        (CT, figures["ct"]["covid19_or_not"]),
    ):
        rows, truth = asked(question, scans)
        got = score(
            truth,
            model_probabilities(question, answers[rows]),
            [scans[i].group for i in rows],
            question.classes,
        )
        assert round(got["accuracy"], 4) == expected["accuracy"]
        assert got["n_scans"] == expected["n_scans"]
        assert round(got.get("auc", 0), 4) == expected.get("auc", round(got.get("auc", 0), 4))


def test_the_first_class_is_the_positive_one() -> None:
    assert auc(np.array([0, 0, 1, 1]), np.array([0.9, 0.3, 0.4, 0.1])) == 0.75
    assert np.isnan(auc(np.array([0, 0]), np.array([0.9, 0.3])))


def test_a_key_alone_says_its_most_frequent_class() -> None:
    got = shares(["a", "a", "a", "b"], np.array([0, 0, 1, 1]), ["a", "b", "never seen"], 2)
    np.testing.assert_allclose(got, [[2 / 3, 1 / 3], [0, 1], [0.5, 0.5]])


def test_what_the_source_alone_gets_is_counted_on_the_test_scans() -> None:
    scans = cohort()
    figures = source_only(PAIR, evidence(scans))
    test = [e for e in scans if e.split == "test" and PAIR.truth(e) is not None]
    guess = [0 if origin(e) == "xray: A" else 1 for e in test]
    # Of "A via y" every other scan is normal, so there the majority is a tie, broken for the first class.
    assert figures["source"]["accuracy"] == pytest.approx(
        np.mean([g == PAIR.truth(e) for g, e in zip(guess, test, strict=True)])
    )
    assert figures["model"]["accuracy"] == 1
    assert figures["gain"]["difference"] == pytest.approx(1 - figures["source"]["accuracy"])
    assert figures["population"]["n_scans"] == len(test)
    assert "population" not in source_only(CT, evidence(scans))


def test_a_model_that_knows_the_source_and_nothing_else_gains_nothing() -> None:
    scans = cohort()
    of_source = {"xray: A": "covid19", "xray: B": "normal", "xray: children": "normal"}
    test = [e for e in scans if e.split == "test"]
    answers = np.array([ONE_HOT[of_source.get(origin(e), "covid19")] for e in test])
    gain = source_only(PAIR, evidence(scans, answers))["gain"]
    assert (gain["difference"], gain["difference_95"]) == (0, [0, 0])


def test_a_source_never_seen_tells_the_diagnosis_from_the_source() -> None:
    scans = cohort()
    real = leave_one_source_out(PAIR, scans, diagnosis(scans), [])
    assert real["xray: A"]["left_out"]["accuracy"] == real["xray: A"]["in_distribution"]["accuracy"] == 1
    assert real["xray: A"]["left_out"]["n_scans"] == 100
    # Copies of A under two names are one source, which is left out as a whole.
    confounded = leave_one_source_out(PAIR, scans, sources(scans), [])
    assert confounded["xray: A"]["in_distribution"]["accuracy"] == 0.75
    assert confounded["xray: A"]["left_out"]["accuracy"] == 0.25
    assert confounded["xray: A"]["difference"] == pytest.approx(-0.5)
    assert confounded["xray: A"]["difference_95"][1] < 0


def test_classes_that_one_source_alone_has_are_named() -> None:
    scans = cohort()
    four = leave_one_source_out(FOUR, scans, diagnosis(scans), [])
    assert four["xray: children"] == {"n_scans": 60, "only_here": ["viral_pneumonia", "bacterial_pneumonia"]}
    assert four["xray: B"]["left_out"]["accuracy"] == 1
    # Too few of its scans are normal.
    assert "xray: children" not in leave_one_source_out(PAIR, scans, diagnosis(scans), [])


@pytest.mark.parametrize("tie", ["group", "look"])
def test_patients_and_lookalikes_of_a_source_are_not_trained_on(tie: str) -> None:
    # B shows the diagnosis the wrong way round, so whoever trains on the scans that are alike gets A wrong.
    scans = [example(i, "covid19" if i % 2 else "normal", "A") for i in range(40)]
    twins = [
        dataclasses.replace(
            example(100 + i, "normal" if i % 2 else "covid19", "B"),
            **({"group": f"xray/g{i}"} if tie == "group" else {}),
        )
        for i in range(40)
    ]
    honest = [example(200 + i, "covid19" if i % 2 else "normal", "C") for i in range(20)]
    everything = [*scans, *twins, *honest]
    features = np.array([[3.0 * (i % 2)] for i in [*range(40), *range(40), *range(20)]], np.float32)
    leaks = [Leak("look", a, b, 0.9) for a, b in zip(twins, scans, strict=True)] if tie == "look" else []
    assert leave_one_source_out(PAIR, everything, features, leaks)["xray: A"]["left_out"]["accuracy"] == 1
    apart = [*scans, *(dataclasses.replace(t, group=f"other {t.group}") for t in twins), *honest]
    assert leave_one_source_out(PAIR, apart, features, [])["xray: A"]["left_out"]["accuracy"] == 0


def test_the_border_is_left_and_the_image_not_touched() -> None:
    image = np.full((100, 200), 9, np.uint8)
    frame = without_centre(image)
    assert (frame[:10] == 9).all()
    assert (frame[:, -20:] == 9).all()
    assert not frame[10:-10, 20:-20].any()
    assert (image == 9).all()


def test_the_border_probe_sees_the_border() -> None:
    scans = cohort()
    told = border_probe(PAIR, evidence(scans), np.zeros((len(scans), 4), np.float32), diagnosis(scans))
    assert told["border"]["accuracy"] == told["border"]["auc"] == 1
    assert told["whole"]["accuracy"] == told["whole"]["majority_class_accuracy"]


def test_pairs_of_one_source_are_compared_within_it() -> None:
    scans = [example(3 * i, name, source) for i, (name, source) in enumerate(
        [("covid19", "A"), ("normal", "A"), ("covid19", "B"), ("normal", "B"), ("normal", "B"), ("covid19", "C")]
    )]  # fmt: skip
    p = np.array([0.9, 0.8, 0.3, 0.2, 0.4, 0.95])
    answers = np.stack([p, 1 - p, 0 * p, 0 * p], axis=1)
    part = within(evidence([*scans, example(999, "covid19", "D", modality="ct")], np.vstack([answers, [1, 0, 0, 0]])))
    # A: 1 of 1 pair, B: 1 of 2.
    assert part["xray"]["auc_within_sources"] == pytest.approx(2 / 3)
    assert set(part["xray"]["by_source"]) == {"xray: A", "xray: B"}
    assert np.isnan(part["ct"]["auc_within_sources"])


def test_adults_are_those_of_the_manifest(tmp_path: Path) -> None:
    part = within(evidence(cohort()))
    scans = [e for e in cohort() if e.split == "test" and PAIR.truth(e) is not None]
    assert part["xray"]["adults"]["n_scans"] == sum("children" not in e.source for e in scans) < len(scans)
    with pytest.raises(DatasetError, match="our own scans"):
        confounds.populations(tmp_path)
    (tmp_path / "xray").mkdir()
    (tmp_path / "xray" / "manifest.csv").write_text("file,population\na/1.jpg,adult/mixed\n", encoding="utf-8")
    assert confounds.populations(tmp_path) == {"xray/a/1.jpg": "adult/mixed"}


def test_features_are_computed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []

    def of_mean(images: np.ndarray, network: object, copies: int) -> np.ndarray:
        seen.append(len(images))
        return images.mean(axis=(1, 2), keepdims=True)

    monkeypatch.setattr(frozen, "bottleneck", of_mean)
    monkeypatch.setattr(frozen, "frozen_network", lambda _: None)
    monkeypatch.setattr(frozen, "sha256_of", lambda _: "digest")
    monkeypatch.setattr(transfer, "imagenet_file", lambda root: root)
    monkeypatch.setattr(data, "fingerprint", lambda *_: "fingerprint")
    scans = cohort()[:3]
    for _ in range(2):
        got = features_of("whole", scans, lambda i: np.full((8, 8), i, np.uint8), tmp_path, tmp_path / "cache")
        assert got.tolist() == [[0], [1], [2]]
    assert seen == [3]


def test_one_source_alone_is_nothing_to_tell() -> None:
    scans = [e for e in cohort() if origin(e) in ("xray: B", "ct: C")]
    told = source_probes(evidence(scans), diagnosis(scans))
    assert told == {"xray": {}, "ct": {}}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> confounds.Json:
    """All tests on a cohort whose pictures say source and diagnosis, and whose borders say the source alone."""
    scans = cohort()

    def features(name: str, examples: Sequence[Example], *_: object) -> np.ndarray:
        told = [sources(scans), diagnosis(scans) if name == "whole" else np.zeros((len(scans), 4))]
        names = {e.name for e in examples}
        return np.hstack(told).astype(np.float32)[[e.name in names for e in scans]]

    monkeypatch.setattr(confounds, "features_of", features)
    return measure(evidence(scans), tmp_path, tmp_path)


def test_everything_is_measured(figures: confounds.Json) -> None:
    assert figures["source_probe"]["xray"]["all"]["accuracy"] == 1
    assert (
        figures["source_probe"]["xray"]["normal_alone"]["n_scans"] < figures["source_probe"]["xray"]["all"]["n_scans"]
    )
    assert figures["border_probe"]["four_classes"]["whole"]["accuracy"] == 1
    assert figures["border_probe"]["four_classes"]["border"]["accuracy"] < 0.9
    assert figures["leave_one_source_out"]["ct_covid19_or_not"]["ct: C"]["left_out"]["auc"] == 1


def test_the_words_follow_from_the_figures(figures: confounds.Json) -> None:
    page = confounds_markdown(figures)
    assert "X-ray, 4 classes, more often (+" in page
    assert "no other source has Viral pneumonia and Bacterial pneumonia" in page
    assert "| CT, COVID-19 or not | all | " in page
    other = copy.deepcopy(figures)
    other["source_only"]["xray_four_classes"]["gain"] = {"difference": -0.01, "difference_95": [-0.05, 0.03]}
    assert "X-ray, 4 classes, as often, within the interval (-0.010)" in confounds_markdown(other)
    other["source_only"]["xray_four_classes"]["gain"] = {"difference": -0.1, "difference_95": [-0.2, -0.05]}
    assert "X-ray, 4 classes, less often (-0.100)" in confounds_markdown(other)
