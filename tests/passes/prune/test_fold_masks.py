"""fold-masks: the graph of before, the weights of after."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sparsefx
from sparsefx import Pipeline
from sparsefx.errors import PipelineError
from sparsefx.masks import find_masks
from sparsefx.passes.prune.fold_masks import FoldMasks
from sparsefx.testing import assert_equal_outputs, assert_pass, graph_text, small_program
from tests.tiny_models import example_batch, tiny


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_before_and_after(mask: str) -> None:
    plain = small_program(nn.Linear(8, 4), input=torch.randn(2, 8))
    prune = f"magnitude-prune{{sparsity=0.5,roles=other,mask={mask}}}"
    pruned = Pipeline.parse(prune).run(plain)
    folded = assert_pass(FoldMasks(), pruned, graph_text(plain), applied=1, skipped=[])
    assert not folded.properties
    assert not folded.active
    assert set(folded.named_tensors()) == set(plain.named_tensors())
    assert int((folded.tensor("weight") == 0).sum()) == 16
    assert_equal_outputs(pruned, folded, {"input": torch.randn(2, 8)})


@pytest.mark.parametrize("architecture", ["bert-cls", "bert-mlm", "handwritten"])
def test_a_small_bert_keeps_its_outputs_exactly(architecture: str) -> None:
    program = sparsefx.capture(tiny(architecture), example_batch())
    text = "magnitude-prune{sparsity=0.9,pattern='1x4'},pattern-lock"
    locked = Pipeline.parse(text).run(program)
    folded = Pipeline.parse("fold-masks").run(locked)
    assert find_masks(locked)
    assert not find_masks(folded)
    assert graph_text(folded) == graph_text(program)
    assert_equal_outputs(locked, folded, example_batch())


def test_zeros_are_plain_zeros() -> None:
    plain = small_program(nn.Linear(8, 4), input=torch.randn(2, 8))
    text = "magnitude-prune{sparsity=0.5,roles=other},fold-masks"
    weight = Pipeline.parse(text).run(plain).tensor("weight").detach()
    assert not bool(torch.signbit(weight[weight == 0]).any())


def test_a_program_without_masks_is_refused() -> None:
    plain = small_program(nn.Linear(8, 4), input=torch.randn(2, 8))
    with pytest.raises(PipelineError, match="it requires masked, which does not hold here"):
        Pipeline.parse("fold-masks").run(plain)
