"""How long our client waits before it asks again."""

from __future__ import annotations

from itertools import islice

import pytest

from serving.calls import FIRST_PAUSE_S, LONGEST_PAUSE_S, pauses

TRIES = 12
CALLERS = 200
"""That a place of theirs leaves a fifth of its range out has a chance of one in 10 to the 19."""


@pytest.mark.parametrize("place", range(TRIES))
def test_pauses_double_up_to_the_longest_and_are_drawn_from_half_of_that_on(place: int) -> None:
    drawn = [list(islice(pauses(), TRIES))[place] for _ in range(CALLERS)]
    whole_s = min(FIRST_PAUSE_S * 2**place, LONGEST_PAUSE_S)
    assert whole_s * 0.5 <= min(drawn) < whole_s * 0.6
    assert whole_s * 0.9 < max(drawn) <= whole_s


def test_those_who_were_refused_together_do_not_come_back_together() -> None:
    firsts = [next(pauses()) for _ in range(CALLERS)]
    assert len(set(firsts)) == CALLERS


def test_the_pauses_are_those_that_the_documents_state() -> None:
    assert (FIRST_PAUSE_S, LONGEST_PAUSE_S) == (0.2, 4.0)
