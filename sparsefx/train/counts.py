"""The numbers of tokens and labels by which a graph divides, given from outside.

A mean over the tokens of a batch is ``sum(...) / clamp(sum(mask), 1)``. Where a batch is computed
in parts, each has to divide by the count of the whole batch (:mod:`sparsefx.train.parts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sparsefx.program import Program

__all__ = ["Counts"]

aten = torch.ops.aten


class Counts:
    """What a Program counts in a batch, and the Program that is told these counts.

    A count that is drawn, or that follows from what the model computes, is not among them: it is
    not known before the batch is computed.

    Args:
        program: Its tensors are read, not copied.

    Attributes:
        forward: Computes the outputs of the Program; it takes the counts as further inputs.
    """

    def __init__(self, program: Program) -> None:
        found = {node: sources for node in _divisors(program) if (sources := _sources(node))}
        self._names = [f"whole_count_{index}" for index in range(len(found))]
        self.forward = _told(program, dict(zip(found, self._names, strict=True)))
        self._counting = _counting(program, list(found), set().union(*found.values()))
        self._inputs = [str(n.target) for n in self._counting.graph.find_nodes(op="placeholder")]

    @torch.no_grad()
    def of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the counts of a batch, float or integer scalars, by the names of the inputs."""
        values = self._counting(**{name: batch[name] for name in self._inputs})
        return dict(zip(self._names, values, strict=True))


def _divisors(program: Program) -> list[fx.Node]:
    return [
        node
        for node in program.graph.find_nodes(op="call_function", target=aten.clamp.default)
        if node.args[1:] == (1,)
        and isinstance(node.args[0], fx.Node)
        and node.args[0].target is aten.sum.default
        and all(user.target is aten.div.Tensor and user.args[1] is node for user in node.users)
    ]


def _sources(node: fx.Node) -> set[fx.Node]:
    """Return all that ``node`` is computed from, itself too; empty if not from inputs alone."""
    found, stack = {node}, [node]
    while stack:
        source = stack.pop()
        if source.op == "placeholder":
            continue
        target: Any = source.target
        if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
            return set()
        if torch.Tag.nondeterministic_seeded in target.tags:
            return set()
        stack += [each for each in source.all_input_nodes if each not in found]
        found.update(source.all_input_nodes)
    return found


def _told(program: Program, names: Mapping[fx.Node, str]) -> fx.GraphModule:
    """Return the graph with further inputs in place of some nodes."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copied))
    for node, name in names.items():
        with graph.inserting_before(next(iter(graph.nodes))):
            copied[node].replace_all_uses_with(graph.placeholder(name))
    return fx.GraphModule(program.module, graph)


def _counting(program: Program, counts: list[fx.Node], nodes: set[fx.Node]) -> fx.GraphModule:
    """Return the graph of ``nodes`` alone, which computes the counts."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node in nodes:
            copied[node] = graph.node_copy(node, lambda each: copied[each])
    graph.output([copied[node] for node in counts])
    return fx.GraphModule(program.module, graph)
