"""What a session tells while it runs, and the listeners that come with it.

A listener is any function that takes an event. The session itself prints nothing: progress bars,
files and plots are all listeners.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from sparsefx.extras import need
from sparsefx.storage.files import write_text
from sparsefx.train.metrics import Score

if TYPE_CHECKING:
    from sparsefx.train.results import RunResult, StageResult

__all__ = [
    "CheckpointSaved",
    "Computed",
    "Evaluated",
    "Event",
    "Listener",
    "MetricsFile",
    "RunFinished",
    "RunStarted",
    "StageFinished",
    "StageStarted",
    "StepDone",
    "TensorBoard",
    "read_lines",
]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStarted:
    """A run begins, or goes on: ``finished`` stages are behind it already."""

    name: str
    folder: Path
    stages: tuple[str, ...]
    finished: tuple[str, ...]


@dataclass(frozen=True)
class StageStarted:
    """Training of a stage begins after step ``done`` (0, unless it was resumed) of ``steps``."""

    stage: str
    steps: int
    done: int


@dataclass(frozen=True)
class StepDone:
    """One optimizer step.

    Attributes:
        stage: Name of the stage.
        step: 1 for the first of the stage.
        steps: How many the stage has.
        loss: What was minimised.
        terms: Its parts: ``labels``, and the terms that passes put into the graph.
        learning_rate: Used in this step.
        gradient_norm: Before clipping; None when gradients are not clipped.
        sparsity: Share of zeros in masked weights; None when none are masked.
        seconds: Spent in training the stage so far, earlier sessions included.
        left: Estimated seconds until its last step.
    """

    stage: str
    step: int
    steps: int
    loss: float
    terms: Mapping[str, float]
    learning_rate: float
    gradient_norm: float | None
    sparsity: float | None
    seconds: float
    left: float


@dataclass(frozen=True)
class Evaluated:
    """The Program was scored after ``step`` steps of a stage."""

    stage: str
    step: int
    score: Score
    seconds: float


@dataclass(frozen=True)
class Computed:
    """A model has run over ``done`` of ``total`` texts, between the steps of a stage.

    Attributes:
        stage: Name of the stage.
        what: ``score``: for an evaluation; ``teacher``: so that the student can learn from it.
        done: Texts so far.
        total: All of them.
    """

    stage: str
    what: Literal["score", "teacher"]
    done: int
    total: int


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint is complete on disk."""

    stage: str
    step: int
    folder: Path


@dataclass(frozen=True)
class StageFinished:
    """A stage and its passes are done and saved."""

    result: StageResult


@dataclass(frozen=True)
class RunFinished:
    """All stages are done."""

    result: RunResult


Event = (
    RunStarted
    | StageStarted
    | StepDone
    | Computed
    | Evaluated
    | CheckpointSaved
    | StageFinished
    | RunFinished
)
Listener = Callable[[Event], None]


@dataclass
class MetricsFile:
    """Writes ``metrics.jsonl``: one line for each step and each evaluation.

    A step has the keys stage, step, loss, terms, learning_rate, gradient_norm, sparsity, seconds;
    an evaluation has stage, step, metric, value, low, high, count, parts, and as ``accuracy`` the
    accuracy, where the task has one. Numbers are plain JSON; what is unknown is null.
    """

    path: Path
    _file: TextIO | None = field(default=None, repr=False)

    def __call__(self, event: Event) -> None:
        """Write a line for a step or an evaluation."""
        if isinstance(event, StepDone):
            self._write(
                {
                    "stage": event.stage,
                    "step": event.step,
                    "loss": event.loss,
                    "terms": dict(event.terms),
                    "learning_rate": event.learning_rate,
                    "gradient_norm": event.gradient_norm,
                    "sparsity": event.sparsity,
                    "seconds": round(event.seconds, 3),
                }
            )
        elif isinstance(event, Evaluated):
            self._write({"stage": event.stage, "step": event.step, **event.score.as_json()})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is None:
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Bring all lines to the disk."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def forget_after(self, finished: tuple[str, ...], stage: str, step: int) -> None:
        """Drop the lines that a resumed run will write anew.

        Args:
            finished: Stages whose lines all stay.
            stage: The stage that goes on.
            step: Its last step that stays; a score after it is computed anew.
        """
        self.close()
        if not self.path.exists():
            return
        kept = []
        for text, line in read_lines(self.path):
            last = step - 1 if "metric" in line else step
            if line["stage"] in finished or (line["stage"] == stage and line["step"] <= last):
                kept.append(text)
        write_text(self.path, "".join(kept))


def read_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Return the whole lines of a metrics file, as texts and as data; none where there is no file.

    Of others, which a machine that lost its power may leave, a warning says how many they are; one
    at the end, which a kill cut off, is nothing to speak of.
    """
    if not path.exists():
        return []
    texts = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    if texts and not texts[-1].endswith("\n"):
        del texts[-1]
    parsed = [(text, line) for text in texts if (line := _parsed(text)) is not None]
    if len(parsed) < len(texts):
        logger.warning(
            "%s: %d damaged lines are left out; nothing but the curves lacks them",
            *(path, len(texts) - len(parsed)),
        )
    return parsed


def _parsed(text: str) -> dict[str, Any] | None:
    """Return a line; None for what is no line of a metrics file."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or not isinstance(line.get("stage"), str):
        return None
    return line if isinstance(line.get("step"), int) else None


class TensorBoard:
    """A listener that writes TensorBoard files; needs the extra ``sparsefx[tensorboard]``.

    Args:
        folder: Where the files go, e.g. ``runs/NAME/tensorboard``.

    Raises:
        DependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        need("tensorboard", who="session")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Write the numbers of a step or an evaluation, under the name of the stage."""
        if isinstance(event, StepDone):
            numbers = {
                "loss": event.loss,
                **{f"terms/{name}": value for name, value in event.terms.items()},
                "learning_rate": event.learning_rate,
                "gradient_norm": event.gradient_norm,
                "sparsity": event.sparsity,
            }
            self._add(event.stage, numbers, event.step)
        elif isinstance(event, Evaluated):
            self._add(event.stage, dict(event.score.parts), event.step)
        elif isinstance(event, RunFinished):
            self._writer.close()

    def _add(self, stage: str, numbers: Mapping[str, float | None], step: int) -> None:
        for name, value in numbers.items():
            if value is not None:
                self._writer.add_scalar(f"{stage}/{name}", value, step)
