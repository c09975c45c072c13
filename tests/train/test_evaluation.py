"""What a head says of a text, and losses of Programs that take one size of batch alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import TrainingError
from sparsefx.train.data.batches import Encoded, encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.evaluation import head_outputs, losses, predict
from tests.train import tiny_run


class Value(nn.Module):
    """A value for each text, of shape [batch]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = tiny_run.model(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        found = self.network(input_ids=input_ids, attention_mask=attention_mask)
        return {"score": found.logits.squeeze(-1)}


FOUR = {name: {1: "sequence"} for name in ("input_ids", "attention_mask")}


def example() -> dict[str, Tensor]:
    """Four tokenized texts."""
    batch = tiny_run.example_inputs(tiny_run.data())
    kept = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return {name: torch.cat([value, value]) for name, value in kept.items()}


@pytest.mark.parametrize("dynamic", [True, False])
def test_a_value_for_each_text_is_one_output_whatever_the_batch(dynamic: bool) -> None:
    assert head_outputs(sparsefx.capture(Value(), example(), dynamic=dynamic)) == 1


def of_four() -> Program:
    """A Program with logits and a loss that takes four texts alone."""
    batch = example()
    program = sparsefx.capture(tiny_run.model(), batch, dynamic=FOUR)
    return Pipeline.parse("distill").run(program, programs={"teacher": program})


def texts(count: int) -> Encoded:
    return encode(tiny_run.tokenizer(), Examples("drawn", tiny_run.texts(count, 3)), 16)


def test_a_loss_of_fixed_batches_is_of_those_that_are_full() -> None:
    told: list[tuple[int, int]] = []
    assert losses(of_four(), texts(10), 32, tell=lambda *done: told.append(done)).count == 8
    assert told == [(4, 8), (8, 8)]
    with pytest.raises(TrainingError, match="batches of 4 examples alone, and there are 3"):
        losses(of_four(), texts(3), 32)


def test_predictions_of_fixed_batches_are_those_of_others() -> None:
    fixed, free = (sparsefx.capture(tiny_run.model(), example(), dynamic=d) for d in (FOUR, True))
    free.module.load_state_dict(fixed.module.state_dict())
    for count in (3, 10):
        torch.testing.assert_close(predict(fixed, texts(count), 32), predict(free, texts(count), 4))


def test_a_condition_that_texts_break_is_told_before_anything_is_computed() -> None:
    program = sparsefx.capture(tiny_run.model(), example(), dynamic=False)
    with pytest.raises(TrainingError, match=r"batches of 4 texts with \d+ tokens.* sequence == 9"):
        predict(program, texts(10), 32)
