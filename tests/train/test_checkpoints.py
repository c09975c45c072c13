"""When checkpoints are due; what they hold is tested in test_resume.py."""

from __future__ import annotations

import pytest

from sparsefx.train import checkpoints
from sparsefx.train.checkpoints import CheckpointClock


class Clock:
    """Stands for the module ``time``; tests move it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(checkpoints, "time", clock)
    return clock


def due_after(clock: CheckpointClock, time: Clock) -> int:
    """Return after how many seconds the next one is due."""
    for second in range(10_000):
        if clock.due():
            return second
        time.now += 1
    raise AssertionError("never")


@pytest.mark.parametrize(
    ("took", "rest"),
    [(0.5, 60), (3, 60), (6, 120), (60, 1200)],
    ids=["small", "at the bound", "base size", "slow disk"],
)
def test_they_take_a_twentieth_of_the_time_at_most(took: float, rest: int, time: Clock) -> None:
    clock = CheckpointClock(60.0)
    assert due_after(clock, time) == 60
    with clock.saving():
        time.now += took
    assert due_after(clock, time) == rest


def test_none_is_left_out_where_one_is_wanted_after_each_step(time: Clock) -> None:
    clock = CheckpointClock(0.0)
    with clock.saving():
        time.now += 100
    assert clock.due()
