"""The recipes of the baselines on a tiny BERT, a few steps a stage: all of them run."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from sparsefx.frontend import capture
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.analyses.sparsity import SparsityStats
from sparsefx.program import Program
from sparsefx.properties import Property
from sparsefx.recipe import Recipe, Stage
from sparsefx.train.evaluation import SessionData
from sparsefx.train.session import Session
from sparsefx.train.tasks import Examples, text_task
from tests.train import tiny_run

TINY_TOKENS = "masked-lm{special=(0,1,2,3),mask_token=1}"  # BERT's ids are none of this model's


@cache
def program(layers: int) -> Program:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 12,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 32,
    }
    made: Any = BertForSequenceClassification(BertConfig(**sizes))
    return capture(made.eval(), tiny_run.example_inputs(tiny_run.data()))


def shortened(stage: Stage) -> Stage:
    if stage.training is None:
        return stage
    few = {"steps": 4, "epochs": None, "evaluate_every": None}
    passes = tuple(text.replace("masked-lm", TINY_TOKENS) for text in stage.pipeline)
    passes = tuple(text.replace("=1}{", "=1,").replace("1e-7", "2e-5") for text in passes)
    training = stage.training.model_copy(update=few)
    return stage.model_copy(update={"training": training, "pipeline": passes})


def run(name: str, folder: Path, *, left_out: str = "") -> Program:
    """Run a recipe without the stages whose names begin with one of the words ``left_out``."""
    recipe = Recipe.shipped(name)
    without = tuple(left_out.split())
    kept = [each for each in recipe.stages if not (without and each.name.startswith(without))]
    recipe = recipe.model_copy(update={"stages": tuple(map(shortened, kept))})
    given = tiny_run.data(unlabelled=20)
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


def test_tickets_in_two_of_seven_rounds(tmp_path: Path) -> None:
    found = run("bert-tickets", tmp_path, left_out="round-2 round-3 round-4 round-5 round-6")
    assert found.facts(SparsityStats).encoder.sparsity == pytest.approx(0.7, abs=0.02)


def test_weights_that_shrank_to_zero_stay_zero(tmp_path: Path) -> None:
    found = run("rpp", tmp_path)
    assert 0.1 < found.facts(SparsityStats).encoder.sparsity < 0.9


@pytest.mark.parametrize("name", ["compress-bert", "prune-ofa"])
def test_models_that_are_pruned_while_pre_training(name: str, tmp_path: Path) -> None:
    found = run(name, tmp_path)
    assert found.facts(SparsityStats).encoder.sparsity == pytest.approx(0.9, abs=0.02)
    assert (Property.QUANTIZED in found.properties) == (name == "prune-ofa")
    assert not [n for n in found.named_tensors() if n.startswith("mlm_head.")]


def test_a_sentence_encoder_needs_no_labels(tmp_path: Path) -> None:
    recipe = Recipe.shipped("sparse-sentence-encoder")
    recipe = recipe.model_copy(update={"stages": tuple(map(shortened, recipe.stages))})
    texts = Examples("drawn", tiny_run.texts(40, 0))
    given = SessionData(text_task(texts), tiny_run.tokenizer())
    result = Session(recipe, program(2), given, tmp_path, device="cpu").run()
    found = result.program
    assert found.signature.outputs == ("sentence_embedding",)
    assert found.facts(SparsityStats).encoder.sparsity == pytest.approx(0.9, abs=0.02)
    assert {Property.QUANTIZED, Property.INFERENCE} <= found.properties
    assert [stage.score is None for stage in result.stages] == [True, False, False]
