from __future__ import annotations

import pytest

from serving.statistics import Counter, Reading, stage_ms, versions

BEFORE: Reading = {("a", "1"): Counter(10, 50_000_000), ("b", "2"): Counter(4, 8_000_000)}


def test_time_is_the_difference_of_two_readings_per_request() -> None:
    after = {("a", "1"): Counter(12, 56_000_000), ("b", "2"): Counter(5, 9_500_000)}
    assert stage_ms(BEFORE, after, ["a", "b"]) == {"a": pytest.approx(3.0), "b": pytest.approx(1.5)}


def test_a_model_that_nothing_was_asked_of_has_no_time() -> None:
    assert stage_ms(BEFORE, {**BEFORE, ("a", "1"): Counter(11, 51_000_000)}, ["a", "b", "c"]) == {"a": pytest.approx(1)}


def test_counters_that_went_back_are_a_restart_and_no_time() -> None:
    assert stage_ms(BEFORE, {("a", "1"): Counter(1, 1_000_000), ("b", "2"): Counter(5, 1_000_000)}, ["a", "b"]) == {}


def test_a_version_that_is_new_counts_from_zero() -> None:
    after = {**BEFORE, ("a", "2"): Counter(2, 10_000_000)}
    assert stage_ms(BEFORE, after, ["a"]) == {"a": pytest.approx(5.0)}


def test_the_version_that_counted_is_the_one_that_answered() -> None:
    after = {("a", "1"): Counter(11, 60_000_000), ("a", "2"): Counter(0, 0), ("b", "2"): Counter(4, 8_000_000)}
    assert versions(BEFORE, after, ["a", "b", "c"]) == {"a": "1", "b": "2"}


def test_versions_are_numbers_and_not_words() -> None:
    loaded = {("a", "9"): Counter(0, 0), ("a", "10"): Counter(0, 0)}
    assert versions(loaded, loaded, ["a"]) == {"a": "10"}
