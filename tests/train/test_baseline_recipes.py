"""The recipes of the baselines on a tiny BERT, a few steps a stage: all of them run."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from sparsefx.frontend.capture import capture
from sparsefx.huggingface import save_pretrained
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.sparsity import SparsityStats
from sparsefx.program import Program
from sparsefx.properties import Property
from sparsefx.recipe import DataSettings, Recipe, Stage
from sparsefx.train.data.batches import encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.data.tasks import Task, text_task
from sparsefx.train.evaluation import SessionData
from sparsefx.train.results import RunResult
from sparsefx.train.session import Session
from tests.tiny_models import small_bert
from tests.train import tiny_run

BATCH = 8
TINY_TOKENS = "masked-lm{special=(0,1,2,3),mask_token=1}"  # BERT's ids are none of this model's


@cache
def program(layers: int) -> Program:
    sizes = {"vocab_size": 12, "max_position_embeddings": 32, "type_vocab_size": 2}
    made = small_bert(num_hidden_layers=layers, **sizes)
    coded = encode(tiny_run.tokenizer(), Examples("drawn", texts(BATCH, 0)), 16)
    # Fixed sizes: shapes are inferred much faster.
    return capture(made, coded.collate(range(BATCH)), dynamic=False)


def texts(count: int, seed: int) -> tuple[str, ...]:
    """Random texts of seven letters, so that all batches have one shape."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(tiny_run.LETTERS), (count, 7), generator=generator).tolist()
    return tuple(" ".join(tiny_run.LETTERS[letter] for letter in row) for row in drawn)


def data() -> SessionData:
    """Texts by whether their first letter is one of the first half, and some without labels."""

    def examples(seed: int) -> Examples:
        some = texts(3 * BATCH, seed)
        return Examples("drawn", some, labels=tuple(int(text[0] in "abcd") for text in some))

    splits = {"train": examples(0), "test": examples(1)}
    task = Task("first letter", "classification", ("late", "early"), "accuracy", splits)
    return SessionData(task, tiny_run.tokenizer(), Examples("more", texts(2 * BATCH, 2)))


def small(recipe: Recipe, stages: Iterable[Stage]) -> Recipe:
    """The recipe in its short form: few steps, batches of one size."""
    settings = DataSettings(max_length=16, batch_size=BATCH, eval_batch_size=BATCH)
    return recipe.model_copy(update={"stages": tuple(map(shortened, stages)), "data": settings})


def shortened(stage: Stage) -> Stage:
    if stage.training is None:
        return stage
    few = {"steps": 4, "epochs": None, "evaluate_every": None}
    passes = tuple(text.replace("masked-lm", TINY_TOKENS) for text in stage.pipeline)
    passes = tuple(
        text.replace("=1}{", "=1,").replace("shrink=0.01", "shrink=8e-5") for text in passes
    )
    training = stage.training.model_copy(update=few)
    return stage.model_copy(update={"training": training, "pipeline": passes})


def run(name: str, folder: Path, *, left_out: str = "") -> Program:
    """Run a recipe without the stages whose names begin with one of the words ``left_out``."""
    recipe = Recipe.shipped(name)
    without = tuple(left_out.split())
    kept = [each for each in recipe.stages if not (without and each.name.startswith(without))]
    recipe = small(recipe, kept)
    given = data()
    layers = 4 if name == "bert-pkd" else 2  # which leaves the last layer out
    result = Session(recipe, program(layers), given, folder, device="cpu").run()
    assert result.stages[-1].score is not None
    found = result.program
    assert found.signature.outputs == ("logits",)
    assert not {Property.MASKED, Property.DISTILLING} & found.properties
    assert not [n for n in found.named_tensors() if n.startswith(("teacher.", "distill."))]
    return found


@pytest.mark.parametrize(
    "name", ["bert-of-theseus", "bert-pkd", "distilbert", "minilm", "tinybert-6"]
)
def test_students_with_half_of_the_layers(name: str, tmp_path: Path) -> None:
    found = run(name, tmp_path)
    left = 2 if name == "bert-pkd" else 1
    assert len(found.facts(EncoderStructure).layers) == left
    assert found.config["num_hidden_layers"] == left


def test_a_narrow_student(tmp_path: Path) -> None:
    found = run("tinybert-4", tmp_path)
    (layer,) = found.facts(EncoderStructure).layers
    assert (layer.core.heads, layer.core.head_size, found.config["hidden_size"]) == (2, 3, 6)


