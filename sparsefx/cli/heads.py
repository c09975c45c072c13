"""Whether a model goes on with its own head, whose outputs stand for the labels of a task."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sparsefx.cli.console import stderr
from sparsefx.errors import DataError
from sparsefx.problem import named_classes, own_outputs

if TYPE_CHECKING:
    from sparsefx.recipe import Recipe, Stage
    from sparsefx.train.data.tasks import Task

__all__ = ["check_head", "in_order_of_head"]


def check_head(recipe: Recipe, task: Task, model: str, *, is_named: bool) -> None:
    """Refuse labels that are not those of a head which no stage trains on labels.

    Raises:
        DataError: A new head would be its own teacher; or the labels are names, the user gives no
            order of them (``is_named``), and the model has others, or none.
    """
    trains = any(stage.training is not None for stage in recipe.stages)
    if not trains or task.kind == "text" or any(map(_takes_new_head, recipe.stages)):
        return
    from sparsefx.huggingface.model_folder import read_config

    config: Any = read_config(model)
    wanted, own = len(task.classes) or 1, own_outputs(config, task.kind)
    if wanted == own:
        names = named_classes({"id2label": config.id2label})
        is_counted = all(name.isdecimal() for name in task.classes)
        if is_named or is_counted or names == task.classes:
            return
        raise DataError(
            f"its outputs {'are ' + ', '.join(names) if names else 'have no names'}; the labels "
            f"are {', '.join(task.classes)}, and no stage of {recipe.name} learns which is which",
            who="compress",
            where=model,
            hint="give --classes in the order of the head",
        )
    head = "it has no head for such labels" if own is None else f"its head has {own} outputs"
    raise DataError(
        f"{head}, and the new one of {wanted} would learn nothing: no stage of {recipe.name} "
        "trains on labels",
        who="compress",
        where=model,
        hint="give the fine-tuned model, and all of its classes with --classes; or a recipe that "
        "fine-tunes first, such as sparsebert-small",
    )


def _takes_new_head(stage: Stage) -> bool:
    """Return whether labels or another model teach a head in a stage, or it goes on without one."""
    from sparsefx.recipe.amounts import NOMINAL_STEPS, parse_pipeline
    from sparsefx.recipe.passes import is_path

    training = stage.training
    if training is not None and training.label_weight > 0 and training.data != "unlabelled":
        return True
    if is_path(stage.teacher or "") or is_path(stage.start or ""):
        return True
    passes = parse_pipeline(stage.pipeline, NOMINAL_STEPS).passes
    return any(item.takes_labels or item.drops_heads for item in passes)


def in_order_of_head(task: Task, config: Any, model: str) -> Task:
    """Return the task with the classes of the model's own head, if that has all of its names.

    Such a head goes on with what it knows, where sorted names would give its outputs other ones.
    Labels that are numbers are numbers of its outputs, as everywhere else.
    """
    names = named_classes({"id2label": config.id2label})
    if not task.classes or names is None or names == task.classes:
        return task
    if own_outputs(config, task.kind) is None:
        return task
    if {*task.classes} <= {*names}:
        return task.with_classes(names)
    counted = task.classes == tuple(map(str, range(len(task.classes))))
    if counted and len(task.classes) <= len(names):
        listed = ", ".join(f"{index} {name}" for index, name in enumerate(names))
        stderr.print(f"labels are taken for the outputs of {model}: {listed}")
        return replace(task, classes=names[: len(task.classes)]).with_classes(names)
    if len(names) == len(task.classes):
        told = f"{', '.join(names)}; from here on they stand for {', '.join(task.classes)}"
        stderr.print(f"warning: the outputs of {model} were {told}")
    return task
