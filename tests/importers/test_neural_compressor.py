"""Configurations of Intel Neural Compressor: forms, ramps, patterns and scopes, by numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest

from sparsefx.errors import RecipeError
from sparsefx.huggingface import capture_tokens
from sparsefx.importers.files import import_text
from sparsefx.importers.result import Imported
from sparsefx.masks import find_masks
from sparsefx.passes.prune.magnitude import MagnitudePrune
from sparsefx.recipe.amounts import parse_pipeline
from tests.tiny_models import tiny

FLAT = {
    "target_sparsity": 0.8,
    "pruning_type": "magnitude",
    "pattern": "4x1",
    "start_step": 100,
    "end_step": 500,
    "pruning_frequency": 50,
    "pruning_scope": "local",
    "sparsity_decay_type": "linear",
    "op_names": ["attention", "query$"],
    "excluded_op_names": ["pooler"],
    "pruning_op_types": ["Linear"],
}

PYTORCH = """
version: 1.0
model: {name: bert-mini, framework: pytorch}
pruning:
  train:
    epoch: 4
    optimizer: {AdamW: {learning_rate: 2e-4}}
  approach:
    weight_compression_pytorch:
      initial_sparsity: 0.0
      start_step: 0
      end_step: 0
      excluded_names: ["classifier", "pooler", ".*embeddings*"]
      prune_layer_type: ["Linear"]
      target_sparsity: 0.9
      update_frequency_on_step: 1
      max_sparsity_ratio_per_layer: 0.98
      pruners:
        - !Pruner
            extra_excluded_names: [".*query"]
            pattern: "tile_pattern_4x1"
            update_frequency: 100
            prune_domain: "global"
            prune_type: "magnitude"
        - !Pruner
            names: [".*query"]
            pattern: "1xchannel"
            prune_type: "magnitude"
        - !Pruner
            names: [".*key"]
            prune_domain: "local"
            prune_type: "snip_momentum"
