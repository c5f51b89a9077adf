"""What every export says of itself: which software wrote it, and what it is not for."""

from __future__ import annotations

import importlib.metadata
from typing import Final

SOFTWARE: Final = "lungstreams"
RESEARCH_USE: Final = "Research use only. Not a medical device."
UNVERIFIED: Final = "Computed by neural networks; no person has verified it."


def software_version() -> str:
    """The version of this software; ``unknown`` where it runs without being installed."""
    try:
        return importlib.metadata.version(SOFTWARE)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
