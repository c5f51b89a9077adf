"""Modules whose packages are an extra, and may not be installed."""

from __future__ import annotations

import importlib
import os
from typing import Any, Final

from lungstreams.console import fail

_OURS: Final = frozenset({"serving", "demo", "train", "loadtest", "lungstreams"})


def extra(module: str) -> Any:
    """A module whose packages may not be installed; if so, ends with a line that says how to get them."""
    # TensorFlow says what its binary was built for; its warnings and errors are left.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _OURS:
            raise
        name = "[train]" if module.startswith("train.") else "[ray]" if module == "ray" else ""
        fail(f"expected the package {missing}, got an environment without it: pip install 'lungstreams{name}'")
