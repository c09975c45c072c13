"""set-dropout: rates change, and nothing else does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsefx import Pipeline, capture
from sparsefx.errors import PassError
from sparsefx.passbase import Skip
from sparsefx.passes.structure.set_dropout import SetDropout
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from tests.tiny_models import example_batch, tiny


def test_golden_text() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.2))
    assert_pass(
        SetDropout(rate=0.2),
        small_program(model, input=torch.ones(3)),
        """
        %mode = mode()
        %dropout = aten.dropout(%input_1, 0.2, %mode)
        %relu = aten.relu(%dropout)
        %dropout_1 = aten.dropout(%relu, 0.2, %mode)
        return {output: %dropout_1}
        """,
        applied=1,
        skipped=[Skip("%dropout_1", "has the rate 0.2 already")],
    )


def test_nothing_to_set() -> None:
    before = small_program(lambda x: torch.relu(x), x=torch.ones(3))
    assert_pass(SetDropout(), before, "%relu = aten.relu(%x)\nreturn {output: %relu}", applied=0)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_without_dropout_training_is_evaluation(attention: str) -> None:
    program = capture(tiny("bert-cls", attention), example_batch())
    batch = example_batch(3, 9)
    quiet = Pipeline((SetDropout(),)).run(program)
    assert quiet.history[-1].applied == 8  # embeddings, three in each layer, classifier
    assert_equal_outputs(quiet.eval(), program.eval(), batch)
    evaluated = quiet(**batch)["logits"]
    torch.testing.assert_close(quiet.train()(**batch)["logits"], evaluated)
    back = Pipeline((SetDropout(rate=0.1),)).run(quiet)
    torch.manual_seed(1)
    expected = program.train()(**batch)["logits"]
    torch.manual_seed(1)
    assert torch.equal(back.train()(**batch)["logits"], expected)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(PassError, match=r"0 <= rate < 1"):
        SetDropout(rate=rate)
