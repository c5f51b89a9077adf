from __future__ import annotations

from pathlib import Path

import pytest

from demo import about
from demo.site import Site


def page(folder: Path) -> str:
    return " ".join(about.page(Site("127.0.0.1:1", folder, 60, 60)).split())


def test_it_says_that_what_is_no_chest_scan_is_flagged_first_and_how_well(tmp_path: Path) -> None:
    said = page(tmp_path)
    assert "What does not look like a chest scan is flagged before its answer" in said
    # As README.md has them, of docs/plausibility.json.
    assert "of 29 kinds of other pictures" in said
    assert "98 % were flagged on average, and so were 0 to 5.4 % of the chest scans of a source that was left" in said
    assert "misses 7 % of MR images and 91 % of CT slices that are upside down" in said


def test_a_page_without_the_figures_says_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(about, "PLAUSIBILITY", tmp_path / "plausibility.json")
    said = page(tmp_path)
    assert "How well it is told is in docs/plausibility.json, which is not installed" in said
    assert "29 kinds" not in said
