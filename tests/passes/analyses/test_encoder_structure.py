"""EncoderStructure: layers, nodes and roles of every architecture, by dataflow alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from sparsefx import Program, capture
from sparsefx.errors import PassError
from sparsefx.passes.analyses.encoder import Encoder, EncoderLayer, EncoderStructure
from sparsefx.passes.analyses.roles import Role
from sparsefx.rewrite import Rewriter
from sparsefx.testing import small_program
from tests.programs import SPELLINGS, captured, shared
from tests.tiny_models import (
    ARCHITECTURES,
    HandwrittenBlock,
    HandwrittenEncoder,
    example_batch,
    tiny,
)

aten = torch.ops.aten


class PreNormBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, dropout=0.1)
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)
        self.first, self.second = nn.RMSNorm(32), nn.RMSNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        y = self.second(x)
        out: Tensor = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return out


class PreNormEncoder(nn.Module):
    """Norms before, gate and up apart, positions as a bare parameter, two bare outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.places = nn.Parameter(torch.randn(64, 32))
        self.blocks = nn.ModuleList(PreNormBlock() for _ in range(3))
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(input_ids) + self.places[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x, self.head(x)


class TorchEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True) for _ in range(2)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x: Tensor = self.words(input_ids)
        for layer in self.layers:
            x = layer(x)
        return x


def structure(program: Program) -> Encoder:
    return program.facts(EncoderStructure)


@pytest.mark.parametrize(("name", "attention"), SPELLINGS)
def test_layers_of_every_architecture(name: str, attention: str) -> None:
    program = shared(name, attention)
    found = structure(program)
    assert found.reason == ""
    assert found.skipped == ()
    assert found.attention_mask == "attention_mask"
    assert [layer.index for layer in found.layers] == [0, 1]
    assert found.layers[1].input is found.layers[0].hidden
    for layer in found.layers:
        check_layer(program, layer, explicit=attention == "eager" or name == "handwritten")
        assert layer.norm == ("pre" if name == "modernbert" else "post")
        assert layer.fused == (name == "modernbert")
        assert len(layer.position) == (2 if name == "deberta" else 0)


def check_layer(program: Program, layer: EncoderLayer, *, explicit: bool) -> None:
    assert (layer.core.heads, layer.core.head_size) == (4, 16)
    for node in (layer.input, layer.hidden):
        assert dims(program, node) == ("batch", "sequence", 64)
    assert program.tensor(layer.down.weight).shape == (64, 128)
    assert program.tensor(layer.output.weight).shape == (64, 64)
    assert layer.down.bias is None or layer.down.bias in program.named_tensors()
    assert (layer.core.sdpa is None) == explicit or layer.position or layer.core.scores is not None
    if layer.core.sdpa is not None:
        assert layer.core.scores is None
        assert layer.core.probabilities is None
        assert layer.core.mask is not None
        return
    assert layer.core.scores is not None
    assert layer.core.probabilities is not None
    for node in (layer.core.scores, layer.core.probabilities):
        assert dims(program, node) == ("batch", 4, "sequence", "sequence")


def dims(program: Program, node: fx.Node) -> tuple[int | str, ...]:
    fact = program.shape_of(node)
    assert fact is not None
    return fact.dims


@pytest.mark.parametrize("name", ["bert-cls", "distilbert", "roberta", "deberta", "albert"])
def test_nodes_hold_what_the_eager_model_returns(name: str) -> None:
    program, batch = captured(name, "eager"), example_batch()
    layers = structure(program).layers
    rewriter = Rewriter(program, "taps")
    for layer in layers:
        assert layer.core.probabilities is not None
        rewriter.set_output(f"p{layer.index}", layer.core.probabilities)
        rewriter.set_output(f"h{layer.index}", layer.hidden)
    rewriter.set_output("embedded", layers[0].input)
    rewriter.finish()
    with torch.no_grad():
        expected = tiny(name, "eager")(**batch, output_hidden_states=True, output_attentions=True)
        taps = program(**batch)
    # DeBERTa and ALBERT list the embeddings before the projection or not: count from the end.
    hidden = expected.hidden_states[-2:]
    for index in range(2):
        assert torch.equal(taps[f"h{index}"], hidden[index])
        assert torch.equal(taps[f"p{index}"], expected.attentions[index])
    assert torch.equal(taps["embedded"], expected.hidden_states[-3])


