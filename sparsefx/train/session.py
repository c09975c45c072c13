"""Session: a recipe, a model and data become a final Program, through all stages.

Everything lies in one folder, from which a session that was interrupted, or killed, goes on::

    runs/NAME/
      run.json             the recipe's settings, hashes of the data, machine and versions
      recipe.yaml          the recipe
      captured/            the Program that the run started from: no stage has changed it
      tokenizer/           the tokenizer, so that ``sparsefx evaluate`` needs nothing else
      metrics.jsonl        a line for each step and evaluation (events.MetricsFile)
      stages/1-dense/      one folder for each stage, numbered
        program/           the Program that the stage ended with
        outputs.safetensors  logits and labels of the test split
        result.json        score with interval, steps, times, sparsity; written last
        teacher.json       hashes of the tensors of a teacher from another folder
        start/             while it runs: the Program that training began with
        checkpoints/       while it runs: the last two checkpoints
        taught/            while it runs: hidden states of a cached teacher
      result.json          all stages and the machine; written last

``RunResult.read(folder)`` reads it back. No file holds code, none is a pickle.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path

from torch import nn

from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.recipe.passes import names_teacher_inputs
from sparsefx.train.evaluation import SessionData, TokenData
from sparsefx.train.events import Event, Listener, MetricsFile, RunFinished, RunStarted
from sparsefx.train.precheck import (
    StageChecks,
    check_arguments,
    check_batches,
    check_folders,
    check_parts,
)
from sparsefx.train.randomness import left_as_it_is
from sparsefx.train.results import RunResult
from sparsefx.train.runfolder import RunFolder
from sparsefx.train.stage import Run, StageRun, steps_of
from sparsefx.train.start import Programs, begin_folder, open_folder, starting_model
from sparsefx.train.step.processes import Processes
from sparsefx.train.stop import StopRequest, interrupted

__all__ = ["Session"]

_FINISHED = "the run was interrupted; this stage is finished and saved"


class Session:
    """Runs a recipe; run again on the same folder, it goes on where it stopped.

    Started in several processes (``torchrun``, ``accelerate launch``) it trains in all of them, on
    a share of every batch each; the rest, writing and telling the listeners too, is done by process
    0. The folder has to be on storage that all of them see.

    Args:
        recipe: What to do.
        model: What to start from. It is saved in the folder; a session that goes on uses that.
        data: Task, tokenizer and, for distillation, unlabelled texts.
        folder: Where everything is kept.
        listeners: Called with every event, in order; what they draw at random changes no run.
        device: ``cpu`` to stay on the CPU; by default what accelerate finds.
        checkpoint_seconds: Time between checkpoints, or 20 times what the last one took, if that is
            more; 0 for one after each step.
        patience_seconds: How long a process waits for the others: more than process 0 takes to
            capture the model, run the passes of a stage, evaluate or save, for which the others
            wait.

    Raises:
        TrainingError: An argument is something else than its name says.

    Example::

        session = Session(Recipe.load("fine-tune"), model, SessionData(task, tokenizer), "runs/one")
        result = session.run()
        print(result.stage("dense").score)
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module | Program,
        data: SessionData,
        folder: str | Path,
        *,
        listeners: Collection[Listener] = (),
        device: str | None = None,
        checkpoint_seconds: float = 60.0,
        patience_seconds: float = 1800.0,
    ) -> None:
        check_arguments(recipe=recipe, model=model, data=data, listeners=listeners)
        self.recipe = recipe
        self.folder = Path(folder)
        self._model = model
        self._source = data
        self._data = TokenData(data, recipe.data.max_length)
        self._metrics = MetricsFile(self.folder / "metrics.jsonl")
        self._listeners: tuple[Listener, ...] = (self._metrics, *listeners)
        self._device = device
        self._checkpoint_seconds = checkpoint_seconds
        self._patience_seconds = patience_seconds

    def run(self) -> RunResult:
        """Run all stages that are not finished yet.

        Returns:
            The results of all stages, with the final Program.

        Raises:
            RecipeError: The recipe is wrong; found before anything runs.
            TrainingError: The folder holds another run, the loss is not finite, or another process
                ended or differs.
            TrainingInterruptedError: SIGINT or SIGTERM came; what was done is saved.
        """
        given = self._model.properties if isinstance(self._model, Program) else ()
        self.recipe.check(given, who=self.recipe.name)
        check_folders(self.recipe)
        self._processes = Processes(self._device, self._patience_seconds)
        check_parts(self.recipe, self._processes.count)
        self._check_same()
        if not self._processes.leads:
            return self._follow()
        with ExitStack() as opened:
            run = self._begin(opened)
            finished = run.folder.finished()
            names = tuple(stage.name for stage in self.recipe.stages)
            self._emit(RunStarted(self.recipe.name, self.folder, names, tuple(finished)))
            for index in range(len(finished), len(names)):
                finished[names[index]] = StageRun(run, index, finished).run()
                if run.stop.asked and self._processes.count == 1:  # others wait for a next stage
                    raise interrupted(_FINISHED, f"stage {names[index]}")
            stages, classes = tuple(finished.values()), self._source.task.classes
            result = RunResult(self.recipe.name, self.folder, stages, classes)
            result.save({**run.folder.machine, "processes": self._processes.count})
            self._processes.announce(None)
            self._emit(RunFinished(result))
        if run.stop.asked:
            raise interrupted(_FINISHED, f"stage {names[-1]}")
        return result

    def _begin(self, opened: ExitStack) -> Run:
        """Check the run, open its folder and save there what it starts from.

        The stages load that, so that the model as it was captured is not held beside them.
        """
        model = starting_model(self._model, self.folder, self._data)
        self._check(model)
        folder = opened.enter_context(RunFolder(self.folder, self.recipe, self._source))
        stop = opened.enter_context(StopRequest())
        if not folder.has_model:
            folder.save_model(model)
        folder.save_tokenizer()
        return self._run_in(folder, stop)

    def _run_in(self, folder: RunFolder, stop: StopRequest) -> Run:
        return Run(
            recipe=self.recipe,
            folder=folder,
            programs=Programs(self.recipe, folder, self._inputs),
            data=self._data,
            processes=self._processes,
            metrics=self._metrics,
            emit=self._emit,
            stop=stop,
            checkpoint_seconds=self._checkpoint_seconds,
        )

    def _follow(self) -> RunResult:
        """Train with process 0, which does everything else."""
        self._listeners = ()
        with StopRequest() as stop:
            run = self._run_in(RunFolder(self.folder, self.recipe, self._source), stop)
            while (index := self._processes.announced()) is not None:
                StageRun(run, index, run.folder.finished()).follow()
        return RunResult.read(self.folder)

    def _check_same(self) -> None:
        """Refuse processes that were asked for another run: all train by their own copy of it."""
        if self._processes.count > 1:
            asked = RunFolder(self.folder, self.recipe, self._source).digests()
            hint = "give all of them the same recipe and data"
            self._processes.check_same(asked, who="session", where="start", hint=hint)

    def _check(self, model: Program) -> None:
        """Refuse what would stop one of the stages, before the first one trains."""
        begin = partial(begin_folder, model=model)
        task, tokenizer = self._source.task, self._source.tokenizer
        check_batches(self.recipe, model, self._data, self._processes.count)
        checks = StageChecks(self.recipe, model, self._steps, self._open, begin, task, tokenizer)
        checks.check()

    def _open(self, folder: str) -> Program:
        return open_folder(folder, self._inputs)

    @cached_property
    def _steps(self) -> dict[str, int | None]:
        """Optimizer steps of each stage; None for one that does not train."""
        return {each.name: steps_of(each, self.recipe, self._data) for each in self.recipe.stages}

    @cached_property
    def _inputs(self) -> Collection[str] | None:
        """What the data give a teacher; None for all it takes, where the recipe names inputs."""
        stages, steps = self.recipe.stages, self._steps
        named = any(names_teacher_inputs(each.pipeline, steps[each.name]) for each in stages)
        return None if named else frozenset(self._data.example())

    def _emit(self, event: Event) -> None:
        with left_as_it_is(self._processes.device):
            for listener in self._listeners:
                listener(event)
