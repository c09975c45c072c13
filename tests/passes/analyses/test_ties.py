"""ParameterTies: decoders, shared layers, and what only looks shared."""

from __future__ import annotations

import pytest

from sparsefx import Pipeline
from sparsefx.passes.analyses.ties import ParameterTies
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


@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_masks_are_looked_through(mask: str) -> None:
    text = f"magnitude-prune{{sparsity=0.5,roles=(embedding,encoder),mask={mask}}}"
    text = text.replace("(embedding,encoder)", "('embedding','encoder')")
    program = Pipeline.parse(text).run(captured("bert-mlm"))
    table = program.facts(ParameterTies).of("bert.embeddings.word_embeddings.weight")
    assert table is not None
    assert table.uses == ("embedding", "linear_13")
