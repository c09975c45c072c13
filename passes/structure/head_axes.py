"""Where the heads of an attention lie: in which dimension of which value, and which argument."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from sparsefx.graph.printing import node_and_op
from sparsefx.passes.analyses.encoder import EncoderLayer
from sparsefx.passes.analyses.operators import (
    CASTS,
    COPIES,
    DROPOUTS,
    ELEMENTWISE,
    RESHAPES,
    SOFTMAXES,
)
from sparsefx.rewrite import Rewriter

__all__ = ["HeadAxes", "trace_heads", "with_entry"]

aten = torch.ops.aten

_SDPA = aten.scaled_dot_product_attention.default
_PRODUCTS = {aten.matmul.default, aten.bmm.default, _SDPA}
_ALONG = {aten.cat.default: 1, aten.slice.Tensor: 1, **dict.fromkeys(SOFTMAXES, 1)}
_KEEPS = COPIES | CASTS | DROPOUTS | ELEMENTWISE | _PRODUCTS | set(_ALONG)


@dataclass(frozen=True)
class _Axis:
    """The dimension, counted from the end, that holds the heads.

    Either the heads alone (``parts`` 0), or all features of ``parts`` times the heads: one after a
    linear, three where one linear makes query, key and value.
    """

    dim: int
    parts: int = 0


@dataclass(frozen=True)
class _Count:
    """An argument of a node, or an entry of it, that is ``parts * heads * size`` or parts of it."""

    node: fx.Node
    place: int
    entry: int | None
    parts: int = 1
    heads: bool = True
    size: bool = True


@dataclass
class HeadAxes:
    """What :func:`trace_heads` found.

    Attributes:
        heads: Number of heads.
        size: Features of a head.
        nodes: All nodes whose values have heads, in graph order, from the linears on.
        counts: The arguments of nodes that hold numbers of heads, or of features.
        reason: Why heads cannot be taken out; empty when they can.
        fixed: Why the features of a head cannot; empty when they can.
    """

    heads: int
    size: int
    nodes: list[fx.Node] = field(default_factory=list)
    counts: list[_Count] = field(default_factory=list)
    reason: str = ""
    fixed: str = ""

    def resize(self, rewriter: Rewriter, heads: int) -> None:
        """Let all nodes work on another number of heads; the weights have it already."""
        for node in self.nodes:
            rewriter.set_args(node, *self.arguments(node, heads, self.size), **node.kwargs)

    def arguments(self, node: fx.Node, heads: int, size: int) -> list[Any]:
        """Return the arguments of a node for other numbers of heads, and of features of a head."""
        args: list[Any] = list(node.args)
        for count in self.counts:
            if count.node is not node:
                continue
            value = count.parts * (heads if count.heads else 1) * (size if count.size else 1)
            args[count.place] = (
                value if count.entry is None else with_entry(args[count.place], count.entry, value)
            )
        return args


def with_entry(sizes: Sequence[Any], entry: int, value: int) -> list[Any]:
    """Return a list of sizes with one of them changed."""
    return [*sizes[:entry], value, *sizes[entry + 1 :]]


class _NoAxisError(Exception):
    """Ends the walk; the text is the reason."""


def trace_heads(layer: EncoderLayer) -> HeadAxes:
    """Follow the heads of a layer from its q, k, v linears to its output linear."""
    found = HeadAxes(layer.core.heads, layer.core.head_size)
    try:
        _Walk(layer, found).run()
    except _NoAxisError as error:
        found.reason = str(error)
    return found


class _Walk:
    def __init__(self, layer: EncoderLayer, found: HeadAxes) -> None:
        self._layer = layer
        self._found = found
        parts = 3 if layer.fused else 1
        self._axes: dict[fx.Node, _Axis] = {
            site.node: _Axis(-1, parts) for site in (layer.q, layer.k, layer.v)
        }

    def run(self) -> None:
        if self._layer.position:
            raise _NoAxisError("its relative positions have heads of their own")
        starts, output = set(self._axes), self._layer.output.node
        node = min(starts)
        while node is not output:
            if node in starts:
                self._found.nodes.append(node)
            elif any(arg in self._axes for arg in node.all_input_nodes):
                self._visit(node)
            node = node.next
        if self._axes.get(output.args[0]) != _Axis(-1, 1):  # type: ignore[arg-type]  # its input
            raise _NoAxisError(f"%{output.name} does not read the heads side by side")
        for node in self._found.nodes:
            strangers = [u for u in node.users if u not in self._axes and u is not output]
            if any(isinstance(u.meta.get("val"), Tensor) or u.op == "output" for u in strangers):
                raise _NoAxisError(f"%{node.name} is read by %{strangers[0].name} too")

    def _visit(self, node: fx.Node) -> None:
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            if node.target is aten.sym_size.int and self._dim(node, 1) != self._before(node).dim:
                return
            raise _NoAxisError(f"%{node.name} reads the number of heads")
        self._axes[node] = self._axis_of(node)
        self._found.nodes.append(node)

    def _axis_of(self, node: fx.Node) -> _Axis:
        if node.target in _KEEPS:
            return self._kept(node)
        axis = self._before(node)
        if node.target in RESHAPES:
            return self._reshaped(node, axis)
        if node.target in (aten.transpose.int, aten.permute.default):
            return self._moved(node, axis)
        if node.target is operator.getitem:
            return axis
        if node.target in (aten.unbind.int, aten.select.int):
            dim = self._dim(node, 1)
            if dim < axis.dim:
                return axis
        if node.target in (aten.chunk.default, aten.split.Tensor) and axis.parts == 3:
            return self._divided(node)
        raise _NoAxisError(f"{node_and_op(node)} is not known to keep heads apart")

    def _before(self, node: fx.Node) -> _Axis:
        """Return the axis of the first argument."""
        axis = self._axes.get(node.args[0])  # type: ignore[arg-type]  # None for what is no node
        if axis is None:
            raise _NoAxisError(f"{node_and_op(node)} is not known to keep heads apart")
        return axis

    def _dim(self, node: fx.Node, place: int) -> int:
        """Return a dimension among the arguments, counted from the end of the first argument."""
        args: tuple[Any, ...] = node.args
        dim = int(args[place]) if len(args) > place else 0
        return dim if dim < 0 else dim - len(_dims(args[0]))

    def _kept(self, node: fx.Node) -> _Axis:
        """All that have heads have them in one place; what has none is the same for each head."""
        axis, *others = {self._axes[arg] for arg in node.all_input_nodes if arg in self._axes}
        products = node.target in _PRODUCTS
        if others or (products and (axis.parts or axis.dim > -3)):
            raise _NoAxisError(f"{node_and_op(node)} joins different heads")
        for arg in node.all_input_nodes:
            dims = _dims(arg)
            if arg not in self._axes and len(dims) >= -axis.dim and dims[axis.dim] != "1":
                raise _NoAxisError(f"{node_and_op(node)} gives each head a value of its own")
            if node.target in ELEMENTWISE and dims[-1:] == (str(self._found.size),):
                self._found.fixed = (
                    f"{node_and_op(node)} gives each feature of a head its own value"
                )
        if _works_along(node, axis):
            raise _NoAxisError(f"{node_and_op(node)} works along the heads")
        return axis

    def _reshaped(self, node: fx.Node, axis: _Axis) -> _Axis:
        old, new = _dims(node.args[0]), _dims(node)
        heads, size = str(self._found.heads), str(self._found.size)
        apart = (*(() if axis.parts < 2 else (str(axis.parts),)), heads, size)
        if old == new:
            after = axis
        elif axis.parts and (*old[:-1], *apart) == new:
            after = _Axis(-2)
        elif axis == _Axis(-2) and (*old[:-2], str(self._found.heads * self._found.size)) == new:
            after = _Axis(-1, 1)
        elif node.target is aten.unsqueeze.default and new[axis.dim :] == old[axis.dim :]:
            after = axis
        else:
            raise _NoAxisError(f"{node_and_op(node)} is not known to keep heads apart")
        self._note_sizes(node, after)
        return after

    def _note_sizes(self, node: fx.Node, axis: _Axis) -> None:
        """Note where a list of sizes holds the number of heads."""
        for place, sizes in enumerate(node.args):
            if not isinstance(sizes, (list, tuple)):
                continue
            if len(sizes) < -axis.dim:
                raise _NoAxisError(f"{node_and_op(node)} is not known to keep heads apart")
            entry = len(sizes) + axis.dim
            if isinstance(sizes[entry], fx.Node):
                raise _NoAxisError(f"{node_and_op(node)} computes the number of heads")
            if sizes[entry] != -1:
                whole = bool(axis.parts)
                count = _Count(node, place, entry, parts=axis.parts or 1, size=whole)
                self._found.counts.append(count)
            if not axis.parts and sizes[-1] == self._found.size:
                self._found.counts.append(_Count(node, place, len(sizes) - 1, heads=False))

    def _moved(self, node: fx.Node, axis: _Axis) -> _Axis:
        rank = len(_dims(node))
        args: tuple[Any, ...] = node.args
        if node.target is aten.permute.default:
            order = [dim % rank for dim in args[1]]
        else:
            one, other = args[1] % rank, args[2] % rank
            order = list(range(rank))
            order[one], order[other] = other, one
        return _Axis(order.index(axis.dim + rank) - rank, axis.parts)

    def _divided(self, node: fx.Node) -> _Axis:
        """Query, key and value are cut apart."""
        whole = self._found.heads * self._found.size
        if self._dim(node, 2) != -1 or node.args[1] != (
            3 if node.target is aten.chunk.default else whole
        ):
            raise _NoAxisError(f"{node_and_op(node)} is not known to keep heads apart")
        if node.target is aten.split.Tensor:
            self._found.counts.append(_Count(node, 1, None))
        return _Axis(-1, 1)


def _dims(value: Any) -> tuple[str, ...]:
    """Return the sizes of a node's value as text, in which dynamic ones can be compared."""
    found = value.meta.get("val") if isinstance(value, fx.Node) else None
    return tuple(map(str, found.shape)) if isinstance(found, torch.Tensor) else ()


def _works_along(node: fx.Node, axis: _Axis) -> bool:
    """Whether an operator mixes, or may mix, what lies along an axis."""
    place = _ALONG.get(node.target)
    if place is None:
        return False
    dim = node.args[place] if len(node.args) > place else 0
    return not isinstance(dim, int) or (dim if dim < 0 else dim - len(_dims(node))) == axis.dim
