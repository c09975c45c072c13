"""Two processes train as one does, whatever the labels are."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from sparsefx.problem import Kind
from sparsefx.recipe import Recipe
from sparsefx.train.results import RunResult
from sparsefx.train.session import Session
from tests.train import two_processes
from tests.train.test_kinds import data, several_model, token_model
from tests.train.two_processes import RECIPE, assert_stage_close, errors, run_two


def session(kind: Kind, folder: Path) -> Session:
    model = several_model() if kind == "multi-label" else token_model()
    return Session(Recipe.parse(RECIPE), model, data(kind), folder, device="cpu")


@pytest.mark.parametrize("kind", ["multi-label", "token-classification"])
def test_two_processes_follow_one(kind: Kind, tmp_path: Path) -> None:
    make = partial(session, kind)
    make(tmp_path / "alone").run()
    assert run_two(tmp_path / "two", make) == [0, 0], errors(tmp_path / "two")
    assert_stage_close(tmp_path / "two", tmp_path / "alone")
    scores = [RunResult.read(tmp_path / each).stage("one").score for each in ("alone", "two")]
    assert scores[0] == scores[1]


def test_two_processes_with_a_cached_teacher_follow_one(tmp_path: Path) -> None:
    recipe = RECIPE.replace("hidden=1}", "hidden=1,cached=True}")
    two_processes.session(tmp_path / "alone", recipe).run()
    make = partial(two_processes.session, recipe=recipe)
    assert run_two(tmp_path / "two", make) == [0, 0], errors(tmp_path / "two")
    assert_stage_close(tmp_path / "two", tmp_path / "alone")
