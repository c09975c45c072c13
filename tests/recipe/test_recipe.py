"""Recipes: round trip, every refusal with its path, references and passes checked beforehand."""

import json
from pathlib import Path

import pytest

from sparsefx.errors import RecipeError, SpecError
from sparsefx.passes.distill.distill import Distill
from sparsefx.pipeline import Pipeline
from sparsefx.properties import Property
from sparsefx.recipe import (
    DataSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    Stage,
    Training,
)
from sparsefx.recipe.amounts import parse_pipeline, resolve
from sparsefx.recipe.passes import names_teacher_inputs

GOOD = """
name: two-stages
description: Fine-tune, then go on.
source: nowhere
seed: 3
data: {max_length: 64, batch_size: 16}
stages:
  - name: dense
    training:
      epochs: 3
      optimizer: {learning_rate: 1e-4}
      freeze: [embeddings]
  - name: second
    start: dense
    teacher: dense
    pipeline:
      - fixpoint{passes='simplify',max_rounds=2}
      - fixpoint{passes='simplify'}
    training: {steps: 10, schedule: {kind: rewind, begin: 0, end: 50%, every: 1%}}
    after: fixpoint{passes='simplify'}
    evaluate: false
"""


def stages(text: str) -> str:
    """A recipe with the given text as its first stage."""
    return f"name: a\nstages:\n- {{name: x, {text}}}"


EXAMPLES = "docs/recipes.md has all keys, and shipped recipes are examples"
LABELLED = "teacher: model, pipeline: 'distill{labels=0.5}', training: {steps: 1"
REFUSED = [
    ("name: a", "stages", "this key is missing", ""),
    ("name: a\nstages: []", "stages", "at least one stage", ""),
    ("name: a\nstages: 5", "stages", "found 5", ""),
    ("nam: a\nstages: [{name: x}]", "name", "missing", ""),
    (stages("trainin: {}"), "stages[0].trainin", "not known", "did you mean 'training'?"),
    (stages("training: {epochs: 1, optimizer: {lr: 1}}"), "stages[0].training.optimizer.lr",
     "not known", "it is called 'learning_rate' here"),
    (stages("training: {}"), "stages[0].training", "either epochs or steps", ""),
    (stages("training: {epochs: 1, steps: 1}"), "stages[0].training", "either epochs or steps", ""),
    (stages("training: {epochs: .nan}"), "stages[0].training.epochs", "finite", ""),
    (stages("training: {epochs: -1}"), "stages[0].training.epochs", "greater than 0", ""),
    (stages("training: {steps: 1, clip: lots}"), "stages[0].training.clip", "found 'lots'", ""),
    (stages("training: {steps: 1, freeze: ['(']}"), "stages[0].training.freeze[0]", "regular", ""),
    (stages("training: {steps: 1, schedule: {warmup: ten}}"),
     "stages[0].training.schedule.warmup", "such as '10%', got 'ten'", ""),
    (stages("training: {steps: 1, schedule: {warmup: -1}}"),
     "stages[0].training.schedule.warmup", "at least 0", ""),
    (stages("training: {steps: 1, schedule: {kind: linear, end: 5}}"),
     "stages[0].training.schedule", "only the kind 'rewind'", ""),
    (stages("training: {steps: 1, evaluate_every: 0}"),
     "stages[0].training.evaluate_every", "at least one step, got 0; null is never", ""),
    (stages("training: {steps: 1, evaluate_every: 0%}"),
     "stages[0].training.evaluate_every", "at least one step, got '0%'", ""),
    (stages("training: {steps: 1, evaluate_every: 120%}"),
     "stages[0].training.evaluate_every", "up to 100%, got '120%'", ""),
    (stages("training: {steps: 1, precision: int4}"), "stages[0].training.precision", "'bf16'", ""),
    (stages("pipeline: 7"), "stages[0].pipeline", "found 7", ""),
    ("name: a\nstages:\n- name: a/b", "stages[0].name", "pattern", ""),
    ("name: a\nname: b", "line 2, column 1", "stands here twice", ""),
    ("name: [", "line 1, column 8", "not YAML", ""),
    (stages("pipeline: [simplify, fixpoint{passes=simplify}]"),
     "line 3, column 42", "not YAML", "a pass with options stands in quotes inside [...]"),
    ("- a", "", "it holds a list; expected keys with values", EXAMPLES),
    ("3", "", "it holds a number; expected keys with values", EXAMPLES),
    ("words alone", "", "it holds a text; expected keys with values", EXAMPLES),
    ("", "", "it is empty", EXAMPLES),
    ("# nothing", "", "it is empty", EXAMPLES),
    ("name: x\n? [1]\n: 2", "line 2, column 3", "a key is a list or a mapping", ""),
    ("name: x\nstages: [1]", "stages[0]", "expected keys with values (found 1)", ""),
    ("name: x\nstages: 5", "stages", "expected a list (found 5)", ""),
]  # fmt: skip

