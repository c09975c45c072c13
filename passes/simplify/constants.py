"""Constants: parts of a graph whose value follows from buffers and numbers alone."""

from __future__ import annotations

from collections.abc import Set
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from sparsefx.graph.effects import is_pure

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["find_constants", "value_of"]


def find_constants(program: Program, untouchable: Set[fx.Node]) -> list[fx.Node]:
    """Return the calls that could be replaced by a buffer: constant, with a user that is not.

    Parameters and what follows from them are no constants, nor are the operators of sparsefx: a
    dequantized weight stays int8 in the graph.
    """
    constant: set[fx.Node] = set()
    for node in program.graph.nodes:
        if node not in untouchable and _is_constant(program, node, constant):
            constant.add(node)
    return [
        node
        for node in program.graph.nodes
        if node in constant
        and isinstance(node.meta.get("val"), Tensor)
        and isinstance(node.target, OpOverload)
        and any(user not in constant for user in node.users)
    ]


def _is_constant(program: Program, node: fx.Node, constant: Set[fx.Node]) -> bool:
    if node.op == "get_attr":
        return not isinstance(program.tensor(str(node.target)), nn.Parameter)
    if node.op != "call_function" or not is_pure(node):
        return False
    if isinstance(node.target, OpOverload) and node.target.namespace != "aten":
        return False
    return all(source in constant for source in node.all_input_nodes)


@torch.no_grad()
def value_of(program: Program, node: fx.Node) -> Tensor:
    """Return the value of a constant node, as a tensor of its own."""
    known: dict[fx.Node, Any] = {}

    def evaluate(current: fx.Node) -> Any:
        if current not in known:
            if current.op == "get_attr":
                known[current] = program.tensor(str(current.target))
            else:
                args, kwargs = fx.node.map_arg((current.args, current.kwargs), evaluate)
                known[current] = current.target(*args, **kwargs)  # type: ignore[operator]  # a call
        return known[current]

    value: Tensor = evaluate(node)
    return value.detach().clone().contiguous()
