"""prune-heads and score-heads: what is left computes what all heads do with some of them silent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program, registry
from sparsefx.errors import ArtifactError, PassError, SpecError, TrainingError
from sparsefx.huggingface import save_pretrained
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.structure.prune_heads import PruneHeads
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from tests.programs import captured
from tests.tiny_models import HandwrittenBlock, example_batch

SIZE, HEADS = 16, 4


def silent(program: Program, kept: list[list[int]]) -> Program:
    """A copy in which only the heads ``kept`` in each layer say something."""
    quiet = program.copy()
    for layer, stay in zip(quiet.facts(EncoderStructure).layers, kept, strict=True):
        output = quiet.tensor(layer.output.weight)
        with torch.no_grad():
            for head in set(range(HEADS)) - set(stay):
                output[:, head * SIZE : (head + 1) * SIZE] = 0.0
    return quiet


def strongest(program: Program, count: int) -> list[list[int]]:
    """The heads with the largest product of norms in each layer, by hand."""
    found = []
    for layer in program.facts(EncoderStructure).layers:
        value = program.tensor(layer.v.weight).detach()[-HEADS * SIZE :]
        output = program.tensor(layer.output.weight).detach()
        scores = [
            float(value[rows].norm() * output[:, rows].norm())
            for rows in (slice(SIZE * head, SIZE * (head + 1)) for head in range(HEADS))
        ]
        found.append(sorted(range(HEADS), key=lambda head: -scores[head])[:count])
    return found


@pytest.mark.parametrize(
    ("name", "spelling"),
    [
        ("bert-cls", ""),
        ("bert-cls", "decompose-attention,"),
        ("modernbert", ""),
        ("handwritten", ""),
    ],
)
def test_equals_the_whole_model_with_silent_heads(name: str, spelling: str) -> None:
    program = captured(name)
    small = Pipeline.parse(f"{spelling}prune-heads{{ratio=0.75}}").run(program)
    assert small.history[-1].notes == ("6 of 8 heads stay: 3, 3",)
    assert [layer.core.heads for layer in small.facts(EncoderStructure).layers] == [3, 3]
    quiet = silent(program, strongest(program, 3))
    assert_equal_outputs(quiet, small, example_batch(3, 9), tolerance=1e-6)
    for layer in small.facts(EncoderStructure).layers:
        assert small.tensor(layer.output.weight).shape[1] == 3 * SIZE


def test_before_and_after() -> None:
    torch.manual_seed(0)
    program = small_program(HandwrittenBlock(8, 2), x=torch.randn(1, 3, 8), bias=torch.zeros(1))
    small = assert_pass(PruneHeads(), program, _AFTER, applied=1, skipped=[])
    assert small.tensor("q.weight").shape == (4, 8)
    assert small.tensor("v.bias").shape == (4,)
    assert small.tensor("o.weight").shape == (8, 4)


_AFTER = """
    %mode = mode()
    %linear = aten.linear(%x, %q_weight, %q_bias)
    %view = aten.view(%linear, [1, 3, 1, -1])
    %transpose = aten.transpose.int(%view, 1, 2)
    %linear_1 = aten.linear(%x, %k_weight, %k_bias)
    %view_1 = aten.view(%linear_1, [1, 3, 1, -1])
    %transpose_1 = aten.transpose.int(%view_1, 1, 2)
    %linear_2 = aten.linear(%x, %v_weight, %v_bias)
    %view_2 = aten.view(%linear_2, [1, 3, 1, -1])
    %transpose_2 = aten.transpose.int(%view_2, 1, 2)
    %transpose_3 = aten.transpose.int(%transpose_1, -1, -2)
    %matmul = aten.matmul(%transpose, %transpose_3)
    %div = aten.div.Tensor(%matmul, 2.0)
    %add = aten.add.Tensor(%div, %bias)
    %softmax = aten.softmax.int(%add, -1)
    %dropout = aten.dropout(%softmax, 0.1, %mode)
    %matmul_1 = aten.matmul(%dropout, %transpose_2)
    %transpose_4 = aten.transpose.int(%matmul_1, 1, 2)
    %reshape = aten.reshape(%transpose_4, [1, 3, 4])
    %linear_3 = aten.linear(%reshape, %o_weight, %o_bias)
    %dropout_1 = aten.dropout(%linear_3, 0.1, %mode)
    %add_1 = aten.add.Tensor(%x, %dropout_1)
    %layer_norm = aten.layer_norm(%add_1, [8], %norm1_weight, %norm1_bias, 1e-05, False)
    %linear_4 = aten.linear(%layer_norm, %up_weight, %up_bias)
    %gelu = aten.gelu(%linear_4)
    %linear_5 = aten.linear(%gelu, %down_weight, %down_bias)
    %dropout_2 = aten.dropout(%linear_5, 0.1, %mode)
    %add_2 = aten.add.Tensor(%layer_norm, %dropout_2)
    %layer_norm_1 = aten.layer_norm(%add_2, [8], %norm2_weight, %norm2_bias, 1e-05, False)
    return {output: %layer_norm_1}
