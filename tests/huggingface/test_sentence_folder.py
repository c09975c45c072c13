"""A pooled Program is saved as a folder that sentence-transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertModel

from sparsefx import Pipeline
from sparsefx.huggingface import capture_tokens, save_pretrained
from sparsefx.train.data.batches import encode
from sparsefx.train.data.examples import Examples
from sparsefx.train.evaluation import inputs_for
from tests.tiny_models import small_bert
from tests.train import tiny_run

TEXTS = ("a b c d", "h g", "b b e f g a c")


def bert() -> Any:
    return small_bert(BertModel, vocab_size=12, hidden_size=32, num_hidden_layers=1)


def test_sentence_transformers_gives_the_same_vectors(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    tokenizer = tiny_run.tokenizer()
    passes = "pool-sentences,magnitude-prune{sparsity=0.5},pattern-lock,fold-masks"
    program = Pipeline.parse(passes).run(capture_tokens(bert())).eval()
    save_pretrained(program, tmp_path)
    tokenizer.save_pretrained(tmp_path)
    batch = encode(tokenizer, Examples("texts", TEXTS), 16).collate([0, 1, 2])
    with torch.no_grad():
        expected = program(**inputs_for(program, batch))["sentence_embedding"].numpy()
    found = SentenceTransformer(str(tmp_path), device="cpu").encode(list(TEXTS))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_options_of_the_pass_decide_on_the_modules(tmp_path: Path) -> None:
    program = Pipeline.parse("pool-sentences{pooling='cls',normalise=False}").run(
        capture_tokens(bert())
    )
    save_pretrained(program, tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text(encoding="utf-8"))
    assert [module["path"] for module in modules] == ["", "1_Pooling"]
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    assert (pooling["pooling_mode_cls_token"], pooling["pooling_mode_mean_tokens"]) == (True, False)
    assert pooling["word_embedding_dimension"] == 32


def test_other_programs_get_no_modules(tmp_path: Path) -> None:
    save_pretrained(capture_tokens(tiny_run.model()), tmp_path)
    assert not (tmp_path / "modules.json").exists()
