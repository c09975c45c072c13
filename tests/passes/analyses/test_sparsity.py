"""SparsityStats: zeros counted once, in the encoder and in the whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsefx import Pipeline
from sparsefx.passes.analyses.roles import Role
from sparsefx.passes.analyses.sparsity import Share, SparsityStats
from sparsefx.testing import small_program
from tests.programs import captured, shared


def test_a_dense_model_has_its_parameters_and_no_zeros_in_the_encoder() -> None:
    program = shared("bert-cls")
    stats = program.facts(SparsityStats)
    assert stats.whole.values == sum(p.numel() for p in program.parameters())
    assert stats.encoder.values == 2 * (4 * 64 * 64 + 2 * 64 * 128)
    assert stats.encoder.zeros == 0
    assert stats.encoder.stored_ratio == 1.0


@pytest.mark.parametrize("mask", ["hard", "soft"])
@pytest.mark.parametrize("then", ["", ",fold-masks"])
def test_zeros_count_in_weights_and_in_masks(mask: str, then: str) -> None:
    text = f"magnitude-prune{{sparsity=0.75,mask={mask}}}{then}"
    stats = Pipeline.parse(text).run(captured("bert-cls")).facts(SparsityStats)
    assert stats.encoder.sparsity == 0.75
    assert stats.whole.values == shared("bert-cls").facts(SparsityStats).whole.values
    assert stats.of("bert.encoder.layer.0.output.dense.weight").role is Role.ENCODER
    assert stats.of("bert.encoder.layer.0.output.dense.weight").share.sparsity == 0.75


def test_a_tied_table_counts_once() -> None:
    program = shared("bert-mlm")
    names = [item.name for item in program.facts(SparsityStats).tensors]
    assert "bert.embeddings.word_embeddings.weight" in names
    assert "cls.predictions.decoder.weight" not in names


def test_the_counts_follow_the_tensors() -> None:
    program = captured("bert-cls")
    before = program.facts(SparsityStats).encoder.zeros
    with torch.no_grad():
        program.tensor("bert.encoder.layer.0.output.dense.weight").zero_()
    assert program.facts(SparsityStats).encoder.zeros == before + 64 * 128


def test_the_ratios_of_the_papers() -> None:
    values = 84_934_656
    kept = values // 10
    share = Share(values, values - kept, 4 * values, kept, kept + values // 8)
    assert share.paper_ratio == pytest.approx(40, rel=1e-6)
    assert share.stored_ratio == pytest.approx(17.8, abs=0.03)


def test_what_is_not_in_the_model() -> None:
    with pytest.raises(KeyError):
        shared("bert-cls").facts(SparsityStats).of("no.such.tensor")


def test_layers_come_in_the_order_of_their_numbers() -> None:
    layers = nn.Sequential(*[nn.Linear(2, 2, bias=False) for _ in range(12)])
    tensors = small_program(layers, input=torch.ones(1, 2)).facts(SparsityStats).tensors
    assert [item.name for item in tensors] == [f"{number}.weight" for number in range(12)]
