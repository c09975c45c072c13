"""Features change places only where all that stands between two linears is element-wise."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparsefx import Pipeline, Program, capture
from tests.tiny_models import HandwrittenBlock

WIDTH, INNER, HEADS = 16, 32, 2
Between = Callable[[Tensor], Tensor]


class Block(HandwrittenBlock):
    """A post-LN layer with something between up and down, and something on the value."""

    def __init__(self, inside: Any = None, on_value: Any = None, context: Any = None) -> None:
        super().__init__(WIDTH, HEADS)
        self.drop = nn.Dropout(0.0)
        self.inside = inside or nn.GELU()
        self.on_value = on_value or nn.Identity()
        self.context = context or nn.Identity()

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Any:
        """Return what the encoder layer makes of ``[batch, sequence, 16]``."""
        batch, length, hidden = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        scores = q @ k.transpose(-1, -2) / (hidden // self.heads) ** 0.5
        mixed = self.context(scores.softmax(-1) @ self.on_value(v))
        x = self.norm1(x + self.o(mixed.transpose(1, 2).reshape(batch, length, hidden)))
        return self.norm2(x + self.down(self.inside(self.up(x))))


class Scaled(nn.Module):
    """Multiplies each feature by its own number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x * factor``."""
        return x * self.factor


class Called(nn.Module):
    """A function as a module."""

    def __init__(self, function: Between) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return ``function(x)``."""
        return self.function(x)


def interleaved(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], 4, -1).transpose(2, 3).reshape(x.shape)


def rolled(x: Tensor) -> Tensor:
    return torch.cat([x[..., 1:], x[..., :1]], dim=-1)


def uneven(block: nn.Module) -> Program:
    """The block with a quarter of its weights left, in rows and columns of very unlike counts."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in block.parameters():
            if tensor.dim() == 2:
                rows, columns = (torch.randn(n, generator=generator) for n in tensor.shape)
                tensor.mul_(rows[:, None].exp() * columns.exp() > 1.5)
    dims = {"x": {0: "batch", 1: "sequence"}}
    return capture(block.eval(), {"x": torch.randn(2, 3, WIDTH)}, dynamic=dims)


def permuted(program: Program) -> tuple[Program, str]:
    after = Pipeline.parse("permute-rows{elements=4,block=8}").run(program)
    return after, "; ".join(str(skip) for skip in after.history[-1].skipped)


def assert_same(before: Program, after: Program) -> None:
    batch = {"x": torch.randn(3, 5, WIDTH)}
    with torch.no_grad():
        old, new = before(**batch), after(**batch)
    assert torch.allclose(old["output"], new["output"], atol=1e-5)


@pytest.mark.parametrize(
    ("inside", "reason"),
    [
        (
            nn.LayerNorm(INNER),
            "%layer_norm_1 (aten.layer_norm) is not known to work on each feature",
        ),
        (nn.PReLU(INNER), "(aten.prelu) is not known to work on each feature alone"),
        (nn.Softmax(-1), "%softmax_1 (aten.softmax.int) is not known to work on each feature"),
        (Scaled(INNER), "%mul (aten.mul.Tensor) gives each feature a value of its own"),
        (Called(interleaved), "%linear_5 reads them in another order"),
        (Called(rolled), "(aten.cat) is not known to work on each feature alone"),
        (Called(lambda x: x + x.flip(-1)), "(aten.flip) is not known"),
        (Called(lambda x: x * interleaved(x)), "(aten.mul.Tensor) joins different features"),
    ],
)
def test_what_is_not_element_wise_inside_the_block_is_skipped_with_its_name(
    inside: nn.Module, reason: str
) -> None:
    before = uneven(Block(inside=PerToken(inside) if isinstance(inside, nn.PReLU) else inside))
    after, told = permuted(before)
    assert "down.weight: its features cannot change places: " in told
    assert reason in told
    assert_same(before, after)


class PerToken(nn.Module):
    """PReLU takes channels at dimension 1: one row for each token."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Apply ``inner`` to ``[tokens, features]``."""
        result: Tensor = self.inner(x.reshape(-1, x.shape[-1])).view(x.shape)
        return result


@pytest.mark.parametrize(
    "inside",
    [
        nn.Sequential(nn.SiLU(), nn.Dropout(0.1), nn.Tanh()),
        Called(lambda x: x * torch.sigmoid(1.702 * x)),
        Called(lambda x: nn.functional.gelu(x.reshape(-1, INNER)).view(x.shape)),
        Called(lambda x: nn.functional.relu(x.transpose(0, 1)).transpose(0, 1).contiguous()),
        Called(lambda x: torch.relu(x.view(*x.shape[:2], 8, -1)).flatten(2)),
    ],
)
def test_what_is_element_wise_or_ends_in_the_same_order_is_reordered(inside: nn.Module) -> None:
    before = uneven(Block(inside=inside))
    after, told = permuted(before)
    moved = not torch.equal(before.tensor("up.weight"), after.tensor("up.weight"))
    assert moved, told
    assert_same(before, after)


@pytest.mark.parametrize(
    ("place", "module", "reason"),
    [
        ("on_value", nn.LayerNorm(WIDTH // HEADS), "(aten.layer_norm) is not known"),
        ("on_value", Scaled(WIDTH // HEADS), "(aten.mul.Tensor) gives each feature a value"),
        (
            "on_value",
            Called(lambda v: v.transpose(1, 3).reshape(v.shape[0], 2, 8, -1).transpose(2, 3)),
            "mixes features of several groups",
        ),
    ],
)
def test_the_way_of_the_value_is_walked_too(place: str, module: nn.Module, reason: str) -> None:
    before = uneven(Block(**{place: module}))
    after, told = permuted(before)
    assert "o.weight" in told
    assert reason in told
    assert_same(before, after)


def test_attention_that_leads_to_no_linear_is_told() -> None:
    _, told = permuted(uneven(Block(context=nn.Softmax(-1))))
    assert told == "%matmul_1: 0 linears follow the attention, expected one"


def test_a_plain_value_is_reordered_within_its_heads() -> None:
    before = uneven(Block())
    after, _ = permuted(before)
    assert not torch.equal(before.tensor("v.weight"), after.tensor("v.weight"))
    assert_same(before, after)


class Shown(Block):
    """Also returns the inner features."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Any:
        """Return the layer's output and its inner features."""
        inner = torch.relu(self.up(x))
        added = x + self.o(self.v(x))
        return {"output": super().forward(x), "inner": inner, "added": added}


def test_features_that_are_seen_from_outside_stay() -> None:
    before = uneven(Shown())
    after, told = permuted(before)
    assert "up.weight is read by" in told
    assert "v.weight is read by" in told
    assert_same(before, after)
