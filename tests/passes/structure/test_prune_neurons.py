"""prune-neurons: the narrow model computes what the wide one does without the others."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertForSequenceClassification

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError, SpecError
from sparsefx.huggingface import load_pretrained, save_pretrained
from sparsefx.passes.structure.prune_neurons import PruneNeurons
from sparsefx.testing import assert_pass, small_program
from tests.tiny_models import HandwrittenEncoder, example_batch, small_bert, tiny


@cache
def bert() -> Any:
    return small_bert()


def narrow(program: Program, text: str = "prune-neurons{ratio=0.75}") -> Program:
    return Pipeline.parse(text).run(program).eval()


def test_equals_the_wide_model_with_the_weakest_neurons_at_zero(tmp_path: Path) -> None:
    batch = example_batch(3, 9)
    small = narrow(sparsefx.capture(bert(), example_batch()))
    state = {name: tensor.clone() for name, tensor in bert().state_dict().items()}
    for layer in range(2):
        up = f"bert.encoder.layer.{layer}.intermediate.dense.weight"
        down = f"bert.encoder.layer.{layer}.output.dense.weight"
        weakest = (state[up].norm(dim=1) * state[down].norm(dim=0)).topk(12, largest=False).indices
        state[down][:, weakest] = 0.0
        assert small.tensor(up).shape == (12, 16)
        assert small.tensor(down).shape == (16, 12)
    made: Any = BertForSequenceClassification(bert().config)
    made.load_state_dict(state)
    with torch.no_grad():
        expected = made.eval()(**batch).logits
        found = small(**batch)["logits"]
        torch.testing.assert_close(found, expected)
        again = load_pretrained(str(save_pretrained(small, tmp_path)))
        torch.testing.assert_close(again(**batch).logits, expected)


def test_the_narrow_model_trains_and_passes_go_on() -> None:
    program = sparsefx.capture(HandwrittenEncoder().eval(), example_batch())
    small = narrow(program, "prune-neurons{ratio=1.0}").train()
    pruned = Pipeline.parse("magnitude-prune{sparsity=0.5}").run(small)
    torch.autograd.backward(pruned(**example_batch())["output"].sum())
    gradient = pruned.tensor("blocks.0.down.weight").grad
    assert gradient is not None
    assert gradient.shape == (64, 64)


def test_counts_are_rounded_up() -> None:
    program = sparsefx.capture(bert(), example_batch(), dynamic=False)
    small = narrow(program, "prune-neurons{ratio=0.6,multiple=8}")
    assert small.config["intermediate_size"] == 16
    assert small.history[-1].notes == ("16 neurons stay in each of 2 layers",)


def test_blocks_that_are_narrow_enough_stay() -> None:
    program = sparsefx.capture(bert(), example_batch(), dynamic=False)
    entry = narrow(program, "prune-neurons{ratio=1.5}").history[-1]
    assert {skip.reason for skip in entry.skipped} == {"it has 24 neurons, and 24 are to stay"}


def test_gated_blocks_are_skipped() -> None:
    program = sparsefx.capture(tiny("modernbert"), example_batch(), dynamic=False)
    entry = narrow(program).history[-1]
    assert entry.applied == 0
    assert {skip.reason for skip in entry.skipped} == {"its feed-forward block has a gate"}


def test_no_encoder_is_skipped() -> None:
    assert_pass(
        PruneNeurons(),
        small_program(nn.ReLU(), input=torch.ones(3)),
        "%relu = aten.relu(%input_1)\nreturn {output: %relu}",
        applied=0,
    )


@pytest.mark.parametrize("text", ["ratio=0.0", "multiple=0"])
def test_mistakes_are_named(text: str) -> None:
    with pytest.raises((PassError, SpecError), match=text.replace(".", r"\.")):
        Pipeline.parse(f"prune-neurons{{{text}}}")
