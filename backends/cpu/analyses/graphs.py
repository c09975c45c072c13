"""Questions about graph nodes that lowering asks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

__all__ = [
    "ACTIVATIONS",
    "IDENTITIES",
    "REFERENCE",
    "SameValues",
    "activation",
    "identity_source",
    "integer",
    "rank",
    "real_users",
    "shape_of",
]

aten = torch.ops.aten

IDENTITIES = (
    aten.dropout.default,
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.slice.Tensor,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
)
"""Operators that, in eval mode and with the right arguments, return their input."""

_END = 1 << 40


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """Shape of a node's value; symbolic sizes as text."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return ()
    return tuple(d if isinstance(d, int) else str(d) for d in value.shape)


def integer(argument: object) -> int:
    """An argument that the operator's schema says is an integer."""
    assert isinstance(argument, int), argument
    return argument


def rank(node: fx.Node) -> int:
    """Number of dimensions of a node's value."""
    return len(shape_of(node))


def identity_source(node: fx.Node) -> fx.Node | None:
    """The input that a node returns unchanged, or None if it changes something."""
    if node.op != "call_function" or node.target not in IDENTITIES:
        return None
    source = node.args[0]
    if not isinstance(source, fx.Node):
        return None
    if node.target is aten.slice.Tensor:
        _, _, start, end, step = (*list(node.args), None, None, None, None)[:5]
        far = end is None or (isinstance(end, int) and end >= _END)
        return source if start in (0, None) and far and step in (1, None) else None
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return None
    return source if before.dtype == after.dtype else None


def real_users(node: fx.Node) -> list[fx.Node]:
    """Users of a node, looking through identities."""
    found: list[fx.Node] = []
    for user in node.users:
        found += real_users(user) if identity_source(user) is node else [user]
    return found


REFERENCE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "silu": torch.nn.functional.silu,
    "tanh": torch.tanh,
}
"""What each activation means."""


_NAMES: dict[Any, str] = {
    aten.relu.default: "relu",
    aten.sigmoid.default: "sigmoid",
    aten.silu.default: "silu",
    aten.tanh.default: "tanh",
}

ACTIVATIONS = (aten.gelu.default, *_NAMES)
"""Operators that are one."""


def activation(node: fx.Node) -> str:
    """Name of the activation that a node applies, "" if it is none."""
    if node.target is aten.gelu.default:
        return "gelu" if node.kwargs.get("approximate", "none") == "none" else "gelu_tanh"
    return _NAMES.get(node.target, "")


class SameValues:
    """Tells which nodes of a graph compute the same."""

    def __init__(self) -> None:
        self._names: dict[tuple[Any, ...], int] = {}

    def name(self, node: fx.Node, known: Mapping[fx.Node, int] | None = None) -> int:
        """The same number for nodes that compute the same from the same inputs and tensors.

        Args:
            node: The node.
            known: Numbers that stand for nodes, below 1.
        """
        found = dict(known or {})
        stack = [node]
        while stack:
            current = stack[-1]
            missing = [n for n in current.all_input_nodes if n not in found]
            stack += missing
            if not missing:
                stack.pop()
                given = fx.map_arg((current.args, current.kwargs), lambda n: f"%{found[n]}")
                key = (current.op, str(current.target), str(given))
                found[current] = self._names.setdefault(key, len(self._names) + 1)
        return found[node]
