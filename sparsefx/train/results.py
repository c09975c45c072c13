"""What a run leaves behind: results of its stages, as objects and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from sparsefx.errors import ArtifactError, TrainingError, did_you_mean
from sparsefx.program import Program
from sparsefx.storage.files import saving, write_json
from sparsefx.train.metrics import Score

__all__ = ["ASKED_TEACHER", "CAPTURED", "RunResult", "StageResult"]

CAPTURED = "captured"
"""Where the folder of a run has the model that it started from, as it was captured."""

ASKED_TEACHER = "teacher.json"
"""Where the folder of a stage has the digests of its teacher, before the stage has begun."""

_RESULT, _OUTPUTS = "result.json", "outputs.safetensors"


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    Attributes:
        name: From the recipe.
        folder: Holds ``program`` (a saved Program) and the files of this result.
        steps: Optimizer steps; 0 when the stage only ran passes.
        score: The task's metric on the test split with its interval; None when not evaluated.
        seconds: Spent in ``passes``, ``training`` and ``evaluation``.
        sparsity: Share of zeros in the masked weights; None when none are masked.
        properties: What holds of the Program.
    """

    name: str
    folder: Path
    steps: int
    score: Score | None
    seconds: Mapping[str, float]
    sparsity: float | None
    properties: tuple[str, ...]

    def program(self) -> Program:
        """Load the Program that the stage ended with."""
        return Program.load(self.folder / "program")

    def outputs(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Return the logits and labels of the test split, as ``metrics.evaluate`` takes them.

        Two stages are compared by ``metrics.paired_difference`` on them.

        Raises:
            TrainingError: The stage was not evaluated, or on text alone.
        """
        if self.score is None or self.score.metric == "loss":
            why = "it was not evaluated" if self.score is None else "it was scored by its loss"
            raise TrainingError(why, who="result", where=f"stage {self.name}")
        found = load_file(self.folder / _OUTPUTS)
        return found["logits"], found["labels"]

    def save(self, logits: NDArray[np.float32] | None, labels: NDArray[np.float64] | None) -> None:
        """Write the files of this result; ``result.json`` last, which makes the stage finished."""
        if logits is not None and labels is not None:
            with saving(self.folder / _OUTPUTS):
                save_file({"logits": logits, "labels": labels}, self.folder / _OUTPUTS)
        write_json(self.folder / _RESULT, self.as_json())

    def as_json(self) -> dict[str, Any]:
        """Return all but the folder as plain data."""
        return {
            "name": self.name,
            "steps": self.steps,
            "score": None if self.score is None else self.score.as_json(),
            "seconds": dict(self.seconds),
            "sparsity": self.sparsity,
            "properties": list(self.properties),
        }

    @classmethod
    def read(cls, folder: Path) -> StageResult | None:
        """Read a result; None when the stage is not finished.

        Raises:
            ArtifactError: The file is not one that :meth:`save` wrote.
        """
        path = folder / _RESULT
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            score = found["score"]
            if score is not None:
                del score["accuracy"]
            return cls(
                name=found["name"],
                folder=folder,
                steps=found["steps"],
                score=None if score is None else Score(**score),
                seconds=found["seconds"],
                sparsity=found["sparsity"],
                properties=tuple(found["properties"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"not the result of a stage: {error}",
                who="result",
                where=str(path),
                hint="remove the folder of this stage to train it again",
            ) from error


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        name: Of the recipe.
        folder: See :mod:`sparsefx.train.session` for what it holds.
        stages: In order.
        classes: Of the task, in the order of the head.
    """

    name: str
    folder: Path
    stages: tuple[StageResult, ...]
    classes: tuple[str, ...] = ()

    @property
    def program(self) -> Program:
        """The Program that the last stage ended with, loaded anew."""
        return self.stages[-1].program()

    def stage(self, name: str) -> StageResult:
        """Return the result of a stage.

        Raises:
            TrainingError: There is none of this name.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise TrainingError(
            f"there is no stage {name!r}", who="result", hint=did_you_mean(name, names)
        )

    @classmethod
    def read(cls, folder: str | Path) -> RunResult:
        """Read the result of a run from its folder.

        Raises:
            ArtifactError: There is no finished run.
        """
        path = Path(folder) / _RESULT
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            places = [Path(folder) / place for place in found["folders"]]
            stages = tuple(stage for place in places if (stage := StageResult.read(place)))
            return cls(found["name"], Path(folder), stages, tuple(found.get("classes", ())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"there is no finished run: {error}",
                who="result",
                where=str(path),
                hint="run its session to the end",
            ) from error

    def save(self, machine: Mapping[str, Any]) -> None:
        """Write ``result.json``: all stages, and what they were run on."""
        write_json(
            self.folder / _RESULT,
            {
                "name": self.name,
                "folders": [
                    stage.folder.relative_to(self.folder).as_posix() for stage in self.stages
                ],
                "classes": list(self.classes),
                "stages": [stage.as_json() for stage in self.stages],
                "machine": dict(machine),
            },
        )
