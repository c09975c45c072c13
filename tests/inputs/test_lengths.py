"""How many tokens a model takes: what its configuration says is what it runs on."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModel

from sparsefx.inputs.lengths import most_tokens

SIZES = {
    "vocab_size": 30,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 12,
    "pad_token_id": 1,
}


@pytest.mark.parametrize(
    "kind",
    ["bert", "electra", "roberta", "mpnet", "roberta-prelayernorm", "ibert", "data2vec-text"],
)
def test_a_model_runs_on_as_many_tokens_as_are_told(kind: str) -> None:
    config = AutoConfig.for_model(kind, **SIZES)
    model = AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]  # of transformers
    most = most_tokens(config.to_dict())
    assert most is not None
    model(input_ids=torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 5))


@pytest.mark.parametrize("kind", ["longformer", "xlm-roberta-xl", "xmod", "luke", "lilt", "esm"])
def test_models_made_from_roberta_begin_behind_the_padding(kind: str) -> None:
    assert most_tokens({"model_type": kind, **SIZES}) == 10
