"""Channels that nothing reads: whole heads and single neurons, found before lowering.

A head is dead where the linear after attention has zeros in all its columns, or where its values
are zeros without a bias: then query, key and value lose its rows, and attention never visits it. A
neuron is dead where every linear that reads it has a column of zeros: the linear before loses the
row. What is left out is exactly zero in every sum, so results stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

import sparsefx.graph.ops  # noqa: F401  # registers the operators named below
from sparsefx.backends.cpu.analyses.graphs import identity_source
from sparsefx.backends.cpu.analyses.layouts import MOVES
from sparsefx.backends.cpu.analyses.values import Kept, Live
from sparsefx.backends.cpu.lowering.walk import Walk

__all__ = ["find_live"]

aten = torch.ops.aten
_LINEAR = aten.linear.default
_QUANTIZERS = (torch.ops.sparsefx.quantize.default, torch.ops.sparsefx.dequantize.default)
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_FACTORS = (aten.mul.Tensor, aten.div.Tensor)
_FAR = 16
"""Operators between a product of heads and the next, at most."""


@dataclass(frozen=True)
class _Attention:
    """The linears around one attention: each operand's, with the row where its heads begin."""

    sources: tuple[tuple[fx.Node, int], ...]
    entries: frozenset[fx.Node]
    heads: int
    size: int


def find_live(walk: Walk) -> Live:
    """Find what is left of the linears and attentions of a walk."""
    finder = _Finder(walk)
    for node in walk.program.graph.nodes:
        if node.op != "call_function" or node in walk.host.nodes:
            continue
        if node.target is _LINEAR:
            finder.neurons(node)
        elif node.target is aten.scaled_dot_product_attention.default or node.target in _PRODUCTS:
            finder.attention(node)
    return finder.live


