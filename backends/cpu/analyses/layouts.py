"""The layout of every tensor that a plan may hold, found in one walk over the graph.

Operators that move or cut dimensions become another layout of the same rows. Operators that work
on each token give rows of their own, in the order of tokens that they read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import fx

import sparsefx.graph.ops  # noqa: F401  # registers the operators named below
from sparsefx.backends.cpu.analyses.axes import (
    BATCH,
    SEQUENCE,
    Channels,
    Dim,
    Layout,
    tokens_by_channels,
)
from sparsefx.backends.cpu.analyses.graphs import ACTIVATIONS, identity_source, integer, shape_of
from sparsefx.backends.cpu.analyses.host import Host
from sparsefx.backends.cpu.analyses.means import Mean
from sparsefx.backends.cpu.analyses.rotary import Rotation
from sparsefx.backends.cpu.analyses.tried import Tried
from sparsefx.errors import ProgramError
from sparsefx.program import Program

__all__ = ["MOVES", "Layouts", "find_layouts"]

aten = torch.ops.aten

Found = Layout | tuple[Layout, ...]
Layouts = dict[fx.Node, Found]
"""A layout, or one for each part of a cut; nothing for what a plan cannot hold."""

# Sizes that stand for a batch and a sequence: primes that no other size holds.
_TRIAL = (10007, 10009)

_VIEWS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.unflatten.int,
    aten.flatten.using_ints,
)
_SWAPS = (aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
_SQUEEZES = (aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default)
_CUTS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.split.sizes)

MOVES = frozenset(
    (
        *(*_VIEWS, *_SWAPS, *_SQUEEZES, *_CUTS),
        *(aten.permute.default, aten.unsqueeze.default, aten.select.int, aten.slice.Tensor),
        *(aten.unbind.int, operator.getitem, aten.expand.default),
    )
)
"""Operators whose result is another layout of what they read."""

_PER_TOKEN = (
    *(*ACTIVATIONS, aten.linear.default, aten.layer_norm.default),
    *(torch.ops.sparsefx.quantize.default, torch.ops.sparsefx.dequantize.default),
)
_BINARY = (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor)


def find_layouts(
    program: Program,
    host: Host,
    tried: Mapping[fx.Node, Tried],
) -> Layouts:
    """The layouts of all nodes that have one."""
    finder = _Finder(program, host, tried)
    for node in program.graph.nodes:
        if node.op != "call_function" or node in host.nodes:
            continue
        found = finder.find(node)
        if found is not None:
            finder.known[node] = found
    return finder.known


class _Finder:
    """What the walk has found so far."""

    def __init__(
        self,
        program: Program,
        host: Host,
        tried: Mapping[fx.Node, Tried],
    ) -> None:
        self.known: Layouts = {}
        self._tried = tried
        self._shapes = program.shapes
        dims = host.dims
        names = [d for d in dims if isinstance(d, str)]
        self._names = dict(zip(names, _TRIAL, strict=False))
        sizes = [self._names[d] if isinstance(d, str) else d for d in dims]
        self._sizes = {BATCH: sizes[0], SEQUENCE: sizes[1]}
        self._host = host
        table: dict[Any, Callable[[fx.Node, Layout], Found | None]] = {}
        table |= dict.fromkeys(_VIEWS, self._view)
        table |= dict.fromkeys(_SWAPS, self._swap)
        table |= dict.fromkeys(_SQUEEZES, self._squeeze)
        table |= dict.fromkeys(_CUTS, self._cut)
        table |= dict.fromkeys(_PER_TOKEN, self._per_token)
        table |= {
            aten.permute.default: self._permute,
            aten.unsqueeze.default: self._unsqueeze,
            aten.select.int: self._select,
            aten.slice.Tensor: self._slice,
            aten.unbind.int: self._unbind,
            aten.expand.default: self._view,
            aten.scaled_dot_product_attention.default: self._attention,
        }
        self._table = table

    def find(self, node: fx.Node) -> Found | None:
        """The layout of one node."""
        source = node.args[0] if node.args else None
        if node in self._tried:
            return self._spelling(node, self._tried[node])
        if node.target is aten.embedding.default:
            return self._embedding(node)
        if node.target in _BINARY:
            return self._binary(node)
        if node.target in (aten.matmul.default, aten.bmm.default):
            return self._context(node)
        before = self.known.get(source) if isinstance(source, fx.Node) else None
        if before is None:
            return None
        if identity_source(node) is source:
            return before
        if node.target is operator.getitem and isinstance(before, tuple):
            index = node.args[1]
            return before[index] if isinstance(index, int) else None
        handler = self._table.get(node.target)
        return handler(node, before) if handler and isinstance(before, Layout) else None

    def _shape(self, node: fx.Node) -> list[int] | None:
        """Sizes of a node's value, with the trial sizes for batch and sequence."""
        try:
            return [self._shapes.size(d, self._names) for d in node.meta["val"].shape]
        except (KeyError, AttributeError, ProgramError):
            return None

    def _embedding(self, node: fx.Node) -> Layout | None:
        index = node.args[1]
        if not isinstance(index, fx.Node) or not self._host.is_per_token(index):
            return None
        whole = tokens_by_channels(int(node.meta["val"].shape[-1]))
        shape = shape_of(index)
        if len(shape) == 1:
            return whole.without(0)
        shared = shape[0] == 1 and self._sizes[BATCH] != 1
        return Layout(((), *whole.dims[1:])) if shared else whole

    def _per_token(self, node: fx.Node, before: Layout) -> Layout | None:
        if before.plain is None:
            return None
        return before.with_channels(int(node.meta["val"].shape[-1]))

    def _binary(self, node: fx.Node) -> Layout | None:
        found = [self.known.get(n) for n in node.args[:2] if isinstance(n, fx.Node)]
        known = [x for x in found if isinstance(x, Layout)]
        if len(known) != len(found):
            others = [n for n in node.args[:2] if isinstance(n, fx.Node) and n not in self.known]
            same = len(known) == 1 and shape_of(node) and len(known[0].dims) == len(shape_of(node))
            outside = all(n in self._host.nodes for n in others)
            quotient = node.target is aten.div.Tensor and found[0] is not None
            return known[0] if same and (outside or quotient) else None
        if len(known) < 2:
            return known[0] if known else None
        if any(x.plain is None for x in known) or known[0].plain != known[1].plain:
            return None
        return _broadcast(known[0], known[1])

    def _view(self, node: fx.Node, before: Layout) -> Layout | None:
        shape = self._shape(node)
        return before.reshaped(shape, self._sizes) if shape is not None else None

    def _swap(self, node: fx.Node, before: Layout) -> Layout:
        return before.swapped(integer(node.args[1]), integer(node.args[2]))

    def _permute(self, node: fx.Node, before: Layout) -> Layout:
        order: Iterable[Any] = node.args[1]  # type: ignore[assignment]  # a list of dimensions
        return before.permuted(order)

    def _unsqueeze(self, node: fx.Node, before: Layout) -> Layout:
        dim = integer(node.args[1]) % (len(before.dims) + 1)
        return Layout((*before.dims[:dim], (), *before.dims[dim:]), before.first)

    def _squeeze(self, node: fx.Node, before: Layout) -> Layout | None:
        rank = len(before.dims)
        asked = node.args[1] if len(node.args) > 1 else range(rank)
        listed: Iterable[Any] = [asked] if isinstance(asked, int) else asked  # type: ignore[assignment]
        dims = {integer(d) % rank for d in listed}
        kept = tuple(dim for n, dim in enumerate(before.dims) if n not in dims or dim != ())
        found = Layout(kept, before.first)
        return found if len(kept) == len(shape_of(node)) else None

    def _cut(self, node: fx.Node, before: Layout) -> tuple[Layout, ...] | None:
        dim = integer((*node.args[2:], node.kwargs.get("dim", 0))[0])
        sizes = [part.shape[dim] for part in node.meta["val"]]
        if not all(isinstance(size, int) for size in sizes):
            return None
        return _whole(
            before.cut(dim % len(before.dims), start, size) for start, size in _runs(sizes)
        )

    def _unbind(self, node: fx.Node, before: Layout) -> tuple[Layout, ...] | None:
        dim = integer((*node.args[1:], node.kwargs.get("dim", 0))[0])
        count = len(node.meta["val"])
        return _whole(before.selected(dim % len(before.dims), n) for n in range(count))

    def _select(self, node: fx.Node, before: Layout) -> Layout | None:
        dim, index = (integer(n) for n in node.args[1:3])
        dim %= len(before.dims)
        if before.dims[dim] == (SEQUENCE,):
            return before.without(dim) if index == 0 else None
        size = _count(before.dims[dim])
        return before.selected(dim, index % size) if size else None

    def _slice(self, node: fx.Node, before: Layout) -> Layout | None:
        given: Any = (*node.args, *(0, None, None, 1)[len(node.args) - 1 :])
        _, dim, start, end, step = given
        size = _count(before.dims[dim])
        if size is None or step not in (None, 1):
            return None
        if not all(x is None or isinstance(x, int) for x in (start, end)):
            return None
        begin, stop, _ = slice(start, end).indices(size)
        return before.cut(dim % len(before.dims), begin, stop - begin)

    def _spelling(self, node: fx.Node, found: Tried) -> Layout | None:
        before = self.known.get(found.source)
        if not isinstance(before, Layout):
            return None
        if isinstance(found, Rotation):
            return Layout(before.dims) if before.turned_heads() else None
        if not isinstance(found, Mean):
            return self._per_token(node, before)
        if before.plain is None or before.lead != ((BATCH,), (SEQUENCE,)):
            return None
        middle = ((),) * (len(shape_of(node)) - 2)  # a row of one vector for each sequence
        return Layout(((BATCH,), *middle, before.dims[-1]))

    def _attention(self, node: fx.Node, before: Layout) -> Layout | None:
        return Layout(before.dims) if before.heads() is not None else None

    def _context(self, node: fx.Node) -> Layout | None:
        """Weights times value: the heads of value, in rows of their own."""
        given: Any = node.args[:2]
        scores, value = (self.known.get(n) for n in given)
        if scores is not None or not isinstance(value, Layout):
            return None
        heads = value.heads()
        return Layout(value.dims) if heads is not None and heads[0] == "bsd" else None


def _count(dim: Dim) -> int | None:
    """Channels of a dimension that holds nothing else."""
    if len(dim) != 1 or not isinstance(dim[0], Channels):
        return None
    return dim[0].size


def _runs(sizes: list[int]) -> list[tuple[int, int]]:
    return [(sum(sizes[:n]), size) for n, size in enumerate(sizes)]


def _whole(found: Any) -> tuple[Layout, ...] | None:
    parts = tuple(found)
    return None if None in parts else parts


def _broadcast(a: Layout, b: Layout) -> Layout | None:
    """The layout of a sum; dimensions of size 1 follow the other side."""
    longer, shorter = sorted((a.dims, b.dims), key=len, reverse=True)
    padded = ((),) * (len(longer) - len(shorter)) + shorter
    dims = []
    for left, right in zip(longer, padded, strict=True):
        if left != right and () not in (left, right):
            return None
        dims.append(left or right)
    return Layout(tuple(dims))