"""


class Fused(nn.Module):
    """One linear for query, key and value, cut apart in two ways; then a feed-forward block."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.qkv, self.o = nn.Linear(64, 192), nn.Linear(64, 64)
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: Tensor) -> Tensor:
        made = self.qkv(x)
        parts = made.chunk(3, -1) if self.way == "chunk" else made.split(64, -1)
        q, k, v = (part.unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part in parts)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        changed: Tensor = x + self.down(torch.relu(self.up(x)))
        return changed


@pytest.mark.parametrize("way", ["chunk", "split"])
def test_fused_linears(way: str) -> None:
    torch.manual_seed(0)
    program = small_program(Fused(way), x=torch.randn(2, 5, 64))
    small = Pipeline.parse("prune-heads{ratio=0.5}").run(program)
    assert small.tensor("qkv.weight").shape == (96, 64)
    quiet = silent(program, strongest(program, 2))
    assert_equal_outputs(quiet, small, {"x": torch.randn(2, 5, 64)}, tolerance=1e-6)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("albert", "is used 2 times"),
        ("deberta", "its relative positions have heads of their own"),
        ("mpnet", "gives each head a value of its own"),
    ],
)
def test_what_cannot_shrink_says_why(name: str, reason: str) -> None:
    program = captured(name)
    same = Pipeline.parse("prune-heads{on_no_match=ignore}").run(program)
    assert len(same.history[-1].skipped) == 2
    assert all(reason in skip.reason for skip in same.history[-1].skipped)
    assert not same.history[-1].changed


def test_saved_loaded_compiled_and_trained_on(tmp_path: Path) -> None:
    small = Pipeline.parse("prune-heads{ratio=0.25}").run(captured("bert-cls")).eval()
    again = Program.load(small.save(tmp_path / "small"))
    assert again.fingerprint() == small.fingerprint()
    batch = example_batch(3, 9)
    expected = small(**batch)["logits"].detach()
    for target in ("cpu", "onnxruntime"):
        chosen = registry.parse_target(target)
        lowered = chosen.pipeline().run(small)
        assert not chosen.unsupported(lowered)
        found = chosen.lower(lowered)(**batch)["logits"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    pruned = Pipeline.parse("magnitude-prune{sparsity=0.5}").run(again).train()
    torch.autograd.backward(pruned(**batch)["logits"].sum())
    with pytest.raises(ArtifactError, match=r"it is \(16, 64\), and a model of this configuration"):
        save_pretrained(small, tmp_path / "folder")


# -- scores from gradients -----------------------------------------------------------------------


def scored(program: Program, steps: int = 2) -> tuple[Program, list[Tensor]]:
    """Train for some steps; also return what scores should be, from a factor before each head."""
    found = Pipeline.parse("score-heads").run(program).eval()
    layers = found.facts(EncoderStructure).layers
    expected = [torch.zeros(HEADS) for _ in layers]
    for seed in range(steps):
        batch = example_batch(3, 9, seed=seed)
        loss = found(**batch)["logits"][:, 0].square().sum()
        torch.autograd.backward(loss)
        quiet = float(loss.detach())
        for index, layer in enumerate(layers):
            weight = found.tensor(layer.output.weight)
            for head in range(HEADS):
                expected[index][head] += abs(_slope(found, weight, head, batch, quiet))
        found.step()
        found.module.zero_grad()
    return found, expected


def _slope(
    program: Program, weight: Tensor, head: int, batch: dict[str, Tensor], loss: float
) -> float:
    """How the loss changes when a head speaks a little louder."""
    rows, little = slice(SIZE * head, SIZE * (head + 1)), 1e-2
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, rows] *= 1 + little
        louder = float(program(**batch)["logits"][:, 0].square().sum())
        weight.copy_(before)
    return (louder - loss) / little


def test_scores_are_what_the_loss_feels() -> None:
    program, expected = scored(captured("bert-cls"))
    for layer, scores in zip(program.facts(EncoderStructure).layers, expected, strict=True):
        found = program.tensor(f"{layer.output.weight}_heads")
        torch.testing.assert_close(found, scores, rtol=0.1, atol=2e-5)


def test_layers_keep_what_the_loss_feels(tmp_path: Path) -> None:
    program, _ = scored(captured("bert-cls"))
    names = [f"{layer.output.weight}_heads" for layer in program.facts(EncoderStructure).layers]
    with torch.no_grad():
        for name, scores in zip(names, ([9.0, 1.0, 1.0, 1.0], [5.0, 5.0, 4.0, 1.0]), strict=True):
            program.tensor(name).copy_(torch.tensor(scores))
    program = Program.load(Pipeline.parse("simplify").run(program).save(tmp_path / "scored"))
    small = Pipeline.parse("prune-heads{score=gradient,scope=global}").run(program)
    assert small.history[-1].notes == ("4 of 8 heads stay: 1, 3",)
    assert not small.active
    assert not set(names) & set(small.named_tensors())
    assert_equal_outputs(silent(program, [[0], [0, 1, 2]]), small, example_batch(), tolerance=1e-6)


