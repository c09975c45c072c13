"""The folder of a run: what a run takes for its own, and what it leaves alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from sparsefx.errors import ArtifactError, TrainingError
from sparsefx.recipe import Recipe
from sparsefx.train.results import RunResult
from tests.train import tiny_run

ONE = """
name: one
data: {max_length: 16, batch_size: 8}
stages:
- {name: one, training: {steps: 2, precision: fp32}}
"""


def run(folder: Path) -> RunResult:
    return tiny_run.run(Recipe.parse(ONE), folder)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in files}


@pytest.mark.parametrize(
    "name", ["recipe.yaml", "metrics.jsonl", "result.json", "tokenizer/mine.txt", "captured/mine"]
)
def test_files_that_are_not_of_a_run_stay(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("# mine", encoding="utf-8")
    with pytest.raises(TrainingError, match=f"would replace {name.split('/')[0]} in it") as caught:
        run(tmp_path)
    assert caught.value.where == str(tmp_path)
    assert contents(tmp_path) == {name: "# mine"}


def test_a_run_begins_beside_files_of_other_names(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    run(tmp_path)
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_run_that_was_killed_before_its_recipe_was_written_goes_on(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "recipe.yaml").unlink()
    run(tmp_path)
    assert Recipe.load(tmp_path / "recipe.yaml") == Recipe.parse(ONE)


def test_a_stage_that_was_killed_before_its_start_was_saved_may_change(tmp_path: Path) -> None:
    run(tmp_path)
    stage = tmp_path / "stages" / "1-one"
    shutil.rmtree(stage)
    stage.mkdir()
    (stage / "teacher.json").write_text("{}", encoding="utf-8")
    (tmp_path / "result.json").unlink()
    other = Recipe.parse(ONE.replace("steps: 2", "steps: 3"))
    tiny_run.run(other, tmp_path)
    assert Recipe.load(tmp_path / "recipe.yaml") == other


@pytest.mark.parametrize("text", ["{}", "[]", "null", '{"recipe": {}}', '{"recipe": {"stag', "\0"])
def test_a_damaged_run_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match="does not say of which recipe") as caught:
        run(tmp_path)
    assert caught.value.where == str(tmp_path / "run.json")
    assert "begin anew" in caught.value.hint


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ArtifactError, match="there is no finished run"):
        RunResult.read(tmp_path)
