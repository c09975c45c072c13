"""What is wrong with a run, found before its first step and not after hours of training."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sparsefx.amounts import parse_pipeline, resolve
from sparsefx.errors import RecipeError, SparsefxError, did_you_mean
from sparsefx.passbase import Pass
from sparsefx.program import Program
from sparsefx.recipe import MODEL, TEACHER, Recipe, Stage
from sparsefx.train import schedules
from sparsefx.train.evaluation import logits_name
from sparsefx.train.tasks import Task

__all__ = ["check_head", "check_stages", "check_teacher_folders", "within"]


@contextmanager
def within(stage: str, key: str) -> Iterator[None]:
    """Put the place in the recipe in front of what a pass says."""
    try:
        yield
    except SparsefxError as error:
        error.who = f"stage {stage}, {key}" + (f": {error.who}" if error.who else "")
        raise


def check_teacher_folders(recipe: Recipe) -> None:
    """Refuse a teacher folder that does not exist.

    Raises:
        RecipeError: With ``where`` set to the path of the key.
    """
    for index, stage in enumerate(recipe.stages):
        folder = _teacher_folder(recipe, stage)
        if folder is not None and not Path(folder).expanduser().is_dir():
            raise RecipeError(
                f"there is no folder {folder!r}",
                who=recipe.name,
                where=f"stages[{index}].teacher",
                hint="name a saved Program, or a Hugging Face folder",
            )


def check_head(task: Task, model: Program) -> None:
    """Check the labels of a task against the model's head.

    Raises:
        TrainingError: The model has no output for predictions.
        DataError: A label has no output.
    """
    outputs: Any = model.graph.output_node().args[0]
    fact = model.shape_of(outputs[logits_name(model)])
    if fact is not None and fact.dims and isinstance(fact.dims[-1], int):
        task.check_head(fact.dims[-1])


def check_stages(
    recipe: Recipe,
    model: Program,
    steps: Mapping[str, int | None],
    load: Callable[[str], Program],
    *,
    labels: bool = True,
) -> None:
    """Check every stage: its passes and amounts, its teacher, its schedule, what it freezes.

    Args:
        recipe: Checked by itself already.
        model: What the run starts from. Its structure is that of all stages, but for what passes
            change.
        steps: Optimizer steps of each stage; None for one that does not train.
        load: Returns the Program in a teacher's folder.
        labels: Whether the training split has any.

    Raises:
        SparsefxError: What is wrong, with its place in the recipe.
    """
    recipe.check(model.properties, who=recipe.name, steps=steps)
    folders: dict[str, Program] = {}
    may_lose = "loss" in model.signature.outputs
    for index, stage in enumerate(recipe.stages):
        passes = parse_pipeline(stage.pipeline, steps[stage.name]).passes
        programs = {}
        if stage.teacher is not None and any(TEACHER in item.needs for item in passes):
            folder = _teacher_folder(recipe, stage)
            if folder is not None and folder not in folders:
                folders[folder] = load(folder)
            programs[TEACHER] = model if folder is None else folders[folder]
        left = sum(steps[later.name] or 0 for later in recipe.stages[index:])
        with within(stage.name, "pipeline"):
            for item in passes:
                item.check_programs(model, programs)
                _check_last_step(item, left)
        with within(stage.name, "training"):
            _check_training(stage, passes, model, steps[stage.name] or 0)
            may_lose = may_lose or _changes_signature(passes)
            if not may_lose:
                _check_loss(stage, labels)
        after = parse_pipeline(stage.after, steps[stage.name]).passes
        may_lose = may_lose and not _changes_signature(after)


def _teacher_folder(recipe: Recipe, stage: Stage) -> str | None:
    names = {None, MODEL, *(each.name for each in recipe.stages)}
    return None if stage.teacher in names else stage.teacher


def _check_last_step(item: Pass, left: int) -> None:
    if item.last_step > left:
        raise RecipeError(
            f"it is at work until step {item.last_step}, and only {left} steps come",
            who=item.name,
            hint="write steps as shares of the stage, e.g. end=50%, or train longer",
        )


def _check_training(stage: Stage, passes: tuple[Pass, ...], model: Program, steps: int) -> None:
    training = stage.training
    if training is None:
        return
    names = [name for name, _ in model.module.named_parameters()]
    for pattern in training.freeze:
        if not any(re.search(pattern, name) for name in names):
            raise RecipeError(
                f"freeze: no parameter of the model has a name that contains {pattern!r}",
                hint=did_you_mean(pattern, {part for name in names for part in name.split(".")}),
            )
    warmup = resolve(training.schedule.warmup, steps)
    if warmup > steps:
        raise RecipeError(
            f"{warmup} steps of warm-up are more than the {steps} of the stage",
            hint="write a share, e.g. warmup: 10%",
        )
    window = schedules.window_of(passes)
    if training.schedule.kind == "rewind" and window is not None:
        schedules.build(training.schedule, steps, window)


def _changes_signature(passes: tuple[Pass, ...]) -> bool:
    return any(item.changes_signature for item in passes)


def _check_loss(stage: Stage, labels: bool) -> None:
    """Refuse a stage in which no pass can have put a loss in, and that uses no labels."""
    training = stage.training
    if training is None:
        return
    if training.label_weight == 0 or training.data == "unlabelled" or not labels:
        raise RecipeError(
            "there is nothing to minimise: no labels are used and no pass put a loss in",
            hint="set label_weight above 0, or add distill to the pipeline",
        )
