"""What holds for a batch as a whole, given to a graph from outside: counts and draws.

A mean over the tokens of a batch is ``sum(...) / clamp(sum(mask), 1)``. Where a batch is computed
in parts, each has to divide by the count of the whole batch (:mod:`sparsefx.train.step.parts`).
Likewise ``sparsefx::draw`` is one choice for a whole batch, and no part may choose otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

import sparsefx.graph.ops  # noqa: F401  # registers the operators
from sparsefx.graph.memory import freed_with_last_use
from sparsefx.program import Program
from sparsefx.train.randomness import seeded

__all__ = ["Counts", "find_draws"]

aten = torch.ops.aten


class Counts:
    """What a Program counts and chooses in a batch, and the Program that is told these values.

    A count that is drawn, or that follows from what the model computes, is not among them: it is
    not known before the batch is computed.

    Args:
        program: Its tensors are read, not copied.

    Attributes:
        forward: Computes the outputs of the Program; it takes counts and draws as further inputs.
    """

    def __init__(self, program: Program) -> None:
        found = [node for node in _divisors(program) if _from_inputs(node)]
        draws = find_draws(program)
        self._names = {node: f"whole_count_{index}" for index, node in enumerate(found)}
        self._draws = {node: f"whole_draw_{index}" for index, node in enumerate(draws)}
        self.forward = _with_inputs(program, self._names | self._draws)
        self._counting = _computing(program, found)
        self._drawing = _computing(program, draws)

    @torch.no_grad()
    def of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the counts of a batch, float or integer scalars, by the names of the inputs."""
        values = _called(self._counting, batch)
        return dict(zip(self._names.values(), values, strict=True))

    @torch.no_grad()
    def drawn(
        self, batch: Mapping[str, Tensor], seed: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Return the choices for a batch, bool scalars, by the names of the inputs.

        Args:
            batch: What the Program takes.
            seed: The same for all parts; the generators go on as if nothing had been drawn.
            device: Of the Program.
        """
        if not self._draws:
            return {}
        with seeded(seed, device):
            values = _called(self._drawing, batch)
        return dict(zip(self._draws.values(), values, strict=True))


def find_draws(program: Program) -> list[fx.Node]:
    """Return the nodes that choose once for a whole batch."""
    draw = torch.ops.sparsefx.draw.default
    return list(program.graph.find_nodes(op="call_function", target=draw))


def _divisors(program: Program) -> list[fx.Node]:
    return [
        node
        for node in program.graph.find_nodes(op="call_function", target=aten.clamp.default)
        if node.args[1:] == (1,)
        and isinstance(node.args[0], fx.Node)
        and node.args[0].target is aten.sum.default
        and all(user.target is aten.div.Tensor and user.args[1] is node for user in node.users)
    ]


def _ancestors(*nodes: fx.Node) -> set[fx.Node]:
    """Return all that ``nodes`` are computed from, themselves too."""
    found, stack = set(nodes), list(nodes)
    while stack:
        sources = set(stack.pop().all_input_nodes) - found
        found |= sources
        stack += sources
    return found


def _from_inputs(node: fx.Node) -> bool:
    """Return whether ``node`` follows from the batch alone."""
    return all(each.op == "placeholder" or _certain(each.target) for each in _ancestors(node))


def _certain(target: Any) -> bool:
    """Return whether a call is an ATen operator that draws nothing."""
    return (
        isinstance(target, torch._ops.OpOverload)
        and target.namespace == "aten"
        and torch.Tag.nondeterministic_seeded not in target.tags
    )


def _with_inputs(program: Program, names: Mapping[fx.Node, str]) -> fx.GraphModule:
    """Return the graph with further inputs in place of some nodes."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copied))
    for node, name in names.items():
        with graph.inserting_before(next(iter(graph.nodes))):
            copied[node].replace_all_uses_with(graph.placeholder(name))
        graph.erase_node(copied[node])
    return freed_with_last_use(fx.GraphModule(program.module, graph))


def _computing(program: Program, wanted: list[fx.Node]) -> fx.GraphModule:
    """Return the graph that computes ``wanted`` alone."""
    nodes = _ancestors(*wanted)
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        if node in nodes:
            copied[node] = graph.node_copy(node, lambda each: copied[each])
    graph.output([copied[node] for node in wanted])
    return freed_with_last_use(fx.GraphModule(program.module, graph))


def _called(module: fx.GraphModule, batch: Mapping[str, Tensor]) -> list[Tensor]:
    names = [str(node.target) for node in module.graph.find_nodes(op="placeholder")]
    values: list[Tensor] = module(**{name: batch[name] for name in names})
    return values
