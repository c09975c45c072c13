"""Runs of a graph with one weight changed, where what lies before it is computed once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
from torch import Tensor, fx

from sparsefx.passes.analyses.dataflow import whole_graph

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["Change", "ChangedRuns"]

Values = dict[fx.Node, Any]
Outputs = dict[str, Tensor]
_NONE: Set[fx.Node] = frozenset()


@dataclass(frozen=True)
class Change:
    """What a linear reads in place of its weight and, if that changes too, of its input."""

    weight: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor] | None = None


class ChangedRuns(fx.Interpreter):
    """Runs a graph on all batches, with one weight changed and then the next.

    Of each batch it holds those values alone that runs which are yet to come read: of an encoder
    about what goes from one layer to the next.

    Args:
        program: What is run.
        batches: Inputs by name.
        places: The linears that read each weight, in the order in which weights are changed.
    """

    def __init__(
        self,
        program: Program,
        batches: Iterable[Mapping[str, Tensor]],
        places: Mapping[str, tuple[fx.Node, ...]],
    ) -> None:
        super().__init__(program.module, garbage_collect_values=False)
        inputs = self.graph.find_nodes(op="placeholder")
        self._batches: list[Values] = [{n: b[str(n.target)] for n in inputs} for b in batches]
        self._places = places
        self._later = _later(self.graph, places)
        self._done = set(inputs)
        self._weights: dict[fx.Node, Tensor] = {}
        self._change: Change | None = None

    @property
    def count(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def nodes(self, name: str | None = None) -> list[fx.Node]:
        """Return what is computed anew when a weight is changed; of None, all there is."""
        later = None if name is None else self._later[name]
        return [
            n for n in self.graph.nodes if n.op != "placeholder" and (later is None or n in later)
        ]

    def untouched(self) -> Iterator[Outputs]:
        """Yield the outputs of each batch as they are; before any weight is changed."""
        nodes = self.nodes()
        for values in self._batches:
            yield self._compute(dict(values), nodes)

    def changed(self, name: str, change: Change) -> Iterator[Outputs]:
        """Yield the outputs of each batch with a weight changed."""
        self._reach(name)
        nodes, later = self.nodes(name), self._later[name]
        # No weight is computed from a batch (weight_of), so that of the first is that of all.
        weights = {n: change.weight(self._batches[0][n.args[1]]) for n in self._places[name]}  # type: ignore[index]  # a node
        for values in self._batches:
            known = {node: value for node, value in values.items() if node not in later}
            self._weights, self._change = weights, change
            outputs = self._compute(known, nodes)
            self._weights, self._change = {}, None
            yield outputs

    def _reach(self, name: str) -> None:
        """Compute of each batch what does not depend on a weight and is not computed yet."""
        names = list(self._places)
        to_come = [self._later[each] for each in names[names.index(name) :]]
        needed = set().union(*to_come)
        missing = [n for n in self.graph.nodes if not (n in self._later[name] or n in self._done)]
        self._done.update(missing)
        for values in self._batches:
            self._compute(values, missing, needed)
            for node in [node for node in values if needed.isdisjoint(node.users)]:
                del values[node]

    def _compute(
        self, values: Values, nodes: Sequence[fx.Node], needed: Set[fx.Node] = _NONE
    ) -> Any:
        """Compute nodes in order, and return the value of the last.

        A value goes when none of the nodes that come after, or are needed, reads it.
        """
        last = {read: node for node in nodes for read in node.all_input_nodes}
        over: dict[fx.Node, list[fx.Node]] = defaultdict(list)
        for read, node in last.items():
            if needed.isdisjoint(read.users):
                over[node].append(read)
        self.env, found = values, None
        for node in nodes:
            found = values[node] = self.run_node(node)
            for read in over[node]:
                del values[read]
        self.env = {}  # which would hold what it was given
        return found

    def run_node(self, n: fx.Node) -> Any:
        """Run one node; of a changed linear weight and input are others."""
        if self._change is None or n not in self._weights:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        value = args[0] if self._change.value is None else self._change.value(args[0])
        return torch.nn.functional.linear(value, self._weights[n], *args[2:])


def _later(graph: fx.Graph, places: Mapping[str, tuple[fx.Node, ...]]) -> dict[str, set[fx.Node]]:
    """Return the linears that read each weight, what depends on them, and the output."""
    flow, (output,) = whole_graph(graph), graph.find_nodes(op="output")
    return {
        name: {*nodes, output}.union(*(nx.descendants(flow, node) for node in nodes))
        for name, nodes in places.items()
    }
