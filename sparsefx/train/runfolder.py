"""The folder of a run: what was asked for, what is finished, and that one process works on it."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers

import sparsefx
from sparsefx.errors import ArtifactError, TrainingError
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.storage.files import write_json, write_text
from sparsefx.storage.places import is_program
from sparsefx.train.data.examples import Examples
from sparsefx.train.differences import differences, leaves
from sparsefx.train.evaluation import SessionData
from sparsefx.train.results import ASKED_TEACHER, CAPTURED, StageResult
from sparsefx.train.vocabulary import check_kept_tokenizer

__all__ = ["RunFolder", "check_new_run"]

FORMAT = 1
_RUN = "run.json"
_WRITTEN = ("recipe.yaml", CAPTURED, "tokenizer", "metrics.jsonl", "stages", "result.json")

logger = logging.getLogger(__name__)


def check_new_run(folder: Path, more: Collection[str] = ()) -> None:
    """Refuse a folder that is not that of a run and holds what a run would replace.

    Args:
        folder: That a run shall begin in, or go on.
        more: Names of what is written there besides, when the run is finished.

    Raises:
        TrainingError: It holds a model, or files under the names of a run.
        ArtifactError: It holds stages and nothing that says of which recipe and data.
    """
    # In this order: another process that begins writes run.json first.
    there = [name for name in (*_WRITTEN, *more) if (folder / name).exists()]
    if (folder / _RUN).exists():
        return
    if is_program(folder) or (folder / "config.json").exists():
        raise TrainingError(
            "the folder holds a model, and a run has a folder of its own",
            who="session",
            where=str(folder),
            hint="choose another",
        )
    if any((folder / "stages").glob("*/*")):
        raise ArtifactError(
            "it is missing, and it says of which recipe and data the stages here are",
            who="resume",
            where=str(folder / _RUN),
            hint="choose another folder, or remove this one to begin anew",
        )
    if there:
        raise TrainingError(
            f"the folder is not that of a run, and a run would replace {', '.join(there)} in it",
            who="session",
            where=str(folder),
            hint=f"choose another folder, such as {folder / 'run'}",
        )


class RunFolder:
    """Opens the folder of a run, new or to go on; a context manager that holds its lock.

    Args:
        path: The folder.
        recipe: Has to be the one that the run began with, but for stages that have not begun.
        data: Has to be what the run began with, and its tokenizer too.

    Raises:
        TrainingError: It is the folder of another run, or another process works on it.
        ArtifactError: The file that says of which recipe and data it is cannot be read.
    """

    def __init__(self, path: Path, recipe: Recipe, data: SessionData) -> None:
        self.path = path
        self._recipe = recipe
        self._data = data
        self._lock: TextIO | None = None

    def __enter__(self) -> RunFolder:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise TrainingError(
                "another process works on this run",
                who="session",
                where=str(self.path),
                hint="wait for it, or choose another folder",
            ) from error
        try:
            self._open()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        if self._lock is not None:
            self._lock.close()

    @property
    def machine(self) -> dict[str, Any]:
        """What the run is computed on and with."""
        return {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "sparsefx": sparsefx.__version__,
        }

    def digests(self) -> dict[str, str]:
        """Return what all processes have to be asked for alike: texts by their paths."""
        training = {s.name: s.training for s in self._recipe.stages if s.training is not None}
        parts = {name: each.accumulate for name, each in training.items()}
        return dict(leaves({**self._wanted(), "accumulate": parts}, ""))

    def _wanted(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "recipe": self._recipe.settings(),
            "data": _data_hashes(self._data),
        }

    def _open(self) -> None:
        wanted = self._wanted()
        path = self.path / _RUN
        if not path.exists():
            self._write(wanted)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            count = self._begun(found)
        except (ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"it does not say of which recipe the run is: {type(error).__name__} {error}",
                who="resume",
                where=str(path),
                hint="choose another folder, or remove this one to begin anew",
            ) from error
        begun = _differences(_upto(found, count), _upto(wanted, count))
        if begun:
            raise TrainingError(
                "this folder holds a run that was started otherwise:\n  " + "\n  ".join(begun[:10]),
                who="resume",
                where=str(self.path),
                hint="go on with the same recipe and data, or choose another folder; only stages "
                "that have not begun may change",
            )
        if (tokenizer := self.path / "tokenizer").exists():
            check_kept_tokenizer(tokenizer, self._data.tokenizer)
        if later := _differences(found, wanted):
            listed = "\n  ".join(later[:10])
            logger.warning("stages that have not begun were changed:\n  %s", listed)
            self._write(wanted)
        elif not (self.path / "recipe.yaml").exists():  # it was killed in between
            self._write(wanted)

    def _write(self, wanted: Mapping[str, Any]) -> None:
        write_json(self.path / _RUN, {**wanted, "machine": self.machine})
        write_text(self.path / "recipe.yaml", self._recipe.to_yaml())

    def _begun(self, found: Mapping[str, Any]) -> int:
        """Return how many stages have left more than the digests of their teacher."""
        names = [stage["name"] for stage in found["recipe"]["stages"]]
        places = [self.path / "stages" / f"{n}-{name}" for n, name in enumerate(names, start=1)]
        left = ({each.name for each in place.glob("*")} - {ASKED_TEACHER} for place in places)
        return sum(map(bool, left))

    # -- model and stages ------------------------------------------------------------------------

    @property
    def has_model(self) -> bool:
        """Whether the model that the run starts from is saved."""
        return is_program(self.path / CAPTURED)

    def save_model(self, program: Program) -> None:
        """Save the model that the run starts from."""
        program.save(self.path / CAPTURED)

    def save_tokenizer(self) -> None:
        """Save the tokenizer, unless it is there; whole, as what is there is never mended."""
        place, work = self.path / "tokenizer", self.path / ".tokenizer"
        if place.exists():
            return
        shutil.rmtree(work, ignore_errors=True)
        self._data.tokenizer.save_pretrained(work)
        os.replace(work, place)

    def load_model(self) -> Program:
        """Load the model that the run starts from."""
        return Program.load(self.path / CAPTURED)

    def stage(self, index: int) -> Path:
        """Return the folder of a stage."""
        place = self.path / "stages" / f"{index + 1}-{self._recipe.stages[index].name}"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def finished(self) -> dict[str, StageResult]:
        """Return the results of the stages that are finished, in order."""
        found: dict[str, StageResult] = {}
        for index, stage in enumerate(self._recipe.stages):
            result = StageResult.read(self.stage(index))
            if result is None:
                break
            found[stage.name] = result
        return found


def _upto(settings: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Return the settings of a run with its first ``count`` stages alone."""
    recipe = settings["recipe"]
    return {**settings, "recipe": {**recipe, "stages": recipe["stages"][:count]}}


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    keys = ("format", "recipe", "data")
    return [line for key in keys for line in differences(found.get(key), wanted.get(key), key)]


def _data_hashes(data: SessionData) -> dict[str, Any]:
    task = data.task
    named: dict[str, Examples | None] = {
        "train": task.split("train"),
        "test": task.split("test"),
        "unlabelled": data.unlabelled,
    }
    hashes = {name: each.digest() if each is not None else None for name, each in named.items()}
    return {"kind": task.kind, "metric": task.metric, "classes": list(task.classes), **hashes}
