from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from serving.errors import DatasetError
from train import data
from train.targets import Code


@pytest.fixture(scope="module")
def root() -> Path:
    try:
        return data.data_root()
    except DatasetError as error:
        pytest.skip(f"needs the real scans: {error}")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DatasetError, match="expected a folder of scans at"):
        data.data_root(tmp_path / "nowhere")


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(DatasetError, match="xray"):
        data.recognition(tmp_path)


def test_a_split_follows_from_the_group_alone():
    groups = [f"patient-{i}" for i in range(2000)]
    splits = [data.split_of(group) for group in groups]
    assert splits == [data.split_of(group) for group in groups]
    assert 0.15 < splits.count("test") / 2000 < 0.25
    assert 0.06 < splits.count("val") / 2000 < 0.14


@pytest.mark.parametrize("listing", [data.recognition, data.manifestations, data.segmentation, data.nodules])
def test_no_group_is_on_two_sides(root, listing):
    sides: dict[str, set[str]] = {}
    for example in listing(root):
        sides.setdefault(example.group, set()).add(example.split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert {split for splits in sides.values() for split in splits} == {"train", "val", "test"}


def test_one_person_under_two_pneumonias_is_one_group(root):
    kermany = [e for e in data.recognition(root) if "Kermany" in e.source]
    labels: dict[str, set[tuple[float, ...]]] = {}
    for example in kermany:
        labels.setdefault(example.group, set()).add(example.target)
    # 56 children of the pictures that are here occur under viral and under bacterial pneumonia.
    assert sum(len(kinds) > 1 for kinds in labels.values()) == 56


def test_not_covid_leaves_the_other_three_open(root):
    targets = {e.target for e in data.recognition(root) if "ucsd" in e.source}
    assert (0.0, 1.0, 1.0, 1.0) in targets


def test_unlabelled_classes_are_unknown_not_absent(root):
    for example in data.manifestations(root):
        if example.source == "medseg100":
            assert example.target[2] == data.UNKNOWN
        if example.source == "nsclc_plethora":
            assert example.target[:2] == (data.UNKNOWN, data.UNKNOWN)


def test_images_and_codes_are_in_model_space(root):
    for source in ("medseg100", "nsclc_plethora", "covid19_ct_seg"):
        example = next(e for e in data.segmentation(root) if e.source == source)
        image, codes = data.load_image(example, root), data.load_codes(example, root)
        assert image.shape == codes.shape == (512, 512)
        assert set(np.unique(codes)) <= {code for _, code in example.codes}


def test_a_mask_with_a_value_that_nobody_named_is_refused(root):
    example = next(e for e in data.segmentation(root) if e.source == "covid19_ct_seg")
    wrong = data.Example(**{**vars(example), "codes": ((0, Code.INFECTION_BACKGROUND),)})
    with pytest.raises(DatasetError, match="expected values"):
        data.load_codes(wrong, root)


def test_the_fingerprint_notices_another_split(root):
    examples = data.nodules(root)[:3]
    moved = [data.Example(**{**vars(examples[0]), "split": "val"}), *examples[1:]]
    assert data.fingerprint(examples, root) == data.fingerprint(list(reversed(examples)), root)
    assert data.fingerprint(examples, root) != data.fingerprint(moved, root)


def test_a_fingerprint_that_was_published_stays_what_it_was(tmp_path):
    (tmp_path / "scan.png").write_bytes(b"scan")
    example = data.Example("scan.png", "ct", "patient", "source", "train", (1.0,), codes=((0, Code.HEALTHY),))
    representation = (
        "Example(path='scan.png', modality='ct', group='patient', source='source', split='train', target=(1.0,), "
        "mask=None, codes=((0, <Code.HEALTHY: 9>),), stored_hu=False, clahe=True)"
    )
    assert data.fingerprint([example], tmp_path) == hashlib.sha256(representation.encode() + b"scan").hexdigest()
