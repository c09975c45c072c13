"""capture: what is written in place, and who sees it through views."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import sparsefx


class Overwriting(nn.Module):
    """Two sums that need not overwrite, one seen through a view, three with a type of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.scale = nn.Parameter(torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        free = x * 2
        free += x
        free.relu_()
        early = x * 7
        before = early.tanh()
        early.masked_fill_(x > 0, 2.0)
        free = free + before + early
        read = x + 1
        seen = read.view(-1)
        read += x
        narrow = x * 3
        narrow += x.double() / 3
        summed = x * 5
        summed += self.wide
        scaled = x * 6
        scaled *= self.scale
        compared = (x * 4).gt_(0)
        return free + read + seen.view(x.shape) + narrow - compared + summed * scaled


def test_what_nothing_else_reads_is_not_overwritten() -> None:
    x = torch.randn(2, 3)
    program = sparsefx.capture(Overwriting(), {"x": x})
    found = program(x=x)["output"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, Overwriting()(x), rtol=0, atol=0)
    operators = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert operators.count("aten.add_.Tensor") == 3
    assert "aten.mul_.Tensor" not in operators  # a number of any type leaves the tensor its own
    assert "aten.gt_.Scalar" in operators
    assert "aten.relu.default" in operators


class Permuted(nn.Module):
    """A sum of one operand that only moves dimensions is a view, though nothing declares it."""

    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        turned = torch.einsum("ij->ji", doubled)
        doubled += 1
        return turned * 3


def test_a_view_by_einsum_sees_what_is_written() -> None:
    x = torch.randn(2, 3)
    assert torch.equal(sparsefx.capture(Permuted(), {"x": x})(x=x)["output"], Permuted()(x))


class DroppingInPlace(nn.Module):
    """Drops out in place; ``is_seen`` through a view that was taken before."""

    def __init__(self, *, is_seen: bool) -> None:
        super().__init__()
        self.is_seen = is_seen

    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        view = doubled.view(-1)
        dropped = nn.functional.dropout(doubled, 0.5, self.training, inplace=True)
        return view + 0 if self.is_seen else dropped


@pytest.mark.parametrize(
    ("is_seen", "operator"), [(True, "aten.dropout_"), (False, "aten.dropout")]
)
def test_dropout_in_place_is_seen_through_views(is_seen: bool, operator: str) -> None:
    model, x = DroppingInPlace(is_seen=is_seen), torch.randn(4, 8)
    program = sparsefx.capture(model, {"x": x})
    assert f"{operator}(" in program.dump()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(program(x=x)["output"], expected)
    assert torch.equal(program.eval()(x=x)["output"], model.eval()(x))
