"""Hostile files through everything that reads one, each in a process whose memory and time are measured.

The long form, with other numbers and as many as wanted, is ``python -m tests.hostile.run`` (`make fuzz`).
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.hostile.bombs import BOMBS
from tests.hostile.judge import MAX_CPU_S, MAX_PEAK_BYTES, Judge
from tests.hostile.mutations import mutant
from tests.hostile.probe import Outcome, probe
from tests.hostile.seeds import seeds
from tests.hostile.workers import file_named, outcomes
from tests.reliability import IS_LONG, ROOT, Row, record

MUTATIONS = 10_000 if IS_LONG else 1_000


def judged(what: str, names: Iterable[str]) -> tuple[Row, list[str]]:
    # Whatever else a core does slows it down: the promise itself is held where these tests are alone.
    judge = Judge(MAX_CPU_S if IS_LONG else 2 * MAX_CPU_S)
    for name, outcome in outcomes(names):
        judge.take(name, outcome)
    return record(judge.row(what)), judge.faults


def test_every_seed_is_read() -> None:
    assert {name: probe(data).verdict for name, data in seeds().items()} == dict.fromkeys(seeds(), "answered")


def test_mutations_are_the_same_everywhere_and_differ_from_each_other() -> None:
    files = [mutant(number)[1] for number in range(200)]
    program = (
        "import hashlib; from tests.hostile.mutations import mutant; "
        "print(hashlib.sha256(b''.join(mutant(number)[1] for number in range(200))).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert hashlib.sha256(b"".join(files)).hexdigest() == elsewhere.stdout.strip()
    whole = set(seeds().values())
    assert len(set(files)) > 190
    assert sum(data in whole for data in files) < 10


@pytest.mark.reliability
@pytest.mark.timeout(1800 if IS_LONG else 300)
def test_mutations_are_read_or_refused_within_bounds() -> None:
    row, faults = judged("mutations, each in a process (memory: of one)", map(str, range(MUTATIONS)))
    assert faults == []
    assert row.requests == MUTATIONS
    # Neither all harmless nor all broken at once.
    assert min(row.answered, row.refused) > MUTATIONS / 10


@pytest.mark.slow
@pytest.mark.reliability
def test_bombs_are_read_or_refused_within_bounds() -> None:
    row, faults = judged("bombs, each in a process (memory: of one)", BOMBS)
    assert faults == []
    assert row.requests == len(BOMBS)


def test_names_that_climb_out_write_nothing() -> None:
    data = BOMBS["zip with paths that climb"].make()
    assert probe(data).verdict == "answered"
    assert not any(Path(folder, "climbed").exists() for folder in ("/tmp", "/etc", "..", "../..", "."))


def test_the_judge_sees_what_is_promised_broken() -> None:
    judge = Judge()
    judge.take("fine", Outcome("refused", "expected this, got that", 0.1, 0))
    assert judge.faults == []
    for name, outcome in {
        "crash": Outcome("lost", "", 1, 0),
        "odd": Outcome("wrong", "KeyError", 1, 0),
        "slow": Outcome("answered", "", MAX_CPU_S + 1, 0),
        "large": Outcome("answered", "", 1, MAX_PEAK_BYTES + 1),
    }.items():
        judge.take(name, outcome)
        assert judge.faults[-1].startswith(name)
    assert len(judge.faults) == 4


def test_a_process_that_dies_is_a_file_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    # A name that no worker knows kills it; the next file is read by another.
    with pytest.raises(KeyError):
        file_named("no such bomb")
    found = dict(outcomes(["no such bomb", "empty file", "0"], workers=1))
    assert {name: outcome.verdict for name, outcome in found.items()} == {
        "no such bomb": "lost",
        "empty file": "refused",
        "0": probe(file_named("0")).verdict,
    }