def test_half_of_the_heads_and_of_the_neurons(tmp_path: Path) -> None:
    found = run("narrow", tmp_path)
    layers = found.facts(EncoderStructure).layers
    assert sum(layer.core.heads for layer in layers) == 2
    assert not [name for name in found.named_tensors() if name.endswith("_heads")]


def test_tickets_in_two_of_seven_rounds(tmp_path: Path) -> None:
    found = run("bert-tickets", tmp_path, left_out="round-2 round-3 round-4 round-5 round-6")
    assert found.facts(SparsityStats).encoder.sparsity == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("name", ["movement", "obert"])
def test_weights_that_gradients_choose(name: str, tmp_path: Path) -> None:
    found = run(name, tmp_path)
    assert found.facts(SparsityStats).encoder.sparsity == pytest.approx(0.9, abs=0.01)


def test_weights_that_shrank_to_zero_stay_zero(tmp_path: Path) -> None:
    found = run("rpp", tmp_path)
    assert 0.1 < found.facts(SparsityStats).encoder.sparsity < 0.9


@pytest.mark.parametrize("name", ["compress-bert", "prune-ofa"])
def test_models_that_are_pruned_while_pre_training(name: str, tmp_path: Path) -> None:
    found = run(name, tmp_path)
    assert found.facts(SparsityStats).encoder.sparsity == pytest.approx(0.9, abs=0.02)
    assert (Property.QUANTIZED in found.properties) == (name == "prune-ofa")
    assert not [n for n in found.named_tensors() if n.startswith("mlm_head.")]


def run_on_text(name: str, model: nn.Module | Program, folder: Path) -> RunResult:
    """Run a recipe that takes no labels."""
    recipe = Recipe.shipped(name)
    some = Examples("drawn", texts(6 * BATCH, 0))
    given = SessionData(text_task(some, test_share=1 / 6), tiny_run.tokenizer())
    return Session(small(recipe, recipe.stages), model, given, folder, device="cpu").run()


def test_a_sparse_model_is_transferred_from_a_teacher_in_a_folder(tmp_path: Path) -> None:
    sparse, teacher = program(2).copy(), tmp_path / "teacher"
    weight = sparse.tensor("bert.encoder.layer.0.output.dense.weight")
    with torch.no_grad():
        weight[:, ::2] = 0.0
    program(2).save(teacher)
    recipe = Recipe.shipped("prune-ofa-transfer")
    stages = [each.model_copy(update={"teacher": str(teacher)}) for each in recipe.stages]
    recipe = small(recipe, stages)
    found = Session(recipe, sparse, data(), tmp_path / "run", device="cpu").run()
    assert all(stage.score is not None for stage in found.stages)
    assert {Property.QUANTIZED, Property.INFERENCE} <= found.program.properties
    assert not {Property.MASKED, Property.DISTILLING} & found.program.properties
    stored = found.program.tensor("bert.encoder.layer.0.output.dense.weight")
    assert stored.dtype == torch.int8
    assert int(torch.count_nonzero(stored[:, ::2])) == 0


def test_a_model_is_pruned_on_text_and_transferred_with_its_zeros(tmp_path: Path) -> None:
    body: nn.Module = BertModel(BertConfig.from_dict(tiny_run.program().config))
    body.train(False)
    general = run_on_text("sparse-pretrain-small", body, tmp_path / "text").program
    save_pretrained(general, tmp_path / "sparse")
    recipe = Recipe.shipped("prune-ofa-small")
    dense, sparse, int8 = recipe.stages
    sparse = sparse.model_copy(update={"start": str(tmp_path / "sparse")})
    recipe = small(recipe, (dense, sparse, int8))
    result = Session(recipe, tiny_run.program(), data(), tmp_path / "task", device="cpu").run()
    name = "encoder.layer.1.output.dense.weight"
    after = result.stage("sparse").program().tensor(f"bert.{name}")
    assert torch.equal(general.tensor(name) == 0, after == 0)
    assert not torch.equal(general.tensor(name), after)
    assert result.program.facts(SparsityStats).encoder.sparsity == pytest.approx(0.9, abs=0.02)
    assert {Property.QUANTIZED, Property.INFERENCE} <= result.program.properties


def test_a_sentence_encoder_needs_no_labels(tmp_path: Path) -> None:
    result = run_on_text("sparse-sentence-encoder", program(2), tmp_path)
    found = result.program
    assert found.signature.outputs == ("sentence_embedding",)
    assert found.facts(SparsityStats).encoder.sparsity == pytest.approx(0.9, abs=0.02)
    assert {Property.QUANTIZED, Property.INFERENCE} <= found.properties
    assert [stage.score is None for stage in result.stages] == [True, False, False]
