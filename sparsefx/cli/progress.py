"""How far a command is: a bar in a terminal, a line now and then on a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from sparsefx.cli.console import stderr
from sparsefx.train.events import (
    Computed,
    Evaluated,
    Event,
    RunStarted,
    StageFinished,
    StageStarted,
    StepDone,
)

__all__ = ["SessionProgress", "counting"]

_SECONDS = 15  # between two lines on a pipe
_COMPUTED = {"score": "scoring", "teacher": "asking the teacher"}


class _CountProgress:
    """Shows how many of a number of things are done.

    Use it as a context manager.
    """

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}", table_column=Column(min_width=10)),
            BarColumn(bar_width=28),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[facts]}"),
            console=stderr,
        )
        self._tasks: dict[str, TaskID] = {}
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        if stderr.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if stderr.is_terminal:
            self._bars.stop()

    def count(
        self, who: str, what: str, unit: str, done: int, total: int, left: float | None = None
    ) -> None:
        """Show how many are done; ``left`` are estimated seconds, where somebody knows."""
        facts = unit if left is None else f"{unit}, {_left(left)}"
        if stderr.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total, facts=facts)
            self._bars.update(self._tasks[what], completed=done, facts=facts)
            if done >= total:
                self._bars.remove_task(self._tasks.pop(what))
        elif time.monotonic() - self._told >= _SECONDS:
            self._told = time.monotonic()
            self._say(f"{who}: {what}: {done}/{total} {facts}")

    def _say(self, text: str) -> None:
        stderr.print(text)


@contextmanager
def counting(who: str, what: str, unit: str) -> Iterator[Callable[..., None]]:
    """Show what a command counts.

    What it yields takes how many are done, how many there are, and the seconds that are left where
    somebody knows.
    """
    with _CountProgress() as shown:
        yield partial(shown.count, who, what, unit)


class SessionProgress(_CountProgress):
    """A listener that shows a session: loss, sparsity and time left, texts in between."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = 0.0

    def __call__(self, event: Event) -> None:
        """Show what happened."""
        if not isinstance(event, Computed):
            self._told = time.monotonic()
        if isinstance(event, RunStarted) and event.finished:
            self._say(f"goes on in {event.folder}; finished before: {', '.join(event.finished)}")
        elif isinstance(event, StageStarted):
            text = f" from step {event.done}" if event.done else ""
            self._say(f"{event.stage}: {event.steps} steps{text}")
            self._tasks[event.stage] = self._bars.add_task(
                event.stage, total=event.steps, completed=event.done, facts=""
            )
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Computed):
            what = _COMPUTED[event.what]
            self.count(event.stage, what, "texts", event.done, event.total)
        elif isinstance(event, Evaluated):
            self._say(f"{event.stage}: step {event.step}: {event.score}")
        elif isinstance(event, StageFinished) and event.result.score is not None:
            self._say(f"{event.result.name}: {event.result.score}")

    def _step(self, event: StepDone) -> None:
        facts = f"loss {event.loss:.3f}"
        if event.sparsity is not None:
            facts += f", {event.sparsity:.0%} zeros"
        facts += f", {_left(event.left)}"
        if stderr.is_terminal:
            self._bars.update(self._tasks[event.stage], completed=event.step, facts=facts)
        elif event.seconds < self._shown:  # another stage
            self._shown = event.seconds
        elif event.seconds - self._shown >= _SECONDS:
            self._shown = event.seconds
            self._say(f"{event.stage}: step {event.step}/{event.steps}, {facts}")


def _left(seconds: float) -> str:
    return f"{timedelta(seconds=int(seconds))} left"