UNCHECKED = [
    (stages("pipeline: fixpoin"), "stages[0].pipeline", "there is no pass", "did you mean"),
    (
        stages("after: 'fixpoint{passes=simplify,max_round=1}'"),
        "stages[0].after",
        "no option",
        "did you mean",
    ),
    (
        stages("pipeline: 'fixpoint{passes=simplify,max_rounds=0}'"),
        "stages[0].pipeline",
        "at least 1",
        "",
    ),
    (
        stages("pipeline: 'fixpoint{passes=simplify,max_rounds=10%}'"),
        "stages[0].pipeline",
        "does not train",
        "",
    ),
    (
        stages(f"{LABELLED}, label_weight: 0.5}}"),
        "stages[0].training.label_weight",
        "0.5 has no effect: 'distill' puts a loss against the labels in",
        "take label_weight out: the weight of the labels is an option of 'distill'",
    ),
    (stages("start: y"), "stages[0].start", "neither an earlier stage", "known: model"),
    (stages("start: x"), "stages[0].start", "neither an earlier stage", "known: model"),
    (stages("teacher: dens"), "stages[0].teacher", "neither an earlier stage", "folder"),
    ("name: a\nstages: [{name: x}, {name: x}]", "stages[1].name", "is taken", ""),
    ("name: a\nstages: [{name: model}]", "stages[0].name", "is taken", ""),
]


def test_a_recipe_is_read() -> None:
    recipe = Recipe.parse(GOOD)
    recipe.check()
    dense, second = recipe.stages
    assert recipe.data == DataSettings(max_length=64, batch_size=16)
    assert dense.training is not None
    assert dense.training.optimizer == OptimizerSettings(learning_rate=1e-4)
    assert dense.training.freeze == ("embeddings",)
    assert second.pipeline == (
        "fixpoint{passes='simplify',max_rounds=2}",
        "fixpoint{passes='simplify'}",
    )
    assert second.after == ("fixpoint{passes='simplify'}",)
    assert recipe.start_of(0) == "model"
    assert recipe.start_of(1) == "dense"
    assert recipe.stage("second") is second
    with pytest.raises(RecipeError, match="did you mean 'second'"):
        recipe.stage("secnd")


def test_yaml_and_python_are_equal() -> None:
    recipe = Recipe(
        name="two-stages",
        seed=3,
        data=DataSettings(max_length=64, batch_size=16),
        stages=(
            Stage(
                name="dense",
                training=Training(
                    epochs=3,
                    optimizer=OptimizerSettings(learning_rate=1e-4),
                    freeze=("embeddings",),
                ),
            ),
            Stage(
                name="second",
                start="dense",
                teacher="dense",
                pipeline=Pipeline.parse(
                    "fixpoint{passes=simplify,max_rounds=2},fixpoint{passes=simplify}"
                ),  # type: ignore[arg-type]  # validated
                training=Training(
                    steps=10,
                    schedule=ScheduleSettings(kind="rewind", begin=0, end="50%", every="1%"),
                ),
                after=("fixpoint{passes='simplify'}",),
                evaluate=False,
            ),
        ),
    )
    read = Recipe.parse(GOOD)
    assert recipe.settings() == read.settings()
    assert recipe.fingerprint() == read.fingerprint()
    assert Recipe.parse(recipe.to_yaml()) == recipe
    assert Recipe.parse(read.to_yaml()) == read


