"""Patterns: what they bind, and why they do not match."""

from __future__ import annotations

import pytest
import torch

from sparsefx import Program
from sparsefx.errors import SparsefxError
from sparsefx.pattern import Match, NoMatch, bind, either, op, tensor
from sparsefx.testing import small_program

aten = torch.ops.aten


def linear_gelu() -> Program:
    linear = torch.nn.Linear(3, 3)
    return small_program(torch.nn.Sequential(linear, torch.nn.GELU()), input=torch.randn(2, 3))


def test_pattern_binds_and_says_why_not() -> None:
    pattern = op(
        aten.gelu.default, op(aten.linear.default, bind("x"), bind("w", tensor()), bind("b")), ...
    )
    program = linear_gelu()
    (match,) = pattern.find(program)
    assert match["w"].target == "0.weight"
    assert [node.name for node in match.calls] == ["linear", "gelu"]
    (linear,) = program.graph.find_nodes(op="call_function", target=aten.linear.default)
    failed = pattern.match(linear)
    assert isinstance(failed, NoMatch)
    assert str(failed) == "expected aten.gelu.default, found aten.linear.default at %linear"


def test_pattern_that_leaks_is_no_match() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x)
        return y.exp() + y

    program = small_program(forward, x=torch.randn(2))
    pattern = op(aten.exp.default, op(aten.relu.default, bind("x")))
    (node,) = program.graph.find_nodes(op="call_function", target=aten.exp.default)
    result = pattern.match(node)
    assert isinstance(result, NoMatch)
    assert "%relu is also used by %add" in str(result)
    assert isinstance(pattern.match(node, closed=False), Match)


def test_commuting_arguments_and_alternatives() -> None:
    program = small_program(lambda x: 1 + torch.relu(x) + torch.exp(x), x=torch.randn(2))
    pattern = op(
        aten.add.Tensor,
        op(aten.exp.default, bind("x")),
        either(op(aten.add.Tensor, bind("y"), 1), op(aten.mul.Tensor, ...)),
        commutes=True,
    )
    (match,) = pattern.find(program)
    assert match["x"].name == "x"


def test_what_no_graph_can_hold_is_told_when_the_pattern_is_made() -> None:
    overload = r"pattern: .*'aten.gelu'.*\n  hint: name an overload: aten.gelu.default$"
    with pytest.raises(SparsefxError, match=overload):
        op(torch.ops.aten.gelu, bind("x"))
    with pytest.raises(SparsefxError, match=r"pattern: .*aten.linear.default: '...' stands before"):
        op(torch.ops.aten.linear.default, ..., bind("w"))
