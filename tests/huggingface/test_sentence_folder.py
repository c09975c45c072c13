"""A pooled Program is saved as a folder that sentence-transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertModel

from sparsefx import Pipeline
from sparsefx.errors import ArtifactError, PassError
from sparsefx.huggingface import capture_pretrained, capture_tokens, load_tokenizer, save_pretrained
from sparsefx.huggingface.sentence_folder import read_sentence_modules
from sparsefx.inputs.signature import SENTENCE_MODULES
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


def saved(folder: Path, *behind: Any, **settings: Any) -> Path:
    """Save a tiny encoder as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    bert().save_pretrained(folder / "encoder")
    tiny_run.tokenizer().save_pretrained(folder / "encoder")
    encoder = models.Transformer(str(folder / "encoder"), max_seq_length=9)
    SentenceTransformer(modules=[encoder, *behind], device="cpu", **settings).save(
        str(folder / "whole")
    )
    return folder / "whole"


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_the_modules_of_the_folder_decide(mode: str, normalise: bool, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as models

    behind = [models.Pooling(32, pooling_mode=mode), *[models.Normalize()][:normalise]]
    prompts = {"query": "a ", "document": ""}
    whole = saved(tmp_path, *behind, prompts=prompts, default_prompt_name="query")
    program = Pipeline.parse("pool-sentences").run(capture_pretrained(str(whole))).eval()
    assert f"{mode} pooling" in program.history[-1].notes[0]
    save_pretrained(program, tmp_path / "again")
    load_tokenizer(str(whole)).save_pretrained(tmp_path / "again")
    found, expected = (
        SentenceTransformer(str(place), device="cpu") for place in (tmp_path / "again", whole)
    )
    assert found.prompts == expected.prompts
    assert found.max_seq_length == expected.max_seq_length == 9
    texts = [*TEXTS, "a b c d e f g h a b c d"]
    np.testing.assert_allclose(found.encode(texts), expected.encode(texts), atol=1e-6)
    assert SENTENCE_MODULES not in (tmp_path / "again" / "config.json").read_text()


def test_modules_before_version_6_are_read(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer import modules as models

    whole = saved(tmp_path, models.Pooling(32, pooling_mode="mean"))
    old = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (whole / "1_Pooling" / "config.json").write_text(json.dumps(old), encoding="utf-8")
    found = read_sentence_modules(str(whole))
    assert (found["pooling"], found["normalise"], found["lacks"]) == ("cls", False, [])


def test_what_the_pass_lacks_is_refused(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer import modules as models

    whole = saved(tmp_path, models.Pooling(32, pooling_mode="max"), models.Dense(32, 16))
    program = capture_pretrained(str(whole))
    with pytest.raises(PassError, match="this pass does not: Dense, pooling by max"):
        Pipeline.parse("pool-sentences").run(program)
    with pytest.raises(PassError, match="Dense"):
        Pipeline.parse("pool-sentences{pooling='cls'}").run(program)
    without = Pipeline.parse("pool-sentences{pooling='cls',normalise=False}").run(program)
    save_pretrained(without, tmp_path / "again")
    assert read_sentence_modules(str(tmp_path / "again"))["lacks"] == []


def test_broken_modules_are_told(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    for broken in ("{", "[{}]", "3"):
        (tmp_path / "modules.json").write_text(broken, encoding="utf-8")
        with pytest.raises(ArtifactError, match=r"modules\.json"):
            capture_pretrained(str(tmp_path))


def test_other_programs_get_no_modules(tmp_path: Path) -> None:
    save_pretrained(capture_tokens(tiny_run.model()), tmp_path)
    assert not (tmp_path / "modules.json").exists()