def test_modernbert_has_a_gated_up_linear_and_local_masks() -> None:
    first, second = structure(shared("modernbert")).layers
    assert first.q.weight.endswith("attn.Wqkv.weight")
    assert [site.weight for site in first.up] == ["model.layers.0.mlp.Wi.weight"]
    assert first.core.mask is not None
    assert second.core.mask is not None
    assert first.core.mask is not second.core.mask


def test_albert_layers_share_their_weights() -> None:
    first, second = structure(shared("albert")).layers
    assert [s.weight for s in first.linears] == [s.weight for s in second.linears]
    assert first.q.node is not second.q.node


def test_pre_norm_with_separate_gate() -> None:
    program = capture(PreNormEncoder(), {"input_ids": torch.randint(50, (2, 6))})
    found = structure(program)
    assert len(found.layers) == 3
    assert found.attention_mask is None
    layer = found.layers[2]
    assert layer.norm == "pre"
    assert layer.hidden.target is aten.add.Tensor
    assert [s.weight for s in layer.up] == ["blocks.2.gate.weight", "blocks.2.up.weight"]
    assert (layer.core.heads, layer.core.head_size, layer.fused) == (4, 8, True)
    assert found.roles["places"] is Role.EMBEDDING
    assert found.roles["head.weight"] is Role.HEAD


def test_torch_encoder_layer_with_a_bare_output() -> None:
    program = capture(TorchEncoder(), {"input_ids": torch.randint(50, (2, 6))})
    found = structure(program)
    assert len(found.layers) == 2
    assert found.layers[1].hidden is program.outputs()["output"]
    assert set(found.roles.values()) == {Role.ENCODER, Role.EMBEDDING}


def roles_of(name: str, role: Role) -> set[str]:
    return {n for n, found in structure(shared(name)).roles.items() if found is role}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_linear_and_embedding_has_a_role(name: str) -> None:
    program = shared(name)
    found = structure(program)
    linears = {str(n.args[1]) for n in program.graph.nodes if n.target is aten.linear.default}
    roles = {name.replace(".", "_").lower() for name in found.roles}
    assert {text.lower() for text in linears} <= roles
    inside = {s.weight for layer in found.layers for s in layer.linears}
    assert inside == roles_of(name, Role.ENCODER)
    assert Role.OTHER not in found.roles.values()


def test_roles_after_the_encoder() -> None:
    assert roles_of("bert-cls", Role.POOLER) == {"bert.pooler.dense.weight"}
    assert roles_of("bert-cls", Role.HEAD) == {"classifier.weight"}
    assert roles_of("bert-qa", Role.HEAD) == {"qa_outputs.weight"}
    assert roles_of("bert-tok", Role.POOLER) == set()
    assert roles_of("distilbert", Role.POOLER) == {"pre_classifier.weight"}
    assert roles_of("bert-mlm", Role.HEAD) == {"cls.predictions.transform.dense.weight"}
    assert "bert.embeddings.word_embeddings.weight" in roles_of("bert-mlm", Role.EMBEDDING)
    assert "electra.embeddings_project.weight" in roles_of("electra", Role.EMBEDDING)
    assert "deberta.encoder.rel_embeddings.weight" in roles_of("deberta", Role.EMBEDDING)


