"""pool-sentences: the embeddings of sentence-transformers, from any encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from sparsefx import Pipeline, capture
from sparsefx.errors import PassError
from sparsefx.passes.structure.pool_sentences import PoolSentences
from sparsefx.program import Program
from sparsefx.testing import assert_pass, small_program
from tests.tiny_models import example_batch, tiny


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    made: nn.Module = BertModel(BertConfig(**sizes))
    return made.eval()


def pooled(program: Program, text: str = "pool-sentences") -> Program:
    return Pipeline.parse(text).run(program)


def test_golden_text() -> None:
    class States(nn.Module):
        def forward(self, states: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return {"last_hidden_state": states.relu(), "mask": attention_mask}

    before = small_program(
        States(), states=torch.ones(2, 3, 4), attention_mask=torch.ones(2, 3, dtype=torch.int64)
    )
    assert_pass(
        PoolSentences(),
        before,
        """
        %relu = aten.relu(%states)
        %to = aten.to.dtype(%attention_mask, float32)
        %unsqueeze = aten.unsqueeze(%to, -1)
        %mul = aten.mul.Tensor(%relu, %unsqueeze)
        %sum_1 = aten.sum.dim_IntList(%mul, [1])
        %sum_2 = aten.sum.dim_IntList(%unsqueeze, [1])
        %clamp = aten.clamp(%sum_2, 1e-09)
        %div = aten.div.Tensor(%sum_1, %clamp)
        %linalg_vector_norm = aten.linalg_vector_norm(%div, 2.0, [-1], True)
        %clamp_1 = aten.clamp(%linalg_vector_norm, 1e-12)
        %div_1 = aten.div.Tensor(%div, %clamp_1)
        return {sentence_embedding: %div_1}
        """,
        applied=1,
        skipped=[],
    )


def test_equals_the_formula_on_an_eager_model_and_drops_the_pooler() -> None:
    model, batch = bert(), example_batch(3, 9)
    program = pooled(capture(model, example_batch()))
    with torch.no_grad():
        states = model(**batch).last_hidden_state
        found = program(**batch)
    mask = batch["attention_mask"].unsqueeze(-1).float()
    expected = nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert tuple(found) == ("sentence_embedding",)
    torch.testing.assert_close(found["sentence_embedding"], expected)
    assert not [name for name in program.named_tensors() if "pooler" in name]
    assert pooled(program).fingerprint() == program.fingerprint()


def test_a_head_gives_way_to_the_first_token() -> None:
    model, batch = tiny("bert-cls"), example_batch()
    program = pooled(
        capture(model, example_batch()), "pool-sentences{pooling='cls',normalise=False}"
    )
    backbone: Any = model
    with torch.no_grad():
        expected = backbone.bert(**batch).last_hidden_state[:, 0]
        torch.testing.assert_close(program(**batch)["sentence_embedding"], expected)
    assert not [name for name in program.named_tensors() if name.startswith("classifier")]


def test_first_tokens_in_bf16_have_the_length_1() -> None:
    states = 4 * torch.randn(16, 3, 64)
    linear = nn.Linear(64, 64)
    before = small_program(lambda x: {"last_hidden_state": linear(x)}, x=states)
    program = pooled(before, "pool-sentences{pooling='cls',normalise=True}")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = before(x=states)["last_hidden_state"][:, 0]
        found = program(x=states)["sentence_embedding"]
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(found, nn.functional.normalize(rounded.float(), dim=-1))


def test_no_encoder_is_skipped() -> None:
    before = small_program(lambda x: torch.relu(x), x=torch.ones(2, 3))
    assert_pass(
        PoolSentences(),
        before,
        "%relu = aten.relu(%x)\nreturn {output: %relu}",
        applied=0,
        skipped=["last_hidden_state: it is not returned, and no encoder layer was found"],
    )


def test_distilled_embeddings_are_compared_by_their_angle() -> None:
    batch = example_batch(3, 9)
    student = pooled(capture(bert(), example_batch()))
    teacher = student.copy()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    joined = Pipeline.parse("distill{logits_loss='cosine'}").run(
        student, programs={"teacher": teacher}
    )
    ours, theirs = (each.eval()(**batch)["sentence_embedding"] for each in (student, teacher))
    expected = (1 - nn.functional.cosine_similarity(ours, theirs)).mean()
    torch.testing.assert_close(joined.eval()(**batch)["loss"], expected)
    back = Pipeline.parse("strip-distillation").run(joined)
    assert back.fingerprint() == student.fingerprint()


def test_wrong_pooling_is_refused() -> None:
    with pytest.raises(PassError, match="expected 'auto', 'mean' or 'cls'"):
        PoolSentences(pooling="max")  # type: ignore[arg-type]  # what is tested
