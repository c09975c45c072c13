"""SparseML recipes: nothing is lost in silence, or told as carried over when it is not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sparsefx.errors import RecipeError
from sparsefx.huggingface import capture_tokens
from sparsefx.importers.files import import_text
from sparsefx.importers.result import Imported
from sparsefx.program import Program
from sparsefx.recipe.amounts import parse_pipeline
from tests.importers.counting import left, trained, zeros
from tests.tiny_models import tiny

ALL = "__ALL_PRUNABLE__"
RAMP = {"start_epoch": 0.0, "end_epoch": 2.0, "final_sparsity": 0.5, "update_frequency": 1.0}
QUERY, DENSE = "re:.*query.weight", "re:.*dense.weight"
Item = tuple[str, dict[str, Any]]


def ramp(names: Any = ALL, **settings: Any) -> Item:
    return ("GMPruningModifier", {**RAMP, "params": names, "init_sparsity": 0.0, **settings})


def lock(names: Any, **settings: Any) -> Item:
    return ("ConstantPruningModifier", {"start_epoch": 0.0, "params": names, **settings})


def staged(*stages: list[Item]) -> Imported:
    """Import a recipe whose stages have 4 epochs each, counted from the start of the run."""
    text = ""
    for index, items in enumerate(stages):
        span = {"start_epoch": 4.0 * index, "end_epoch": 4.0 * index + 4}
        rate = ("SetLearningRateModifier", {"start_epoch": 4.0 * index, "learning_rate": 1e-4})
        text += f"s{index}_stage:\n  modifiers:\n"
        for kind, settings in [("EpochRangeModifier", span), rate, *items]:
            text += f"    - !{kind} {json.dumps(settings)}\n"
    return import_text(text, name="staged")


def run(found: Imported, steps: int = 8) -> Program:
    """Run the pruning passes of all stages, each with so many steps."""
    program = capture_tokens(tiny("bert-cls"))
    for stage in found.recipe.stages:
        program = trained(parse_pipeline(stage.pipeline, steps).run(program), steps)
        program = parse_pipeline(stage.after, steps).run(program)
    return program


def second(**settings: Any) -> Item:
    return ramp(**{"start_epoch": 4.0, "end_epoch": 6.0, "final_sparsity": 0.8, **settings})


@pytest.mark.parametrize(
    ("settings", "listed"),
    [
        ({"init_sparsity": 0.5}, set()),
        ({"init_sparsity": "FROM_PARAM"}, set()),
        (
            {"init_sparsity": 0.0, "start_epoch": 5.0},
            {"GMPruningModifier.start_epoch", "GMPruningModifier.init_sparsity"},
        ),
    ],
)
def test_a_ramp_goes_on_in_the_next_stage(settings: dict[str, Any], listed: set[str]) -> None:
    found = staged([ramp()], [second(**settings)])
    assert left(found).keys() == listed
    assert found.recipe.stages[0].after == ("fold-masks",)
    assert "initial_sparsity=0.5,end=50%" in found.recipe.stages[1].pipeline[0]
    one = parse_pipeline(found.recipe.stages[0].pipeline, 8).run(capture_tokens(tiny("bert-cls")))
    one = parse_pipeline(("fold-masks",), 8).run(trained(one, 8))
    gone = {name: one.tensor(name) == 0 for name in named_weights(one)}
    both = trained(parse_pipeline(found.recipe.stages[1].pipeline, 8).run(one), 8)
    for name, zero in gone.items():
        assert bool((both.tensor(name)[zero] == 0).all()), name
        assert float((both.tensor(name) == 0).float().mean()) == pytest.approx(0.8, abs=0.01)


def named_weights(program: Program) -> list[str]:
    return [name for name in program.named_tensors() if re.search(r"(query|dense)\.weight$", name)]


@pytest.mark.parametrize(
    "item",
    [
        second(mask_type=[1, 4]),
        second(final_sparsity=0.4),
        second(global_sparsity=True),
        ("MovementPruningModifier", second()[1]),
    ],
)
def test_a_ramp_that_cannot_go_on_is_listed(item: Item) -> None:
    found = staged([ramp()], [item])
    assert found.recipe.stages[1].pipeline == ()
    assert "the masks of an earlier stage hold" in left(found)[f"{item[0]} of {ALL}"]
    assert sum(line.startswith(item[0]) for line in found.carried) == (
        item[0] == "GMPruningModifier"
    )


def test_ramps_of_other_weights_keep_the_masks_of_the_stage_before() -> None:
    found = staged([ramp([QUERY])], [second(names=[DENSE])])
    assert found.recipe.stages[0].after == ()
    (told,) = left(found)
    assert told.startswith("s1-sparse: magnitude-prune of '^.*dense.weight'")
    program = run(found)
    assert zeros(program, r"query\.weight$") == pytest.approx(0.5, abs=0.01)
    assert zeros(program, r"dense\.weight$") == pytest.approx(0.8, abs=0.01)


def test_a_lock_of_weights_without_a_ramp_is_listed() -> None:
    found = staged([ramp([QUERY]), lock([DENSE])])
    assert "beside a ramp, so zeros without a mask" in left(found)["ConstantPruningModifier"]
    assert not any(line.startswith("ConstantPruning") for line in found.carried)
    within = staged([ramp(), lock([DENSE])], [])
    assert left(within) == {}
    after = staged([lock([QUERY])], [lock([DENSE], start_epoch=4.0)])
    assert "behind the lock of an earlier stage" in left(after)["ConstantPruningModifier"]
    assert left(staged([lock(ALL)], [lock([DENSE], start_epoch=4.0)])) == {}


def test_several_locks_are_one() -> None:
    found = staged([lock([QUERY]), lock(["re:.*key.weight"])])
    assert left(found) == {}
    program = capture_tokens(tiny("bert-cls"))
    for name in named_weights(program) + [
        each for each in program.named_tensors() if "key" in each
    ]:
        program.tensor(name).detach().view(-1)[::2] = 0.0
    (text,) = found.recipe.stages[0].pipeline
    program = trained(parse_pipeline((text,), 4).run(program), 4)
    assert zeros(program, r"query\.weight$") == zeros(program, r"key\.weight$") == 0.5
    assert zeros(program, r"dense\.weight$") < 0.01
    assert staged([lock([QUERY]), lock(ALL)]).recipe.stages[0].pipeline == ("pattern-lock",)
    ends = staged([lock([QUERY], end_epoch=2.0)])
    assert left(ends) == {"ConstantPruningModifier.end_epoch": "2: a lock holds to the end"}


def test_a_ramp_after_the_end_of_its_stage_prunes_nothing() -> None:
    late = staged([ramp(start_epoch=5.0, end_epoch=6.0)])
    assert late.recipe.stages[0].pipeline == ()
    assert "it prunes nothing" in left(late)["GMPruningModifier of epoch 5"]
    quantizer = ("QuantizationModifier", {"start_epoch": 2.0})
    cut = staged([ramp(start_epoch=3.0, end_epoch=4.0), quantizer])
    assert not any("magnitude" in text for stage in cut.recipe.stages for text in stage.pipeline)
    assert "up to epoch 2 of its stage" in left(cut)["GMPruningModifier of epoch 3"]


@pytest.mark.parametrize("names", [[], None])
@pytest.mark.parametrize("make", [ramp, lock])
def test_a_modifier_that_names_no_weight_is_refused(make: Any, names: Any) -> None:
    kind, settings = make(names)
    with pytest.raises(RecipeError, match="it names no weight") as caught:
        staged([(kind, settings)])
    assert (caught.value.who, caught.value.where) == ("import", f"{kind}.params")


def test_a_word_for_every_weight_holds_among_others_too() -> None:
    assert "include" not in staged([ramp([ALL, QUERY])]).recipe.stages[0].pipeline[0]
    frozen = ("TrainableParamsModifier", {"params": "__ALL__", "trainable": False})
    found = staged([frozen])
    training = found.recipe.stages[0].training
    assert training
    assert training.freeze == ()
    assert "__ALL__: a stage with all of it frozen" in left(found)["TrainableParamsModifier"]


def test_one_text_is_one_name() -> None:
    quantizer = {"start_epoch": 0.0, "submodules": "bert.encoder", "exclude_module_types": "Conv1D"}
    found = staged([("QuantizationModifier", quantizer)])
    assert r"include=('^bert\\.encoder\\.',)" in found.recipe.stages[0].pipeline[0]
    told = left(found)["QuantizationModifier.exclude_module_types"]
    assert told == "Conv1D: exclude weights by name"


def test_a_second_distillation_is_listed() -> None:
    keys = [{"hardness": 0.5, "start_epoch": 0.0, "end_epoch": end} for end in (4.0, 2.0)]
    found = staged([("DistillationModifier", each) for each in keys])
    assert left(found)["DistillationModifier"] == "a stage has one; the first is taken"
    late = staged([("DistillationModifier", {"start_epoch": 5.0})])
    assert left(late) == {"DistillationModifier": "its epochs lie outside of its stage"}


def test_settings_without_a_place_in_time_are_listed() -> None:
    late = staged([("SetLearningRateModifier", {"start_epoch": 5.0, "learning_rate": 1e-3})])
    assert left(late) == {"SetLearningRateModifier": "its epochs lie outside of its stage"}
    early = {"start_epoch": 2.0, "disable_quantization_observer_epoch": 1.0, "submodules": "bert"}
    told = left(staged([("QuantizationModifier", early)]))
    assert "1: observers learn" in told["QuantizationModifier.disable_quantization_observer_epoch"]
    kind = "LearningRateModifier"
    rate, _, _, listed = rated((kind, {"lr_class": "StepLR", "init_lr": 0.0}))
    assert rate == 5e-5
    assert listed[f"{kind}.lr_class"].endswith("is not here; sparsefx's default holds")


def test_frozen_for_a_part_of_a_stage_is_listed() -> None:
    settings = {"params": ["re:.*embeddings.*"], "trainable": False, "start_epoch": 0.0}
    kind = "TrainableParamsModifier"
    part = staged([(kind, {**settings, "end_epoch": 1.0})])
    assert part.recipe.stages[0].training
    assert part.recipe.stages[0].training.freeze == ()
    assert "epochs 0 to 1: a stage freezes from its start to its end" in left(part)[kind]
    whole = staged([(kind, {**settings, "end_epoch": -1.0, "params_strict": True})])
    assert whole.recipe.stages[0].training
    assert whole.recipe.stages[0].training.freeze == ("^.*embeddings.*",)
    assert left(whole).keys() == {f"{kind}.params_strict"}


@pytest.mark.parametrize(
    ("item", "where", "told"),
    [
        (ramp(start_epoch="zero"), "GMPruningModifier.start_epoch", "number, found 'zero'"),
        (ramp(names=3), "GMPruningModifier.params", "expected a list of names, found 3"),
        (
            ("DistillationModifier", {"hardness": 1.5}),
            "DistillationModifier.hardness",
            "expected a number of 0 to 1, found 1.5",
        ),
    ],
)
def test_wrong_values_are_refused_with_their_place(item: Item, where: str, told: str) -> None:
    with pytest.raises(RecipeError, match=told) as caught:
        staged([item])
    assert (caught.value.who, caught.value.where) == ("import", where)


def test_flags_of_an_expression_stand_before_all_else() -> None:
    found = staged([ramp(["re:(?i).*QUERY.weight"])])
    assert zeros(run(found), r"query\.weight$") == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("names", [(), ("quantize-prepare.weight",)])
def test_a_quantized_model_ends_in_integers_whatever_stage_is_last(names: tuple[str, ...]) -> None:
    ramps = [ramp(list(names))] if names else []
    found = staged([*ramps, ("QuantizationModifier", {"start_epoch": 3.0})], [])
    folds = ("fold-masks",) if names else ()
    ends = (*folds, "quantize-convert", "quantize-embeddings", "simplify{inference=True}")
    assert [stage.after for stage in found.recipe.stages][-2:] == [(), ends]
    assert staged(ramps).recipe.stages[0].after == folds  # a name tells nothing of integers


def function(start: float, end: float, init: float, final: float) -> Item:
    span = {"start_epoch": start, "end_epoch": end, "lr_func": "linear"}
    return ("LearningRateFunctionModifier", {**span, "init_lr": init, "final_lr": final})


def rated(*items: Item) -> tuple[float, str, Any, dict[str, str]]:
    """Import a run of 10 epochs; return its rate, its schedule and what is listed."""
    text = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 10}\n"
    text += "".join(f"  - !{kind} {json.dumps(settings)}\n" for kind, settings in items)
    found = import_text(text, name="rated")
    training = found.recipe.stages[0].training
    assert training
    schedule = training.schedule
    return training.optimizer.learning_rate, schedule.kind, schedule.warmup, left(found)


def test_a_rise_from_zero_is_the_warmup() -> None:
    rise, fall = function(0, 1, 0.0, 1e-4), function(1, 10, 1e-4, 0.0)
    assert rated(rise, fall) == (1e-4, "linear", "10%", {})
    rate, kind, warmup, listed = rated(function(0, 1, 1e-5, 1e-4), fall)
    assert (rate, kind, warmup) == (1e-4, "constant", 0)
    assert "from 1e-05 to 0.0001: a rate rises" in listed["LearningRateFunctionModifier.init_lr"]
    assert "a stage has one schedule" in listed["LearningRateFunctionModifier"]
    alone = rated(function(0, 10, 0.0, 1e-4))
    assert alone[:3] == (1e-4, "constant", 0)


def test_a_negative_rate_is_refused_with_its_place() -> None:
    item = ("SetLearningRateModifier", {"start_epoch": 0.0, "learning_rate": -1e-4})
    with pytest.raises(RecipeError, match=r"0 or more, found -0\.0001") as caught:
        rated(item)
    assert caught.value.where == "SetLearningRateModifier.learning_rate"
    assert "a stage needs a rate" in rated((item[0], {"learning_rate": 0.0}))[3][item[0]]


HEAD = "modifiers:\n  - !EpochRangeModifier {start_epoch: 0, end_epoch: 3}\n"


@pytest.mark.parametrize(
    "text",
    [HEAD, HEAD + "---\n", "---\n" + HEAD, f"---\n{HEAD}---\n# Title\n", f"%YAML 1.1\n---\n{HEAD}"],
)
def test_dashes_at_the_end_begin_nothing(text: str) -> None:
    assert import_text(text, name="dashes").recipe.stages[0].training


def test_two_documents_are_told() -> None:
    with pytest.raises(RecipeError, match="not YAML: but found another document"):
        import_text(HEAD + "---\ndoc two: 1\n", name="two")