def test_gradients_must_have_been_there() -> None:
    with pytest.raises(PassError, match=r"layer 0: no scores were learned"):
        Pipeline.parse("prune-heads{score=gradient}").run(captured("bert-cls"))
    program = Pipeline.parse("score-heads").run(captured("bert-cls"))
    with pytest.raises(TrainingError, match=r"call program\.step\(\) before optimizer\.zero_grad"):
        program.step()


@pytest.mark.parametrize(("value", "reason"), [(0.0, "zero"), (float("nan"), "not finite")])
def test_scores_must_say_something(value: float, reason: str) -> None:
    program = Pipeline.parse("score-heads").run(captured("bert-cls"))
    for layer in program.facts(EncoderStructure).layers:
        with torch.no_grad():
            program.tensor(f"{layer.output.weight}_heads").fill_(value)
    with pytest.raises(PassError, match=rf"layer 0: no scores were learned: they are {reason}"):
        Pipeline.parse("prune-heads{score=gradient}").run(program)


def test_scores_end_with_the_heads_they_are_of() -> None:
    program, _ = scored(captured("bert-cls"), steps=1)
    fewer = Pipeline.parse("drop-layers{keep=(1)}").run(program)
    (scores,) = [name for name in fewer.named_tensors() if name.endswith("_heads")]
    assert torch.equal(fewer.tensor(scores), program.tensor(scores.replace("layer.0", "layer.1")))
    small = Pipeline.parse("prune-heads").run(fewer)
    assert not small.active
    assert not [name for name in small.named_tensors() if name.endswith("_heads")]
    torch.autograd.backward(small(**example_batch())["logits"].sum())
    small.step()


class Named(Fused):
    """With a tensor of its own whose name ends like that of scores."""

    def __init__(self) -> None:
        super().__init__("chunk")
        self.o.register_buffer("weight_heads", torch.full((64,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        factor = self.o.get_buffer("weight_heads")
        changed: Tensor = super().forward(x) * factor
        return changed


def test_other_tensors_may_end_like_scores() -> None:
    torch.manual_seed(0)
    program = small_program(Named(), x=torch.randn(2, 5, 64))
    small = Pipeline.parse("prune-heads{ratio=0.5}").run(program)
    assert torch.equal(small.tensor("o.weight_heads"), torch.full((64,), 2.0))


def test_no_encoder_is_skipped() -> None:
    program = small_program(nn.ReLU(), input=torch.ones(3))
    after = "%relu = aten.relu(%input_1)\nreturn {output: %relu}"
    for name in ("prune-heads", "score-heads"):
        (item,) = Pipeline.parse(f"{name}{{on_no_match=ignore}}").passes
        assert_pass(item, program, after, applied=0)


@pytest.mark.parametrize("ratio", ["0.0", "1.5"])
def test_mistakes_are_named(ratio: str) -> None:
    with pytest.raises(SpecError, match=f"ratio={ratio}: expected a share above 0"):
        Pipeline.parse(f"prune-heads{{ratio={ratio}}}")


def test_all_heads_may_stay() -> None:
    entry = Pipeline.parse("prune-heads{ratio=1.0}").run(captured("bert-cls")).history[-1]
    assert {skip.reason for skip in entry.skipped} == {"all its 4 heads stay"}


def test_one_linear_may_make_keys_and_values() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.both, self.o = (nn.Linear(64, 64) for _ in range(3))
            self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64)

        def forward(self, x: Tensor) -> Tensor:
            q, both = (
                part(x).unflatten(-1, (HEADS, SIZE)).transpose(1, 2) for part in (self.q, self.both)
            )
            mixed = nn.functional.scaled_dot_product_attention(q, both, both)
            x = x + self.o(mixed.transpose(1, 2).flatten(2))
            changed: Tensor = x + self.down(torch.relu(self.up(x)))
            return changed

    torch.manual_seed(0)
    batch = {"x": torch.randn(2, 5, 64)}
    program = small_program(Twice(), x=batch["x"])
    small = Pipeline.parse("prune-heads{ratio=0.5}").run(program)
    assert small.tensor("both.weight").shape == (32, 64)
    assert_equal_outputs(silent(program, strongest(program, 2)), small, batch, tolerance=1e-6)
    same = Pipeline.parse("shrink-width{on_no_match=ignore}").run(program).history[-1]
    why = "both.weight makes values too, of which other features are to stay"
    assert why in [skip.reason for skip in same.skipped]
