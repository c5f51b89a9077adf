"""The long form of the tests: ``python -m tests.hostile.run --mutations 10000`` (`make fuzz`).

Exit code 1 if any file was not borne.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.hostile.bombs import BOMBS
from tests.hostile.judge import MAX_CPU_S, MAX_PEAK_BYTES, Judge
from tests.hostile.workers import outcomes
from tests.reliability import ROWS, record


def main() -> int:
    """Reads mutations and bombs, and records what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="Number of the first mutation: others find other things.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--no-bombs", action="store_true")
    options = parser.parse_args()
    last = options.first + options.mutations
    runs = [(f"{options.mutations:,} mutations, each in a process", [str(i) for i in range(options.first, last)])]
    if not options.no_bombs:
        runs.append((f"{len(BOMBS)} bombs, each in a process", list(BOMBS)))
    failed = 0
    for what, names in runs:
        started_s, judge = time.monotonic(), Judge()
        for name, outcome in outcomes(names, options.workers):
            judge.take(name, outcome)
        row = record(judge.row(what), ROWS)
        _say(f"{row} in {time.monotonic() - started_s:.0f} s", *judge.faults)
        failed += len(judge.faults)
    _say(f"limits: {MAX_CPU_S:g} s of processor time, {MAX_PEAK_BYTES:,} bytes a file; {failed} file(s) not borne")
    return int(failed > 0)


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
