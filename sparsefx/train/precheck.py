"""What is wrong with a run, found before its first step and not after hours of training."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sparsefx.errors import PassError, RecipeError, SparsefxError, TrainingError, did_you_mean
from sparsefx.hooks import calling, contract_of
from sparsefx.inputs.signature import LOSS
from sparsefx.passbase import Pass
from sparsefx.program import Program
from sparsefx.properties import Property
from sparsefx.recipe import MODEL, Recipe, Stage, Training
from sparsefx.recipe.amounts import parse_pipeline, resolve
from sparsefx.recipe.passes import TEACHER, asks_teacher
from sparsefx.train import schedules
from sparsefx.train.data.tasks import Task
from sparsefx.train.evaluation import SessionData, TokenData, head_outputs
from sparsefx.train.sizes import batch_sizes, check_sizes, scored_sizes
from sparsefx.train.step.parts import part_sizes
from sparsefx.train.vocabulary import check_hidden_tokens, check_same_tokens, warn_of_segments

__all__ = [
    "StageChecks",
    "check_arguments",
    "check_batches",
    "check_folders",
    "check_parts",
    "within",
]

logger = logging.getLogger(__name__)

_ARGUMENTS: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "recipe": (Recipe, "Recipe.load(file or name), or Recipe.parse(text)"),
    "model": (
        (nn.Module, Program),
        "a PyTorch model, huggingface.load_pretrained(name or folder), or Program.load(folder)",
    ),
    "data": (SessionData, "SessionData(task, tokenizer)"),
    "listeners": (Collection, "a list of functions that take an event"),
}
"""What a session is given -> its type, and how one gets it."""


@contextmanager
def within(stage: str, key: str) -> Iterator[None]:
    """Put the place in the recipe in front of what a pass says."""
    try:
        yield
    except SparsefxError as error:
        error.who = f"stage {stage}, {key}" + (f": {error.who}" if error.who else "")
        raise


def check_arguments(**given: object) -> None:
    """Refuse arguments of a session that are not what they are called, such as a path of a model.

    Raises:
        TrainingError: Says what to give.
    """
    for name, value in given.items():
        kind, wanted = _ARGUMENTS[name]
        fits = isinstance(value, kind)
        if name == "listeners" and isinstance(value, Collection):
            fits = all(map(callable, value))
        if not fits:
            told = f"{name} is {value!r:.80}"
            raise TrainingError(told, who="session", where=name, hint=f"give {wanted}")


def check_folders(recipe: Recipe) -> None:
    """Refuse a stage whose start or teacher is a folder that does not exist.

    Raises:
        RecipeError: With ``where`` set to the path of the key.
    """
    names = {MODEL, *(stage.name for stage in recipe.stages)}
    for index, stage in enumerate(recipe.stages):
        for key, name in (("start", recipe.start_of(index)), ("teacher", stage.teacher)):
            if name in names or name is None or Path(name).expanduser().is_dir():
                continue
            raise RecipeError(
                f"there is no folder {name!r}",
                who=recipe.name,
                where=f"stages[{index}].{key}",
                hint="name a saved Program, or a Hugging Face folder",
            )


def check_parts(recipe: Recipe, processes: int) -> None:
    """Refuse batches of fewer examples than the parts in which they are computed.

    Raises:
        RecipeError: With ``where`` set to the path of the key.
    """
    for index, stage in enumerate(recipe.stages):
        if stage.training is None:
            continue
        size = stage.training.batch_size or recipe.data.batch_size
        parts = processes * stage.training.accumulate
        if parts > size:
            raise RecipeError(
                f"a batch of {size} cannot be computed in {parts} parts: {processes} processes, "
                f"each in {stage.training.accumulate}",
                who=recipe.name,
                where=f"stages[{index}].training",
                hint="batch_size is that of all processes together; give a larger one",
            )


def check_batches(recipe: Recipe, model: Program, data: TokenData, processes: int) -> None:
    """Refuse batches of sizes that the model of a run does not take, in its stages or its scores.

    Raises:
        TrainingError: Names the stage, the size, and what the model takes.
    """
    for stage in recipe.stages:
        if (training := stage.training) is None:
            continue
        texts = data.of(training)
        sizes = batch_sizes(len(texts), training.batch_size or recipe.data.batch_size)
        parts = part_sizes(sizes, processes * training.accumulate)
        check_sizes(model, texts, parts, where=f"stage {stage.name}")
    scored = scored_sizes(model, len(data.test), recipe.data.eval_batch_size)
    check_sizes(model, data.test, scored, where="test")


@dataclass
class StageChecks:
    """Checks every stage: passes and amounts, labels, teacher, schedule, what it freezes.

    Attributes:
        recipe: Checked by itself already.
        model: What the run starts from. Its structure is that of all stages, until a pass changes
            what the Program takes and returns: from there on heads, teachers and names are found
            wrong when a stage begins.
        steps: Optimizer steps of each stage; None for one that does not train.
        load: Returns the Program in a teacher's folder.
        begin: Returns the Program that a stage begins with, from its folder.
        task: What the run is scored on.
        tokenizer: Of the run.
    """

    recipe: Recipe
    model: Program
    steps: Mapping[str, int | None]
    load: Callable[[str], Program]
    begin: Callable[[str], Program]
    task: Task
    tokenizer: Any

    def __post_init__(self) -> None:
        # What a stage leaves to the next ones.
        self._known: dict[str, Program | None] = {MODEL: self.model}
        self._may_have_loss = LOSS in self.model.signature.outputs
        self._weights_as_given = True
        self._may_move_masks = schedules.pruning_window(self.model) is not None
        self._heads: set[int] = set()

    def check(self) -> None:
        """Check all stages in their order.

        Raises:
            SparsefxError: What is wrong, with its place in the recipe.
        """
        self.recipe.check(self.model.properties, who=self.recipe.name, steps=self.steps)
        for index in range(len(self.recipe.stages)):
            self._check_stage(index)
        if self.task.kind == "classification":
            for outputs in sorted(self._heads):
                _warn_of_outputs(outputs, self.task)

    def _check_stage(self, index: int) -> None:
        stage = self.recipe.stages[index]
        steps = self.steps[stage.name]
        passes = parse_pipeline(stage.pipeline, steps).passes
        after = parse_pipeline(stage.after, steps).passes
        student, teacher = self._student(index), self._teacher(stage, passes)
        active = () if student is None else student.active
        self._may_move_masks |= schedules.window_of((*passes, *active)) is not None
        left = sum(self.steps[later.name] or 0 for later in self.recipe.stages[index:])
        with within(stage.name, "pipeline"):
            check_hidden_tokens(passes, self.tokenizer)
            self._check_pipeline(passes, student, teacher, left)
        if any(map(_masks_or_reshapes, after)):
            self._weights_as_given = False
        if _signature_differs_after((*passes, *after)):
            student = None
        self._known[stage.name] = student
        if student is not None and self.task.kind != "text":
            self._check_head(student)
        if any(item.changes_signature for item in passes):
            self._may_have_loss = True
        if stage.training is not None:
            with within(stage.name, "training"):
                self._check_training(stage.training, passes, student, steps or 0)
        if any(item.changes_signature for item in after):
            self._may_have_loss = False

    def _student(self, index: int) -> Program | None:
        start = self.recipe.start_of(index)
        if start in self._known:
            return self._known[start]
        self._weights_as_given = False
        with within(self.recipe.stages[index].name, "start"):
            check_same_tokens(start, self.tokenizer)
            return self.begin(start)

    def _teacher(self, stage: Stage, passes: tuple[Pass, ...]) -> Program | None:
        name = stage.teacher or ""
        if name and name not in self._known and asks_teacher(passes):
            with within(stage.name, "teacher"):
                check_same_tokens(name, self.tokenizer)
                self._known[name] = teacher = self.load(name)
                warn_of_segments(name, teacher)
        return self._known.get(name)

    def _check_head(self, student: Program) -> None:
        self.task.check_order(student.config, "the model's head")
        per_word = self.task.kind == "token-classification"
        outputs = head_outputs(student, per_word=per_word)
        if outputs is not None:
            self.task.check_head(outputs)
            self._heads.add(outputs)

    def _check_pipeline(
        self,
        passes: tuple[Pass, ...],
        student: Program | None,
        teacher: Program | None,
        left: int,
    ) -> None:
        if self.task.kind != "text":
            _check_head_stays(passes)
        _check_passes(passes, student, teacher)
        for index, item in enumerate(passes):
            with calling(item, "last_step", f"pass {index}"):
                _check_last_step(item, left)
            if self._weights_as_given:
                with calling(item, "check_weights", f"pass {index}"):
                    item.check_weights(self.model)
            self._weights_as_given = self._weights_as_given and not _masks_or_reshapes(item)

    def _check_training(
        self, training: Training, passes: tuple[Pass, ...], student: Program | None, steps: int
    ) -> None:
        self._check_schedule(training, passes, steps)
        if student is not None:
            _check_frozen(training, student)
        if not self._may_have_loss:
            _check_loss(training, self.task)
        _check_labels(training, passes, self.task)

    def _check_schedule(self, training: Training, passes: tuple[Pass, ...], steps: int) -> None:
        warmup = resolve(training.schedule.warmup, steps)
        if warmup > steps:
            raise RecipeError(
                f"{warmup} steps of warm-up are more than the {steps} of the stage",
                hint="write a share, e.g. warmup: 10%",
            )
        window = schedules.window_of(passes)
        # A pass of an earlier stage may still move masks; where is known when the stage begins.
        if training.schedule.kind == "rewind" and (window is not None or not self._may_move_masks):
            schedules.build(training.schedule, steps, window)


def _check_passes(
    passes: tuple[Pass, ...], student: Program | None, teacher: Program | None
) -> None:
    """Let the passes look at the Programs, as far as these are known to look like that."""
    for index, item in enumerate(passes):
        if student is None or any(map(_changes_signature_for_good, passes[:index])):
            return
        if teacher is None and asks_teacher((item,)):
            continue
        with calling(item, "check_programs", f"pass {index}"):
            item.check_programs(student, {} if teacher is None else {TEACHER: teacher})


def _changes_signature_for_good(item: Pass) -> bool:
    """Whether a pass changes inputs or outputs for good: ``distill`` is undone by its end."""
    return item.changes_signature and not item.establishes


def _signature_differs_after(passes: tuple[Pass, ...]) -> bool:
    """Return whether inputs or outputs are others behind the passes of a stage."""
    begun: set[Property] = set()
    for item in passes:
        if not item.changes_signature:
            continue
        if item.destroys & begun:
            begun -= item.destroys
        elif item.establishes:
            begun |= item.establishes
        else:
            return True
    return bool(begun)


def _masks_or_reshapes(item: Pass) -> bool:
    """Return whether weights have masks or other shapes behind a pass."""
    return item.reshapes or Property.MASKED in contract_of(item).establishes


def _check_head_stays(passes: tuple[Pass, ...]) -> None:
    for item in passes:
        if item.drops_heads:
            raise RecipeError(
                "the outputs that are scored on labels are gone after it",
                who=item.name,
                hint="give the texts without labels: compress --unlabelled FILE, and no --data",
            )


def _check_last_step(item: Pass, left: int) -> None:
    last: object = item.last_step
    if not isinstance(last, int):
        raise PassError(f"it is {last!r}, not a whole number", hint="return an optimizer step")
    if last > left:
        raise RecipeError(
            f"it is at work until step {last}, and only {left} steps come",
            who=item.name,
            hint="write steps as shares of the stage, e.g. end=50%, or train longer",
        )


def _warn_of_outputs(outputs: int, task: Task) -> None:
    """Say that a head has outputs that stand for no class: they only learn never to be chosen."""
    spare = range(len(task.classes), outputs)
    if spare:
        logger.warning(
            "the model's head has %d outputs, and the task %r %d classes: no class is output %s; "
            "load the model with num_labels=%d, or the task with all classes of the head",
            *(outputs, task.name, len(task.classes), ", ".join(map(str, spare)), len(task.classes)),
        )


def _check_frozen(training: Training, model: Program) -> None:
    names = [name for name, _ in model.module.named_parameters()]
    for pattern in training.freeze:
        if not any(re.search(pattern, name) for name in names):
            raise RecipeError(
                f"freeze: no parameter of the model has a name that contains {pattern!r}",
                hint=did_you_mean(pattern, {part for name in names for part in name.split(".")}),
            )


def _check_loss(training: Training, task: Task) -> None:
    """Refuse a stage in which no pass can have put a loss in, and that uses no labels."""
    lacking = task.split("train").labels is None
    if training.label_weight == 0 or _lacks_labels(training, task):
        least = "give labelled texts to train on" if lacking else "set label_weight above 0"
        raise RecipeError(
            "there is nothing to minimise: no labels are used and no pass put a loss in",
            hint=f"{least}, or add distill to the pipeline",
        )


def _check_labels(training: Training, passes: tuple[Pass, ...], task: Task) -> None:
    """Refuse a loss against labels that a stage asks for, but whose texts have none."""
    if not _lacks_labels(training, task):
        return
    own = [item.name for item in passes if item.takes_labels]
    weight = training.label_weight if "label_weight" in training.model_fields_set else 0
    if own or weight:
        asks = f"{own[0]!r} puts a loss" if own else f"label_weight is {weight:g}, for a loss"
        raise RecipeError(
            f"{asks} against the labels, and the texts that are trained on have none",
            hint="give labelled texts to train on, or "
            + (f"take the labels out of {own[0]!r}" if own else "set label_weight to 0"),
        )


def _lacks_labels(training: Training, task: Task) -> bool:
    return task.split("train").labels is None or training.data == "unlabelled"
