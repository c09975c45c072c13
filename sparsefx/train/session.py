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

import shutil
import time
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from sparsefx.inputs.signature import LOSS
from sparsefx.program import Program
from sparsefx.recipe import Recipe, Stage, Training
from sparsefx.recipe.amounts import parse_pipeline, resolve
from sparsefx.recipe.passes import names_teacher_inputs
from sparsefx.train.checkpoints import Checkpoints
from sparsefx.train.data.batches import Encoded, Tell
from sparsefx.train.evaluation import SessionData, TokenData, scored
from sparsefx.train.events import (
    CheckpointSaved,
    Computed,
    Evaluated,
    Event,
    Listener,
    MetricsFile,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
)
from sparsefx.train.precheck import (
    StageChecks,
    check_arguments,
    check_batches,
    check_folders,
    check_parts,
    within,
)
from sparsefx.train.randomness import left_as_it_is, seed_everything, stage_seed
from sparsefx.train.results import RunResult, StageResult
from sparsefx.train.runfolder import RunFolder
from sparsefx.train.start import Programs, begin_folder, open_folder, starting_model
from sparsefx.train.step.processes import Processes
from sparsefx.train.stop import StopRequest, interrupted
from sparsefx.train.taught import takes_taught, with_teacher
from sparsefx.train.trainer import StageTrainer

__all__ = ["Session"]

