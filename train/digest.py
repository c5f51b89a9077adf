"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 2**20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, read in parts: a volume or an archive need not fit into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
