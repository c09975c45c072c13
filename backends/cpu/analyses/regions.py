"""Parts of a graph that follow from one node, to be tried on numbers.

Models spell rotations, means and norms in many ways, so no spelling is matched: lowering goes back
from where one may end to where it may begin, and runs what lies between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.graphs import identity_source
from sparsefx.backends.cpu.analyses.host import Host

__all__ = ["Region", "Regions"]

_MOST = 32
"""Operators of the longest region that is followed."""


@dataclass(frozen=True, eq=False)
class Region:
    """What is computed from one node and from values that no activation decides.

    Attributes:
        host: Evaluates those values.
        source: The node.
        nodes: The nodes behind it, in order; nothing else reads any but the last.
        tables: What they read of the host.
    """

    host: Host
    source: fx.Node
    nodes: tuple[fx.Node, ...]
    tables: tuple[fx.Node, ...]

    @property
    def inner(self) -> frozenset[fx.Node]:
        """The nodes whose values nothing else reads."""
        return frozenset(self.nodes[:-1])

    @property
    def inputs(self) -> set[fx.Node]:
        """The inputs of the graph that it depends on beside its source."""
        return self.host.placeholders(self.tables)

    @property
    def kind(self) -> torch.dtype:
        """The type of floats that it is tried in: products of float16 would say too little."""
        return torch.float64 if torch.float64 in self._kinds else torch.float32

    @property
    def _kinds(self) -> set[torch.dtype]:
        """The types of its ends."""
        return {node.meta["val"].dtype for node in (self.source, self.nodes[-1])}

    def run(self, value: Tensor, known: Mapping[fx.Node, Any]) -> Any:
        """The value of the last node, in float32, for a value of the source and of `inputs`."""
        own, kind = self._kinds, self.kind
        values = self.host.evaluate(self.tables, known)
        values[self.source] = value.to(kind)

        def told(item: Any) -> Any:
            found = values[item] if isinstance(item, fx.Node) else item
            if isinstance(found, torch.dtype):
                return kind if found in own else found
            return found.to(kind) if isinstance(found, Tensor) and found.dtype in own else found

        for node in self.nodes:
            args, kwargs = fx.node.map_aggregate((node.args, node.kwargs), told)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found = values[self.nodes[-1]]
        return found.float() if isinstance(found, Tensor) else found


class Regions:
    """Finds regions of one graph.

    Args:
        host: The values that a region may read beside its source.
        inner: Whether an operator may be part of one; those that change nothing always may.
    """

    def __init__(self, host: Host, inner: Callable[[Any], bool]) -> None:
        self.host = host
        self._inner = inner

    def around(self, last: fx.Node) -> list[fx.Node]:
        """What a region that ends with a node may hold or begin from, in order."""
        found, stack = {last}, [last]
        while stack and len(found) < 2 * _MOST:
            node = stack.pop()
            if self._inside(node):
                inputs = node.all_input_nodes
                fresh = [n for n in inputs if n not in found and n not in self.host.nodes]
                found.update(fresh)
                stack += fresh
        return sorted(found, key=self.host.places.__getitem__)

    def onward(self, node: fx.Node, most: int) -> Iterator[fx.Node]:
        """A node and at most `most - 1` behind it, as long as one alone reads the one before."""
        for _ in range(most):
            yield node
            if len(node.users) != 1:
                return
            (node,) = node.users
            if not self._inner(node.target):
                return

    def between(self, source: fx.Node, last: fx.Node) -> Region | None:
        """The region that begins from one node and ends with another."""
        found: set[fx.Node] = set()
        stack = [last]
        while stack:
            node = stack.pop()
            if node is source or node in found or node in self.host.nodes:
                continue
            if not self._inside(node) or len(found) > _MOST:
                return None
            found.add(node)
            stack += node.all_input_nodes
        ordered = sorted(found, key=self.host.places.__getitem__)
        if any(user not in found for node in ordered[:-1] for user in node.users):
            return None
        inputs = dict.fromkeys(n for node in ordered for n in node.all_input_nodes)
        tables = tuple(n for n in inputs if n in self.host.nodes)
        return Region(self.host, source, tuple(ordered), tables)

    def _inside(self, node: fx.Node) -> bool:
        if node.op != "call_function":
            return False
        return self._inner(node.target) or identity_source(node) is not None
