"""Nodes that pass their input on unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from sparsefx.graph.ops import dropout_rate
from sparsefx.passes.analyses.operators import CASTS, COPIES, DROPOUTS, RESHAPES

if TYPE_CHECKING:
    from sparsefx.program import Program

__all__ = ["settled_value", "unchanged_input"]

aten = torch.ops.aten
_KEEP_ORDER = RESHAPES | {aten.slice.Tensor}
_IDLE_COPIES = COPIES - {aten.contiguous.default, aten.detach.default}
# The number that leaves the other operand as it is. x + 0 turns -0.0 into 0.0, which are equal.
_NEUTRAL: dict[object, float] = {
    aten.add.Scalar: 0.0,
    aten.add.Tensor: 0.0,
    aten.div.Scalar: 1.0,
    aten.div.Tensor: 1.0,
    aten.mul.Scalar: 1.0,
    aten.mul.Tensor: 1.0,
    aten.pow.Tensor_Scalar: 1.0,
    aten.sub.Scalar: 0.0,
    aten.sub.Tensor: 0.0,
}


def unchanged_input(program: Program, node: fx.Node, *, inference: bool) -> fx.Node | None:
    """Return the input that ``node`` passes on unchanged; None when it does something.

    Args:
        program: The Program.
        node: A node whose memory nobody writes to.
        inference: Whether the Program will not be trained any more: dropout then does nothing, and
            no autocast comes that a cast to a floating type would have to undo.
    """
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    source = node.args[0]
    rules: tuple[tuple[bool, Callable[[], bool]], ...] = (
        (node.target in DROPOUTS, lambda: inference or node.args[1] in (0, 0.0)),
        (node.target in _KEEP_ORDER, lambda: _same_shape(program, node, source)),
        (node.target in CASTS, lambda: _is_idle_cast(program, node, source, inference)),
        (node.target in _IDLE_COPIES, lambda: _is_idle_copy(node)),
        (node.target in _NEUTRAL, lambda: _is_neutral(program, node, source)),
        (node.target is aten.permute.default, lambda: _is_identity_order(node)),
        (node.target is aten.contiguous.default, lambda: _feeds_reshapes_alone(node)),
        (node.target is aten.detach.default, lambda: not _has_gradient(node, program)),
    )
    return source if any(kind and holds() for kind, holds in rules) else None


def settled_value(node: fx.Node, *, inference: bool) -> float | None:
    """Return the number that a node always gives: the rate of dropout that is off."""
    if node.target is not dropout_rate:
        return None
    return 0.0 if inference or node.args[0] in (0, 0.0) else None


def _same_shape(program: Program, node: fx.Node, source: fx.Node) -> bool:
    if node.target is aten.slice.Tensor and len(node.args) > 4 and node.args[4] != 1:
        return False
    before, after = program.shape_of(source), program.shape_of(node)
    return before is not None and before == after


def _is_idle_cast(program: Program, node: fx.Node, source: fx.Node, inference: bool) -> bool:
    before, after = source.meta.get("val"), node.meta.get("val")
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    if (before.dtype, before.device) != (after.dtype, after.device):
        return False
    if node.kwargs.get("memory_format") not in (None, torch.preserve_format):
        return False
    return inference or not after.dtype.is_floating_point


def _is_idle_copy(node: fx.Node) -> bool:
    return node.kwargs.get("memory_format") in (None, torch.preserve_format)


def _is_neutral(program: Program, node: fx.Node, source: fx.Node) -> bool:
    other = node.args[1] if len(node.args) > 1 else None
    if isinstance(other, bool) or not isinstance(other, (int, float)):
        return False
    if node.kwargs.get("rounding_mode") is not None or other != _NEUTRAL[node.target]:
        return False
    return program.shape_of(node) == program.shape_of(source)


def _is_identity_order(node: fx.Node) -> bool:
    order: Any = node.args[1]
    return list(order) == list(range(len(order)))


def _feeds_reshapes_alone(node: fx.Node) -> bool:
    return bool(node.users) and all(user.target is aten.reshape.default for user in node.users)


def _has_gradient(node: fx.Node, program: Program) -> bool:
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen:
            continue
        seen.add(current)
        if current.op == "get_attr" and isinstance(
            program.tensor(str(current.target)), nn.Parameter
        ):
            return True
        stack.extend(current.all_input_nodes)
    return False
