"""Shipped recipes on a tiny BERT, with few steps: every stage runs, and leaves what it promises."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefx.properties import Property
from sparsefx.recipe import Recipe, Stage
from sparsefx.train.session import Session
from tests.train import tiny_run


def shortened(stage: Stage) -> Stage:
    if stage.training is None:
        return stage
    few = {"steps": 6, "epochs": None, "evaluate_every": None}
    return stage.model_copy(update={"training": stage.training.model_copy(update=few)})


@pytest.mark.parametrize(
    ("name", "sparsity", "properties"),
    [
        ("demo-quick", 0.9, {Property.QUANTIZED, Property.INFERENCE}),
        ("sparsebert", 0.95, set()),
        ("sparsebert-small", 0.9, {Property.QUANTIZED, Property.INFERENCE}),
        ("sparsebert-base", 0.95, {Property.QUANTIZED, Property.INFERENCE}),
    ],
)
def test_all_stages_run(
    name: str, sparsity: float, properties: set[Property], tmp_path: Path
) -> None:
    recipe = Recipe.shipped(name)
    recipe = recipe.model_copy(update={"stages": tuple(map(shortened, recipe.stages))})
    given = tiny_run.data(unlabelled=20)
    result = Session(recipe, tiny_run.program(), given, tmp_path, device="cpu").run()
    assert [stage.steps for stage in result.stages] == [6] * len(recipe.stages)
    assert result.stages[-1].sparsity == pytest.approx(sparsity, abs=0.01)
    program = result.program
    assert properties <= program.properties
    assert not {Property.MASKED, Property.DISTILLING} & program.properties
    assert program.signature.outputs == ("logits",)
    assert all(stage.score is not None for stage in result.stages)
