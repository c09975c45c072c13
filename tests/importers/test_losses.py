"""Configurations of which nothing is lost in silence, or told as carried over when it is not."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sparsefx.errors import RecipeError
from sparsefx.huggingface import capture_tokens
from sparsefx.importers.files import import_text
from sparsefx.importers.result import Imported
from sparsefx.recipe.amounts import parse_pipeline
from tests.importers.counting import left, trained, zeros
from tests.tiny_models import tiny

RAMP_1 = "{prune_type: basic_magnitude, names: [NAME], target_sparsity: 0.8}"
LOCK_1 = "{prune_type: pattern_lock, names: [b.weight]}"


def one(*pruners: str, train: str = "{end_epoch: 4}") -> Imported:
    """Import a configuration of Neural Compressor 1.x."""
    body = "".join(f"\n        - !Pruner {each}" for each in pruners)
    return import_text(
        f"pruning:\n  train: {train}\n  approach:\n    weight_compression:\n      end_epoch: 4\n"
        f"      pruners:{body}\n",
        name="one",
    )


def two(*pruners: dict[str, Any]) -> Imported:
    """Import a configuration of Neural Compressor 2.x."""
    shared = {"pruning_type": "magnitude", "pattern": "1x1", "pruning_scope": "local"}
    shared["pruning_op_types"] = "Linear"
    return import_text(json.dumps({**shared, "pruners": list(pruners)}), name="two")


# -- Intel Neural Compressor ----------------------------------------------------------------------


def test_a_lock_beside_a_ramp_of_version_1_is_listed() -> None:
    ramp = RAMP_1.replace("NAME", "bert.encoder.layer.0.output.dense.weight")
    found = one(ramp, LOCK_1)
    assert [text.split("{")[0] for text in found.recipe.stages[0].pipeline] == ["magnitude-prune"]
    assert left(found)["pruners[1] (pattern_lock)"].startswith("a lock beside a pruner with a ramp")
    assert not any("pattern-lock" in line for line in found.carried)
    pipeline = parse_pipeline(found.recipe.stages[0].pipeline, 8)
    program = trained(pipeline.run(capture_tokens(tiny("bert-cls"))), 8)
    assert zeros(program, r"layer\.0\.output\.dense\.weight$") == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("version", [1, 2])
def test_a_second_lock_is_not_told_as_carried_over(version: int) -> None:
    lock = {"pruning_type": "pattern_lock"}
    found = one(LOCK_1, LOCK_1) if version == 1 else two(lock, lock)
    assert len(found.carried) == len(found.recipe.stages[0].pipeline) == 1
    assert "pruners[1] (pattern_lock)" in left(found)


@pytest.mark.parametrize(
    ("name", "matches", "other"),
    [
        ("query$|key$", "a.query.weight", "a.query_2.weight"),
        ("(query|key$)", "a.key.weight", "a.key.dense.weight"),
        (r"key\Z", "a.key.weight", "a.key.dense.weight"),
        (r"a[$]b|c\$", "c$.weight", "c.weight"),
    ],
)
def test_where_a_name_of_a_module_ends(name: str, matches: str, other: str) -> None:
    found = two({"excluded_op_names": [name]})
    (item,) = parse_pipeline(found.recipe.stages[0].pipeline, 10).passes
    (expression,) = getattr(item, "exclude")  # noqa: B009  # of the pass that it is
    assert re.search(expression, matches)
    assert not re.search(expression, other)


def test_pruners_that_may_share_a_weight_are_told() -> None:
    wide, close = {"op_names": [".*"], "target_sparsity": 0.5}, {"op_names": [".*query"]}
    told = left(two(wide, close))
    assert told.pop("the run")
    ((where, reason),) = told.items()
    assert where == "sparse: magnitude-prune of '.*query'"
    assert reason == "a weight has one mask: of '.*', where an earlier pass takes it"
    spared = {**wide, "excluded_op_names": [".*query"]}
    assert left(two(spared, close)).keys() == {"the run"}
    assert left(two({**wide, "target_sparsity": 0.9}, close)).keys() == {"the run"}  # as both wish
    named = (RAMP_1.replace("NAME", "a.weight"), RAMP_1.replace("NAME", "b.weight"))
    both = one(named[0], named[1].replace("0.8", "0.5"))
    assert left(both) == {}
    assert both.recipe.stages[0].after == ("fold-masks",)


@pytest.mark.parametrize("names", [["key"], ["key", "query"], ["query", "key"]])
@pytest.mark.parametrize("version", [1, 2])
def test_a_second_pruner_of_the_same_weights_is_not_told_as_carried_over(
    version: int, names: list[str]
) -> None:
    again = sorted(names)
    if version == 1:
        found = one(f"{{names: {names}}}", f"{{names: {again}, target_sparsity: 0.5}}")
    else:
        found = two({"op_names": names}, {"op_names": again, "target_sparsity": 0.5})
    assert len(found.carried) == len(found.recipe.stages[0].pipeline) == 1
    listed = left(found)
    listed.pop("the run", None)
    ((where, reason),) = listed.items()
    assert where.startswith("pruners[1] (")
    assert reason == "an earlier one prunes the same weights; a weight has one mask here"


@pytest.mark.parametrize("key", ["target_sparsity", "max_sparsity_ratio_per_op"])
def test_shares_that_are_no_numbers_are_refused_with_their_place(key: str) -> None:
    with pytest.raises(RecipeError, match="expected a number, found 'most'") as caught:
        two({key: "most"})
    assert caught.value.where == f"pruners[0].{key}"


def test_an_optimizer_is_carried_over_or_listed() -> None:
    given = "{optimizer: {AdamW: {learning_rate: 3e-5, weight_decay: 0.1, eps: 1e-6}, SGD: {}}}"
    found = one(RAMP_1, train=given)
    training = found.recipe.stages[0].training
    assert training
    assert (training.optimizer.learning_rate, training.optimizer.weight_decay) == (3e-5, 0.1)
    assert left(found).keys() == {
        "pruning.train.optimizer.AdamW.eps",
        "pruning.train.optimizer.SGD",
    }
    given = "{optimizer: {SGD: {learning_rate: 0.1, momentum: 0.9, weight_decay: 0.1}}}"
    listed = left(one(RAMP_1, train=given))
    sgd = "pruning.train.optimizer.SGD"
    assert listed.keys() == {f"{sgd}.momentum", f"{sgd}.weight_decay"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{optimizer: {AdamW: {learning_rate: -1e-4}}}", "AdamW.learning_rate: expected"),
        (
            "{optimizer: {AdamW: {learning_rate: fast}}}",
            "of 0 or more, found 'fast'",
        ),
        ("{optimizer: {AdamW: {learning_rate: 0}}}", "a learning rate of 0 trains nothing"),
        ("{optimizer: AdamW}", "pruning.train.optimizer: expected keys with values, found 'AdamW'"),
    ],
)
def test_wrong_optimizers_are_refused_with_their_place(given: str, told: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)) as caught:
        one(RAMP_1, train=given)
    assert caught.value.who == "import"


def sections(version: int, train: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration with a section on training."""
    kinds = {1: {"prune_type": "basic_magnitude"}, 2: {"pruning_type": "magnitude"}}
    approach = {"weight_compression" if version == 1 else "weight_compression_v2": kinds[version]}
    return {"pruning": {"train": train, "approach": approach}}