def test_what_is_for_readers_does_not_change_the_fingerprint() -> None:
    recipe = Recipe.parse(GOOD)
    told = recipe.model_copy(update={"description": "another"})
    seeded = recipe.model_copy(update={"seed": 4})
    assert told.fingerprint() == recipe.fingerprint() != seeded.fingerprint()


@pytest.mark.parametrize(("text", "where", "why", "hint"), REFUSED)
def test_what_is_wrong_is_refused_with_its_path(text: str, where: str, why: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text)
    assert caught.value.where == where
    assert why in caught.value.why
    assert caught.value.hint == hint


@pytest.mark.parametrize(("text", "where", "why", "hint"), UNCHECKED)
def test_references_and_passes_are_checked(text: str, where: str, why: str, hint: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(text).check()
    assert caught.value.where == where
    assert why in caught.value.why
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        LABELLED,
        f"{LABELLED}, label_weight: 0",
        LABELLED.replace("{labels=0.5}", "") + ", label_weight: 0.5",
    ],
)
def test_one_weight_of_the_labels_is_taken(text: str) -> None:
    Recipe.parse(stages(f"{text}}}")).check()


@pytest.mark.parametrize("key", ["steps", "epochs", "clip", "batch_size"])
def test_a_truth_value_is_no_number(key: str) -> None:
    given = {"steps": "2"} if key not in ("steps", "epochs") else {}
    training = ", ".join(f"{name}: {value}" for name, value in (given | {key: "yes"}).items())
    with pytest.raises(RecipeError, match="a truth value does not fit") as caught:
        Recipe.parse(f"name: a\nstages: [{{name: x, training: {{{training}}}}}]")
    assert caught.value.where == f"stages[0].training.{key}"


@pytest.mark.parametrize(
    ("betas", "why"),
    [
        ("[1.5, 0.9]", "less than 1"),
        ("[0.9, 1.0]", "less than 1"),
        ("[yes, 0.9]", "a truth value does not fit"),
    ],
)
def test_betas_that_no_optimizer_takes_are_refused(betas: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why) as caught:
        Recipe.parse(f"name: a\nstages: [{{name: x, training: {{optimizer: {{betas: {betas}}}}}}}]")
    assert caught.value.where.startswith("stages[0].training.optimizer.betas")


def test_all_findings_are_in_one_error() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse("name: a\nseed: -1\nstages: [{nam: x}]")
    assert caught.value.where == "seed"
    assert "also stages[0].name: this key is missing" in caught.value.why
    assert "also stages[0].nam: this key is not known" in caught.value.why


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert Recipe.load(path) == Recipe.parse(GOOD)
    path.write_text(stages("start: y"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"mine.yaml at stages\[0\].start"):
        Recipe.load(path)
    path.write_bytes(b"name: \xff")
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        Recipe.load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="there is no recipe 'none'"):
        Recipe.load("none")


def test_schema_names_every_key() -> None:
    schema = Recipe.json_schema()
    text = json.dumps(schema)
    assert schema["additionalProperties"] is False
    for model in (Recipe, Stage, Training, OptimizerSettings, ScheduleSettings, DataSettings):
        for name, field in model.model_fields.items():
            assert f'"{name}"' in text
            assert field.description, f"{model.__name__}.{name} has no docstring"


@pytest.mark.parametrize("name", Recipe.names())
def test_shipped_recipes_are_right(name: str) -> None:
    recipe = Recipe.shipped(name)
    assert recipe.name == name
    assert recipe.description
    assert recipe.source
    assert Recipe.parse(recipe.to_yaml()) == recipe


