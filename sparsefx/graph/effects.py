"""What an operator does besides computing its value: writing, drawing numbers, sharing memory."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sparsefx.graph.ops import MODE

__all__ = [
    "changed_state",
    "is_pure",
    "may_alias",
    "out_of_place",
    "remove_dead_nodes",
    "shared_with_writes",
    "writes",
]

aten = torch.ops.aten
_RANDOM = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
_UNDECLARED = {aten.batch_norm.default: (3, 4)}  # running statistics, written in training
_ALIASES = {aten.type_as.default, aten.einsum.default, aten._unsafe_view.default}  # undeclared too
_SDPA = aten.scaled_dot_product_attention.default


def writes(node: fx.Node, *, training: bool = True) -> bool:
    """Whether the node writes to one of its inputs; in evaluation running statistics stay."""
    if not isinstance(node.target, OpOverload):
        return False
    if node.target in _UNDECLARED:
        return training
    return bool(node.target._schema.is_mutable)


def is_pure(node: fx.Node) -> bool:
    """Whether two such nodes with equal inputs give equal values, and nothing else."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        return True  # arithmetic on sizes
    if writes(node) or node.target in _RANDOM or "empty" in str(node.target):
        return False
    if node.target is _SDPA:
        return len(node.args) <= 4 or node.args[4] in (0, 0.0)
    return torch.Tag.nondeterministic_seeded not in node.target.tags


def remove_dead_nodes(graph: fx.Graph) -> list[str]:
    """Erase the nodes whose value nobody uses and that write to nothing; return their names.

    FX's own eliminate_dead_code keeps random operators and needs an owning module.
    """
    erased = []
    for node in reversed(list(graph.nodes)):
        if node.users or writes(node, training=False) or node.op in ("placeholder", "output"):
            continue
        erased.append(node.name)
        graph.erase_node(node)
    return erased


def may_alias(node: fx.Node) -> bool:
    """Whether the value of a node may share memory with one of its inputs."""
    if node.op != "call_function":
        return False
    if not isinstance(node.target, OpOverload):
        return node.target is operator.getitem
    return (
        any(result.alias_info is not None for result in node.target._schema.returns)
        or torch.Tag.maybe_aliasing_or_mutating in node.target.tags
        or node.target in _ALIASES
    )


def out_of_place(
    node: fx.Node, values: Mapping[fx.Node, object], places: Mapping[fx.Node, int]
) -> OpOverload | None:
    """Return the operator that computes what an in-place ``node`` does, into a new tensor.

    Who reads the input behind ``node`` has to read that tensor instead. None when the input may
    share memory with another node; and where the new tensor would be of another type than the one
    that is written to.

    Args:
        node: A node of a captured graph.
        values: What each of its inputs is, as a tensor with or without data.
        places: The place of every node in the graph.
    """
    if not writes(node) or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source, target = node.args[0], node.target
    name = str(getattr(target, "_opname", ""))
    before = [user for user in source.users if places[user] < places[node]]
    if not name.endswith("_") or any(may_alias(user) or writes(user) for user in before):
        return None
    if not _memory_of_its_own(source):
        return None
    packet = getattr(aten, name.removesuffix("_"), None)
    found = getattr(packet, str(getattr(target, "_overloadname", "")), None)
    if not isinstance(found, OpOverload):
        return None
    written = values.get(source)
    same = isinstance(written, Tensor) and _result_type(found, node, values) == written.dtype
    return found if same else None


def _memory_of_its_own(node: fx.Node) -> bool:
    """Whether nothing but the users of a node can see its memory."""
    while may_alias(node):
        node = node.all_input_nodes[0]
        if len(node.users) > 1:
            return False
    return node.op == "call_function"


def _result_type(
    operator: OpOverload, node: fx.Node, values: Mapping[fx.Node, object]
) -> torch.dtype | None:
    """The type of what the operator gives for the inputs of `node`, tried on tensors of size 1."""

    def small(source: fx.Node) -> Any:
        value = values.get(source)
        if isinstance(value, Tensor):
            return torch.empty((1,) * value.dim(), dtype=value.dtype, device="meta")
        return 1.0 if isinstance(value, torch.SymFloat) else 1

    args, kwargs = fx.map_arg((node.args, node.kwargs), small)
    try:
        result = operator(*args, **kwargs)
    except (RuntimeError, IndexError):  # this one does not take tensors of size 1
        return None
    return result.dtype if isinstance(result, Tensor) else None


def shared_with_writes(graph: fx.Graph, *, training: bool = True) -> set[fx.Node]:
    """Return the nodes whose memory some node writes to; their order and identity matter."""
    written = [node for node in graph.nodes if writes(node, training=training)]
    roots = {source for node in written for source in _written_inputs(node)}
    found: set[fx.Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in found or node.target == MODE:
            continue
        found.add(node)
        stack.extend(
            user for user in node.users if may_alias(user) or writes(user, training=training)
        )
        if may_alias(node):
            stack.extend(node.all_input_nodes)
    return found


def changed_state(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Return the stored tensors that a call changes and an output follows, each with what writes.

    Left out are running statistics, which only training writes, and counters that no output reads.
    """
    found: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if not writes(node, training=False):
            continue
        for written in _written_inputs(node):
            source = _memory_of(written)
            if source.op == "get_attr" and graph.output_node() in _followers(source):
                found.setdefault(source, node)
    return found


def _memory_of(node: fx.Node) -> fx.Node:
    """Return the first node whose memory the value of ``node`` may be."""
    while may_alias(node) and isinstance(node.args[0], fx.Node):
        if _is_of_another_type(node, node.args[0]):
            return node
        node = node.args[0]
    return node


def _is_of_another_type(node: fx.Node, source: fx.Node) -> bool:
    """Whether ``node`` converts its source, so that it is a copy after all."""
    found, before = node.meta.get("val"), source.meta.get("val")
    if not isinstance(found, Tensor) or not isinstance(before, Tensor):
        return False
    return found.dtype != before.dtype and node.target is not aten.view.dtype


def _followers(node: fx.Node) -> set[fx.Node]:
    """Return a node, and all that is computed from it or written to its memory."""
    found: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(node.users)
    return found


def _written_inputs(node: fx.Node) -> list[fx.Node]:
    if node.target in _UNDECLARED:
        values = [node.args[position] for position in _UNDECLARED[node.target]]
        return [value for value in values if isinstance(value, fx.Node)]
    arguments = node.target._schema.arguments  # type: ignore[union-attr]  # an OpOverload, see writes
    found = []
    for position, argument in enumerate(arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        if isinstance(value, fx.Node):
            found.append(value)
    return found
