"""shrink-width: every tensor loses the same features, and the result is a smaller model as is."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
)

import sparsefx
from sparsefx import Pipeline, Program
from sparsefx.errors import ArtifactError, SpecError
from sparsefx.huggingface import load_pretrained, save_pretrained
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.structure.shrink_width import ShrinkWidth
from sparsefx.testing import assert_pass, small_program
from tests.programs import captured
from tests.tiny_models import example_batch


@cache
def bert(kind: Any = BertForSequenceClassification) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 32,
        "architectures": [kind.__name__],
    }
    made: Any = kind(BertConfig(**sizes))
    return made.eval()


def shrunk(program: Program, options: str = "ratio=0.5") -> Program:
    return Pipeline.parse(f"shrink-width{{{options}}}").run(program).eval()


@pytest.mark.parametrize("kind", [BertForSequenceClassification, BertForMaskedLM])
def test_transformers_runs_the_same_smaller_model(kind: Any, tmp_path: Path) -> None:
    small = shrunk(sparsefx.capture(bert(kind), example_batch()))
    assert small.config["hidden_size"] == 12
    assert small.history[-1].notes == ("12 of 24 hidden features stay, 4 of 8 in each head",)
    batch = example_batch(3, 9)
    found = next(iter(small(**batch).values())).detach()
    again = load_pretrained(str(save_pretrained(small, tmp_path)))
    torch.testing.assert_close(again(**batch).logits.detach(), found)


def test_the_largest_weights_stay() -> None:
    program = sparsefx.capture(bert(), example_batch())
    small = shrunk(program)
    whole = dict(program.named_tensors())
    q, k = (f"bert.encoder.layer.1.attention.self.{each}.weight" for each in ("query", "key"))
    table = "bert.embeddings.word_embeddings.weight"
    columns = whole[table].detach()
    kept = [
        feature
        for feature in range(24)
        if any(torch.equal(columns[:, feature], one) for one in small.tensor(table).detach().T)
    ]
    assert len(kept) == 12
    scores = (whole[q].norm(dim=1) * whole[k].norm(dim=1)).detach().reshape(3, 8)
    rows = torch.cat([8 * h + scores[h].topk(4).indices.sort().values for h in range(3)])
    torch.testing.assert_close(small.tensor(q), whole[q][rows][:, kept])
    assert [layer.core.heads for layer in small.facts(EncoderStructure).layers] == [3, 3]


def test_random_weights_are_those_of_the_seed() -> None:
    program = sparsefx.capture(bert(), example_batch(), dynamic=False)
    one, same, other = (
        shrunk(program, f"ratio=0.5,weights=random,seed={seed}") for seed in (1, 1, 2)
    )
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()
    query = one.tensor("bert.encoder.layer.0.attention.self.query.weight")
    assert float(query.detach().std()) == pytest.approx(0.02, rel=0.3)
    assert bool((one.tensor("bert.embeddings.LayerNorm.weight") == 1).all())
    assert not one.tensor("bert.encoder.layer.0.attention.self.query.bias").any()


def test_a_narrow_student_learns_from_a_wide_teacher() -> None:
    teacher = sparsefx.capture(bert(), example_batch(), dynamic=False)
    passes = (
        "drop-layers,shrink-width{ratio=0.5},prune-neurons{ratio=2.0},decompose-attention,"
        "distill{hidden=1,embedding=1,scores=1,layers='skip'}"
    )
    student = Pipeline.parse(passes).run(teacher, programs={"teacher": teacher}).train()
    assert student.tensor("distill.projection.weight").shape == (24, 12)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(5):
        loss = student(**example_batch())["loss"]
        torch.autograd.backward(loss)
        optimizer.step()
        student.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


class Block(nn.Module):
    """Fused attention and a feed-forward block, a norm after each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4), nn.Linear(4, width)
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.table = nn.Embedding(5, width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        x = self.one(x + self.o(mixed.transpose(1, 2).flatten(2)))
        changed: Tensor = self.two(x + self.down(torch.relu(self.up(x))))
        return changed


def test_before_and_after() -> None:
    torch.manual_seed(0)
    program = small_program(Block(), ids=torch.ones(1, 3).long())
    small = assert_pass(ShrinkWidth(0.5), program, _AFTER, applied=1, skipped=[])
    assert small.tensor("table.weight").shape == (5, 4)
    assert small.tensor("down.weight").shape == (4, 4)
    assert small.tensor("two.bias").shape == (4,)


_AFTER = """
    %embedding = aten.embedding(%table_weight, %ids)
    %linear = aten.linear(%embedding, %q_weight, %q_bias)
    %unflatten = aten.unflatten.int(%linear, -1, [2, -1])
    %transpose = aten.transpose.int(%unflatten, 1, 2)
    %linear_1 = aten.linear(%embedding, %k_weight, %k_bias)
    %unflatten_1 = aten.unflatten.int(%linear_1, -1, [2, -1])
    %transpose_1 = aten.transpose.int(%unflatten_1, 1, 2)
    %linear_2 = aten.linear(%embedding, %v_weight, %v_bias)
    %unflatten_2 = aten.unflatten.int(%linear_2, -1, [2, -1])
    %transpose_2 = aten.transpose.int(%unflatten_2, 1, 2)
    %scaled_dot_product_attention = aten.scaled_dot_product_attention(\
%transpose, %transpose_1, %transpose_2, scale=0.7071067811865476)
    %transpose_3 = aten.transpose.int(%scaled_dot_product_attention, 1, 2)
    %flatten = aten.flatten.using_ints(%transpose_3, 2)
    %linear_3 = aten.linear(%flatten, %o_weight, %o_bias)
    %add = aten.add.Tensor(%embedding, %linear_3)
    %layer_norm = aten.layer_norm(%add, [4], %one_weight, %one_bias, 1e-05, False)
    %linear_4 = aten.linear(%layer_norm, %up_weight, %up_bias)
    %relu = aten.relu(%linear_4)
    %linear_5 = aten.linear(%relu, %down_weight, %down_bias)
    %add_1 = aten.add.Tensor(%layer_norm, %linear_5)
    %layer_norm_1 = aten.layer_norm(%add_1, [4], %two_weight, %two_bias, 1e-05, False)
    return {output: %layer_norm_1}
"""


def electra(embedding: int) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "architectures": ["ElectraForSequenceClassification"],
    }
    made: Any = ElectraForSequenceClassification(ElectraConfig(**sizes, embedding_size=embedding))
    return sparsefx.capture(made.eval(), example_batch())


