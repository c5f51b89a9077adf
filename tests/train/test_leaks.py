from __future__ import annotations

import dataclasses
import re

import cv2
import numpy as np
import pytest

from serving import phantom
from serving.errors import DatasetError
from train.batches import Arrays
from train.data import Example
from train.leaks import (
    aligned_correlation,
    by_source,
    clean_split,
    lookalikes,
    refuse,
    shared_files,
    shared_groups,
)
from train.report import leaks_markdown


def _example(name: str, split: str, group: str = "", source: str = "s") -> Example:
    return Example(path=name, modality="ct", group=group or name, source=source, split=split)


def _slice(seed: int) -> np.ndarray:
    return np.asarray(phantom.ct_slice(seed, 512).pixels)


def _copy(image: np.ndarray) -> np.ndarray:
    """Cropped, darker, smaller, and a JPEG: what comes of a figure that is passed on."""
    cropped = cv2.resize(image[14:500, 8:], (300, 300), interpolation=cv2.INTER_AREA)
    _, file = cv2.imencode(".jpg", (cropped * 0.8 + 10).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])
    return cv2.resize(cv2.imdecode(file, cv2.IMREAD_GRAYSCALE), (512, 512))


def _noise(seed: int) -> np.ndarray:
    grey = cv2.GaussianBlur(np.random.default_rng(seed).standard_normal((512, 512)), (0, 0), 12)
    return cv2.normalize(grey, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def test_a_group_in_two_splits_is_named_with_a_scan_of_each():
    examples = [_example("a", "train", "p1"), _example("b", "test", "p1"), _example("c", "test", "p2")]
    leaks = shared_groups(examples)
    assert [(k.a.path, k.b.path) for k in leaks] == [("b", "a")]
    with pytest.raises(DatasetError, match=re.escape("got 1: group p1: b (test) and a (train)")):
        refuse(leaks)


def test_a_group_in_three_splits_is_three_leaks():
    assert len(shared_groups([_example(s, s, "p") for s in ("train", "val", "test")])) == 3


def test_the_same_bytes_are_found_across_splits_only(tmp_path):
    for name, content in {"a": b"1", "b": b"1", "c": b"1", "d": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    examples = [_example("a", "train"), _example("b", "train"), _example("c", "val"), _example("d", "test")]
    leaks = shared_files(examples, tmp_path)
    assert [{k.a.path, k.b.path} for k in leaks] == [{"a", "c"}]
    with pytest.raises(DatasetError, match="file: "):
        refuse(leaks)


def test_slices_of_a_volume_are_files_of_their_own(tmp_path):
    (tmp_path / "v").write_bytes(b"volume")
    slices = [dataclasses.replace(_example("v", s), slice_index=i) for i, s in enumerate(("train", "test"))]
    assert shared_files(slices, tmp_path) == []
    twice = [*slices, dataclasses.replace(slices[0], split="val")]
    assert [{k.a.split, k.b.split} for k in shared_files(twice, tmp_path)] == [{"train", "val"}]


def test_nothing_is_refused_where_nothing_leaks():
    refuse([])


def test_a_message_names_ten_pairs_and_counts_the_rest():
    leaks = [
        k
        for i in range(12)
        for k in shared_groups([_example(f"a{i}", "train", f"p{i}"), _example("b", "test", f"p{i}")])
    ]
    with pytest.raises(DatasetError, match=r"got 12: .*p9.*; and 2 more$"):
        refuse(leaks)


def test_a_copy_is_found_across_splits_and_not_inside_one():
    images = np.stack([_noise(1), _copy(_noise(1)), _copy(_noise(1)), _noise(2), _noise(3)])
    splits = ("train", "train", "test", "test", "val")
    examples = [_example(str(i), s) for i, s in enumerate(splits)]
    leaks = lookalikes(examples, images)
    assert {frozenset((k.a.path, k.b.path)) for k in leaks} == {frozenset("02"), frozenset("12")}
    assert [k.correlation for k in leaks] == sorted((k.correlation for k in leaks), reverse=True)


def test_two_phantoms_are_not_alike_and_a_copy_of_one_is():
    one, other = (cv2.resize(_slice(seed), (128, 128), interpolation=cv2.INTER_AREA) for seed in (1, 2))
    copy = cv2.resize(_copy(_slice(1)), (128, 128), interpolation=cv2.INTER_AREA)
    assert aligned_correlation(one, copy) > 0.8
    assert aligned_correlation(one, copy) > aligned_correlation(one, other)


def test_an_empty_scan_is_like_nothing():
    blank = np.full((64, 64), 7, np.uint8)
    assert aligned_correlation(blank, blank) == -1


def test_a_clean_split_has_lost_what_is_in_another(tmp_path):
    examples = [
        _example("0", "train"),
        _example("1", "test", source="copied"),
        _example("2", "test", source="own"),
        _example("3", "val"),
    ]
    images = np.stack([_noise(1), _copy(_noise(1)), _noise(2), _noise(3)])
    for example, image in zip(examples, images, strict=True):
        (tmp_path / example.path).write_bytes(image.tobytes())
    arrays, leaks = clean_split(Arrays(examples, images, None), "test", tmp_path)
    assert [e.path for e in arrays.examples] == ["2"]
    assert np.array_equal(arrays.images, images[2:3])
    assert by_source(leaks, "test") == {"copied": 1}
    report = leaks_markdown({"Drawn": leaks, "Other": []})
    assert "1 pairs. Test scans left out: copied: 1." in report
    assert "| 1 | test | 0 | train |" in report
    mixed = [dataclasses.replace(e, group="one") for e in examples]
    with pytest.raises(DatasetError, match="group one"):
        clean_split(Arrays(mixed, images, None), "test", tmp_path)


def test_one_slice_that_looks_alike_does_not_take_its_volume_along(tmp_path):
    (tmp_path / "v").write_bytes(b"volume")
    splits = ("train", "test", "test")
    examples = [
        dataclasses.replace(_example("v", split, group=str(i)), slice_index=i) for i, split in enumerate(splits)
    ]
    images = np.stack([_noise(1), _copy(_noise(1)), _noise(2)])
    arrays, leaks = clean_split(Arrays(examples, images, None), "test", tmp_path)
    assert [e.slice_index for e in arrays.examples] == [2]
    assert [(k.a.name, k.b.name) for k in leaks] == [("v[1]", "v[0]")]
