"""What is no chest scan by kind, and detectors fitted on small tables of drawings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving import plausibility
from serving.labels import MODALITIES
from serving.plausibility import published
from train import not_chest
from train.plausibility import PlausibilityConfig, fit, fitted, flagged, in_short, moved, publish, share
from train.plausibility_data import TURNS, Table, phantoms, row

CONFIG = PlausibilityConfig(networks=2, units=8, epochs=100)


@pytest.fixture(scope="module")
def table() -> Table:
    """Phantoms of both splits, and six pictures of each drawn kind."""
    others = tuple(row(pixels, kind, "not_chest", "train") for kind, pixels in not_chest.drawn(6))
    return phantoms(40) + Table(others)


def test_each_kind_is_drawn_and_the_same_seed_draws_the_same() -> None:
    first, again, others = (list(not_chest.drawn(3, seed)) for seed in (0, 0, 1))
    assert {kind for kind, _ in first} == set(not_chest.DRAWINGS)
    for (kind, pixels), (_, same) in zip(first, again, strict=True):
        assert pixels.dtype == np.uint8, kind
        np.testing.assert_array_equal(pixels, same)
    assert any(a.shape != b.shape or (a != b).any() for (_, a), (_, b) in zip(first, others, strict=True))


def test_installed_packages_alone_have_pictures_of_other_parts_of_the_body(tmp_path: Path) -> None:
    pictures = list(not_chest.of_packages(tmp_path))
    assert {"photo", "ultrasound", "MR", "CT of the head"} <= {kind for kind, _ in pictures}
    assert all(pixels.dtype == np.uint8 and pixels.ndim == 2 for _, pixels in pictures)


def test_the_published_detectors_flag_drawings_and_pictures_of_packages(tmp_path: Path) -> None:
    detectors = published().detectors
    pictures = [*not_chest.drawn(4, seed=7), *not_chest.of_packages(tmp_path)]
    rows = Table(tuple(row(pixels, kind, "not_chest", "test") for kind, pixels in pictures))
    assert len(rows) > 60
    assert flagged(rows, detectors).mean() >= 0.95
    assert not flagged(phantoms(20), detectors).any()


def test_what_is_fitted_on_leaves_the_test_split_out(table: Table) -> None:
    turned = table.where(split="train", group="chest").grouped("turned")
    tested = table.where(split="test")
    for modality in MODALITIES:
        rows = fitted(table + turned, modality)
        assert not rows.where(split="test").rows
        chest = rows.where(group="chest")
        assert {one.modality for one in chest.rows} == {modality}
        assert len(chest) == len(tested.where(modality=modality))


def test_slices_without_lung_are_a_class_for_ct_alone(table: Table) -> None:
    without = table.where(kind="CT of the abdomen, drawn").grouped("no_lung")
    everything = table.without("CT of the abdomen, drawn") + without
    ct, xray = (fit(fitted(everything, modality), CONFIG) for modality in ("ct", "xray"))
    assert (ct.out.shape[1], xray.out.shape[1]) == (3, 2)
    assert {ct.instead(one.values) for one in without.rows} == {"no_lung"}
    assert xray.instead(without.rows[0].values) == "not_chest"


def test_a_detector_tells_new_phantoms_from_kinds_that_it_never_saw(table: Table) -> None:
    left_out = table.where(kind=("text, drawn", "X-ray of a hand, drawn"))
    for modality in MODALITIES:
        seen = fitted(table.without("text, drawn").without("X-ray of a hand, drawn"), modality)
        detector = fit(seen, CONFIG)
        assert (detector.margin(table.where(split="test", modality=modality).values) > 0).all()
        assert (detector.margin(left_out.values) < 0).mean() > 0.8
        np.testing.assert_allclose(
            moved(detector, 1.5).margin(left_out.values), detector.margin(left_out.values) - 1.5, atol=1e-4
        )


def test_what_is_published_is_what_was_fitted(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detectors = {modality: fit(fitted(table, modality), CONFIG) for modality in MODALITIES}
    publish(detectors, {"seed": 0}, tmp_path / "plausibility.npz")
    monkeypatch.setattr(plausibility, "COEFFICIENTS", tmp_path / "plausibility.npz")
    published.cache_clear()
    read = published()
    published.cache_clear()
    assert read.provenance == {"seed": 0}
    for modality in MODALITIES:
        np.testing.assert_array_equal(
            read.detectors[modality].margin(table.values), detectors[modality].margin(table.values)
        )


def test_shares_have_wilsons_interval() -> None:
    # Newcombe 1998, Table I, method 3: 81 of 263 and 0 of 20.
    assert share(np.arange(263) < 81) == {"flagged": 81, "of": 263, "share": 0.308, "interval": [0.2553, 0.3662]}
    assert share(np.zeros(20, bool))["interval"] == [0.0, 0.1611]


def test_kinds_made_of_chest_scans_do_not_count_among_those_that_are_sent() -> None:
    shares = {"photo": 1.0, "MR": 0.9, "shuffled ct": 0.1, "a piece of xray": 0.2, "CT slices with filled lungs": 0.3}
    kinds = {kind: {"auto": {"share": one}} for kind, one in shares.items()}
    assert in_short(kinds) == {"kinds": 2, "with_at_least_95_percent_flagged": 1, "mean_share_flagged": 0.95}


def test_turns_are_named_as_the_fit_asks_for_them() -> None:
    assert {"clockwise", "anticlockwise", "inverted"} < set(TURNS)
