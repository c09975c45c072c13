"""What weights are for: encoder, pooler, head, embedding, convolution."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

import networkx as nx
import torch
from torch import Tensor, fx, nn

from sparsefx.joined import DISTILL_PREFIX, TEACHER_PREFIX
from sparsefx.passes.analyses.dataflow import is_linear, last_dim, next_nodes, passes_on, weight_of
from sparsefx.passes.analyses.operators import CONVOLUTIONS

__all__ = ["Role", "roles_of"]

aten = torch.ops.aten


class Role(StrEnum):
    """What a weight is for; passes select by it."""

    ENCODER = "encoder"
    """A linear of attention, of a feed-forward block before the first attention, or between the
    embedding output and the last hidden state."""
    POOLER = "pooler"
    """A square linear with an activation, applied to one vector of each sequence."""
    HEAD = "head"
    """Any other linear after the last hidden state."""
    EMBEDDING = "embedding"
    """An embedding table, or a linear or matrix on the way to the embedding output."""
    CONVOLUTION = "convolution"
    """The weight of a convolution, in any graph."""
    OTHER = "other"
    """None of these; every weight of a graph that is no encoder, but for embedding tables."""


def roles_of(
    graph: fx.Graph,
    flow: nx.DiGraph[fx.Node],
    first: fx.Node | None,
    last: fx.Node | None,
    members: Collection[fx.Node] = (),
) -> dict[str, Role]:
    """Return the role of every weight of a linear, convolution or embedding, by tensor name.

    A weight that is used twice, as the tied decoder of a masked language model, keeps the first of
    its roles in the order embedding, encoder, pooler, head.

    Args:
        graph: The graph.
        flow: Its flow of values.
        first: The embedding output; None when the graph is no encoder.
        last: The last hidden state; None likewise.
        members: Linears that belong to the encoder wherever they stand: a layer that was not
            understood may lie before the first or behind the last that was.
    """
    found: dict[str, Role] = {}
    regions = _Regions.around(flow, first, last)
    for node in graph.nodes:
        if is_linear(node):
            role = Role.ENCODER if node in members else regions.role(node)
        elif node.target is aten.embedding.default:
            role = Role.EMBEDDING
        elif node.target in CONVOLUTIONS:
            role = Role.CONVOLUTION
        else:
            continue
        name = weight_of(node)
        if name is None or name.startswith(TEACHER_PREFIX):
            continue
        if name.startswith(DISTILL_PREFIX):
            role = Role.OTHER
        found[name] = min(role, found.get(name, role), key=_PRECEDENCE.index)
    for node in graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if _is_matrix(node, name) and name not in found and node in regions.before | regions.inside:
            found[name] = Role.EMBEDDING
    return dict(sorted(found.items()))


_PRECEDENCE = (
    Role.EMBEDDING,
    Role.ENCODER,
    Role.POOLER,
    Role.HEAD,
    Role.CONVOLUTION,
    Role.OTHER,
)


def _is_matrix(node: fx.Node, name: str) -> bool:
    """Whether a tensor is a trained matrix that no linear reads: a table of positions."""
    parameter: object = node.graph.owning_module
    for part in name.split("."):
        parameter = getattr(parameter, part)
    return isinstance(parameter, nn.Parameter) and parameter.dim() == 2


@dataclass(frozen=True)
class _Regions:
    """The parts of the graph before, inside and after the encoder."""

    before: frozenset[fx.Node]
    inside: frozenset[fx.Node]
    after: frozenset[fx.Node]

    @classmethod
    def around(
        cls, flow: nx.DiGraph[fx.Node], first: fx.Node | None, last: fx.Node | None
    ) -> _Regions:
        """Return the parts; all empty when there is no encoder."""
        if first is None or last is None:
            return cls(frozenset(), frozenset(), frozenset())
        before = {first, *nx.ancestors(flow, first)}
        return cls(
            frozenset(before),
            frozenset({last, *nx.ancestors(flow, last)} - before),
            frozenset(nx.descendants(flow, last)),
        )

    def role(self, linear: fx.Node) -> Role:
        """Return the role of a linear by where it stands."""
        if linear in self.before:
            return Role.EMBEDDING
        if linear in self.inside:
            return Role.ENCODER
        if linear not in self.after:
            return Role.OTHER
        return Role.POOLER if _pools(linear) else Role.HEAD


def _pools(linear: fx.Node) -> bool:
    """Whether a linear after the encoder is square, pooled, and followed by an activation."""
    value, source = linear.meta.get("val"), linear.args[0]
    if not isinstance(value, Tensor) or value.dim() != 2 or not isinstance(source, fx.Node):
        return False
    if last_dim(linear) != last_dim(source):
        return False
    used = next_nodes(linear, lambda node: not passes_on(node))
    return bool(used) and not any(is_linear(node) for node in used)
