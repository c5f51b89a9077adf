"""Scans to calibrate a published version with, found by what its provenance says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from serving.errors import ExportError
from serving.preprocessing import prepare
from tests.train.test_origins import write_classes
from train.origins import examples_for
from train.publish import calibration_scans


def test_calibration_scans_are_preprocessed_scans_of_the_training_split(tmp_path: Path) -> None:
    write_classes(tmp_path / "scans", {"covid": 6, "normal": 6})
    scans = calibration_scans("recognition_first", tmp_path / "scans", tmp_path / "cache")
    training = [e.path for e in examples_for("recognition", tmp_path / "scans") if e.split == "train"]
    assert 0 < len(training) < 12
    assert (scans.shape, scans.dtype) == ((len(training), 512, 512, 3), np.uint8)
    files = ((tmp_path / "scans" / path).read_bytes() for path in training)
    prepared = {prepare(file, "xray", [0.0] * 4)[0].tobytes() for file in files}
    assert {scan.tobytes() for scan in scans} == prepared
    np.testing.assert_array_equal(scans, calibration_scans("recognition_first", tmp_path / "scans", tmp_path / "cache"))


def test_an_experiment_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected the experiment of a published version, got 'toy_recognition'"):
        calibration_scans("toy_recognition", tmp_path, tmp_path / "cache")
