"""What can be taken away of a case, and what is said where a file can not be made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from demo.downloads import Downloads
from demo.site import Site
from serving.exports import possible
from serving.studies import open_volume
from tests.serving.export_cases import study_case
from tests.serving.test_exports_dicom import axial, series
from tests.serving.volume_files import zipped


def test_a_file_that_turns_out_to_be_too_large_is_said_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = study_case(open_volume(zipped(series(axial()))))
    assert "seg" in possible(case)
    monkeypatch.setattr("serving.exports.segmentations.MAX_SEG_VOXELS", 99)
    # Without its buttons: those need a page, which leaves event loops behind.
    downloads = SimpleNamespace(_site=Site("127.0.0.1:1", tmp_path, 60, 60), _case_of=lambda _: case)
    *_, (said, file) = Downloads.make(downloads, "seg", None, "key")  # type: ignore[arg-type]
    assert "This file can not be made of this case" in said["value"]
    assert "at most 99 voxels of segments" in said["value"]
    assert "value" not in file
    assert not [*tmp_path.iterdir()]
