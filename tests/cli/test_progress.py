"""What a session shows where nobody watches."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from sparsefx.cli.progress import SessionProgress, counting
from sparsefx.train.events import Computed, StageStarted, StepDone


def step(number: int, seconds: float, left: float) -> StepDone:
    return StepDone("dense", number, 4, 0.5, {}, 1e-3, None, None, seconds, left)


def teacher(done: int) -> Computed:
    return Computed("sparse", "teacher", done, 320)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])

    def passes(seconds: float) -> None:
        now[0] += seconds

    return passes


def test_a_pipe_is_told_the_time_left_with_its_hours(capsys: pytest.CaptureFixture[str]) -> None:
    show = SessionProgress()
    show(StageStarted("dense", 4, 0))
    show(step(1, 16.0, 42586.5))
    assert "dense: step 1/4, loss 0.500, 11:49:46 left" in capsys.readouterr().err


def test_a_pipe_is_told_of_texts_now_and_then(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    show = SessionProgress()
    clock(60)
    show(StageStarted("sparse", 4, 0))
    for done in range(32, 321, 32):
        clock(6)
        show(teacher(done))
    told = capsys.readouterr().err.splitlines()[1:]
    assert told == [f"sparse: asking the teacher: {done}/320 texts" for done in (96, 192, 288)]


def test_a_pipe_is_told_of_a_count_that_takes_longer_than_a_line(
    capsys: pytest.CaptureFixture[str], clock: Callable[[float], None]
) -> None:
    with counting("sensitivity", "measuring", "losses") as show:
        show(0, 19)
        clock(14)
        show(0, 19, 8000.0)
        clock(2)
        show(0, 19, 7322.5)
        clock(15)
        show(1, 19)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "sensitivity: measuring: 0/19 losses, 2:02:02 left",
        "sensitivity: measuring: 1/19 losses",
    ]