def of_section(version: int, train: dict[str, Any]) -> Imported:
    """Import a configuration whose section on training is given."""
    return import_text(json.dumps(sections(version, train)), name="section")


@pytest.mark.parametrize("key", ["epoch", "end_epoch"])
@pytest.mark.parametrize("version", [1, 2])
def test_epochs_may_be_written_as_a_text(version: int, key: str) -> None:
    for given, epochs in (("7", 7.0), (8.0, 8.0), (None, {1: 4.0, 2: 3.0}[version])):
        training = of_section(version, {key: given}).recipe.stages[0].training
        assert training
        assert training.epochs == epochs
    for given in ("many", True, -1):
        with pytest.raises(RecipeError, match=f"0 or more, found {given!r}") as caught:
            of_section(version, {key: given})
        assert (caught.value.who, caught.value.where) == ("import", f"pruning.train.{key}")


def test_a_distillation_is_listed_with_what_is_nearest() -> None:
    given = "{criterion: {KnowledgeDistillationLoss: {temperature: 2.0}, CrossEntropyLoss: {}}}"
    listed = left(one(RAMP_1, train=given))
    assert "distill{logits=...,temp" in listed["pruning.train.criterion.KnowledgeDistillationLoss"]
    assert listed["pruning.train.criterion.CrossEntropyLoss"] == "{}: has no counterpart"
    told = left(one(RAMP_1, train="{criterion: distillation}"))
    assert told == {"pruning.train.criterion": "'distillation' has no counterpart"}


