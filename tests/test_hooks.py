"""What is said when a pass fails outside of its run: in training, and when a recipe is checked."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sparsefx import Pass, PassReport, Program, registry
from sparsefx.errors import PassError, ProgramError, RecipeError
from sparsefx.passbase import Contract, PassContext, Window
from sparsefx.pipeline import Pipeline
from sparsefx.recipe import Recipe
from sparsefx.train import schedules
from sparsefx.train.session import Session
from sparsefx.train.taught import with_teacher
from tests.toy_passes import relu_program
from tests.train import tiny_run

RECIPE = """
name: plugged
data: {max_length: 16, batch_size: 8}
stages:
- {name: one, pipeline: "simplify,fails{hook=HOOK}", training: {steps: 5, precision: fp32}}
"""


@dataclass(frozen=True)
class Fails(Pass):
    """Fails in one of its hooks, as a plug-in with a fault does."""

    name: ClassVar[str] = "fails"

    hook: str = "after_step"
    at: int = 2
    kind: type[Exception] = ValueError

    def __post_init__(self) -> None:
        pass

    def _fail(self, hook: str) -> None:
        if self.hook == hook:
            raise self.kind("inside")

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        program.active = (*program.active, self)
        return PassReport(1)

    def after_step(self, program: Program, step: int) -> None:
        if step == self.at:
            self._fail("after_step")

    @property
    def needs(self) -> tuple[str, ...]:
        self._fail("needs")
        return "teacher" if self.hook == "word" else ()  # type: ignore[return-value]  # wrong too

    def contract(self) -> Contract:
        self._fail("contract")
        return super().contract()

    def mask_window(self, steps: int) -> Window | None:
        self._fail("mask_window")
        return None

    @property
    def last_step(self) -> int:
        self._fail("last_step")
        return "3" if self.hook == "text" else 0  # type: ignore[return-value]  # wrong on purpose

    def check_programs(self, program: Program, programs: Mapping[str, Program]) -> None:
        self._fail("check_programs")

    def check_weights(self, program: Program) -> None:
        self._fail("check_weights")

    def taught(self, student: Program, teacher: Program) -> dict[str, Any]:
        self._fail("taught")
        return {}


@dataclass(frozen=True)
class Headless(Pass):
    """Says that no output is left for labels."""

    name: ClassVar[str] = "headless"
    drops_heads: ClassVar[bool] = True

    def run(self, program: Program, ctx: PassContext) -> PassReport:
        return PassReport(1)


def failing(**options: Any) -> Program:
    program = relu_program()
    program.active = (Fails(hook="none"), Fails(**options))
    return program


def test_after_step_in_a_plain_loop() -> None:
    program = failing()
    program.step()
    with pytest.raises(PassError, match="ValueError: inside") as caught:
        program.step()
    assert caught.value.who == f"active pass 1 '{Fails()}'"
    assert caught.value.where == "after_step, step 2"
    assert f"raised at {__file__}:" in caught.value.hint
    assert isinstance(caught.value.__cause__, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("hook", ["needs", "contract"])
def test_a_recipe_names_the_pass_and_its_place(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._TABLE["passes"], "fails", f"{__name__}:Fails")
    with pytest.raises(RecipeError, match=rf"pass 1 'fails.* at {hook}: ValueError: ins") as caught:
        Recipe.parse(RECIPE.replace("HOOK", hook)).check()
    assert caught.value.where.startswith("stages[0]")


def test_a_pass_that_needs_no_tuple_is_told_what_to_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._TABLE["passes"], "fails", f"{__name__}:Fails")
    why = "pass 1 'fails.* at needs: it is 'teacher', not a tuple of names"
    with pytest.raises(RecipeError, match=why) as caught:
        Recipe.parse(RECIPE.replace("HOOK", "word")).check()
    assert caught.value.hint == "return names of Programs, e.g. ('teacher',)"


def test_errors_of_sparsefx_get_the_place_and_keep_their_own() -> None:
    class OwnError(PassError):
        def __init__(self, why: str) -> None:
            super().__init__(why, who="fails")

    class OthersError(ProgramError):
        def __init__(self, why: str) -> None:
            super().__init__(why, who="program", where="weight")

    with pytest.raises(OwnError) as own:
        failing(at=1, kind=OwnError).step()
    assert own.value.who.startswith("active pass 1 'fails{")
    assert own.value.where == "after_step, step 1"
    with pytest.raises(OthersError) as others:
        failing(at=1, kind=OthersError).step()
    place = r"active pass 1 'fails\{.*\}', after_step, step 1: program"
    assert re.fullmatch(place, others.value.who)
    assert others.value.where == "weight"


@pytest.mark.parametrize("kind", [MemoryError, KeyboardInterrupt])
def test_what_is_the_machines_or_the_users_stays(kind: type[BaseException]) -> None:
    with pytest.raises(kind):
        failing(at=1, kind=kind).step()


def test_a_pass_that_teaches_is_named() -> None:
    data: Any = None
    with pytest.raises(PassError, match=r"active pass 1 .* at taught: ValueError: inside"):
        with_teacher(failing(hook="taught"), relu_program(), data, 1, Path(), bf16=False)


def test_a_window_is_asked_of_the_passes_in_turn() -> None:
    with pytest.raises(PassError, match=r"pass 1 .* at mask_window, step 3: ValueError: inside"):
        schedules.window_of((Fails(), Fails(hook="mask_window")), 3)


@pytest.mark.parametrize(
    ("hook", "place"),
    [
        ("after_step", "stage one, step 2 of 5: active pass 0 'fails'"),
        ("last_step", "stage one, pipeline: pass 1 'fails{"),
        ("text", "stage one, pipeline: pass 1 'fails{"),
        ("check_programs", "stage one, pipeline: pass 1 'fails{"),
        ("check_weights", "stage one, pipeline: pass 1 'fails{"),
    ],
)
def test_a_session_names_the_stage_too(
    hook: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._TABLE["passes"], "fails", f"{__name__}:Fails")
    recipe = Recipe.parse(RECIPE.replace("HOOK", hook))
    assert Pipeline.parse(f"fails{{hook={hook}}}").passes == (Fails(hook=hook),)
    session = Session(recipe, tiny_run.program(), tiny_run.data(), tmp_path / "run", device="cpu")
    why = "it is '3', not a whole number" if hook == "text" else "ValueError: inside"
    with pytest.raises(PassError, match=why) as caught:
        session.run()
    assert caught.value.who.startswith(place)
    assert caught.value.where.startswith("last_step" if hook == "text" else hook)


@pytest.mark.parametrize("name", ["headless", "pool-sentences"])
def test_a_pass_that_drops_heads_is_refused_beside_labels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._TABLE["passes"], "headless", f"{__name__}:Headless")
    recipe = Recipe.parse(RECIPE.replace("fails{hook=HOOK}", name))
    session = Session(recipe, tiny_run.program(), tiny_run.data(), tmp_path / "run", device="cpu")
    with pytest.raises(RecipeError, match="scored on labels are gone after it") as caught:
        session.run()
    assert caught.value.who == f"stage one, pipeline: {name}"
