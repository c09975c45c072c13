"""rewind-weights: the first weights under the masks of now."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import PassError
from sparsefx.passes.prune.rewind import RewindWeights
from sparsefx.testing import assert_pass, small_program
from tests.tiny_models import example_batch, tiny


@cache
def captured(seed: int) -> Program:
    return sparsefx.capture(tiny("bert-cls", seed=seed), example_batch())


def test_golden_text() -> None:
    trained, first = (small_program(nn.Linear(2, 2), input=torch.ones(1, 2)) for _ in "ab")
    ticket = assert_pass(
        RewindWeights(),
        trained,
        "%linear = aten.linear(%input_1, %weight, %bias)\nreturn {output: %linear}",
        applied=2,
        skipped=[],
        programs={"teacher": first},
    )
    assert torch.equal(ticket.tensor("weight"), first.tensor("weight"))


def test_masks_stay_and_the_head_is_spared() -> None:
    text = "magnitude-prune{sparsity=0.5,scope='global'}"
    pruned = Pipeline.parse(text).run(captured(0))
    ticket = Pipeline.parse("rewind-weights").run(pruned, programs={"teacher": captured(1)})
    entry = ticket.history[-1]
    assert {skip.where for skip in entry.skipped} == {"classifier.weight", "classifier.bias"}
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    mask = pruned.tensor(f"{name}_mask")
    assert torch.equal(ticket.tensor(f"{name}_mask"), mask)
    assert torch.equal(ticket.tensor(name), captured(1).tensor(name) * mask)
    for kept in ("classifier.weight", "classifier.bias"):
        assert torch.equal(ticket.tensor(kept), captured(0).tensor(kept))
    norm = "bert.encoder.layer.1.output.LayerNorm.weight"
    assert torch.equal(ticket.tensor(norm), captured(1).tensor(norm))


def test_heads_can_be_rewound_and_other_shapes_are_told() -> None:
    item = RewindWeights(heads=True)
    ticket = Pipeline((item,)).run(captured(0), programs={"teacher": captured(1)})
    name = "classifier.weight"
    assert torch.equal(ticket.tensor(name), captured(1).tensor(name))
    small, other = (small_program(nn.Linear(2, n), input=torch.ones(1, 2)) for n in (1, 3))
    entry = Pipeline((item,)).run(small, programs={"teacher": other}).history[-1]
    assert [skip.where for skip in entry.skipped] == ["weight", "bias"]


def test_weights_of_a_teacher_stay() -> None:
    student, teacher = (
        Pipeline.parse("magnitude-prune{sparsity=0.5,mask=soft,roles=other}").run(
            small_program(nn.Linear(8, 4), input=torch.ones(2, 8))
        )
        for _ in "ab"
    )
    text = "distill,rewind-weights"
    ticket = Pipeline.parse(text).run(student, programs={"teacher": teacher})
    assert torch.equal(ticket.tensor("teacher.weight"), teacher.tensor("weight"))
    masked = teacher.tensor("weight") * student.tensor("weight_mask")
    assert torch.equal(ticket.tensor("weight"), masked)


def test_it_wants_the_first_weights() -> None:
    with pytest.raises(PassError, match="the program 'teacher' was not given"):
        Pipeline.parse("rewind-weights").run(captured(0))