class _Finder:
    def __init__(self, walk: Walk) -> None:
        self.live = Live()
        self._walk = walk
        self._nonzero: dict[fx.Node, NDArray[np.bool_] | None] = {}

    def neurons(self, node: fx.Node) -> None:
        """Rows of a linear whose readers have zeros in their columns."""
        readers = self._readers(node, moves=False)
        read = self._read(readers)
        weight = self._weight(node)
        if read is None or weight is None or len(read) != len(weight) or read.all():
            return
        kept = _kept(read)
        self.live.rows[node] = kept
        self.live.columns.update(dict.fromkeys(readers, kept))

    def attention(self, node: fx.Node) -> None:
        """Heads that no linear reads, or whose values are zeros."""
        readers = self._readers(node, moves=True)
        read, found = self._read(readers), self._around(node)
        if read is None or found is None or len(read) != found.heads * found.size:
            return
        shaped = read.reshape(found.heads, found.size).any(1) & self._has_values(found)
        linears = dict.fromkeys(linear for linear, _ in found.sources)
        if shaped.all() or not all(self._only_for(n, found.entries) for n in linears):
            return
        heads = _kept(shaped)
        starts = heads.channels[:, None] * found.size
        channels = (starts + np.arange(found.size)).reshape(-1)
        rows = {
            linear: np.concatenate([first + channels for n, first in found.sources if n is linear])
            for linear in linears
        }
        self.live.rows.update({n: Kept(np.unique(found_rows)) for n, found_rows in rows.items()})
        self.live.columns.update(dict.fromkeys(readers, Kept(channels)))
        self.live.heads[node] = heads

    def _weight(self, node: fx.Node) -> NDArray[np.bool_] | None:
        """Where the weight of a linear is not zero."""
        if node not in self._nonzero:
            weight: Any = node.args[1]
            stored = weight.args[0] if weight.target is _QUANTIZERS[1] else weight
            value = self._walk.host.constant(stored)
            self._nonzero[node] = None if value is None else (value.detach() != 0).numpy()
        return self._nonzero[node]

    def _read(self, readers: list[fx.Node]) -> NDArray[np.bool_] | None:
        """Which channels linears read; None without any."""
        weights = [self._weight(reader) for reader in readers]
        known = [np.asarray(w.any(0)) for w in weights if w is not None]
        if not readers or len(known) < len(readers) or len({len(w) for w in known}) > 1:
            return None
        found: NDArray[np.bool_] = np.logical_or.reduce(known)
        return found

    def _readers(self, node: fx.Node, *, moves: bool) -> list[fx.Node]:
        """Linears that alone read the channels of a node, after activations and quantizers."""
        walk, found, stack = self._walk, [], [node]
        while stack:
            current = stack.pop()
            users = walk.uses.of(current)
            if current in walk.outputs or not users:
                return []
            between = [user for user in users if not self._reads_all(user)]
            if not all(self._hands_on(user, moves=moves) for user in between):
                return []
            found += [user for user in users if user not in between]
            stack += between
        return found

    def _reads_all(self, user: fx.Node) -> bool:
        """Whether a node is a linear on channels that begin with the first."""
        before = self._walk.layout(user.args[0]) if user.target is _LINEAR else None
        return before is not None and before.first == 0 and before.plain is not None

    def _hands_on(self, user: fx.Node, *, moves: bool) -> bool:
        """Whether a node works on each channel alone, or moves all of them."""
        if self._walk.activation(user) or user.target in _QUANTIZERS:
            return True
        layout = self._walk.layout(user)
        return moves and user.target in MOVES and layout is not None and layout.first == 0

    def _around(self, node: fx.Node) -> _Attention | None:
        """The linears before an attention, if all three operands come from linears."""
        given: Any = node.args
        entries = {node}
        if node.target in _PRODUCTS:
            scores = self._scores(given[0])
            if scores is None:
                return None
            entries.add(scores)
            read: Any = scores.args[1:3] if scores.target is aten.baddbmm.default else scores.args
            operands = [*read, given[1]]
        else:
            operands = list(given[:3])
        layouts = [self._walk.layout(n) for n in operands]
        shapes = [layout.heads() for layout in layouts if layout is not None]
        known = {shape[1:] for shape in shapes if shape is not None}
        sources = [self._source(n) for n in operands]
        linears = [s for s in sources if s is not None]
        if len(shapes) < 3 or len(known) != 1 or None in shapes or len(linears) < 3:
            return None
        ((heads, size),) = known
        firsts = [layout.first for layout in layouts if layout is not None]
        return _Attention(tuple(zip(linears, firsts, strict=True)), frozenset(entries), heads, size)

    def _scores(self, node: fx.Node) -> fx.Node | None:
        """The product of query and key behind softmax, mask and factors."""
        for _ in range(_FAR):
            if node.target in (*_PRODUCTS, aten.baddbmm.default):
                return node
            place = 1 if node.target in (aten.where.self, aten.where.ScalarOther) else 0
            before = node.args[place] if len(node.args) > place else None
            if not isinstance(before, fx.Node):
                return None
            node = before
        return None

    def _source(self, node: fx.Node) -> fx.Node | None:
        """The linear whose rows are the channels of heads."""
        for _ in range(_FAR):
            if node.target is _LINEAR:
                return node
            before = node.args[0] if node.args else None
            if not isinstance(before, fx.Node) or not self._leads(node, before):
                return None
            node = before
        return None

    def _leads(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether `user` has the channels of `node` at the places where its layout says."""
        if identity_source(user) is node or user.target in MOVES:
            return True
        if user.target in _FACTORS:
            return self._walk.number(user.args[1]) is not None
        layout = self._walk.layout(node)
        return user.target in _QUANTIZERS and layout is not None and layout.first == 0

    def _only_for(self, linear: fx.Node, entries: frozenset[fx.Node]) -> bool:
        """Whether nothing but one attention reads a linear."""
        stack = [linear]
        while stack:
            node = stack.pop()
            if node in self._walk.outputs:
                return False
            for user in node.users:
                if user in entries:
                    continue
                if not self._leads(user, node):
                    return False
                stack.append(user)
        return True

    def _has_values(self, found: _Attention) -> NDArray[np.bool_]:
        """Heads whose value rows are not all zero, bias included."""
        linear, first = found.sources[2]
        weight = self._weight(linear)
        every = np.ones(found.heads, np.bool_)
        bias: Any = linear.args[2] if len(linear.args) > 2 else None
        if weight is None:
            return every
        known = np.asarray(weight.any(1))
        if bias is not None:
            value = self._walk.host.constant(bias)
            if value is None:
                return every
            known = known | ((value.detach() != 0).numpy())
        rows = known[first : first + found.heads * found.size]
        return np.asarray(rows.reshape(found.heads, found.size).any(1))


def _kept(alive: NDArray[np.bool_]) -> Kept:
    """The places that are alive; the first where none is, as no buffer is empty."""
    found = np.flatnonzero(alive)
    return Kept(found if len(found) else np.zeros(1, np.intp))