@pytest.mark.parametrize("name", ["bert-cls", "modernbert", "deberta"])
def test_sees_through_masks_and_fake_quantization(name: str) -> None:
    program = captured(name)
    before = structure(program)
    rewriter = Rewriter(program, "instrument")
    scale, point = torch.ones(()), torch.zeros((), dtype=torch.int32)
    for index, linear in enumerate(
        program.graph.find_nodes(op="call_function", target=aten.linear.default)
    ):
        x, weight = linear.args[:2]
        mask = rewriter.add_buffer(f"mask{index}", torch.ones_like(program.tensor(weight.target)))
        with rewriter.before(linear):
            masked = rewriter.call(aten.mul.Tensor, weight, mask)
            s = rewriter.add_buffer(f"scale{index}", scale.clone())
            z = rewriter.add_buffer(f"point{index}", point.clone())
            args = (s, z, -128, 127)
            weight = rewriter.call(
                aten.fake_quantize_per_tensor_affine.tensor_qparams, masked, *args
            )
            q = rewriter.call(torch.ops.sparsefx.quantize.default, x, s, z, 0, 255)
            x = rewriter.call(torch.ops.sparsefx.dequantize.default, q, s, z)
        rewriter.set_args(linear, x, weight, *linear.args[2:])
    rewriter.finish()
    after = structure(program)
    assert after.roles == before.roles
    for old, new in zip(before.layers, after.layers, strict=True):
        assert [s.weight for s in old.linears] == [s.weight for s in new.linears]
        assert (old.hidden, old.core.context) == (new.hidden, new.core.context)
        assert old.core.scores is new.core.scores
        assert old.input is new.input


def test_a_perceptron_is_no_encoder() -> None:
    program = small_program(nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), input=torch.ones(2, 4))
    found = structure(program)
    assert found.layers == ()
    assert found.attention_mask is None
    assert found.roles == {"0.weight": Role.OTHER}
    with pytest.raises(PassError, match="not an encoder that sparsefx understands: it has no att"):
        found.require("distill")


class FeedForwardFirst(HandwrittenEncoder):
    """Blocks of feed-forward, then attention: the last attention has no feed-forward behind it."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.norm(self.words(input_ids))
        for block in map(cast_block, self.blocks):
            x = block.norm2(x + block.down(nn.functional.gelu(block.up(x))))
            weights = (block.q(x) @ block.k(x).transpose(1, 2)).softmax(-1)
            x = block.norm1(x + block.o(weights @ block.v(x)))
        scores: Tensor = self.score(x[:, 0])
        return scores


def cast_block(block: nn.Module) -> HandwrittenBlock:
    assert isinstance(block, HandwrittenBlock)
    return block


def test_attention_behind_the_last_layer_is_of_the_encoder() -> None:
    found = structure(capture(FeedForwardFirst(), example_batch()))
    assert len(found.layers) == 1
    assert [skip.reason for skip in found.skipped] == ["no feed-forward block follows %add_3"]
    last = {f"blocks.1.{part}.weight" for part in "qkvo"}
    assert {found.roles[name] for name in last} == {Role.ENCODER}
    first = {f"blocks.0.{part}.weight" for part in ("up", "down")}
    assert {found.roles[name] for name in first} == {Role.ENCODER}
    assert found.roles["words.weight"] is Role.EMBEDDING
    assert found.roles["score.weight"] is Role.HEAD


class Broken(HandwrittenEncoder):
    @property
    def block(self) -> HandwrittenBlock:
        block = self.blocks[0]
        assert isinstance(block, HandwrittenBlock)
        return block

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, block = self.words(input_ids), self.block
        weights = (block.q(x) @ block.k(self.norm(x)).transpose(1, 2)).softmax(-1)
        out: Tensor = block.o(weights @ block.v(x))
        return out


class NoFeedForward(Broken):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x, block = self.words(input_ids), self.block
        weights = (block.q(x) @ block.k(x).transpose(1, 2)).softmax(-1)
        out: Tensor = x + block.o(weights @ block.v(x))
        return out


class NoResidual(Broken):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids)
        return nn.functional.scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Broken, "query, key and value come from different inputs"),
        (NoFeedForward, "no feed-forward block follows"),
        (NoResidual, "0 linears lie behind its query"),
    ],
)
def test_what_is_not_understood_has_a_reason(model: type[nn.Module], reason: str) -> None:
    found = structure(capture(model(), example_batch()))
    assert found.layers == ()
    assert reason in found.reason
    assert reason in str(found.skipped[0])


def test_the_facts_are_cached_until_the_graph_changes() -> None:
    program = captured("bert-cls")
    assert structure(program) is structure(program)
    program.invalidate()
    assert structure(program).layers[0].q.weight.endswith("query.weight")
