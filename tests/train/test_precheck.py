"""What a session refuses before its first step."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from sparsefx.errors import (
    DataError,
    PassError,
    RecipeError,
    SparsefxError,
    TrainingError,
)
from sparsefx.frontend.capture import capture
from sparsefx.passbase import Pass, PassContext, PassReport
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import Task
from sparsefx.train.evaluation import SessionData
from sparsefx.train.events import Event, StepDone
from sparsefx.train.session import Session
from tests.train import tiny_run
from tests.train.tiny_run import run, two_stages

ONE = """
name: one
data: {max_length: 16, batch_size: 8}
stages:
- {name: one, training: {steps: 1, precision: fp32}}
"""


VALUES = """
name: values
data: {max_length: 16, batch_size: 8}
stages:
- name: one
  teacher: model
  pipeline: distill
  training: {steps: 4, data: labelled+unlabelled, precision: fp32, accumulate: 1}
  after: strip-distillation
"""


def refused(recipe: Recipe, folder: Path, **options: Any) -> SparsefxError:
    """Return the error; nothing was trained, and another recipe can use the folder."""
    events: list[Event] = []
    with pytest.raises(SparsefxError) as caught:
        run(recipe, folder, listeners=[events.append], **options)
    assert events == []
    assert not folder.exists()
    return caught.value


def regression() -> dict[str, Any]:
    texts = tiny_run.texts(16, 0)
    values = tuple(len(text) / 20 for text in texts)
    examples = Examples("drawn", texts, labels=values)
    splits = {"train": examples, "test": examples}
    task = Task("length", "regression", (), "pearson_spearman", splits)
    return {"model": tiny_run.model(1), "data": SessionData(task, tiny_run.tokenizer())}


# -- regression ----------------------------------------------------------------------------------


def test_a_regression_is_distilled_by_squared_errors(tmp_path: Path) -> None:
    result = run(two_stages(), tmp_path / "run", **regression())
    (entry,) = (each for each in result.program.history if each.spec == "distill")
    assert "so logits_loss is 'mse'" in entry.notes[0]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_values_count_beside_texts_without_any(accumulate: int, tmp_path: Path) -> None:
    given = regression()
    more = Examples("more", tiny_run.texts(16, 1))
    data = replace(given["data"], unlabelled=more)
    recipe = Recipe.parse(VALUES.replace("accumulate: 1", f"accumulate: {accumulate}"))
    steps: list[Event] = []
    run(recipe, tmp_path / "run", model=given["model"], data=data, listeners=[steps.append])
    terms = [event.terms for event in steps if isinstance(event, StepDone)]
    assert len(terms) == 4
    assert all(each["labels"] > 0 and math.isfinite(each["labels"]) for each in terms)


def test_soft_targets_of_one_value_are_refused(tmp_path: Path) -> None:
    error = refused(two_stages("distill{logits_loss='kl'}"), tmp_path / "run", **regression())
    assert isinstance(error, PassError)
    assert "its soft targets are always 1" in error.why
    assert error.who == "stage student, pipeline: distill"


@dataclass(frozen=True)
class Own(Pass):
    """Stays active, as a pass of a script does that learns."""

    name: ClassVar[str] = "own"

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        program.active = (*program.active, self)
        return PassReport(1)

    def after_step(self, program: Program, step: int) -> None:
        """Learn nothing."""


def test_an_active_pass_that_no_package_names_is_refused(tmp_path: Path) -> None:
    model = Pipeline((Own(),)).run(tiny_run.program())
    error = refused(Recipe.parse(ONE), tmp_path / "run", model=model)
    assert error.why.startswith("the active pass 'own' of the model is no installed one")
    assert error.hint.startswith("name Own by an entry point")


# -- schedules -----------------------------------------------------------------------------------

REWIND = """
name: rewound
data: {max_length: 16, batch_size: 8}
stages:
- name: one
  pipeline: FIRST
  training: {steps: 2, precision: fp32}
- name: two
  training: {steps: 4, precision: fp32, schedule: {kind: rewind, warmup: 0}}
