"""SparseML recipes: each modifier in its forms, held to the numbers of that tool."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from sparsefx.errors import RecipeError
from sparsefx.importers.files import import_text
from sparsefx.importers.result import Imported
from sparsefx.passes.distill.distill import Distill
from sparsefx.passes.prune.magnitude import MagnitudePrune
from sparsefx.passes.prune.obert import ObertPrune
from sparsefx.passes.quantize.prepare import QuantizePrepare
from sparsefx.recipe import Recipe
from sparsefx.recipe.amounts import parse_pipeline

PRUNER = {
    "params": ["re:.*dense.weight"],
    "start_epoch": 2,
    "end_epoch": 8,
    "init_sparsity": 0.2,
    "final_sparsity": 0.8,
    "update_frequency": 0.5,
}
EPOCHS = ("EpochRangeModifier", {"start_epoch": 0.0, "end_epoch": 10.0})
RATE = ("SetLearningRateModifier", {"start_epoch": 0.0, "learning_rate": "7e-5"})


def recipe(*modifiers: tuple[str, dict[str, Any]], **variables: Any) -> Imported:
    """Import a flat recipe of 10 epochs."""
    body = yaml.dump(variables) if variables else ""
    listed = [
        f"  - !{kind} {yaml.dump(settings, default_flow_style=True, width=10_000)}"
        for kind, settings in (EPOCHS, *modifiers)
    ]
    return import_text(body + "modifiers:\n" + "".join(listed), name="given")


def first(found: Imported, steps: int = 1000) -> Any:
    """The first pass of the first stage, of 1000 steps unless told."""
    return parse_pipeline(found.recipe.stages[0].pipeline, steps).passes[0]


def left(found: Imported) -> dict[str, str]:
    return {item.where: item.reason for item in found.left_out}


COURSES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "cubic": lambda x: 1 - (1 - x) ** 3,
    "inverse_cubic": lambda x: 1 - (1 - x) ** (1 / 3),
}


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("kind", ["GMPruningModifier", "MagnitudePruningModifier"])
def test_ramps_are_those_of_the_tool(kind: str, course: str) -> None:
    found = recipe((kind, {**PRUNER, "inter_func": course}), RATE)
    item = first(found)
    assert isinstance(item, MagnitudePrune)
    for step in range(200, 801, 50):
        expected = 0.2 + 0.6 * COURSES[course]((step - 200) / 600)
        assert item.schedule.updates(step)
        assert item.schedule.sparsity(step) == pytest.approx(expected)
    assert not item.schedule.updates(225)
    assert item.scope == "tensor"
    assert left(found) == {}


def test_a_global_threshold() -> None:
    assert first(recipe(("GlobalMagnitudePruningModifier", PRUNER))).scope == "global"


@pytest.mark.parametrize(
    ("mask", "sparsity", "pattern"),
    [
        ("unstructured", 0.8, "unstructured"),
        ("0:0", 0.8, "unstructured"),
        ("block", 0.8, "1x4"),
        ("block4", 0.8, "1x4"),
        ([1, 4], 0.8, "1x4"),
        ("2:4", 0.5, "2:4"),
        ("1:4", 0.75, "1:4"),
        ("filter", 0.8, None),
        ([1, -1], 0.8, None),
        ("4:2", 0.5, None),
    ],
)
def test_masks(mask: Any, sparsity: float, pattern: str | None) -> None:
    found = recipe(("GMPruningModifier", {**PRUNER, "mask_type": mask, "final_sparsity": sparsity}))
    if pattern is None:
        assert found.recipe.stages[0].pipeline == ()
        assert f"mask_type {mask!r}" in left(found)["GMPruningModifier"]
        return
    assert first(found).pattern == pattern


@pytest.mark.parametrize(
    ("params", "name", "matches"),
    [
        ("__ALL_PRUNABLE__", "any.weight", True),
        (["__ALL_PRUNABLE__"], "any.weight", True),
        (["re:a.weight|b.weight"], "b.weight", True),
        (["re:a.weight|b.weight"], "c.b.weight", False),  # both alternatives from the start
        (["re:.*query.weight"], "layer.0.query.weight", True),
        (["layer.0.weight"], "layer.0.weight", True),
        (["layer.0.weight"], "layer.0.weights", False),
    ],
)
def test_names(params: Any, name: str, matches: bool) -> None:
    item = first(recipe(("GMPruningModifier", {**PRUNER, "params": params})))
    assert not item.exclude
    found = not item.include or any(re.search(each, name) for each in item.include)
    assert found == matches


@pytest.mark.parametrize("kind", ["OBSPruningModifier", "MovementPruningModifier"])
def test_scores_of_gradients_begin_behind_the_first_step(kind: str) -> None:
    found = recipe((kind, {**PRUNER, "start_epoch": 0.0, "inter_func": "cubic"}))
    assert first(found).begin == 1
    assert first(found).sparsity == 0.8
    if kind == "OBSPruningModifier":
        assert isinstance(first(found), ObertPrune)


def test_variables_that_yaml_reads_as_texts_are_numbers() -> None:
    rate = {"start_epoch": 0, "learning_rate": "eval(init_lr * share)"}
    found = recipe(("SetLearningRateModifier", rate), init_lr="5e-5", share=0.5)
    training = found.recipe.stages[0].training
    assert training
    assert training.optimizer.learning_rate == pytest.approx(2.5e-5)
    with pytest.raises(RecipeError, match="computes with what is no number"):
        recipe(("SetLearningRateModifier", rate), init_lr="slow", share=0.5)


# -- two stages, cut where quantization begins ----------------------------------------------------

QUANTIZER = {"start_epoch": 6.0, "submodules": ["bert.encoder", "classifier"]}


def rates(*modifiers: tuple[str, dict[str, Any]]) -> list[tuple[float, str]]:
    found = recipe(("QuantizationModifier", QUANTIZER), *modifiers)
    trained = [stage.training for stage in found.recipe.stages if stage.training]
    assert [each.epochs for each in trained] == [6.0, 4.0]
    return [(each.optimizer.learning_rate, each.schedule.kind) for each in trained]


def test_a_constant_rate_holds_in_both_stages() -> None:
    assert rates(RATE) == [(7e-5, "constant"), (7e-5, "constant")]


@pytest.mark.parametrize(
    ("course", "rest"), [("linear", 0.4), ("cosine", 0.5 + 0.5 * math.cos(0.6 * math.pi))]
)
def test_the_second_stage_begins_at_the_rate_of_its_epoch(course: str, rest: float) -> None:
    function = {"lr_func": course, "init_lr": 1e-4, "final_lr": 0.0}
    span = {"start_epoch": 0.0, "end_epoch": 10.0}
    (high, _), (low, kind) = rates(("LearningRateFunctionModifier", {**function, **span}))
    assert (high, kind) == (1e-4, course)
    assert low == pytest.approx(rest * 1e-4)


def test_a_second_rate_of_the_same_epoch_is_listed() -> None:
    function = {"lr_func": "linear", "init_lr": 1e-4, "final_lr": 0.0}
    span = {"start_epoch": -1.0, "end_epoch": 10.0}
    found = recipe(RATE, ("LearningRateFunctionModifier", {**function, **span}))
    told = f"{RATE[0]} sets the rate at the same epoch"
    assert left(found) == {"LearningRateFunctionModifier": told}


def test_a_rate_of_some_parameters_alone_is_listed() -> None:
    kind, settings = RATE
    found = recipe((kind, {**settings, "param_groups": [0], "constant_logging": True}))
    assert left(found) == {f"{kind}.param_groups": "[0] has no counterpart"}


@pytest.mark.parametrize(
    ("given", "expected", "listed"),
    [
        ({}, {"requantize": "all"}, set()),
        ({"quantize_linear_activations": 0}, {"requantize": "none"}, set()),
        ({"disable_quantization_observer_epoch": 8.0}, {"freeze": 200}, set()),
        ({"freeze_bn_stats_epoch": 8.0}, {}, {"freeze_bn_stats_epoch"}),
        ({"exclude_module_types": ["LayerNorm", "Conv1D"]}, {}, {"exclude_module_types"}),
        ({"activation_bits": 8, "weight_bits": 8, "reduce_range": False}, {}, set()),
        ({"weight_bits": 4}, {}, {"weight_bits"}),
        ({"reduce_range": True}, {}, {"reduce_range"}),
        ({"quantize_embedding_activations": True}, {}, {"quantize_embedding_activations"}),
        ({"num_calibration_steps": 10}, {}, {"num_calibration_steps"}),
        ({"tensorrt": True}, {}, {"tensorrt"}),
        ({"ignore": ["LayerNorm", "a.b", "Conv1D"]}, {"exclude": (r"^a\.b\.",)}, {"ignore"}),
        ({"submodules": ["bert.embeddings"]}, {"include": ("^$",)}, {"quantize_embeddings"}),
        ({"default_scheme": {"weights": {"num_bits": 4}}}, {}, {"default_scheme"}),
    ],
)
def test_quantization(given: dict[str, Any], expected: dict[str, Any], listed: set[str]) -> None:
    found = recipe(("QuantizationModifier", {**QUANTIZER, **given}), RATE)
    (item,) = parse_pipeline(found.recipe.stages[1].pipeline, 400).passes
    assert isinstance(item, QuantizePrepare)
    assert {key: getattr(item, key) for key in expected} == expected
    assert left(found).keys() == {f"QuantizationModifier.{key}" for key in listed}


@pytest.mark.parametrize(
    ("given", "tables"),
    [
        ({"submodules": ["bert.embeddings", "bert.encoder"]}, True),
        ({"submodules": ["bert.embeddings"], "quantize_embeddings": 0}, False),
        ({"submodules": None}, True),
        ({"submodules": ["bert.encoder"]}, False),
    ],
)
def test_embedding_tables(given: dict[str, Any], tables: bool) -> None:
    found = recipe(("QuantizationModifier", {**QUANTIZER, **given}), RATE)
    last = found.recipe.stages[-1].after
    assert ("quantize-embeddings" in last) == tables
    assert last[-1] == "simplify{inference=True}"
    assert any("-> quantize-embeddings" in line for line in found.carried) == tables


def test_distillation() -> None:
    keys = ["start_logits", "end_logits"]
    settings = {"hardness": 0.7, "temperature": 5.5, "distill_output_keys": keys}
    found = recipe(("DistillationModifier", settings), RATE)
    item = first(found)
    assert isinstance(item, Distill)
    assert (item.logits, item.temperature, item.outputs) == (0.7, 5.5, tuple(keys))
    (stage,) = found.recipe.stages
    assert stage.training
    assert stage.training.label_weight == pytest.approx(0.3)
    assert left(found).keys() == {"DistillationModifier: the teacher"}
    numbered = recipe(("DistillationModifier", {**settings, "distill_output_keys": [0]}), RATE)
    assert first(numbered).outputs == ()
    assert "DistillationModifier.distill_output_keys" in left(numbered)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("MFACPruningModifier", "obert-prune with the same ramp is the nearest"),
        ("ACDCPruningModifier", "magnitude-prune with the same ramp is the nearest"),
        ("StructuredPruningModifier", "prune-heads and prune-neurons take whole rows"),
        ("LayerThinningModifier", "nothing is left to thin"),
        ("LayerPruningModifier", "drop-layers{keep=(...)} those that stay"),
        ("PerLayerDistillationModifier", "distill{hidden=...} is nearest"),
        ("LoggingModifier", "it has no counterpart"),
    ],
)
def test_what_is_not_here_is_listed_with_what_is_nearest(kind: str, reason: str) -> None:
    assert reason in left(recipe((kind, {"start_epoch": 0.0}), RATE))[kind]


# -- without tags, as 1.6 and later write them ----------------------------------------------------

UNTAGGED = """
test_stage:
  share: 0.5
  pruning_modifiers:
    MagnitudePruningModifier:
      init_sparsity: 0.0
      final_sparsity: eval(share)
      start: 0.0
      end: 4.0
      update: 1.0
      targets: __ALL_PRUNABLE__
      mask_structure: "2:4"
      update_scheduler: linear
    OutputDistillationModifier:
      targets: ['re:model.layers.0']
