"""One stage of a run, from its beginning or its last checkpoint to its result."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sparsefx.inputs.signature import LOSS
from sparsefx.program import Program
from sparsefx.recipe import Recipe, Stage, Training
from sparsefx.recipe.amounts import parse_pipeline, resolve
from sparsefx.train.checkpoints import CheckpointClock, Checkpoints
from sparsefx.train.data.batches import Encoded, Tell
from sparsefx.train.evaluation import TokenData, scored
from sparsefx.train.events import (
    CheckpointSaved,
    Computed,
    Evaluated,
    Event,
    MetricsFile,
    StageFinished,
    StageStarted,
)
from sparsefx.train.precheck import within
from sparsefx.train.randomness import seed_everything, stage_seed
from sparsefx.train.results import StageResult
from sparsefx.train.runfolder import RunFolder
from sparsefx.train.start import Programs
from sparsefx.train.step.processes import Processes
from sparsefx.train.stop import StopRequest, interrupted
from sparsefx.train.taught import takes_taught, with_teacher
from sparsefx.train.trainer import StageTrainer

__all__ = ["Run", "StageRun", "steps_of"]

_TAUGHT = "taught"


@dataclass(frozen=True)
class Run:
    """What the stages of a run share.

    Attributes:
        recipe: What is done.
        folder: Of the run.
        programs: What stages begin with, and their teachers.
        data: What is trained on and scored.
        processes: This one, and those that train with it.
        metrics: Of the folder.
        emit: Tells the listeners of an event.
        stop: Whether the run was asked to stop.
        checkpoint_seconds: Time between checkpoints, or 20 times what the last one took.
    """

    recipe: Recipe
    folder: RunFolder
    programs: Programs
    data: TokenData
    processes: Processes
    metrics: MetricsFile
    emit: Callable[[Event], None]
    stop: StopRequest
    checkpoint_seconds: float


def steps_of(stage: Stage, recipe: Recipe, data: TokenData) -> int | None:
    """Return the optimizer steps of a stage; None when it does not train."""
    training = stage.training
    if training is None:
        return None
    return training.steps_on(len(data.of(training)), recipe.data.batch_size)


class StageRun:
    """Runs one stage; nothing that it makes outlives it but what lies in its folder.

    Args:
        run: The run that it is a stage of.
        index: Its number in the recipe, from 0.
        finished: The results of all stages before it.
    """

    def __init__(self, run: Run, index: int, finished: Mapping[str, StageResult]) -> None:
        self._parent = run
        self._index = index
        self._finished = finished
        self._stage = run.recipe.stages[index]
        self._place = run.folder.stage(index)
        self._steps = steps_of(self._stage, run.recipe, run.data)
        self._seed = stage_seed(run.recipe.seed, self._stage.name)
        self._test = run.data.test

    def run(self) -> StageResult:
        """Run the passes, train, score and save.

        Raises:
            TrainingError: The loss is not finite, or another process ended or differs.
            TrainingInterruptedError: The run was asked to stop; what was done is saved.
        """
        stage, steps = self._stage, self._steps
        seconds = {"passes": 0.0, "training": 0.0, "evaluation": 0.0}
        seed_everything(self._seed)
        began = time.perf_counter()
        program = self._parent.programs.begin(self._index, self._finished, steps)
        seconds["passes"] = time.perf_counter() - began
        sparsity = None
        if stage.training is not None:
            self._parent.processes.announce(self._index)
            seconds["training"], sparsity = self._train(program, stage.training)
        else:
            self._parent.metrics.forget_after(tuple(self._finished), stage.name, 0)
        loss = None
        if self._by_loss and stage.evaluate and LOSS in program.signature.outputs:
            loss = self._evaluate(steps or 0, program)[0]
        began = time.perf_counter()
        after = parse_pipeline(stage.after, steps)
        teachers = self._parent.programs.teachers(stage, after, self._finished)
        with within(stage.name, "after"):
            program = after.run(program.to("cpu"), programs=teachers, in_place=True)
        seconds["passes"] += time.perf_counter() - began
        return self._finish(program, seconds, sparsity, loss)

    def follow(self) -> None:
        """Train with process 0, which does everything else."""
        program = self._parent.programs.begun(self._index, self._parent.processes.rank)
        assert self._stage.training is not None  # only such stages are announced
        self._train(program, self._stage.training)

    @property
    def _by_loss(self) -> bool:
        """Whether there is text alone, and a stage is scored by what it minimised.

        That is before ``after``, which takes the loss out of the graph.
        """
        return self._parent.data.task.metric == "loss"

    def _telling(self, what: Literal["score", "teacher"]) -> Tell:
        name, run = self._stage.name, self._parent

        def tell(done: int, total: int) -> None:
            run.emit(Computed(name, what, done, total))
            # A score is a matter of minutes, and steps lie behind it that are in no checkpoint yet.
            if what == "teacher" and run.stop.asked and run.processes.count == 1:
                raise interrupted("stopped while its teacher was asked", f"stage {name}")

        return tell

    # -- training --------------------------------------------------------------------------------

    def _train(self, program: Program, training: Training) -> tuple[float, float | None]:
        """Train ``program`` in place; return the seconds, and the share of zeros in its masks.

        Trainer and optimizer, twice the size of the model, end here: before ``after``.
        """
        run = self._parent
        program.to(run.processes.device)
        data = self._taught(program, training, run.data.of(training), "train")
        if self._by_loss and run.processes.leads:
            self._test = self._taught(program, training, run.data.test, "test")
        seed_everything(self._seed)
        assert self._steps is not None  # a stage that trains has some
        trainer = StageTrainer(
            self._stage.name,
            training,
            program,
            data,
            run.data.task.kind,
            run.processes,
            steps=self._steps,
            batch_size=run.recipe.data.batch_size,
            seed=self._seed,
        )
        checkpoints = Checkpoints(self._place / "checkpoints")
        saved = checkpoints.latest()
        if saved is not None:
            trainer.restore(saved)
        trainer.check_start()
        if run.processes.leads:
            run.metrics.forget_after(tuple(self._finished), trainer.name, trainer.done)
        run.emit(StageStarted(trainer.name, trainer.steps, trainer.done))
        self._loop(training, trainer, checkpoints)
        trainer.close()
        return trainer.seconds, trainer.sparsity

    def _taught(
        self, program: Program, training: Training, data: Encoded, split: Literal["train", "test"]
    ) -> Encoded:
        """Return ``data`` with the teacher's outputs, if the Program takes them."""
        name, run = self._stage.teacher, self._parent
        if name is None or not takes_taught(program):
            return data
        teacher = run.programs.of(name, self._finished).to(run.processes.device)
        place = self._place / _TAUGHT / f"{split}-{run.processes.rank}"
        size, bf16 = run.recipe.data.eval_batch_size, training.precision == "bf16"
        return with_teacher(
            program, teacher, data, size, place, bf16=bf16, tell=self._telling("teacher")
        )

    def _loop(self, training: Training, trainer: StageTrainer, checkpoints: Checkpoints) -> None:
        """Train to the last step; save in between, at the end, and when asked to stop."""
        run, clock = self._parent, CheckpointClock(self._parent.checkpoint_seconds)
        every = training.evaluate_every
        evaluate_every = resolve(every, trainer.steps) if every is not None else 0
        while trainer.done < trainer.steps:
            self._evaluate_between(trainer, evaluate_every)
            for event in trainer.advance():
                run.emit(event)
            (stop,) = run.processes.any([run.stop.asked])
            due = clock.due() or stop or trainer.done == trainer.steps
            if run.processes.leads and due:
                with clock.saving():
                    self._save(trainer, checkpoints)
            if stop:
                # Whoever started the processes may kill all of them when the first one ends.
                run.processes.wait()
                at = f"step {trainer.done} of {trainer.steps}"
                what = "training was interrupted; a checkpoint was saved"
                raise interrupted(what, f"stage {trainer.name}", at)

    def _evaluate_between(self, trainer: StageTrainer, every: int) -> None:
        """Evaluate before a step, and so not after the last one and not when asked to stop."""
        if self._parent.processes.leads and every and trainer.done and trainer.done % every == 0:
            self._evaluate(trainer.done, trainer.program)

    def _save(self, trainer: StageTrainer, checkpoints: Checkpoints) -> None:
        for event in trainer.known():
            self._parent.emit(event)
        self._parent.metrics.close()  # before the checkpoint: no line is missing that it is behind
        folder = checkpoints.save(trainer.checkpoint())
        self._parent.emit(CheckpointSaved(trainer.name, trainer.done, folder))

    # -- score and result ------------------------------------------------------------------------

    def _evaluate(
        self, step: int, program: Program
    ) -> tuple[Evaluated, NDArray[np.float32] | None]:
        began = time.perf_counter()
        size, tell = self._parent.recipe.data.eval_batch_size, self._telling("score")
        found, logits = scored(program, self._parent.data, self._test, size, tell)
        event = Evaluated(self._stage.name, step, found, time.perf_counter() - began)
        self._parent.emit(event)
        return event, logits

    def _finish(
        self,
        program: Program,
        seconds: dict[str, float],
        sparsity: float | None,
        event: Evaluated | None,
    ) -> StageResult:
        stage, place, steps = self._stage, self._place, self._steps or 0
        program.eval().save(place / "program")
        logits = labels = None
        if stage.evaluate and not self._by_loss:
            event, logits = self._evaluate(steps, program.to(self._parent.processes.device))
            labels = self._parent.data.test_labels
        found = None if event is None else event.score
        seconds["evaluation"] = 0.0 if event is None else event.seconds
        seconds = {key: round(value, 3) for key, value in seconds.items()}
        properties = tuple(sorted(str(each) for each in program.properties))
        result = StageResult(stage.name, place, steps, found, seconds, sparsity, properties)
        self._parent.metrics.close()
        result.save(logits, labels)
        for leftover in ("start", "checkpoints", _TAUGHT):
            shutil.rmtree(place / leftover, ignore_errors=True)
        self._parent.emit(StageFinished(result))
        return result
