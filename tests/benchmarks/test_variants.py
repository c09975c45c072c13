"""A recipe gets the budget of another one, or another sparsity."""

from __future__ import annotations

import pytest

from benchmarks.variants import with_budget, with_sparsity
from sparsefx.errors import RecipeError
from sparsefx.recipe import Recipe

METHODS = ["bert-pkd", "bert-of-theseus", "distilbert", "minilm", "tinybert-6", "bert-tickets"]


def steps(recipe: Recipe) -> dict[str, int | None]:
    return {stage.name: stage.training.steps for stage in recipe.stages if stage.training}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gets_the_steps_of_the_model_recipe(name: str) -> None:
    model = Recipe.shipped("sparsebert-small")
    # 11,668 texts in batches of 32 are 365 steps an epoch; five of them, and 40 of int8.
    found = steps(with_budget(Recipe.shipped(name), model, 3668, 8000))
    assert sum(count or 0 for count in found.values()) == pytest.approx(5 * 365 + 40, abs=4)


def test_the_dense_stage_trains_as_in_the_model_recipe() -> None:
    model = Recipe.shipped("sparsebert-small")
    found = with_budget(Recipe.shipped("bert-pkd"), model, 3668, 0)
    assert found.stage("teacher").training == model.stage("dense").training
    assert found.stage("teacher").pipeline == Recipe.shipped("bert-pkd").stage("teacher").pipeline


def test_long_pre_training_leaves_steps_for_the_task() -> None:
    model = Recipe.shipped("sparsebert-small")
    found = steps(with_budget(Recipe.shipped("compress-bert"), model, 3668, 8000))
    assert found == {"head": 249, "pretrained": 929, "sparse": 687}


def test_low_learning_rates_are_raised_and_high_ones_kept() -> None:
    model = Recipe.shipped("sparsebert-small")
    stages = with_budget(Recipe.shipped("distilbert"), model, 3668, 8000).stages
    rates = [stage.training.optimizer.learning_rate for stage in stages if stage.training]
    assert rates == [1e-3, 5e-4, 1e-4]


def test_a_model_recipe_without_a_dense_stage_is_refused() -> None:
    text = "name: a\nstages:\n- {name: only, training: {steps: 3}}\n"
    with pytest.raises(RecipeError, match="a: no stage is named dense or teacher or predecessor"):
        with_budget(Recipe.shipped("minilm"), Recipe.parse(text), 10, 0)


def test_another_sparsity_changes_nothing_else() -> None:
    shipped = Recipe.shipped("sparsebert-small")
    found = with_sparsity(shipped, 0.85)
    assert found.name == "sparsebert-small-85"
    assert found.stage("sparse").pipeline == (
        "set-dropout",
        "magnitude-prune{sparsity=0.85,end=40%,frequency=1%}",
        "distill{logits=0.05,hidden=1,temperature=1.0}",
    )
    assert found.stage("dense") == shipped.stage("dense")
    assert found.stage("int8") == shipped.stage("int8")
    with_start = with_sparsity(Recipe.shipped("obert"), 0.8).stage("sparse").pipeline[0]
    assert with_start.startswith("obert-prune{sparsity=0.8,initial_sparsity=0.7,")


def test_a_recipe_that_locks_a_given_pattern_gets_the_name_alone() -> None:
    shipped = Recipe.shipped("prune-ofa-small")
    found = with_sparsity(shipped, 0.85)
    assert found.name == "prune-ofa-small-85"
    assert found.stages == shipped.stages


def test_a_sparsity_without_effect_is_refused() -> None:
    with pytest.raises(RecipeError, match="no pass of a pipeline has the option sparsity"):
        with_sparsity(Recipe.shipped("fine-tune"), 0.85)
    with pytest.raises(RecipeError, match="85 is no share of zeros"):
        with_sparsity(Recipe.shipped("sparsebert-small"), 85)
