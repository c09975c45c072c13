"""Recipes changed for a comparison: trained as long as another one, or pruned further or less."""

from __future__ import annotations

import re

from benchmarks.glue_table import DENSE
from sparsefx.errors import RecipeError
from sparsefx.recipe import Recipe, Stage, Training

__all__ = ["with_budget", "with_sparsity"]


def with_sparsity(recipe: Recipe, sparsity: float) -> Recipe:
    """Return ``recipe`` pruned to ``sparsity``; its name says so, such as ``sparsebert-small-85``.

    A recipe that locks a pattern it is given, such as ``prune-ofa-small``, gets the name alone: its
    sparsity is that of the sparse model it starts from.

    Args:
        recipe: Its passes that have the option ``sparsity`` get this one, all else stays.
        sparsity: Share of zeros, in (0, 1).

    Raises:
        RecipeError: When no pass of ``recipe`` has the option or locks, or the share is none.
    """
    if not 0 < sparsity < 1:
        raise RecipeError(
            f"{sparsity} is no share of zeros", who=recipe.name, hint="such as 0.85 for 85 %"
        )
    stages = tuple(
        stage.model_copy(
            update={"pipeline": tuple(_OPTION.sub(f"={sparsity:g}", p) for p in stage.pipeline)}
        )
        for stage in recipe.stages
    )
    if not any(_SPARSE.search(p) for stage in stages for p in stage.pipeline):
        raise RecipeError(
            "no pass of a pipeline has the option sparsity or is pattern-lock",
            who=recipe.name,
            hint="take a recipe that prunes",
        )
    name = f"{recipe.name}-{100 * sparsity:g}"
    return recipe.model_copy(update={"name": name, "stages": stages})


_OPTION = re.compile(r"(?<=[{,]sparsity)=[0-9.]+")
_SPARSE = re.compile(rf"{_OPTION.pattern}|^pattern-lock\b")


def with_budget(recipe: Recipe, model: Recipe, labelled: int, unlabelled: int) -> Recipe:
    """Return ``recipe`` trained for as many steps as ``model`` trains.

    The stage that fine-tunes the dense model trains as in ``model``. All other stages share the
    steps of the other stages there in proportion to their own, of which at most half the budget
    counts: a pre-training of 100,000 steps would leave nothing for the task. Learning rates below
    that of the dense stage are raised to it, since small models need higher ones than the papers'.

    Args:
        recipe: Whose passes and losses are kept.
        model: Whose budget is given; it has a stage of ``DENSE``.
        labelled: Training examples with labels.
        unlabelled: Texts without.

    Raises:
        RecipeError: When ``model`` fine-tunes no dense model.
    """
    dense = next((s.training for s in model.stages if s.name in DENSE), None)
    if dense is None:
        raise RecipeError(
            f"no stage is named {' or '.join(DENSE)}, so there is no dense model to go by",
            who=model.name,
            hint="give the budget of a recipe such as sparsebert-small",
        )
    counts = (labelled, unlabelled)
    budget = sum(_steps(model, stage, counts) for stage in model.stages if stage.name not in DENSE)
    shares = {
        stage.name: min(_steps(recipe, stage, counts), budget // 2)
        for stage in recipe.stages
        if stage.name not in DENSE
    }
    scale = budget / max(1, sum(shares.values()))
    stages = []
    for stage in recipe.stages:
        if stage.training is None:
            stages.append(stage)
            continue
        training = dense
        if stage.name not in DENSE:
            steps = max(1, round(shares[stage.name] * scale))
            training = _trained(stage.training, steps, dense.optimizer.learning_rate)
        stages.append(stage.model_copy(update={"training": training}))
    return recipe.model_copy(update={"stages": tuple(stages)})


def _steps(recipe: Recipe, stage: Stage, counts: tuple[int, int]) -> int:
    """The steps of a stage on so many labelled and unlabelled texts."""
    training = stage.training
    if training is None:
        return 0
    labelled, unlabelled = counts
    examples = {
        "labelled": labelled,
        "labelled+unlabelled": labelled + unlabelled,
        "unlabelled": unlabelled,
    }[training.data]
    return training.steps_on(examples, recipe.data.batch_size)


def _trained(training: Training, steps: int, least: float) -> Training:
    """The training with so many steps and no lower learning rate."""
    rate = max(training.optimizer.learning_rate, least)
    optimizer = training.optimizer.model_copy(update={"learning_rate": rate})
    return training.model_copy(update={"epochs": None, "steps": steps, "optimizer": optimizer})
