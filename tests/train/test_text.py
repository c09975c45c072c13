"""Runs on text alone: no labels, the loss comes from the graph."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsefx.errors import DataError, RecipeError, TrainingError
from sparsefx.pipeline import Pipeline
from sparsefx.program import Program
from sparsefx.recipe import Recipe
from sparsefx.report.run import cells, report_rows, run_page
from sparsefx.train.data.batches import encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import load_texts, text_task
from sparsefx.train.evaluation import SessionData, TokenData, losses
from sparsefx.train.results import RunResult
from sparsefx.train.session import Session
from tests.train import tiny_run

SELF = """
name: self
data: {max_length: 16, batch_size: 8}
stages:
- name: sparse
  teacher: model
  pipeline: ["set-dropout", "magnitude-prune{sparsity=0.5,end=50%}", "distill{logits=0,hidden=1}"]
  training: {epochs: 4, precision: fp32, optimizer: {learning_rate: 1e-3}, evaluate_every: 25%}
  after: [strip-distillation, fold-masks]
- name: last
  after: simplify
"""


def text_data(count: int = 40) -> SessionData:
    task = text_task(Examples("drawn", tiny_run.texts(count, 3)), test_share=0.2)
    return SessionData(task, tiny_run.tokenizer())


def test_a_model_is_distilled_into_its_sparse_self(tmp_path: Path) -> None:
    run = Session(Recipe.parse(SELF), tiny_run.program(), text_data(), tmp_path, device="cpu")
    result = run.run()
    score = result.stage("sparse").score
    assert score is not None
    assert score.metric == "loss"
    assert score.count == 8
    assert str(score) == f"{score.value:.4g} (too few for an interval)"
    assert score.parts == {"loss": score.value, "hidden": score.value}
    assert result.stage("last").score is None
    assert RunResult.read(tmp_path) == result
    with pytest.raises(TrainingError, match="scored by its loss"):
        result.stage("sparse").outputs()
    (row,) = report_rows(result)
    assert cells(row)[1] == str(score)
    assert "Accuracy" not in run_page(result, (row,), title="t", lead="l").render()


def taught() -> Program:
    """The tiny model beside a teacher whose weights are somewhat others."""
    teacher = tiny_run.program().copy()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Pipeline.parse("distill").run(tiny_run.program(), programs={"teacher": teacher})


def test_the_interval_of_a_loss_is_as_wide_as_its_texts_differ() -> None:
    program = taught()
    widths = []
    for count in (64, 256):
        texts = Examples("drawn", tiny_run.texts(count, 3))
        score = losses(program, encode(tiny_run.tokenizer(), texts, 16), 64)
        assert score.low is not None
        assert score.high is not None
        assert score.low < score.value < score.high
        widths.append(score.high - score.low)
    one = losses(program, encode(tiny_run.tokenizer(), texts, 16), 1)
    each = np.array(
        [
            losses(program, encode(tiny_run.tokenizer(), texts.select([i]), 16), 1).value
            for i in range(256)
        ]
    )
    assert one.value == pytest.approx(each.mean(), rel=1e-5)
    expected = 2 * 1.96 * each.std() / 16
    assert widths[1] == pytest.approx(expected, rel=0.5)
    assert widths[0] > 1.3 * widths[1]


def test_labels_are_neither_needed_nor_used() -> None:
    labelled = Examples("drawn", tiny_run.texts(40, 3), labels=(1,) * 40)
    task = text_task(labelled)
    assert [len(task.split(name)) for name in ("train", "test")] == [38, 2]
    assert task.split("train").labels is None
    with pytest.raises(DataError, match="cannot be held back\n  hint: give more texts; in Python"):
        text_task(Examples("drawn", ("a b",)))


def test_without_a_loss_in_the_graph_it_is_refused(tmp_path: Path) -> None:
    recipe = Recipe.parse(tiny_run.DENSE)
    with pytest.raises(RecipeError, match="nothing to minimise"):
        Session(recipe, tiny_run.program(), text_data(), tmp_path / "run", device="cpu").run()


def test_a_stage_on_unlabelled_text_in_a_run_with_labels() -> None:
    given = tiny_run.data(unlabelled=20)
    stage = Recipe.parse(SELF.replace("{epochs", "{data: unlabelled, epochs")).stages[0]
    assert stage.training is not None
    data = TokenData(given, 16)
    assert len(data.of(stage.training)) == 20
    assert data.of(stage.training).labels is None
    with pytest.raises(TrainingError, match="there are none"):
        TokenData(replace(given, unlabelled=None), 16).of(stage.training)


def test_texts_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.jsonl").write_text('{"text": "three", "other": 1}\n')
    found = load_texts([tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert found.texts == ("one", "two", "three")
    assert found.pairs is None
