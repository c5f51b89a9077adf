"""What the readers of single origins share: a listing, splits by group, tables."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from serving.errors import DatasetError
from train.data import TEST_PERCENT, VAL_PERCENT, Example, Split, split_of

IMAGE_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".dcm"})
FEW_GROUPS: Final = 50
"""Below this many groups a hash alone may well leave a split empty."""
_NAMED: Final = 3


@dataclass(frozen=True)
class Listing:
    """What was found in a folder.

    Attributes:
        examples: Everything that can be trained on or measured with.
        missing: Files that a table names and that are not there, or are there without their twin; a line each.
        notes: What a reader of results has to know: how the split was made, what was left out.
    """

    examples: tuple[Example, ...]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def splits_of(groups: Iterable[str]) -> dict[str, Split]:
    """The split of each group.

    With `FEW_GROUPS` or more, that of `train.data.split_of`, which depends on the group's name alone. With fewer, the
    groups are ranked by the same hash and cut at the same shares, so that no split is empty from three groups on: then
    a split depends on the other groups too.
    """
    names = sorted(set(groups))
    if len(names) >= FEW_GROUPS:
        return {name: split_of(name) for name in names}
    ranked = sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    n_test = max(1, round(len(names) * TEST_PERCENT / 100))
    n_val = max(1, round(len(names) * VAL_PERCENT / 100))
    return {
        name: "test" if rank < n_test else "val" if rank < n_test + n_val else "train"
        for rank, name in enumerate(ranked)
    }


def with_splits(examples: Iterable[Example]) -> tuple[Example, ...]:
    """The examples with the split that follows from their groups, source by source."""
    given = list(examples)
    sides: dict[str, Split] = {}
    for source in sorted({example.source for example in given}):
        sides.update(splits_of(example.group for example in given if example.source == source))
    return tuple(replace(example, split=sides[example.group]) for example in given)


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV, by column names in small letters without spaces around.

    Raises:
        DatasetError: If the file is not there, is no text, or lacks a column.
    """
    if not path.is_file():
        raise DatasetError(f"expected {path.name} in {path.parent}, found none")
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: expected a CSV in UTF-8, got {error}") from error
    table = [{(key or "").strip().lower(): (value or "") for key, value in row.items() if key} for row in rows]
    lacking = [column for column in columns if not table or column not in table[0]]
    if lacking:
        got = ", ".join(table[0]) if table else "no row"
        raise DatasetError(f"{path}: expected the columns {', '.join(columns)}, got {got}")
    return table


def abridged(names: Sequence[str]) -> str:
    """The first few of many names."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
