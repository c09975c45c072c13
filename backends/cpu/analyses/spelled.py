"""Activations that a model spells out with elementary operators.

    0.5 * x * (1 + tanh(0.7978845608 * (x + 0.044715 * x ** 3)))     is gelu_tanh
    x * 0.5 * (1 + erf(x / 1.4142135))                               is gelu
    x * sigmoid(1.702 * x)                                           is quick_gelu

There are many spellings, so none is matched: what is computed from one node and numbers alone is
tried on a row of numbers, and taken for the activation that gives the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from sparsefx.backends.cpu.analyses.graphs import REFERENCE, identity_source

__all__ = ["Spelled", "find_spelled"]

aten = torch.ops.aten

_CENTRES = (aten.tanh.default, aten.erf.default, aten.sigmoid.default)
_ELEMENTARY = (
    *(*_CENTRES, aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor),
    *(aten.rsub.Scalar, aten.pow.Tensor_Scalar, aten.neg.default),
)
_MOST = 12
"""Operators of the longest spelling that is followed."""


@dataclass(frozen=True)
class Spelled:
    """One spelling.

    Attributes:
        source: What the activation is applied to.
        name: The activation.
        inner: The nodes of the spelling whose values nothing else reads.
    """

    source: fx.Node
    name: str
    inner: frozenset[fx.Node]


def find_spelled(graph: fx.Graph) -> dict[fx.Node, Spelled]:
    """The spellings of a graph, by their last node."""
    found: dict[fx.Node, Spelled] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target in _CENTRES:
            last = _spelling(node)
            if last is not None:
                found[last[0]] = last[1]
    return found


def _spelling(centre: fx.Node) -> tuple[fx.Node, Spelled] | None:
    """The longest spelling of an activation around its only transcendental operator."""
    best = None
    last = centre
    for _ in range(_MOST):
        if len(last.users) != 1:
            break
        last = next(iter(last.users))
        if last.target not in _ELEMENTARY or last.kwargs:
            break
        for source in _sources(last):
            region = _region(last, source)
            if region is None or centre not in region:
                continue
            name = _name(region, source)
            inner = frozenset(region[:-1])
            closed = all(user in region for node in inner for user in node.users)
            if name and closed:
                best = last, Spelled(source, name, inner)
    return best


def _sources(last: fx.Node) -> list[fx.Node]:
    """Nodes that a spelling which ends here may begin from."""
    found: dict[fx.Node, None] = {}
    stack = [(last, 0)]
    while stack:
        node, depth = stack.pop()
        for before in node.all_input_nodes:
            if depth < _MOST and before.target in _ELEMENTARY:
                stack.append((before, depth + 1))
            found[before] = None
    return [n for n in found if n.target not in _ELEMENTARY or len(n.users) > 1]


def _region(last: fx.Node, source: fx.Node) -> list[fx.Node] | None:
    """The nodes between, in order, if they read `source` and numbers alone."""
    order: list[fx.Node] = []

    def visit(node: fx.Node) -> bool:
        if node is source or node in order:
            return True
        elementary = node.op == "call_function" and node.target in _ELEMENTARY
        if not elementary and identity_source(node) is None:
            return False
        if len(order) > _MOST or not all(visit(n) for n in node.all_input_nodes):
            return False
        order.append(node)
        return True

    return order if visit(last) else None


def _name(region: list[fx.Node], source: fx.Node) -> str:
    """The activation that a region computes, "" if it is none."""
    x = torch.linspace(-6, 6, 49)
    values: dict[fx.Node, torch.Tensor] = {source: x}
    for node in region:
        before = identity_source(node)
        if before is not None:
            values[node] = values[before]
            continue
        args = fx.map_arg(node.args, lambda n: values[n])
        values[node] = node.target(*args)  # type: ignore[operator]  # a call_function
    result = values[region[-1]]
    alike = (n for n, f in REFERENCE.items() if torch.allclose(f(x), result, rtol=0, atol=2e-6))
    return next(alike, "")
