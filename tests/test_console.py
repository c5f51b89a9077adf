from __future__ import annotations

import signal

import pytest

from lungstreams.console import stopped_by_signals, unstoppable


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_belongs_together_is_done_whole_and_then_the_signal_counts(number: signal.Signals) -> None:
    done = []
    with stopped_by_signals():
        with unstoppable():
            done.append("half")
            signal.raise_signal(number)
            done.append("whole")
        done.append("after")
    assert done == ["half", "whole"]


def test_without_a_signal_the_next_one_stops_as_ever() -> None:
    done = []
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with stopped_by_signals():
        with unstoppable():
            done.append("whole")
        done.append("after")
        signal.raise_signal(signal.SIGINT)
        done.append("never")
    assert done == ["whole", "after"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before
