"""docs/limits.md against the constants that it is about."""

from __future__ import annotations

import re

import pytest

from serving import limits, repository
from serving.exports.segmentations import MAX_SEG_VOXELS
from tests.reliability import ROOT

DOCUMENT = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
CONSTANTS = {name: value for name, value in vars(limits).items() if name.startswith(("MAX_", "MIN_"))}
QUEUES = {name: getattr(repository, name) for name in ("MAX_QUEUE_SIZE", "MAX_INNER_QUEUE_SIZE", "QUEUE_TIMEOUT_US")}
EXPORTS = {"MAX_SEG_VOXELS": MAX_SEG_VOXELS}
ROWS = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", DOCUMENT, re.MULTILINE))


@pytest.mark.parametrize(("name", "value"), [*CONSTANTS.items(), *QUEUES.items(), *EXPORTS.items()])
def test_every_limit_is_documented_with_its_value(name: str, value: int) -> None:
    assert ROWS.get(name) == f"{value:,}"


def test_no_limit_is_documented_that_there_is_not() -> None:
    assert set(ROWS) == {*CONSTANTS, *QUEUES, *EXPORTS}