@pytest.mark.parametrize("name", Recipe.names())
def test_shipped_recipes_leave_the_loss_of_logits_to_the_task(name: str) -> None:
    for stage in Recipe.shipped(name).stages:
        for item in parse_pipeline(stage.pipeline, 100).passes:
            if isinstance(item, Distill):
                assert item.logits_loss in ("auto", "cosine")


def test_shares_become_steps() -> None:
    assert [resolve(amount, 200) for amount in (7, "0%", "0.1%", "65%", "100 %")] == [
        7, 0, 1, 130, 200,
    ]  # fmt: skip
    pipeline = parse_pipeline(["fixpoint{passes='simplify',max_rounds= 65%}", "simplify"], 200)
    assert str(pipeline) == "fixpoint{passes='simplify',max_rounds=130},simplify"
    with pytest.raises(SpecError):
        parse_pipeline(["fixpoint{passes=simplify,max_rounds=%}"], 200)


def test_a_pass_without_its_teacher_is_found_beforehand() -> None:
    training = Training(steps=1)
    dense = Stage(name="dense", training=training)
    alone = Stage(name="sparse", pipeline=("distill",), training=training)
    with pytest.raises(RecipeError, match="'distill' needs a teacher") as raised:
        Recipe(name="mine", stages=(dense, alone)).check()
    assert raised.value.where == "stages[1].pipeline"
    taught = Stage(name="last", pipeline=("distill",), teacher="dense", training=training)
    Recipe(name="mine", stages=(dense, taught)).check()


def test_a_share_of_more_than_all_steps_is_refused() -> None:
    with pytest.raises(RecipeError, match="more than all steps"):
        parse_pipeline(["fixpoint{passes=simplify,max_rounds=150%}"], 40)


@pytest.mark.parametrize("value", ["abc", "'0.5'", "[1, 2]"])
def test_an_option_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(SpecError, match=r"max_rounds=.*: expected a whole number"):
        Pipeline.parse(f"fixpoint{{passes=simplify,max_rounds={value}}}")


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        (
            "magnitude-prune{begin=80%,end=50%}",
            "magnitude-prune: end=50%: expected a step >= begin=80%",
        ),
        ("magnitude-prune{end=50%,frequency=1.5}", "frequency=1.5: expected a whole number"),
        (
            "simplify,fold-masks{on_no_match=error},magnitude-prune{end=50%,x=1}",
            "'magnitude-prune' has no option 'x'",
        ),
    ],
)
def test_shares_stand_in_messages_as_they_were_written(passes: str, message: str) -> None:
    stage = Stage(name="only", pipeline=(passes,), training=Training(steps=10))
    with pytest.raises(RecipeError) as raised:
        Recipe(name="mine", stages=(stage,)).check()
    assert message in raised.value.why
    shown, caret = raised.value.why.splitlines()[1:3]
    assert shown.strip() == passes
    if "x=1" in passes:
        assert shown[caret.index("^") :].startswith("x=1")


def test_a_wrong_order_shows_shares_as_they_were_written() -> None:
    later = ("magnitude-prune{end=50%}", "magnitude-prune{end=50%}")
    stage = Stage(name="only", pipeline=("simplify{inference=True}", *later), training=None)
    stage = stage.model_copy(update={"training": Training(steps=10)})
    with pytest.raises(RecipeError, match="50%") as raised:
        Recipe(name="mine", stages=(stage,)).check(frozenset({Property.QUANTIZED}))
    assert "50000" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("distill{teacher_inputs=('token_type_ids',)}", True),
        ("distill{teacher_inputs=()}", False),
        ("magnitude-prune{end=50%,include=('teacher_inputs',)}", False),
        ("distill", False),
    ],
)
def test_inputs_of_a_teacher_are_those_that_an_option_names(text: str, expected: bool) -> None:
    assert names_teacher_inputs(["simplify", text], 8) is expected