def test_tables_as_wide_as_hidden_states_stay_so(tmp_path: Path) -> None:
    small = shrunk(electra(embedding=16))
    assert (small.config["hidden_size"], small.config["embedding_size"]) == (8, 8)
    again = load_pretrained(str(save_pretrained(small, tmp_path)))
    batch = example_batch(3, 9)
    torch.testing.assert_close(again(**batch).logits.detach(), small(**batch)["logits"].detach())


def test_a_projection_that_transformers_leaves_out_is_not_lost(tmp_path: Path) -> None:
    small = shrunk(electra(embedding=8))
    assert (small.config["hidden_size"], small.config["embedding_size"]) == (8, 8)
    with pytest.raises(ArtifactError, match="would compute without it") as caught:
        save_pretrained(small, tmp_path)
    assert caught.value.where == "electra.embeddings_project.weight"
    assert not list(tmp_path.iterdir())


class Scaled(Block):
    """With RMSNorm, and a vector of the encoder's own."""

    def __init__(self) -> None:
        super().__init__()
        for norm in ("one", "two"):
            setattr(self, norm, nn.RMSNorm(8))
        self.gain = nn.Parameter(torch.full((8,), 3.0))

    def forward(self, ids: Tensor) -> Tensor:
        changed: Tensor = super().forward(ids) * self.gain
        return changed


def test_random_weights_with_another_norm() -> None:
    torch.manual_seed(0)
    program = small_program(Scaled(), ids=torch.ones(1, 3).long())
    small = shrunk(program, "ratio=0.5,weights=random")
    assert [small.tensor(f"{norm}.weight").tolist() for norm in ("one", "two")] == [[1.0] * 4] * 2
    assert small.tensor("gain").tolist() == [3.0] * 4
    assert list(map(str, small.history[-1].skipped)) == [
        "gain: it is neither scale of a norm nor bias, and keeps its values"
    ]
    assert not small.tensor("down.bias").any()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("handwritten", "its attention is spelled out; run this before decompose-attention"),
        ("modernbert", "one linear makes query, key and value"),
    ],
)
def test_what_cannot_shrink_says_why(name: str, reason: str) -> None:
    same = Pipeline.parse("shrink-width{on_no_match=ignore}").run(captured(name))
    assert {skip.reason for skip in same.history[-1].skipped} == {reason}
    assert not same.history[-1].changed


def test_no_encoder_is_skipped() -> None:
    program = small_program(nn.ReLU(), input=torch.ones(3))
    after = "%relu = aten.relu(%input_1)\nreturn {output: %relu}"
    assert_pass(ShrinkWidth(), program, after, applied=0)


@pytest.mark.parametrize("ratio", ["0.0", "1.0"])
def test_mistakes_are_named(ratio: str) -> None:
    with pytest.raises(SpecError, match=f"ratio={ratio}: expected a share above 0, below 1"):
        Pipeline.parse(f"shrink-width{{ratio={ratio}}}")