"""


def imported(**settings: Any) -> Imported:
    return import_text(json.dumps({**FLAT, **settings}), name="flat")


def pruning(found: Imported) -> MagnitudePrune:
    """The only pass of the only stage."""
    (stage,) = found.recipe.stages
    (item,) = parse_pipeline(stage.pipeline, 1000).passes
    assert isinstance(item, MagnitudePrune)
    return item


def left(found: Imported) -> dict[str, str]:
    return {item.where: item.reason for item in found.left_out}


def test_the_keywords_alone() -> None:
    found = imported()
    item = pruning(found)
    assert (item.sparsity, item.pattern, item.scope, item.ties) == (0.8, "4x1", "tensor", "drop")
    assert (item.begin, item.end, item.frequency, item.exponent) == (100, 500, 50, 1.0)
    assert (item.include, item.exclude) == (("attention", "query\\.weight$"), ("pooler",))
    assert "head" not in item.roles
    assert left(found).keys() == {"the run"}
    assert found.recipe.source.endswith("2.x.")
    assert found.recipe.stages[0].training
    assert found.recipe.stages[0].training.steps == 500


def test_null_is_the_default_and_the_default_criterion_is_not_here() -> None:
    with pytest.raises(RecipeError, match=r"no pruner .* 'snip_momentum' is not here") as caught:
        imported(pruning_type=None)
    assert "movement-prune is nearest" in caught.value.why
    assert pruning(imported(pattern=None)).pattern == "4x1"


def test_imported_masks_are_those_of_the_tool() -> None:
    given = imported(start_step=0, end_step=0, op_names=["attention"], pattern="4x1")
    program = parse_pipeline(given.recipe.stages[0].pipeline, 10).run(
        capture_tokens(tiny("bert-cls"))
    )
    sites = find_masks(program)
    assert all("attention" in site.weight for site in sites)
    for site in sites:
        blocks = program.tensor(site.mask).unfold(0, 4, 4)  # four outputs by one input
        assert bool(((blocks.sum(-1) == 0) | (blocks.sum(-1) == 4)).all())
        assert 1 - float(program.tensor(site.mask).mean()) == pytest.approx(0.8, abs=0.01)


RAMPS: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 0.8 * x,
    "cube": lambda x: 0.8 * x**3,
    "cos": lambda x: 0.8 * (1 - math.cos(math.pi / 2 * x)),
    "exp": lambda x: 1 - 0.2**x,
}


@pytest.mark.parametrize(
    ("decay", "off"), [("linear", 0.0), ("cube", 0.12), ("cos", 0.08), ("exp", 0.03)]
)
def test_ramps_are_near_those_of_the_tool(decay: str, off: float) -> None:
    found = imported(sparsity_decay_type=decay)
    ramp = pruning(found).schedule
    steps = range(100, 501, 50)
    apart = max(abs(ramp.sparsity(t) - RAMPS[decay]((t - 100) / 400)) for t in steps)
    assert apart <= off + 1e-9
    assert ramp.sparsity(500) == 0.8
    assert [t for t in range(600) if ramp.updates(t)] == list(steps)
    reason = left(found).get("pruners[0].sparsity_decay_type", "")
    assert bool(reason) == bool(off)
    assert not off or f"there is no {decay!r} ramp; with exponent=" in reason


def test_a_ramp_of_unknown_course_is_cubic() -> None:
    found = imported(sparsity_decay_type="steps")
    assert pruning(found).exponent == 3.0
    assert "the cubic one is used" in left(found)["pruners[0].sparsity_decay_type"]


@pytest.mark.parametrize(
    ("given", "moves"),
    [
        ({"end_step": 510, "pruning_frequency": 200}, [100, 300, 500]),  # whole rounds alone
        ({"end_step": 120, "pruning_frequency": 50}, [100]),  # none: at once
        ({"start_step": 100, "end_step": 100}, [100]),
        ({"start_step": 0, "end_step": 0}, [0]),
    ],
)
def test_masks_move_when_the_tool_moves_them(given: dict[str, int], moves: list[int]) -> None:
    ramp = pruning(imported(**given)).schedule
    assert [t for t in range(600) if ramp.updates(t)] == moves
    assert ramp.sparsity(moves[-1]) == 0.8


@pytest.mark.parametrize(
    ("given", "pattern", "scope", "sparsity", "listed"),
    [
        ({"pattern": "1x1"}, "unstructured", "tensor", 0.8, set()),
        ({"pattern": "16x1"}, "16x1", "tensor", 0.8, set()),
        (
            {"pattern": "2x1", "pruning_scope": "global"},
            "2x1",
            "global",
            0.8,
            {"max_sparsity_ratio_per_op"},
        ),
        ({"pattern": "2:4", "target_sparsity": 0.5}, "2:4", "tensor", 0.5, {"end_step"}),
        (
            {"pattern": "3:4", "pruning_scope": "global"},
            "1:4",  # three of four are pruned
            "tensor",
            0.75,
            {"end_step", "pruning_scope", "target_sparsity"},
        ),
        ({"target_sparsity": 0.99}, "4x1", "tensor", 0.98, {"target_sparsity"}),
        ({"min_sparsity_ratio_per_op": 0.3}, "4x1", "tensor", 0.8, {"min_sparsity_ratio_per_op"}),
        ({"pruning_type": "magnitude_progressive"}, "4x1", "tensor", 0.8, {"pruning_type"}),
        ({"parameters": {"reg_coeff": 0.1}}, "4x1", "tensor", 0.8, {"parameters"}),
        ({"pruning_op_types": ["Conv", "Linear"]}, "4x1", "tensor", 0.8, {"pruning_op_types"}),
    ],
)
def test_patterns_scopes_and_bounds(
    given: dict[str, Any], pattern: str, scope: str, sparsity: float, listed: set[str]
) -> None:
    found = imported(**given)
    item = pruning(found)
    assert (item.pattern, item.scope, item.sparsity) == (pattern, scope, sparsity)
    assert {where.removeprefix("pruners[0].") for where in left(found)} == {"the run", *listed}


def test_a_frequency_of_no_step_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected at least 1 step, found 0") as caught:
        imported(pruning_frequency=0)
    assert caught.value.where == "pruners[0].pruning_frequency"


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"pattern": "0:0"}, "the pattern '0:0' cannot be carried over"),
        ({"pattern": "4:2"}, "the pattern '4:2' cannot be carried over"),
        ({"end_step": math.inf}, "expected a number of steps, found inf"),
        ({"pruners": [[1]]}, "of another kind than its tool allows"),
    ],
)
def test_values_that_no_tool_takes_are_refused(changed: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        import_text(json.dumps({**FLAT, **changed}), name="wrong")


def test_the_pytorch_section() -> None:
    found = import_text(PYTORCH, name="bert-mini")
    item = pruning(found)
    assert (item.sparsity, item.pattern, item.scope) == (0.9, "4x1", "global")
    assert item.exclude == ("classifier", "pooler", ".*embeddings*", ".*query")
    assert "head" in item.roles
    assert found.recipe.source.endswith("1.14.")
    training = found.recipe.stages[0].training
    assert training
    assert (training.epochs, training.optimizer.learning_rate) == (4.0, 2e-4)
    listed = left(found)
    assert "'1xchannel': whole channels are no mask here" in listed["pruners[1].pattern"]
    assert "'snip_momentum' is not here" in listed["pruners[2].pruning_type"]
    assert "pruners[0].initial_sparsity" in listed
    assert "model" in listed


def test_the_pytorch_section_in_json_with_its_tags_as_keys() -> None:
    pruner = {"!Pruner": {"prune_type": "magnitude", "pattern": "1x1", "prune_domain": "local"}}
    sections = {
        "weight_compression_pytorch": {"target_sparsity": 0.7, "pruners": [pruner]},
        "other": {},
    }
    found = import_text(json.dumps({"pruning": {"approach": sections, "extra": 1}}), name="json")
    item = pruning(found)
    assert (item.sparsity, item.pattern, item.scope) == (0.7, "unstructured", "tensor")
    assert {"pruning.approach.other", "pruning.extra"} <= left(found).keys()


def test_the_section_of_epochs_in_json_with_its_tags_as_keys() -> None:
    pruner = {"!Pruner": {"names": ["a.weight"], "prune_type": "basic_magnitude", "pattern": None}}
    section = {"target_sparsity": 0.7, "end_epoch": None, "pruners": [pruner]}
    text = json.dumps({"pruning": {"approach": {"weight_compression": section}}})
    found = import_text(text, name="json")
    assert found.recipe.source.endswith("1.x.")
    item = pruning(found)
    assert (item.sparsity, item.include) == (0.7, ("^a\\.weight$",))
    assert not left(found)


def test_a_training_that_is_longer_than_its_ramp_is_listed() -> None:
    found = import_text(PYTORCH.replace("end_step: 0", "end_step: 300"), name="ramp")
    assert found.recipe.stages[0].training
    assert found.recipe.stages[0].training.steps == 300
    assert left(found)["pruning.train.epoch"] == "4: the stage ends with the ramp"
