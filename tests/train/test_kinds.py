"""Sessions on texts with any number of labels, and on labels of words: the whole way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import BertForTokenClassification

from sparsefx.errors import ArtifactError, DataError, SparsefxError
from sparsefx.frontend.capture import capture
from sparsefx.huggingface import save_pretrained
from sparsefx.problem import Kind
from sparsefx.recipe import Recipe
from sparsefx.report.run import report_rows
from sparsefx.train.data.batches import UNLABELLED
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import Task
from sparsefx.train.evaluation import SessionData
from sparsefx.train.results import RunResult
from sparsefx.train.session import Session
from sparsefx.train.start import begin_folder
from sparsefx.train.step.optimization import label_loss
from tests.train import tiny_run

RECIPE = """
name: two
seed: 1
data: {max_length: 16, batch_size: 8}
stages:
- name: dense
  training: {epochs: 10, optimizer: {learning_rate: 5e-3}, precision: fp32}
- name: sparse
  teacher: dense
  pipeline:
  - magnitude-prune{sparsity=0.5,end=50%,frequency=1}
  - distill{logits=0.5,hidden=1,temperature=1.0}
  training:
    epochs: 2
    data: labelled+unlabelled
    optimizer: {learning_rate: 2e-3}
    precision: fp32
  after: [strip-distillation, fold-masks]
"""
TAGS = ("B-V", "I-V", "O")  # vowels are entities


def tags(text: str) -> tuple[int, ...]:
    found: list[int] = []
    for word in text.split(" "):
        inside = found and found[-1] != 2
        found.append(2 if word not in "aeh" else 1 if inside else 0)
    return tuple(found)


def marks(text: str) -> tuple[float, ...]:
    return tuple(float(letter in text) for letter in "abc")


def data(kind: Kind) -> SessionData:
    splits = {}
    for name, count, seed in (("train", 120, 0), ("test", 40, 1)):
        texts = tiny_run.texts(count, seed)
        labels = map(tags if kind == "token-classification" else marks, texts)
        splits[name] = Examples(name, texts, labels=tuple(labels))
    several = kind == "multi-label"
    classes = ("a", "b", "c") if several else TAGS
    task = Task("tiny", kind, classes, "f1_micro" if several else "entity_f1", splits)
    return SessionData(task, tiny_run.tokenizer(), Examples("more", tiny_run.texts(10, 2)))


def token_model() -> Any:
    return tiny_run.model(3, BertForTokenClassification)


def several_model() -> Any:
    made: Any = tiny_run.model(3)
    made.config.problem_type = "multi_label_classification"
    return made


@pytest.mark.parametrize("kind", ["multi-label", "token-classification"])
def test_a_session_learns_and_scores_them(kind: Kind, tmp_path: Path) -> None:
    model = several_model() if kind == "multi-label" else token_model()
    given = data(kind)
    result = Session(Recipe.parse(RECIPE), model, given, tmp_path, device="cpu").run()
    dense, sparse = (result.stage(name).score for name in ("dense", "sparse"))
    assert dense is not None
    assert sparse is not None
    assert dense.value > 0.8
    assert sparse.value > 0.6
    logits, labels = result.stage("dense").outputs()
    assert logits.shape[-1] == 3
    assert len(labels) == len(given.task.split("test"))
    assert RunResult.read(tmp_path).classes == given.task.classes
    rows = report_rows(result)
    assert rows[1].difference is not None
    assert rows[1].difference.value == pytest.approx(sparse.value - dense.value)
    note = "a text has any number of classes, so logits_loss is 'bce'"
    told = [note in entry.notes for entry in result.program.history]
    assert any(told) == (kind == "multi-label")


@pytest.mark.parametrize(
    ("kind", "model", "told"),
    [
        ("token-classification", several_model, "labels of words cannot be compared with what is"),
        ("multi-label", token_model, "labels of texts cannot be compared with what is"),
        ("multi-label", lambda: tiny_run.model(2), "head has 2 outputs, and the task 3 classes"),
    ],
)
def test_other_heads_are_refused_before_the_first_step(
    kind: Kind, model: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=told):
        Session(Recipe.parse(RECIPE), model(), data(kind), tmp_path, device="cpu").run()


def test_a_term_for_one_label_is_refused(tmp_path: Path) -> None:
    recipe = RECIPE.replace("logits=0.5", "labels=0.5")
    with pytest.raises(SparsefxError, match="the labels term compares with one class"):
        Session(
            Recipe.parse(recipe), several_model(), data("multi-label"), tmp_path, device="cpu"
        ).run()


@pytest.mark.parametrize("named", [None, "single_label_classification"])
def test_a_model_is_trained_for_any_number_of_labels_whatever_it_names(
    named: str | None, tmp_path: Path
) -> None:
    model: Any = tiny_run.model(3)
    model.config.problem_type = named
    short = RECIPE.replace("epochs: 10", "steps: 1").replace("epochs: 2", "steps: 2")
    result = Session(Recipe.parse(short), model, data("multi-label"), tmp_path, device="cpu").run()
    assert result.program.multi_label


def test_a_program_to_start_from_is_trained_for_the_problem_of_the_run(tmp_path: Path) -> None:
    inputs = tiny_run.example_inputs(tiny_run.data())
    model, plain = (capture(each, inputs) for each in (several_model(), tiny_run.model(3)))
    plain.save(tmp_path / "start")
    assert not plain.multi_label
    assert begin_folder(str(tmp_path / "start"), model).multi_label


def test_a_problem_alone_makes_no_hugging_face_model(tmp_path: Path) -> None:
    program = tiny_run.program().copy()
    program.config.clear()
    program.config["problem_type"] = "multi_label_classification"
    with pytest.raises(ArtifactError, match="was not captured from a Hugging Face model"):
        save_pretrained(program, tmp_path)


def test_losses_of_several_labels_and_of_words() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    nothing = float("nan")
    labels = torch.tensor([[1.0, 0, 1, 0], [nothing] * 4, [0, 0, 0, 1]])
    found = label_loss("multi-label", logits, labels)
    known = [0, 2]
    expected = F.binary_cross_entropy_with_logits(logits[known], labels[known])
    assert torch.allclose(found, expected)
    found.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert torch.equal(logits.grad[1], torch.zeros(4))
    words = torch.randn(2, 3, 5)
    classes = torch.tensor([[UNLABELLED, 4, 1], [0, UNLABELLED, UNLABELLED]])
    rows = torch.stack([words[0, 1], words[0, 2], words[1, 0]])
    expected = F.cross_entropy(rows, torch.tensor([4, 1, 0]))
    assert torch.allclose(label_loss("token-classification", words, classes), expected)
    none = torch.full((2, 3), UNLABELLED)
    assert label_loss("token-classification", words, none) == 0
