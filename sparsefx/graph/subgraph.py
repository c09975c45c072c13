"""The part of a graph that computes some of its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, fx

from sparsefx.graph.effects import remove_dead_nodes
from sparsefx.graph.memory import freed_with_last_use

__all__ = ["Computing", "subgraph"]

Computing = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""From inputs by name to values by name."""


def subgraph(
    module: fx.GraphModule, wanted: Mapping[str, fx.Node]
) -> tuple[Computing, tuple[str, ...]]:
    """Return a function that computes some values and nothing else, and the inputs that it reads.

    It runs with the tensors and in the mode of ``module``, and takes these inputs of what it is
    given. Tensors that the graph writes to in evaluation mode are written to.

    Args:
        module: Stays as it is.
        wanted: Nodes of its graph, by the names under which their values are returned.
    """
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(module.graph, copied)
    graph.output({name: copied[node] for name, node in wanted.items()})
    remove_dead_nodes(graph)
    for node in graph.find_nodes(op="placeholder"):
        if not node.users:
            graph.erase_node(node)
    part = freed_with_last_use(fx.GraphModule(module, graph))
    inputs = tuple(str(node.target) for node in graph.find_nodes(op="placeholder"))

    def run(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = part(**{name: batch[name] for name in inputs})
        return found

    return run, inputs
