"""balance-banks: equal banks, quotas, what it refuses, and that zeros stay."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsefx import Pipeline
from sparsefx.errors import PassError
from sparsefx.passes.prune.balance_banks import BalanceBanks, balanced_mask, bank_quotas
from sparsefx.testing import assert_pass, small_program
from tests.programs import captured
from tests.tiny_models import example_batch

BEFORE = """
%linear = aten.linear(%input_1, %weight)
return {output: %linear}
"""
AFTER = """
%mul = aten.mul.Tensor(%weight, %weight_mask)
%linear = aten.linear(%input_1, %mul)
return {output: %linear}
"""


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(2, 80), st.floats(0, 0.99))
def test_quotas_add_up_and_differ_by_one(columns: int, bank: int, sparsity: float) -> None:
    quotas = bank_quotas(columns, bank, sparsity)
    assert sum(quotas) == round(columns * (1 - sparsity))
    whole = quotas[: columns // bank]
    assert not whole or max(whole) - min(whole) <= 1


def test_every_row_keeps_equally_many_in_a_bank() -> None:
    scores = torch.rand(40, 200)
    mask = balanced_mask(scores, 64, 0.95)
    counts = [part.sum(dim=1) for part in (mask[:, :64], mask[:, 64:128], mask[:, 192:])]
    assert all(int(count.min()) == int(count.max()) for count in counts)
    kept = scores[:, :64][mask[:, :64]].reshape(40, -1)
    assert torch.equal(kept.sort(dim=1).values, scores[:, :64].topk(kept.shape[1]).values.flip(1))


def test_before_and_after() -> None:
    layer = nn.Linear(8, 2, bias=False)
    program = small_program(layer, input=torch.ones(1, 8))
    item = BalanceBanks(sparsity=0.5, bank=4, roles=("other",))
    assert_pass(item, program, AFTER, applied=1)


def test_embeddings_are_left_alone_on_a_bert_and_zeros_stay() -> None:
    program = Pipeline.parse("balance-banks{sparsity=0.75,bank=16}").run(captured("bert-cls"))
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    weight = program.tensor(name)
    assert (weight == 0).float().mean() == 0.75
    assert (program.tensor("bert.embeddings.word_embeddings.weight") == 0).float().mean() < 0.1
    with torch.no_grad():
        weight.add_(1.0)
    program.step()
    assert (program.tensor(name) == 0).float().mean() == 0.75


def test_masked_program_computes_with_the_masked_weights() -> None:
    program = Pipeline.parse("balance-banks{sparsity=0.5,bank=16}").run(captured("bert-cls"))
    folded = Pipeline.parse("fold-masks").run(program)
    batch = example_batch(2, 8)
    with torch.no_grad():
        assert torch.equal(program.eval()(**batch)["logits"], folded.eval()(**batch)["logits"])


@pytest.mark.parametrize("ending", ["pattern-lock", "fold-masks"])
def test_whoever_ends_the_masks_ends_the_pass(ending: str) -> None:
    program = small_program(nn.Linear(8, 2, bias=False), input=torch.ones(1, 8))
    text = f"balance-banks{{sparsity=0.5,bank=4,roles=other}},{ending}"
    active = Pipeline.parse(text).run(program).active
    assert "balance-banks" not in {item.name for item in active}


def test_a_sparsity_that_leaves_nothing_is_refused() -> None:
    program = small_program(nn.Linear(4, 2, bias=False), input=torch.ones(1, 4))
    with pytest.raises(PassError, match="leaves none of the 4 weights of a row") as caught:
        Pipeline.parse("balance-banks{sparsity=0.9,roles=other}").run(program)
    assert caught.value.where == "weight"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0: expected 0 <= sparsity < 1"),
        ({"bank": 1}, "bank=1: a bank has at least 2 weights"),
        ({"roles": ("encodr",)}, "'encodr' is no role"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError, match=message):
        BalanceBanks(**options)  # type: ignore[arg-type]  # wrong on purpose


def test_nan_is_refused() -> None:
    layer = nn.Linear(8, 2, bias=False)
    nn.init.constant_(layer.weight, float("nan"))
    program = small_program(layer, input=torch.ones(1, 8))
    with pytest.raises(PassError, match="NaN"):
        Pipeline.parse("balance-banks{roles=other}").run(program)
