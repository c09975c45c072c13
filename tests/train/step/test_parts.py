"""A batch in parts has the gradients of the whole, whatever its labels are."""

from __future__ import annotations

import pytest
import torch

from sparsefx.frontend.capture import capture
from sparsefx.problem import Kind
from sparsefx.program import Program
from sparsefx.recipe import Training
from sparsefx.train.data.batches import encode
from sparsefx.train.step.loss import BatchLoss
from sparsefx.train.step.parts import PartedBatch
from sparsefx.train.step.processes import Processes
from tests.train import tiny_run
from tests.train.test_kinds import data, several_model, token_model


def gradients(program: Program) -> list[torch.Tensor]:
    found = [each.grad for each in program.parameters() if each.grad is not None]
    for parameter in program.parameters():
        parameter.grad = None
    return found


@pytest.mark.parametrize("kind", ["multi-label", "token-classification"])
def test_parts_count_by_their_share_of_the_labels(kind: Kind) -> None:
    model = several_model() if kind == "multi-label" else token_model()
    program = capture(model, tiny_run.example_inputs(tiny_run.data())).eval()
    given = data(kind)
    assert given.unlabelled is not None
    labelled = encode(given.tokenizer, given.task.split("train").select(range(6)), 16)
    plain = encode(given.tokenizer, given.unlabelled.select(range(3)), 16)
    mixed = labelled.joined(plain)
    loss = BatchLoss("one", Training(steps=1, precision="fp32"), program, mixed, kind)
    batch = mixed.collate([6, 7, 8, 0, 1, 2, 3, 4, 5])  # the first of three parts has no label
    whole = loss.backward(batch)
    expected = gradients(program)
    parameters = list(program.parameters())
    parted = PartedBatch(loss, parameters, Processes("cpu", 60.0), accumulate=3, seed=0)
    found = parted.backward(batch, 0)
    assert whole["labels"] > 0
    assert float(found["labels"]) == pytest.approx(float(whole["labels"]), rel=1e-5)
    for ours, theirs in zip(gradients(program), expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)
