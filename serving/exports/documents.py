"""A case as a JSON document, of `docs/schema/case.schema.json`.

It holds what the report holds, the software and the note on its use; no date and nothing of the file but its size,
so that the same case gives the same bytes. Masks are pictures: see the other kinds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from serving.exports.about import RESEARCH_USE, SOFTWARE, software_version
from serving.exports.case import Case

SCHEMA: Final = "lungstreams.case/1"
"""Changes when a reader of documents would have to."""


def document(case: Case) -> dict[str, object]:
    """The document, as what `json.dumps` takes."""
    return {
        "schema": SCHEMA,
        "kind": "scan" if case.study is None else "study",
        "software": {"name": SOFTWARE, "version": software_version()},
        "note": RESEARCH_USE,
        "verified": False,
        **case.report.to_json(),
    }


def write_json(case: Case, folder: Path, prefix: str) -> tuple[Path, ...]:
    """Write ``<prefix>.json``."""
    path = folder / f"{prefix}.json"
    text = json.dumps(document(case), indent=2, allow_nan=False, ensure_ascii=False)
    path.write_text(f"{text}\n", encoding="utf-8")
    return (path,)
