"""Masks that are all ones and indices that take everything, as Hugging Face models build them.

The padding mask of a transformers model is ``mask[arange(batch)[:, None, None, None],
arange(sequence)[None, None, None, :]]``, joined to conditions such as ``arange(sequence) >= 0``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from sparsefx.passes.analyses.operators import CASTS, COPIES, RESHAPES

if TYPE_CHECKING:
    from sparsefx.inputs.signature import Dim
    from sparsefx.program import Program
    from sparsefx.rewrite import Rewriter

__all__ = ["plain_index", "plain_mask"]

aten = torch.ops.aten
_VIEWS = COPIES | CASTS | RESHAPES | {aten.slice.Tensor}
_ANDS = {
    aten.__and__.Tensor,
    aten.bitwise_and.Tensor,
    aten.logical_and.default,
}
_ONES = {aten.new_ones.default, aten.ones.default, aten.ones_like.default}
_FULLS = {aten.full.default: 1, aten.full_like.default: 1, aten.new_full.default: 2}
_ARANGES = {aten.arange.default, aten.arange.start, aten.arange.start_step}


def plain_mask(program: Program, node: fx.Node) -> fx.Node | None:
    """Return the one operand that decides a logical and whose other operand is all true.

    Where the operands broadcast to a larger shape, every user has to be an expand that gives the
    larger sizes itself.
    """
    if node.op != "call_function" or node.target not in _ANDS or not node.users:
        return None
    first, second = node.args[:2]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    for ones, other in ((first, second), (second, first)):
        if _all_true(ones) and _stands_for(program, node, other):
            return other
    return None


def _stands_for(program: Program, node: fx.Node, other: fx.Node) -> bool:
    whole, part = program.shape_of(node), program.shape_of(other)
    if whole is None or part is None or whole.dtype != part.dtype:
        return False
    if whole.dims == part.dims:
        return True
    if len(whole.dims) != len(part.dims):
        return False
    larger = [i for i, dim in enumerate(whole.dims) if dim != part.dims[i]]
    for user in node.users:
        sizes: Any = user.args[1] if user.target is aten.expand.default else None
        if sizes is None or len(sizes) != len(whole.dims):
            return False
        if any(isinstance(sizes[i], int) and sizes[i] == -1 for i in larger):
            return False
    return True


def _all_true(node: fx.Node) -> bool:
    """Whether a bool tensor holds nothing but True, for all sizes."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Tensor) or value.dtype != torch.bool:
        return False
    if node.target in _ONES:
        return True
    if node.target in _FULLS:
        filled: Any = node.args[_FULLS[node.target]]
        return filled in (True, 1, 1.0)
    if node.target in _VIEWS:
        return isinstance(node.args[0], fx.Node) and _all_true(node.args[0])
    if node.target in _ANDS:
        return all(isinstance(arg, fx.Node) and _all_true(arg) for arg in node.args[:2])
    if node.target in (aten.ge.Scalar, aten.gt.Scalar):
        least, bound = _least(node.args[0]), node.args[1]
        if least is None or not isinstance(bound, (int, float)):
            return False
        return least >= bound if node.target is aten.ge.Scalar else least > bound
    return False


def _least(value: Any) -> int | None:
    """Return a number that no element of an integer tensor made from arange is below."""
    if not isinstance(value, fx.Node) or value.op != "call_function":
        return None
    if value.target in _ARANGES:
        return 0 if _is_plain_arange(value) else None
    if value.target in _VIEWS:
        dtype = value.meta["val"].dtype
        return None if dtype.is_floating_point or dtype == torch.bool else _least(value.args[0])
    if value.target is aten.add.Tensor and isinstance(value.args[1], int):
        least = _least(value.args[0])
        return None if least is None or value.kwargs else least + value.args[1]
    return None


def plain_index(program: Program, rewriter: Rewriter, node: fx.Node) -> fx.Node | None:
    """Return a node that gives, by unsqueeze alone, what an index of full aranges gives."""
    if node.op != "call_function" or node.target is not aten.index.Tensor or not node.users:
        return None
    source: Any = node.args[0]
    indices: Any = node.args[1]
    fact, result = program.shape_of(source), program.shape_of(node)
    if fact is None or result is None or len(indices) != len(fact.dims):
        return None
    places = []
    for dim, index in zip(fact.dims, indices, strict=True):
        place = _full_range(program, index, dim, len(result.dims))
        if place is None:
            return None
        places.append(place)
    if places != sorted(set(places)):
        return None
    with rewriter.before(node):
        for place in range(len(result.dims)):
            if place not in places:
                source = rewriter.call(aten.unsqueeze.default, source, place)
    return source if program.shape_of(source) == result and isinstance(source, fx.Node) else None


def _full_range(program: Program, index: Any, dim: Dim, rank: int) -> int | None:
    """Return the dimension, of ``rank``, along which ``index`` runs through 0..dim-1."""
    fact = program.shape_of(index) if isinstance(index, fx.Node) else None
    if fact is None or not _runs_from_zero(index):
        return None
    long = [place for place, size in enumerate(fact.dims) if size != 1]
    if len(long) != 1 or fact.dims[long[0]] != dim:
        return None
    return rank - len(fact.dims) + long[0]


def _runs_from_zero(node: Any) -> bool:
    """Whether a tensor holds 0, 1, 2, ... along its one long dimension."""
    while isinstance(node, fx.Node) and node.op == "call_function":
        if node.target in _ARANGES:
            return _is_plain_arange(node)
        keeps = node.target in _VIEWS and node.target is not aten.expand.default
        adds_nothing = node.target is aten.add.Tensor and node.args[1] == 0
        cuts = node.target is aten.slice.Tensor and not _starts_at_zero(node)
        if cuts or not (keeps or adds_nothing):
            return False
        node = node.args[0]
    return False


def _starts_at_zero(node: fx.Node) -> bool:
    start = node.args[2] if len(node.args) > 2 else None
    step = node.args[4] if len(node.args) > 4 else 1
    return start in (None, 0) and bool(step == 1)


def _is_plain_arange(node: fx.Node) -> bool:
    """Whether an arange counts up from 0 by 1, in integers."""
    if node.meta["val"].dtype.is_floating_point:
        return False
    if node.target is aten.arange.default:
        return True
    step = node.args[2] if len(node.args) > 2 else 1
    return bool(node.args[0] == 0 and step == 1)