"""


def test_rewinding_without_pruning_is_refused(tmp_path: Path) -> None:
    error = refused(Recipe.parse(REWIND.replace("FIRST", "set-dropout")), tmp_path / "run")
    assert error.who == "stage two, training: schedule"
    assert "'rewind' follows a pruning pass, and none is active in this stage" in error.why


def test_rewinding_may_follow_a_ramp_of_an_earlier_stage(tmp_path: Path) -> None:
    ramp = "magnitude-prune{sparsity=0.5,end=4,frequency=1}"
    result = run(Recipe.parse(REWIND.replace("FIRST", f'"{ramp}"')), tmp_path / "run")
    assert result.stage("two").sparsity == pytest.approx(0.5, abs=0.01)


# -- teachers and heads ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "distill", "why"),
    [
        ({"num_labels": 3}, "distill", "another head"),
        ({"vocab_size": 50}, "distill", "another vocabulary"),
        ({"num_labels": 3}, "distill{logits=0,hidden=1}", ""),
        ({"num_attention_heads": 4}, "decompose-attention,distill{scores=1}", "equal numbers of h"),
    ],
)
def test_a_teacher_has_to_fit(
    changed: dict[str, Any], distill: str, why: str, tmp_path: Path
) -> None:
    model = tiny_run.model(**{"outputs": changed.pop("num_labels", 2), **changed})
    teacher = capture(model, tiny_run.example_inputs(tiny_run.data()))
    recipe = two_stages(distill, str(teacher.save(tmp_path / "teacher")))
    if not why:
        assert run(recipe, tmp_path / "run").stage("student").steps == 4
        return
    error = refused(recipe, tmp_path / "run")
    assert why in error.why
    assert error.who.startswith("stage student, pipeline")


MASKED = """
name: masked
data: {max_length: 16, batch_size: 8}
stages:
- {name: dense, training: {steps: 2, precision: fp32}}
- name: hidden
  teacher: dense
  pipeline: "masked-lm{special=(0,1,2,3),mask_token=1}"
  training: {steps: 4, precision: fp32}