"""


def test_modifiers_without_tags() -> None:
    found = import_text(UNTAGGED, name="new")
    (stage,) = found.recipe.stages
    assert stage.name == "test-sparse"
    assert stage.training
    assert stage.training.epochs == 4.0
    item = first(found, 400)
    assert isinstance(item, MagnitudePrune)
    assert (item.pattern, item.exponent, item.frequency, item.end) == ("2:4", 1.0, 100, 400)
    assert item.schedule.sparsity(200) == 0.25
    listed = left(found)
    assert "argument of the trainer: the stage has 4 epochs" in listed["the run"]
    assert "distill{hidden=...}" in listed["OutputDistillationModifier"]
    assert Recipe.parse(found.recipe.to_yaml()) == found.recipe


@pytest.mark.parametrize(
    "text",
    [
        "pruning_modifiers:\n  ConstantPruningModifier: {targets: __ALL_PRUNABLE__, start: 0}\n",
        "s_stage:\n  m_modifiers:\n    - ConstantPruningModifier: {targets: __ALL_PRUNABLE__}\n",
        '{"s_stage": {"m_modifiers": {"ConstantPruningModifier": {"start": 0}}}}',
    ],
)
def test_a_lock_without_tags_has_no_length(text: str) -> None:
    found = import_text(text, name="lock")
    (stage,) = found.recipe.stages
    assert stage.pipeline == ("pattern-lock",)
    assert stage.after == ("fold-masks",)
    assert stage.training
    assert stage.training.epochs == 3.0
    assert "the stage has 3 epochs" in left(found)["the run"]


def test_one_shot_forms_are_refused() -> None:
    text = "s_stage:\n  q_modifiers:\n    QuantizationModifier: {ignore: [lm_head]}\n"
    with pytest.raises(RecipeError, match="QuantizationModifier: the one-shot form"):
        import_text(text, name="shot")


def pruner(params: Any, sparsity: Any) -> tuple[str, dict[str, Any]]:
    return ("GMPruningModifier", {**PRUNER, "params": params, "final_sparsity": sparsity})


def pruned(found: Imported) -> dict[str, set[float]]:
    """Final sparsities of the passes that take each of three weights."""
    passes = parse_pipeline(found.recipe.stages[0].pipeline, 1000).passes
    taken: dict[str, set[float]] = {}
    for name in ("bert.0.dense.weight", "bert.1.dense.weight", "classifier.weight"):
        taken[name] = set()
        for item in passes:
            assert isinstance(item, MagnitudePrune)
            wanted = not item.include or any(re.search(each, name) for each in item.include)
            if wanted and not any(re.search(each, name) for each in item.exclude):
                taken[name].add(item.sparsity)
    return taken


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("wide", "close", "expected"),
    [
        ("__ALL_PRUNABLE__", ["classifier.weight"], (0.8, 0.8, 0.5)),
        ("__ALL_PRUNABLE__", ["re:.*dense.weight"], (0.5, 0.5, 0.8)),
        (["re:.*dense.weight"], ["bert.0.dense.weight", "classifier.weight"], (0.5, 0.8, 0.5)),
    ],
)
def test_a_weight_of_two_pruners_goes_to_the_one_that_names_it(
    wide: Any, close: Any, expected: tuple[float, ...], swap: bool
) -> None:
    given = [pruner(wide, 0.8), pruner(close, 0.5)]
    found = recipe(*(reversed(given) if swap else given), RATE)
    assert list(pruned(found).values()) == [{value} for value in expected]
    ((where, reason),) = left(found).items()
    assert where.startswith("GMPruningModifier of ")
    assert reason.startswith(f"it spares {close[0]}, which a modifier with another sparsity names")


def test_a_closer_pruner_that_leaves_fewer_weights_agrees_with_the_tool() -> None:
    given = (pruner("__ALL_PRUNABLE__", 0.8), pruner(["classifier.weight"], 0.9), RATE)
    assert left(recipe(*given)) == {}


@pytest.mark.parametrize(
    ("names", "again"),
    [
        ("__ALL_PRUNABLE__", "__ALL_PRUNABLE__"),
        (["re:.*dense.weight", "classifier.weight"], ["classifier.weight", "re:.*dense.weight"]),
    ],
)
def test_a_second_pruner_of_the_same_weights_is_listed(names: Any, again: Any) -> None:
    found = recipe(pruner(names, 0.5), pruner(again, 0.8), RATE)
    assert len(found.recipe.stages[0].pipeline) == 1
    ((where, reason),) = left(found).items()
    assert where.startswith("GMPruningModifier of ")
    assert reason == "an earlier one prunes the same weights; a weight has one mask here"


def test_pruners_of_different_weights_keep_to_themselves() -> None:
    given = (pruner(["re:.*dense.weight"], 0.8), pruner(["classifier.weight"], 0.5), RATE)
    found = recipe(*given)
    assert found.recipe.stages[0].after == ("fold-masks",)
    assert not any("exclude" in text for text in found.recipe.stages[0].pipeline)
    assert left(found) == {}
