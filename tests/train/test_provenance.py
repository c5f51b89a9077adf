"""The JSON beside a published model."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from typing import Any

import numpy as np
import pytest

from serving import pipeline
from serving.errors import ExportError
from serving.labels import DIAGNOSIS_NAMES, MANIFESTATION_NAMES
from train.provenance import DataSource, Provenance, code_version, label_order

FINGERPRINT = "0123456789abcdef" * 4


def provenance(**changes: Any) -> Provenance:
    fields: dict[str, Any] = {
        "model": "recognition",
        "experiment": "recognition_first",
        "data_fingerprint": FINGERPRINT,
        "data_sources": (DataSource("A set of scans", "CC BY 4.0"), DataSource("Another", "CC0")),
        "metrics": {"test": {"patients": 12, "auc": 0.93, "per_class": [0.9, None], "split": "by patient"}},
    }
    return Provenance(**{**fields, **changes})


def test_provenance_survives_a_round_trip() -> None:
    full = provenance(
        created="2020-04-15", parameters=23, precision="int8", parity={"fp32": {"max_abs_difference": 1e-7}}
    )
    assert Provenance.from_json(full.to_json()) == full


def test_the_keys_keep_their_order_so_that_versions_compare_line_by_line() -> None:
    keys = list(json.loads(provenance().to_json()))
    assert keys == [field.name for field in dataclasses.fields(Provenance)]
    assert provenance(created="2020-04-15").to_json() == provenance(created="2020-04-15").to_json()


def test_labels_date_and_code_are_filled_in() -> None:
    made = provenance()
    assert made.label_order == DIAGNOSIS_NAMES
    assert made.created == datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    assert made.code_version == code_version()
    assert re.fullmatch(r"\S+", made.code_version)


def test_every_published_model_has_labels() -> None:
    orders = {step.model: label_order(step.model) for step in pipeline.STEPS if step.gate is not None}
    assert orders["recognition"] == DIAGNOSIS_NAMES
    assert orders["manifestations"] == MANIFESTATION_NAMES
    assert orders["segment_all"] == ("background", *MANIFESTATION_NAMES)
    assert orders["segment_pleural_effusion"] == ("background", "pleural_effusion")
    assert len(orders) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "preprocess"}, "expected one of the models .* got 'preprocess'"),
        ({"label_order": tuple(reversed(DIAGNOSIS_NAMES))}, "expected label_order to be .*'covid19'.* got"),
        ({"input_hw": (256, 256)}, r"expected input_hw to be \(512, 512\), got \(256, 256\)"),
        ({"experiment": ""}, "expected the experiment of recognition, got nothing"),
        ({"data_fingerprint": "abc"}, "expected a SHA-256 in hex as data_fingerprint, got 'abc'"),
        ({"data_sources": ()}, "expected the data_sources"),
        ({"metrics": {}}, "expected the metrics"),
        ({"precision": "fp8"}, "expected a precision of fp32, int8, got 'fp8'"),
        ({"parameters": -1}, "expected a number of parameters, got -1"),
        ({"created": "15.4.2020"}, "expected a date like 2020-04-15"),
        ({"metrics": {"auc": float("nan")}}, "expected finite numbers, got metrics.auc = nan"),
        ({"metrics": {"auc": np.float32(0.5)}}, "got metrics.auc of type float32"),
        ({"metrics": {"test": [{"dice": (1, 2)}]}}, r"got metrics.test\[0\].dice of type tuple"),
        ({"parity": {1: "x"}}, "expected text as keys of parity, got 1"),
    ],
)
def test_provenance_that_says_nothing_or_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        provenance(**changes)


def test_a_source_without_a_licence_is_refused() -> None:
    with pytest.raises(ExportError, match="expected a name and a licence"):
        DataSource("A set of scans", "")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"data_sources": 3}', '{"data_sources": [{"title": "x"}]}'])
def test_json_that_is_not_provenance_is_refused(text: str) -> None:
    with pytest.raises(ExportError, match="expected the JSON of a Provenance"):
        Provenance.from_json(text)


def test_json_with_an_unknown_key_is_refused() -> None:
    fields = {**json.loads(provenance().to_json()), "mood": "good"}
    with pytest.raises(ExportError, match="mood"):
        Provenance.from_json(json.dumps(fields))