"""


@pytest.mark.parametrize("before", ["", "distill{logits=0,hidden=1},"])
def test_masked_lm_needs_its_head(before: str, tmp_path: Path) -> None:
    recipe = Recipe.parse(MASKED.replace("masked-lm", f"{before}masked-lm"))
    error = refused(recipe, tmp_path / "run")
    assert error.who == "stage hidden, pipeline: masked-lm"
    assert "no output predicts tokens; it returns logits" in error.why
    assert "run mlm-head before it" in error.hint


def test_masked_lm_of_a_model_that_has_its_head(tmp_path: Path) -> None:
    made = Pipeline.parse("mlm-head").run(tiny_run.program())
    model = Program.load(made.save(tmp_path / "model"))  # of whose shapes nothing is known yet
    result = run(Recipe.parse(MASKED), tmp_path / "run", model=model)
    assert result.stage("hidden").steps == 4


def test_a_head_for_each_token_is_refused(tmp_path: Path) -> None:
    made = Pipeline.parse("mlm-head,keep-outputs{outputs=mlm_logits}").run(tiny_run.program())
    error = refused(two_stages(), tmp_path / "run", model=made)
    assert isinstance(error, DataError)
    assert "each token, the output 'mlm_logits' of shape [batch, sequence, 12]" in error.why


@pytest.mark.parametrize(
    ("name", "given", "hint"),
    [
        ("recipe", "fine-tune", "give Recipe.load(file or name), or Recipe.parse(text)"),
        ("model", "folder", "load_pretrained(name or folder), or Program.load(folder)"),
        ("data", tiny_run.data().task, "give SessionData(task, tokenizer)"),
        ("listeners", print, "give a list of functions that take an event"),
        ("listeners", [3], "give a list of functions that take an event"),
    ],
)
def test_arguments_are_what_they_are_called(
    name: str, given: Any, hint: str, tmp_path: Path
) -> None:
    right = {"recipe": two_stages(), "model": tiny_run.program(), "data": tiny_run.data()}
    with pytest.raises(TrainingError) as caught:
        Session(**{**right, name: given}, folder=tmp_path / "run")
    assert caught.value.where == name
    assert caught.value.why.startswith(f"{name} is ")
    assert hint in caught.value.hint


@pytest.mark.parametrize(("outputs", "told"), [(2, []), (4, ["no class is output 2, 3;"])])
def test_outputs_without_a_class_are_told_once(
    outputs: int, told: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = Recipe.parse(ONE + ONE.splitlines()[-1].replace("name: one", "name: two"))
    run(recipe, tmp_path / "run", model=tiny_run.model(outputs=outputs))
    found = [each.getMessage() for each in caplog.records if "no class is" in each.getMessage()]
    assert len(found) == len(told)
    assert all(part in text for part, text in zip(told, found, strict=True))


def test_labels_have_to_fit_the_head(tmp_path: Path) -> None:
    data = tiny_run.data()
    train = data.task.split("train")
    labels = (*train.labels[:-1], 2) if train.labels else None
    wrong = Examples(train.origin, train.texts, labels=labels)
    task = Task("odd", "classification", ("a", "b", "c"), "accuracy",
                {"train": wrong, "test": data.task.split("test")})  # fmt: skip
    error = refused(two_stages(), tmp_path / "run", data=SessionData(task, data.tokenizer))
    assert isinstance(error, DataError)
    assert "label 2 is outside the range 0..1" in error.why


# -- amounts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passes", "training", "why"),
    [
        ("magnitude-prune{end=5}", "", "at work until step 5, and only 4 steps come"),
        ("quantize-prepare{begin=5}", "", "at work until step 5"),
        ("quantize-prepare{begin=10%,freeze=20%}", "", "never see a value"),
        ("magnitude-prune{end=100%}", "schedule: {kind: rewind}", "leave no step"),
        ("magnitude-prune", "schedule: {warmup: 5}", "5 steps of warm-up"),
        ("magnitude-prune", "freeze: [embedings]", "contains 'embedings'"),
        ("magnitude-prune", "label_weight: 0", "nothing to minimise"),
    ],
)
def test_amounts_have_to_be_reached(passes: str, training: str, why: str, tmp_path: Path) -> None:
    settings = ", ".join(filter(None, ("steps: 4", training)))
    recipe = Recipe.parse(
        "{name: two, data: {max_length: 16, batch_size: 8}, stages: ["
        "{name: dense, training: {steps: 2}},"
        f'{{name: sparse, pipeline: "{passes}", training: {{{settings}}}}}]}}'
    )
    recipe.check()
    error = refused(recipe, tmp_path / "run")
    assert why in str(error)
    assert "sparse" in str(error) or "stages[1]" in str(error)


@pytest.mark.parametrize("data", ["labelled", "unlabelled"])
@pytest.mark.parametrize(
    ("passes", "weight", "why"),
    [
        ("distill", ", label_weight: 0.3", "label_weight is 0.3, for a loss against the labels"),
        ("distill{labels=0.5}", "", "'distill' puts a loss against the labels"),
    ],
)
def test_a_loss_against_labels_needs_labels(
    data: str, passes: str, weight: str, why: str, tmp_path: Path
) -> None:
    given = tiny_run.data(unlabelled=16)
    if data == "labelled":  # those of the task, which here has labels to score on alone
        plain = Examples("drawn", tiny_run.texts(16, 0))
        given = SessionData(given.task.taught_on(plain), given.tokenizer)
    text = VALUES.replace("pipeline: distill", f"pipeline: {passes}")
    text = text.replace("data: labelled+unlabelled", f"data: {data}{weight}")
    error = refused(Recipe.parse(text), tmp_path / "run", data=given)
    assert isinstance(error, RecipeError)
    assert error.who == "stage one, training"
    assert why in error.why
    assert "the texts that are trained on have none" in error.why
    run(Recipe.parse(text.replace("{labels=0.5}", "").replace(weight, "")), tmp_path, data=given)


def test_a_ramp_may_end_in_a_later_stage(tmp_path: Path) -> None:
    recipe = Recipe.parse(
        "{name: two, data: {max_length: 16, batch_size: 8}, stages: ["
        '{name: one, pipeline: "magnitude-prune{end=4}", training: {steps: 2, precision: fp32}},'
        "{name: two, training: {steps: 2, precision: fp32}}]}"
    )
    assert run(recipe, tmp_path / "run").stages[-1].sparsity == pytest.approx(0.9, abs=0.02)


def test_the_problem_of_the_configuration_becomes_that_of_the_labels(tmp_path: Path) -> None:
    model = tiny_run.program().copy()
    model.config["problem_type"] = "multi_label_classification"
    recipe = Recipe.parse(
        "{name: one, data: {max_length: 16, batch_size: 8}, "
        "stages: [{name: dense, training: {steps: 1, precision: fp32}}]}"
    )
    found = Session(recipe, model, tiny_run.data(), tmp_path / "run", device="cpu").run()
    assert found.program.config["problem_type"] == "single_label_classification"
    assert model.config["problem_type"] == "multi_label_classification"


def test_batches_that_the_model_does_not_take_are_told_before_the_first_step(
    tmp_path: Path,
) -> None:
    batch = tiny_run.example_inputs(tiny_run.data())
    batch = {name: torch.cat([value, value]) for name, value in batch.items()}
    of_four = capture(tiny_run.model(), batch, dynamic={n: {1: "sequence"} for n in batch})
    recipe = Recipe.parse(tiny_run.DENSE.replace("batch_size: 8", "batch_size: 4"))
    events: list[Event] = []
    with pytest.raises(TrainingError) as raised:
        Session(
            recipe, of_four, tiny_run.data(62), tmp_path / "a", device="cpu",
            listeners=[events.append],
        ).run()  # fmt: skip
    assert "at stage dense: there are batches of 2 texts" in str(raised.value)
    assert "holds for batch == 4 alone\n  hint: capture it with a dynamic batch" in str(
        raised.value
    )
    assert not events
    result = Session(recipe, of_four, tiny_run.data(20), tmp_path / "b", device="cpu").run()
    assert result.stage("dense").score is not None


def test_a_last_batch_of_scoring_that_is_too_short_is_told_before_the_first_step(
    tmp_path: Path,
) -> None:
    of_three = tiny_run.program().copy()
    of_three.signature = replace(of_three.signature, conditions=("batch >= 3",))
    recipe = tiny_run.DENSE.replace("batch_size: 8", "batch_size: 8, eval_batch_size: 13")
    with pytest.raises(TrainingError, match=r"at test: there are batches of 1 texts"):
        Session(Recipe.parse(recipe), of_three, tiny_run.data(), tmp_path, device="cpu").run()