@pytest.mark.parametrize("version", [1, 2])
def test_what_stands_beside_the_pruners_is_listed(version: int) -> None:
    content = {**sections(version, {"start_epoch": 2, "epoch": 4}), "target_sparsity": 0.5}
    content["pruning"]["extra"] = content["pruning"]["approach"]["other"] = {}
    listed = left(import_text(json.dumps(content), name="beside"))
    beside = {"pruning.train.start_epoch", "pruning.approach.other", "pruning.extra"}
    assert beside | {"target_sparsity"} <= listed.keys()
    assert "pruning.train.start_epoch" not in left(of_section(version, {"start_epoch": 0}))


@pytest.mark.parametrize("version", [1, 2])
def test_a_criterion_that_is_not_here_is_told_alike_in_both_versions(version: int) -> None:
    ramp, key = RAMP_1.replace("NAME", "a.weight"), "prune_type" if version == 1 else "pruning_type"
    for kind, told in (
        ("group_lasso", "reweighted-l1 is nearest, a penalty on single weights"),
        ("own", "magnitude and pattern_lock are carried over"),
    ):
        found = one(ramp, f"{{prune_type: {kind}}}") if version == 1 else two({}, {key: kind})
        assert left(found)[f"pruners[1].{key}"] == f"the criterion {kind!r} is not here; {told}"


def test_one_name_is_a_list_of_one() -> None:
    found = one("{names: a.weight}")
    assert r"include=('^a\\.weight$',)" in found.recipe.stages[0].pipeline[0]
    with pytest.raises(RecipeError, match="expected a list of names, found 3") as caught:
        one("{names: 3}")
    assert caught.value.where == "pruners[0].names"


def test_a_ramp_at_the_end_of_its_run_is_not_one_cut() -> None:
    with pytest.raises(RecipeError, match="it is the end of the run of 4 epochs"):
        one("{start_epoch: 4, end_epoch: 4}")


# -- Model-Compression-Research-Package -----------------------------------------------------------

RESEARCH = {
    "pruning_fn": "unstructured_magnitude",
    "pruning_fn_default_kwargs": {"target_sparsity": 0.85},
}


@pytest.mark.parametrize(("given", "exclude"), [("classifier", ("classifier",)), (None, ())])
def test_one_name_of_the_research_package_is_a_list_of_one(given: Any, exclude: Any) -> None:
    found = import_text(json.dumps({**RESEARCH, "not_to_prune": given}), name="research")
    (item,) = parse_pipeline(found.recipe.stages[0].pipeline, 10).passes
    assert vars(item)["exclude"] == exclude
    names = {"quantization_begin": 0, "not_to_quantize": given, "not_to_requantize_output": given}
    (item,) = parse_pipeline(
        import_text(json.dumps(names), name="q").recipe.stages[0].pipeline, 10
    ).passes
    assert vars(item)["exclude"] == exclude
    assert vars(item)["requantize"] == ("^(?!.*(?:classifier))" if given else "all")


@pytest.mark.parametrize(
    ("changed", "where", "told"),
    [
        ({"not_to_prune": ["(classifier"]}, "not_to_prune", "is not a regular expression"),
        ({"not_to_prune": 3}, "not_to_prune", "expected a list of names, found 3"),
        ({"pruning_fn": ["a"]}, "pruning_fn", "the pruning method ['a']"),
        ({"pruning_fn_default_kwargs": [0.85]}, "pruning_fn_default_kwargs", "keys with values"),
        (
            {"pruning_fn_default_kwargs": {}},
            "pruning_fn_default_kwargs.target_sparsity",
            "expected a number, found None",
        ),
    ],
)
def test_mistakes_of_the_research_package_have_a_place(
    changed: dict[str, Any], where: str, told: str
) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)) as caught:
        import_text(json.dumps({**RESEARCH, **changed}), name="research", who="file.json")
    assert (caught.value.who, caught.value.where) == ("file.json", where)
