"""Common subexpressions: nodes that compute what an earlier node has computed."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch import fx

from sparsefx.graph.effects import is_pure

__all__ = ["find_repeated"]


def find_repeated(graph: fx.Graph, untouchable: Set[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """Return pairs (repeated node, earlier node with the same value), in graph order.

    Args:
        graph: The graph.
        untouchable: Nodes whose memory is written to: neither they nor what reads them is merged.
    """
    first: dict[object, fx.Node] = {}
    stands_for: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if not is_pure(node) or node in untouchable:
            continue
        if any(source in untouchable for source in node.all_input_nodes):
            continue
        key = (node.target, _key(node.args, stands_for), _key(node.kwargs, stands_for))
        earlier = first.setdefault(key, node)
        if earlier is not node:
            stands_for[node] = earlier
    return list(stands_for.items())


def _key(value: Any, stands_for: dict[fx.Node, fx.Node]) -> object:
    if isinstance(value, fx.Node):
        return stands_for.get(value, value)
    if isinstance(value, (list, tuple)):
        return tuple(_key(item, stands_for) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item, stands_for)) for name, item in sorted(value.items()))
    if isinstance(value, slice):
        return (slice, _key((value.start, value.stop, value.step), stands_for))
    return (type(value), str(value))
