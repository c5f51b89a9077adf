"""Where real scans are, for tests of packages that do not import `train`."""

from __future__ import annotations

import os
from pathlib import Path

DATA = Path(os.environ.get("LUNGSTREAMS_DATA") or Path(__file__).parents[2] / "shared" / "data")