_TAUGHT = "taught"
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
        checkpoint_seconds: Time between checkpoints.
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
        model = starting_model(self._model, self.folder, self._data)
        self._check(model)
        with RunFolder(self.folder, self.recipe, self._source) as folder, StopRequest() as stop:
            self._folder, self._stop = folder, stop
            self._programs = Programs(self.recipe, folder, self._inputs)
            finished = folder.finished()
            names = tuple(stage.name for stage in self.recipe.stages)
            self._emit(RunStarted(self.recipe.name, self.folder, names, tuple(finished)))
            if not folder.has_model:
                folder.save_model(model)
            folder.save_tokenizer()
            for index in range(len(finished), len(names)):
                finished[names[index]] = self._run_stage(index, finished)
                if stop.asked and self._processes.count == 1:  # others wait for a next stage
                    raise interrupted(_FINISHED, f"stage {names[index]}")
            stages, classes = tuple(finished.values()), self._source.task.classes
            result = RunResult(self.recipe.name, self.folder, stages, classes)
            result.save({**folder.machine, "processes": self._processes.count})
            self._processes.announce(None)
            self._emit(RunFinished(result))
        if stop.asked:
            raise interrupted(_FINISHED, f"stage {names[-1]}")
        return result

    def _follow(self) -> RunResult:
        """Train with process 0, which does everything else."""
        self._listeners = ()
        self._folder = RunFolder(self.folder, self.recipe, self._source)
        self._programs = Programs(self.recipe, self._folder, self._inputs)
        with StopRequest() as self._stop:
            while (index := self._processes.announced()) is not None:
                stage, finished = self.recipe.stages[index], self._folder.finished()
                program = self._programs.begun(index, self._processes.rank)
                steps = self._steps_of(stage)
                assert stage.training is not None  # only such stages are announced
                assert steps is not None
                self._train(stage, stage.training, program, steps, finished)
        return RunResult.read(self.folder)

    def _check_same(self) -> None:
        """Refuse processes that were asked for another run: all train by their own copy of it."""
        if self._processes.count > 1:
            asked = RunFolder(self.folder, self.recipe, self._source).digests()
            hint = "give all of them the same recipe and data"
            self._processes.check_same(asked, who="session", where="start", hint=hint)

    def _check(self, model: Program) -> None:
        """Refuse what would stop one of the stages, before the first one trains."""
        steps = {stage.name: self._steps_of(stage) for stage in self.recipe.stages}
        begin = partial(begin_folder, model=model)
        task, tokenizer = self._source.task, self._source.tokenizer
        check_batches(self.recipe, model, self._data, self._processes.count)
        StageChecks(self.recipe, model, steps, self._open, begin, task, tokenizer).check()

    def _open(self, folder: str) -> Program:
        return open_folder(folder, self._inputs)

    @cached_property
    def _inputs(self) -> Collection[str] | None:
        """What the data give a teacher; None for all it takes, where the recipe names inputs."""
        stages = self.recipe.stages
        named = any(names_teacher_inputs(each.pipeline, self._steps_of(each)) for each in stages)
        return None if named else frozenset(self._data.example())

    @property
    def _by_loss(self) -> bool:
        """Whether there is text alone, and a stage is scored by what it minimised.

        That is before ``after``, which takes the loss out of the graph.
        """
        return self._source.task.metric == "loss"

    def _telling(self, stage: str, what: Literal["score", "teacher"]) -> Tell:
        def tell(done: int, total: int) -> None:
            self._emit(Computed(stage, what, done, total))
            # A score is a matter of minutes, and steps lie behind it that are in no checkpoint yet.
            if what == "teacher" and self._stop.asked and self._processes.count == 1:
                raise interrupted("stopped while its teacher was asked", f"stage {stage}")

        return tell

    def _emit(self, event: Event) -> None:
        with left_as_it_is(self._processes.device):
            for listener in self._listeners:
                listener(event)

    # -- a stage ---------------------------------------------------------------------------------

    def _run_stage(self, index: int, finished: Mapping[str, StageResult]) -> StageResult:
        stage = self.recipe.stages[index]
        place = self._folder.stage(index)
        seconds = {"passes": 0.0, "training": 0.0, "evaluation": 0.0}
        seed_everything(stage_seed(self.recipe.seed, stage.name))
        self._test = self._data.test
        steps = self._steps_of(stage)
        began = time.perf_counter()
        program = self._programs.begin(index, finished, steps)
        seconds["passes"] = time.perf_counter() - began
        sparsity = None
        if stage.training is not None and steps is not None:
            self._processes.announce(index)
            trainer = self._train(stage, stage.training, program, steps, finished)
            seconds["training"], sparsity = trainer.seconds, trainer.sparsity
        else:
            self._metrics.forget_after(tuple(finished), stage.name, 0)
        loss = None
        if self._by_loss and stage.evaluate and LOSS in program.signature.outputs:
            loss = self._evaluate(stage.name, steps or 0, program)[0]
        began = time.perf_counter()
        after = parse_pipeline(stage.after, steps)
        teachers = self._programs.teachers(stage, after, finished)
        with within(stage.name, "after"):
            program = after.run(program.to("cpu"), programs=teachers, in_place=True)
        seconds["passes"] += time.perf_counter() - began
        return self._finish(stage, place, program, steps or 0, seconds, sparsity, loss)

    def _steps_of(self, stage: Stage) -> int | None:
        """Return the optimizer steps of a stage; None when it does not train."""
        training = stage.training
        if training is None:
            return None
        examples = len(self._data.of(training))
        return training.steps_on(examples, self.recipe.data.batch_size)

    def _train(
        self,
        stage: Stage,
        training: Training,
        program: Program,
        steps: int,
        finished: Mapping[str, StageResult],
    ) -> StageTrainer:
        program.to(self._processes.device)
        data = self._taught(stage, training, program, finished, self._data.of(training))
        if self._by_loss and self._processes.leads:
            self._test = self._taught(stage, training, program, finished, self._data.test)
        seed = stage_seed(self.recipe.seed, stage.name)
        seed_everything(seed)
        trainer = StageTrainer(
            stage.name,
            training,
            program,
            data,
            self._source.task.kind,
            self._processes,
            steps=steps,
            batch_size=self.recipe.data.batch_size,
            seed=seed,
        )
        checkpoints = Checkpoints(self._folder.stage(len(finished)) / "checkpoints")
        saved = checkpoints.latest()
        if saved is not None:
            trainer.restore(saved)
        trainer.check_start()
        if self._processes.leads:
            self._metrics.forget_after(tuple(finished), stage.name, trainer.done)
        self._emit(StageStarted(stage.name, trainer.steps, trainer.done))
        self._loop(training, trainer, checkpoints)
        trainer.close()
        return trainer

    def _taught(
        self,
        stage: Stage,
        training: Training,
        program: Program,
        finished: Mapping[str, StageResult],
        data: Encoded,
    ) -> Encoded:
        """Return ``data`` with the teacher's outputs, if the Program takes them."""
        if stage.teacher is None or not takes_taught(program):
            return data
        teacher = self._programs.of(stage.teacher, finished).to(self._processes.device)
        split = "test" if data is self._data.test else "train"
        place = self._folder.stage(len(finished)) / _TAUGHT / f"{split}-{self._processes.rank}"
        size, bf16 = self.recipe.data.eval_batch_size, training.precision == "bf16"
        tell = self._telling(stage.name, "teacher")
        return with_teacher(program, teacher, data, size, place, bf16=bf16, tell=tell)

    def _loop(self, training: Training, trainer: StageTrainer, checkpoints: Checkpoints) -> None:
        """Train to the last step; save in between, at the end, and when asked to stop."""
        saved = time.perf_counter()
        every = training.evaluate_every
        evaluate_every = resolve(every, trainer.steps) if every is not None else 0
        while trainer.done < trainer.steps:
            self._evaluate_between(trainer, evaluate_every)
            for event in trainer.advance():
                self._emit(event)
            (stop,) = self._processes.any([self._stop.asked])
            due = time.perf_counter() - saved >= self._checkpoint_seconds
            if self._processes.leads and (due or stop or trainer.done == trainer.steps):
                self._save(trainer, checkpoints)
                saved = time.perf_counter()
            if stop:
                # Whoever started the processes may kill all of them when the first one ends.
                self._processes.wait()
                at = f"step {trainer.done} of {trainer.steps}"
                what = "training was interrupted; a checkpoint was saved"
                raise interrupted(what, f"stage {trainer.name}", at)

    def _evaluate_between(self, trainer: StageTrainer, every: int) -> None:
        """Evaluate before a step, and so not after the last one and not when asked to stop."""
        if self._processes.leads and every and trainer.done and trainer.done % every == 0:
            self._evaluate(trainer.name, trainer.done, trainer.program)

    def _save(self, trainer: StageTrainer, checkpoints: Checkpoints) -> None:
        for event in trainer.known():
            self._emit(event)
        self._metrics.close()  # before the checkpoint: no line is missing that it is behind
        folder = checkpoints.save(trainer.checkpoint())
        self._emit(CheckpointSaved(trainer.name, trainer.done, folder))

    def _evaluate(
        self, stage: str, step: int, program: Program
    ) -> tuple[Evaluated, NDArray[np.float32] | None]:
        began = time.perf_counter()
        size, tell = self.recipe.data.eval_batch_size, self._telling(stage, "score")
        found, logits = scored(program, self._data, self._test, size, tell)
        event = Evaluated(stage, step, found, time.perf_counter() - began)
        self._emit(event)
        return event, logits

    def _finish(
        self,
        stage: Stage,
        place: Path,
        program: Program,
        steps: int,
        seconds: dict[str, float],
        sparsity: float | None,
        event: Evaluated | None,
    ) -> StageResult:
        program.eval().save(place / "program")
        logits = labels = None
        if stage.evaluate and not self._by_loss:
            event, logits = self._evaluate(stage.name, steps, program.to(self._processes.device))
            labels = self._data.test_labels
        found = None if event is None else event.score
        seconds["evaluation"] = 0.0 if event is None else event.seconds
        seconds = {key: round(value, 3) for key, value in seconds.items()}
        properties = tuple(sorted(str(each) for each in program.properties))
        result = StageResult(stage.name, place, steps, found, seconds, sparsity, properties)
        self._metrics.close()
        result.save(logits, labels)
        for leftover in ("start", "checkpoints", _TAUGHT):
            shutil.rmtree(place / leftover, ignore_errors=True)
        self._emit(StageFinished(result))
        return result
