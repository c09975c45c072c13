"""Recipes: the file form of a run, from a dense model to the final Program."""

from sparsefx.recipe.recipe import (
    MODEL,
    DataSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    Stage,
    Training,
)

__all__ = [
    "MODEL",
    "DataSettings",
    "OptimizerSettings",
    "Recipe",
    "ScheduleSettings",
    "Stage",
    "Training",
]
