"""Progress of a training session: loss, sparsity and time left, texts in between."""

from __future__ import annotations

import time
from datetime import timedelta

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

__all__ = ["SessionProgress"]

_SECONDS = 15  # between two lines on a pipe
_COMPUTED = {
    "score": ("scoring", "texts"),
    "teacher": ("asking the teacher", "texts"),
    "measure": ("measuring", "losses"),
}


class SessionProgress:
    """A listener that shows one bar for each stage; on a pipe it prints a line now and then.

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
        self._shown = 0.0
        self._told = time.monotonic()

    def __enter__(self) -> SessionProgress:
        if stderr.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if stderr.is_terminal:
            self._bars.stop()

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
            self._computed(event)
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

    def _computed(self, event: Computed) -> None:
        what, facts = _COMPUTED[event.what]
        if event.left is not None:
            facts += f", {_left(event.left)}"
        if stderr.is_terminal:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=event.total, facts=facts)
            self._bars.update(self._tasks[what], completed=event.done, facts=facts)
            if event.done >= event.total:
                self._bars.remove_task(self._tasks.pop(what))
        elif time.monotonic() - self._told >= _SECONDS:
            self._told = time.monotonic()
            self._say(f"{event.stage}: {what}: {event.done}/{event.total} {facts}")

    def _say(self, text: str) -> None:
        stderr.print(text, markup=False)


def _left(seconds: float) -> str:
    return f"{timedelta(seconds=int(seconds))} left"
