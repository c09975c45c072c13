"""Teachers that run before a stage, not in its steps."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest
import torch

from sparsefx.errors import TrainingError, TrainingInterruptedError
from sparsefx.recipe import Recipe
from sparsefx.train.events import Computed, Evaluated, Event, StageStarted
from tests.train import tiny_run
from tests.train.tiny_run import run, two_stages


@pytest.mark.parametrize("terms", ["logits=1", "logits=1,hidden=1,embedding=1"])
def test_cached_teachers_are_run_once_before_the_stage(terms: str, tmp_path: Path) -> None:
    joined = run(two_stages(f"distill{{{terms}}}"), tmp_path / "joined")
    cached = run(two_stages(f"distill{{{terms},cached=True}}"), tmp_path / "cached")
    ours, theirs = (result.program.named_tensors() for result in (cached, joined))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
    assert not list(tmp_path.glob("cached/stages/*/taught"))


def test_cached_states_are_the_same_when_a_run_goes_on(tmp_path: Path) -> None:
    recipe = two_stages("distill{hidden=1,cached=True}")
    whole = run(recipe, tmp_path / "whole")
    with pytest.raises(TrainingInterruptedError):
        run(recipe, tmp_path / "again", listeners=[tiny_run.interrupt_at(2, "student")])
    assert list(tmp_path.glob("again/stages/*/taught/train-0/teacher_hidden_2"))
    again = run(recipe, tmp_path / "again")
    assert again.program.fingerprint() == whole.program.fingerprint()


@pytest.mark.parametrize("terms", ["logits=1", "logits=0,hidden=1", "labels=1"])
def test_a_stage_that_keeps_its_cached_teacher_is_scored(terms: str, tmp_path: Path) -> None:
    recipe = two_stages(f"distill{{{terms},cached=True}}").to_yaml()
    kept = Recipe.parse(
        recipe.replace("strip-distillation", "simplify").replace(
            "steps: 4", "steps: 4\n    evaluate_every: 2"
        )
    )
    stripped = Recipe.parse(recipe)
    scores: list[Event] = []
    found, same = (
        run(each, tmp_path / str(place), listeners=[scores.append]).stage("student")
        for place, each in enumerate((kept, stripped))
    )
    assert [e.step for e in scores if isinstance(e, Evaluated) and e.stage == "student"] == [
        2,
        4,
        4,
    ]
    assert found.score == same.score
    assert (found.outputs()[0] == same.outputs()[0]).all()


def test_a_cached_teacher_cannot_know_what_is_hidden_from_it(tmp_path: Path) -> None:
    recipe = two_stages("mlm-head,distill{logits=0,hidden=1,cached=True},MASKED").to_yaml()
    text = recipe.replace("MASKED", "masked-lm{special=(0,1,2,3),mask_token=1}")
    text = text.replace("strip-distillation", "strip-masked-lm,strip-distillation")
    with pytest.raises(TrainingError, match="tokens are hidden anew in each step"):
        run(Recipe.parse(text), tmp_path / "run")


def test_what_a_teacher_has_computed_is_told(tmp_path: Path) -> None:
    events: list[Event] = []
    recipe = two_stages("distill{hidden=1,cached=True}")
    small = recipe.data.model_copy(update={"eval_batch_size": 32})
    recipe = recipe.model_copy(update={"data": small})
    run(recipe, tmp_path / "run", listeners=[events.append])
    begins = [isinstance(e, StageStarted) and e.stage == "student" for e in events].index(True)
    asked = [e for e in events if isinstance(e, Computed) and e.what == "teacher"]
    assert all(event.stage == "student" for event in asked)
    texts = len(tiny_run.data().task.split("train"))
    assert [event.done for event in asked] == [*range(32, texts, 32), texts]
    assert {event.total for event in asked} == {texts}
    assert events.index(asked[-1]) < begins
    scored = [e for e in events if isinstance(e, Computed) and e.what == "score"]
    assert {e.stage for e in scored} == {"dense", "student"}
    assert scored[-1].done == scored[-1].total == len(tiny_run.data().task.split("test"))


def test_a_run_can_be_stopped_while_its_teacher_computes(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Computed) and event.what == "teacher":
            signal.raise_signal(signal.SIGTERM)

    recipe = two_stages("distill{hidden=1,cached=True}")
    with pytest.raises(TrainingInterruptedError, match="stage student: stopped while its teacher"):
        run(recipe, tmp_path / "run", listeners=[interrupt])
    whole = run(recipe, tmp_path / "whole")
    assert run(recipe, tmp_path / "run").program.fingerprint() == whole.program.fingerprint()


def test_a_stage_goes_on_with_the_teacher_that_it_began_with(tmp_path: Path) -> None:
    teacher = tiny_run.program().copy()
    teacher.save(tmp_path / "teacher")
    recipe = two_stages("distill{hidden=1,cached=True}", str(tmp_path / "teacher"))
    with pytest.raises(TrainingInterruptedError):
        run(recipe, tmp_path / "run", listeners=[tiny_run.interrupt_at(2, "student")])
    shutil.move(tmp_path / "teacher", tmp_path / "kept")
    name = next(name for name in teacher.named_tensors() if "query.weight" in name)
    with torch.no_grad():
        teacher.tensor(name).add_(0.1)
    teacher.save(tmp_path / "teacher")
    with pytest.raises(TrainingError, match=rf"1 of \d+ tensors differ, {name} first") as caught:
        run(recipe, tmp_path / "run")
    assert caught.value.where == str(tmp_path / "teacher")
    shutil.rmtree(tmp_path / "teacher")
    shutil.move(tmp_path / "kept", tmp_path / "teacher")
    again = run(recipe, tmp_path / "run")
    whole = run(recipe, tmp_path / "whole")
    assert again.program.fingerprint() == whole.program.fingerprint()
