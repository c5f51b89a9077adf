"""A target for atheris, which looks for inputs by what they reach (optional: ``pip install atheris``).

::

    python -m tests.hostile.atheris_target scan -max_total_time=300     # or study
    python -m tests.hostile.atheris_target scan crash-...               # one input again

What follows the kind is libFuzzer's. It begins with the seeds of `tests.hostile.seeds`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["serving", "pydicom", "nibabel", "PIL"]):
    from serving.errors import LungstreamsError
    from serving.limits import check_file_bytes
    from tests.hostile.probe import as_scan, as_study, warm_up
    from tests.hostile.seeds import seeds

KINDS: dict[str, Callable[[bytes], None]] = {"scan": as_scan, "study": as_study}


def main() -> None:
    """Runs until libFuzzer ends, which is at the first exception that is none of ours."""
    kind = KINDS[sys.argv.pop(1)]

    def one(data: bytes) -> None:
        try:
            check_file_bytes(data)
            kind(data)
        except LungstreamsError as refused:
            says = str(refused)
            if "expected" not in says or "got" not in says:
                raise AssertionError(f"expected a clear error, got: {says}") from refused

    warm_up()
    with tempfile.TemporaryDirectory(prefix="lungstreams-fuzz-") as folder:
        for name, data in seeds().items():
            Path(folder, name).write_bytes(data)
        given = [] if any(not argument.startswith("-") for argument in sys.argv[1:]) else [folder]
        atheris.Setup([*sys.argv, *given], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
