"""ParameterTies: decoders, shared layers, and what only looks shared."""

from __future__ import annotations

import pytest
import torch

from sparsefx import Pipeline
from sparsefx.passes.analyses.ties import ParameterTies
from sparsefx.testing import small_program
from tests.programs import captured, shared


def test_the_decoder_of_a_masked_language_model() -> None:
    ties = shared("bert-mlm").facts(ParameterTies)
    table = ties.of("cls.predictions.decoder.weight")
    assert table is not None
    assert table is ties.of("bert.embeddings.word_embeddings.weight")
    assert table.name == "bert.embeddings.word_embeddings.weight"
    assert table.uses == ("embedding", "linear_13")


def test_the_layers_of_an_albert_share_their_weights() -> None:
    ties = shared("albert").facts(ParameterTies)
    matrices = [item for item in ties.shared if item.name.endswith("query.weight")]
    assert [len(item.uses) for item in matrices] == [2]
    assert [len(item.names) for item in matrices] == [1]


def test_an_ordinary_bert_shares_no_matrix() -> None:
    names = [item.name for item in shared("bert-cls").facts(ParameterTies).shared]
    assert not [name for name in names if name.endswith("weight")]


@pytest.mark.parametrize(
    "pruning",
    [
        "magnitude-prune{sparsity=0.5,roles=('embedding','encoder'),mask=hard}",
        "magnitude-prune{sparsity=0.5,roles=('embedding','encoder'),mask=soft}",
        "magnitude-prune{sparsity=0.5,roles=('embedding','encoder'),mask='straight-through'}",
        "movement-prune{sparsity=0.5,roles=('embedding','encoder')}",
    ],
)
def test_masks_are_looked_through(pruning: str) -> None:
    program = Pipeline.parse(pruning).run(captured("bert-mlm"))
    ties = program.facts(ParameterTies)
    table = ties.of("bert.embeddings.word_embeddings.weight")
    assert table is not None
    assert table.uses == ("embedding", "linear_13")
    assert ties.of("bert.embeddings.word_embeddings.weight_mask") is None


def test_a_product_of_two_weights_is_no_mask() -> None:
    class Composed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Parameter(torch.randn(4, 4))
            self.b = torch.nn.Parameter(torch.randn(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            both = torch.matmul(self.a, self.b)
            return torch.nn.functional.linear(torch.relu(x @ both), both)

    program = small_program(Composed(), x=torch.ones(1, 4))
    assert program.facts(ParameterTies).shared == ()
