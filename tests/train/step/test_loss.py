"""Which outputs a step minimises and tells of."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsefx.recipe import Training
from sparsefx.testing import small_program
from sparsefx.train.data.batches import encode
from sparsefx.train.evaluation import logits_name
from sparsefx.train.step.loss import BatchLoss
from tests.train import tiny_run


def with_a_term(input_ids: Tensor) -> dict[str, Tensor]:
    """A loss and its term, and beside them an output that is only called alike."""
    states = input_ids.float()
    total = states.mean()
    return {"loss": total, "loss.hidden": total * 1.0, "loss_mask": states + 1.0}


def test_an_output_that_is_called_like_a_loss_is_none() -> None:
    program = small_program(with_a_term, input_ids=torch.ones(2, 3, dtype=torch.int64))
    texts = encode(tiny_run.tokenizer(), tiny_run.data().task.split("train"), 16)
    settings = Training(steps=1, label_weight=0.0, precision="fp32")
    loss = BatchLoss("one", settings, program, texts, "text")
    assert loss.names == ("loss", "hidden")
    assert logits_name(program) == "loss_mask"
