"""decompose-attention: the same numbers, spelled out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program
from sparsefx.errors import PassError
from sparsefx.passes.analyses.encoder import EncoderStructure
from sparsefx.passes.structure.decompose_attention import DecomposeAttention
from sparsefx.properties import Property
from sparsefx.testing import assert_equal_outputs, assert_pass, small_program
from tests.programs import captured, shared
from tests.tiny_models import example_batch

aten = torch.ops.aten
attend: Callable[..., Tensor] = nn.functional.scaled_dot_product_attention
FUSED = ["bert-cls", "bert-qa", "distilbert", "roberta", "electra", "modernbert", "albert"]


def qkv(heads: int = 4, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    shapes = {"q": (2, 4, 5, 8), "k": (2, heads, 7, 8), "v": (2, heads, 7, 8)}
    return {name: torch.randn(*shape, dtype=dtype) for name, shape in shapes.items()}


def program_of(model: nn.Module | Callable[..., Tensor], **inputs: Tensor) -> Program:
    return small_program(model, training=False, **inputs)


def decompose(program: Program, **options: Any) -> Program:
    return Pipeline((DecomposeAttention(**options),)).run(program)


def test_golden_text_with_a_boolean_mask() -> None:
    before = program_of(
        lambda q, k, v, m: attend(q, k, v, m, scale=0.25), **qkv(), m=torch.rand(2, 1, 5, 7) > 0.3
    )
    after = assert_pass(
        DecomposeAttention(),
        before,
        """
        %where = aten.where.Scalar(%m, 0.0, -3.4028234663852886e+38)
        %transpose = aten.transpose.int(%k, -2, -1)
        %matmul = aten.matmul(%q, %transpose)
        %mul = aten.mul.Tensor(%matmul, 0.25)
        %add = aten.add.Tensor(%mul, %where)
        %softmax = aten.softmax.int(%add, -1)
        %matmul_1 = aten.matmul(%softmax, %v)
        return {output: %matmul_1}
        """,
        applied=1,
        skipped=[],
    )
    assert after.properties == {Property.EXPLICIT_ATTENTION}


MASKS: dict[str, Tensor | None] = {
    "none": None,
    "bool": torch.tensor([True, True, False, True, False, True, True]).expand(2, 1, 5, 7),
    "float": torch.linspace(-9.0, 9.0, 35).reshape(5, 7),
    "low": torch.tensor([0.0, 0.0, torch.finfo(torch.float32).min]).repeat(5, 3)[:, :7],
}


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("empty_rows", ["uniform", "zero"])
def test_equals_fused_attention(mask: str, scale: float | None, empty_rows: str) -> None:
    batch, given = qkv(), MASKS[mask]
    if given is None:
        before = program_of(lambda q, k, v: attend(q, k, v, scale=scale), **batch)
    else:
        batch["m"] = given
        before = program_of(lambda q, k, v, m: attend(q, k, v, m, scale=scale), **batch)
    after = decompose(before, empty_rows=empty_rows)
    assert_equal_outputs(before, after, batch, tolerance=2e-6)


def test_causal() -> None:
    batch = qkv()
    before = program_of(lambda q, k, v: attend(q, k, v, is_causal=True), **batch)
    assert_equal_outputs(before, decompose(before), batch, tolerance=2e-6)


def test_grouped_heads() -> None:
    batch = qkv(heads=2)
    before = program_of(lambda q, k, v: attend(q, k, v, enable_gqa=True), **batch)
    assert_equal_outputs(before, decompose(before), batch, tolerance=2e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_keep_their_dtype(dtype: torch.dtype) -> None:
    batch = qkv(dtype=dtype)
    mask = MASKS["bool"]
    assert mask is not None
    before = program_of(lambda q, k, v, m: attend(q, k, v, m), **batch, m=mask)
    after = decompose(before)
    found = after(**batch, m=mask)["output"]
    assert found.dtype is dtype
    tolerance = 2e-2 if dtype is torch.bfloat16 else 1e-12
    assert_equal_outputs(before, after, {**batch, "m": mask}, tolerance=tolerance)


def test_rows_in_which_all_is_masked() -> None:
    batch = {**qkv(), "m": torch.zeros(2, 1, 5, 7, dtype=torch.bool)}
    before = program_of(lambda q, k, v, m: attend(q, k, v, m), **batch)
    assert_equal_outputs(before, decompose(before, empty_rows="zero"), batch)
    uniform = decompose(before)(**batch)["output"]
    assert torch.allclose(uniform, batch["v"].mean(-2, keepdim=True).expand_as(uniform), atol=1e-6)


class Dropping(nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, dropout_p=0.5 if self.training else 0.0)


def test_dropout_follows_the_mode() -> None:
    batch = qkv()
    after = decompose(program_of(Dropping(), **batch))
    assert len(after.graph.find_nodes(op="call_function", target=aten.dropout.default)) == 1
    assert not any("dropout_rate" in node.name for node in after.graph.nodes)
    expected = attend(**{"query": batch["q"], "key": batch["k"], "value": batch["v"]})
    assert torch.allclose(after.eval()(**batch)["output"], expected, atol=2e-6)
    ones = {**batch, "v": torch.ones_like(batch["v"])}
    dropped = after.train()(**ones)["output"]
    assert dropped.std() > 0.1
    torch.manual_seed(3)
    mean = torch.stack([after(**ones)["output"].mean() for _ in range(50)]).mean()
    assert mean == pytest.approx(1.0, abs=0.05)


def test_gradients_equal() -> None:
    batch = {name: value.requires_grad_() for name, value in qkv().items()}
    before = program_of(lambda q, k, v: attend(q, k, v), **qkv())
    grads = []
    for program in (before, decompose(before)):
        loss = program(**batch)["output"].square().sum()
        grads.append(torch.autograd.grad(loss, list(batch.values())))
    for left, right in zip(*grads, strict=True):
        assert torch.allclose(left, right, atol=1e-5)


@pytest.mark.parametrize("name", FUSED)
def test_every_architecture(name: str) -> None:
    before = shared(name)
    after = decompose(before)
    assert after.history[-1].applied == 2
    batch = example_batch()
    if name == "modernbert":
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    assert_equal_outputs(before, after, batch, tolerance=2e-6)
    for layer in after.facts(EncoderStructure).layers:
        assert layer.core.sdpa is None
        assert layer.core.probabilities is not None
        assert layer.core.heads == 4


def test_masks_are_made_once() -> None:
    after = decompose(captured("bert-cls"))
    assert len(after.graph.find_nodes(op="call_function", target=aten.where.Scalar)) == 1


def test_explicit_attention_is_left_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    before = shared("mpnet", "eager")
    after = decompose(before)
    assert after.history[-1].applied == 0
    assert after.fingerprint() == before.fingerprint()
    assert Property.EXPLICIT_ATTENTION not in after.properties
    assert "it applied nowhere" in caplog.text


def test_options() -> None:
    with pytest.raises(PassError, match="empty_rows='none': expected 'uniform' or 'zero'"):
        DecomposeAttention(empty_rows="none")  # type: ignore[arg-type]  # the test
    text = "decompose-attention{empty_rows='zero'}"
    assert str(Pipeline.parse(text)) == text


def test_a_mask_that_is_written_to_before_it_is_read() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
        mask[:, :, :, :3] = m[:, None, None]
        return attend(q, k, v, mask)

    batch = {**qkv(), "m": torch.tensor([[True, False, True], [False, True, False]])}
    before = program_of(model, **batch)
    assert_equal_outputs(before, decompose(before), batch, tolerance=1e-6)


def test_a_mask_that_is_written_to_between_two_layers() -> None:
    def model(q: Tensor, k: Tensor, v: Tensor, m: Tensor) -> Tensor:
        mask = torch.ones(2, 1, 5, 7, dtype=torch.bool)
        first = attend(q, k, v, mask)
        mask[:, :, :, :3] = m[:, None, None]
        return first + attend(q, k, v, mask)

    batch = {**qkv(), "m": torch.tensor([[True, False, True], [False, True, False]])}
    before = program_of(model, **batch)
    assert_equal_outputs(before, decompose(before), batch, tolerance=1e-6)
