"""Walks along the values of a graph: what a node passes on, and which linears lie behind it.

All of these see through what training puts between two operators: masks, fake quantization,
dropout, casts and changes of layout.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import networkx as nx
import torch
from torch import Tensor, fx

from sparsefx.passes.analyses.operators import (
    CASTS,
    CONVOLUTIONS,
    COPIES,
    DROPOUTS,
    PARTS,
    REORDERS,
    RESHAPES,
)

__all__ = [
    "carried",
    "data_graph",
    "data_inputs",
    "is_linear",
    "is_norm",
    "last_dim",
    "next_nodes",
    "origin",
    "passes_on",
    "previous_nodes",
    "products",
    "weight_of",
    "whole_graph",
]

aten = torch.ops.aten

_CARRIES = COPIES | CASTS | DROPOUTS | RESHAPES | REORDERS | PARTS | {operator.getitem}
_SHAPE_ONLY = {
    aten.arange.default,
    aten.empty_like.default,
    aten.full_like.default,
    aten.new_empty.default,
    aten.new_full.default,
    aten.new_ones.default,
    aten.new_zeros.default,
    aten.ones_like.default,
    aten.zeros_like.default,
}
_NORMS = {aten.layer_norm.default, aten.rms_norm.default, aten.native_layer_norm.default}


def is_linear(node: fx.Node) -> bool:
    """Whether the node is a linear layer."""
    return node.op == "call_function" and node.target is aten.linear.default


def is_norm(node: fx.Node) -> bool:
    """Whether the node is a LayerNorm or RMSNorm."""
    return node.op == "call_function" and node.target in _NORMS


def carried(node: fx.Node) -> fx.Node | None:
    """Return the input whose values ``node`` passes on, up to layout, dtype, dropout and rounding.

    None when the node computes something new.
    """
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    if node.target in _CARRIES or "quant" in _name(node):
        return node.args[0]
    return None


def passes_on(node: fx.Node) -> bool:
    """Whether ``node`` carries the values of an input, as :func:`carried` has it."""
    return carried(node) is not None


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def origin(node: fx.Node) -> fx.Node:
    """Return the node that computed the value which ``node`` carries."""
    while (inner := carried(node)) is not None:
        node = inner
    return node


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the inputs whose values (not only whose shapes) enter the value of ``node``."""
    if node.target in _SHAPE_ONLY:
        return []
    return [arg for arg in node.all_input_nodes if _is_data(arg)]


def _is_data(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), (Tensor, list, tuple))


def data_graph(graph: fx.Graph) -> nx.DiGraph[fx.Node]:
    """Return the flow of values as a networkx graph; sizes and training flags have no edges."""
    flow: nx.DiGraph[fx.Node] = nx.DiGraph()
    for node in graph.nodes:
        flow.add_node(node)
        if node.op != "output":
            flow.add_edges_from((source, node) for source in data_inputs(node))
    return flow


def whole_graph(graph: fx.Graph) -> nx.DiGraph[fx.Node]:
    """Return all uses of nodes as a networkx graph: those of sizes, flags and the output too."""
    uses: nx.DiGraph[fx.Node] = nx.DiGraph()
    for node in graph.nodes:
        uses.add_node(node)
        uses.add_edges_from((source, node) for source in node.all_input_nodes)
    return uses


def previous_nodes(start: fx.Node, wanted: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """Return the nearest ``wanted`` nodes behind ``start`` (itself included), in graph order."""
    return _nearest(start, wanted, data_inputs)


def next_nodes(
    start: fx.Node,
    wanted: Callable[[fx.Node], bool],
    *,
    through: Callable[[fx.Node], bool] = lambda node: True,
) -> list[fx.Node]:
    """Return the nearest ``wanted`` nodes that use the value of ``start``, in graph order.

    Args:
        start: Where to begin; not itself a result.
        wanted: What to look for; the walk ends there.
        through: What the walk may pass.
    """

    def users(node: fx.Node) -> Iterable[fx.Node]:
        fitting = [user for user in node.users if node in data_inputs(user)]
        return [user for user in fitting if wanted(user) or through(user)]

    found = [_nearest(user, wanted, users) for user in users(start)]
    return sorted({node for nodes in found for node in nodes})


def _nearest(
    start: fx.Node,
    wanted: Callable[[fx.Node], bool],
    follow: Callable[[fx.Node], Iterable[fx.Node]],
) -> list[fx.Node]:
    seen: set[fx.Node] = set()
    found: set[fx.Node] = set()
    stack = [start]
    while stack:
        node = stack.pop()
        if node in seen or node.op == "output":
            continue
        seen.add(node)
        if wanted(node):
            found.add(node)
        else:
            stack.extend(follow(node))
    return sorted(found)


def products(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the two factors when ``node`` is a product of two activations, else None."""
    if node.op != "call_function":
        return None
    factors: Any = ()
    if node.target in (aten.matmul.default, aten.bmm.default):
        factors = node.args[:2]
    elif node.target is aten.baddbmm.default:
        factors = node.args[1:3]
    elif node.target is aten.einsum.default:
        factors = node.args[1]
    if len(factors) != 2 or any(f.op == "get_attr" for f in factors):
        return None
    return factors[0], factors[1]


def weight_of(node: fx.Node) -> str | None:
    """Return the name of the weight of a linear, convolution or embedding node.

    The first argument of every operator on the way (mask, fake quantization, dequantize, layout) is
    the weight itself. None when the weight is computed from activations.
    """
    second = is_linear(node) or node.target in CONVOLUTIONS
    argument = node.args[1 if second else 0]
    for step in _first_arguments(argument):
        if step.op == "get_attr":
            return str(step.target)
    return None


def _first_arguments(value: Any) -> Iterator[fx.Node]:
    while isinstance(value, fx.Node):
        yield value
        value = value.args[0] if value.args else None


def last_dim(node: fx.Node) -> int:
    """Return the static size of the last dimension, or 0 when it is dynamic or no tensor."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dim() == 0:
        return 0
    return value.shape[-1] if isinstance(value.shape[-1], int) else 0
