"""Products of query or key with embeddings of relative positions, as tables by distance.

Disentangled attention (DeBERTa) adds to a score the products of the query, and of the key, with
embeddings of their distance. Models project the embeddings, put distances in buckets and gather;
all of that depends on no activation, so it is tried on numbers: which embedding is gathered must
depend on the distance alone. What is left is one vector for each head and distance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from sparsefx.backends.cpu.analyses.by_distance import constant_from, cut, rows_by_distance
from sparsefx.backends.cpu.analyses.graphs import SameValues
from sparsefx.backends.cpu.analyses.host import Host, at_longest, attempt
from sparsefx.backends.cpu.analyses.values import Term
from sparsefx.backends.cpu.codegen.memory import aligned_copy
from sparsefx.backends.cpu.kernels.relative import PANEL

__all__ = ["PositionTables", "RelativeReader"]

_LONGEST = 2048
_FREE = ((2, 7), (3, 12))
"""Sequences, and their length, of the small trials."""
_OTHERWISE = "what its positions add depends on more than the distance of two tokens"


@dataclass(frozen=True, eq=False)
class _Vectors:
    """What a query or a key is multiplied with.

    Attributes:
        values: fp32 [heads, size, places] by distance.
        zero: Place of distance 0.
        longest: Longest sequence that they are known for; None if they go on without a change.
    """

    values: Tensor
    zero: int
    longest: int | None


@dataclass(frozen=True, eq=False)
class PositionTables:
    """The tables of `kernels.relative`.

    Attributes:
        of_queries, of_keys: fp32 [heads, panels, size, 16], None where nothing is added.
        zero: Panel that begins with distance 0.
        longest: Longest sequence that they are known for; None if they go on without a change.
    """

    of_queries: NDArray[np.float32] | None
    of_keys: NDArray[np.float32] | None
    zero: int
    longest: int | None


class RelativeReader:
    """Reads the terms of one Program.

    Args:
        host: Evaluates what depends on no activation.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sizes = host.sizes(_FREE)
        self._same = SameValues()
        self._rows: dict[int, Tensor | None] = {}

    def read(self, terms: tuple[Term, ...], scale: float) -> PositionTables | str:
        """The tables of these terms, divided by the scale of the scores; or why there are none."""
        found: dict[bool, list[_Vectors]] = {False: [], True: []}
        for term in terms:
            vectors = attempt(partial(self._vectors, term, term.factor / scale)) or _OTHERWISE
            if isinstance(vectors, str):
                return vectors
            found[term.of_keys].append(vectors)
        return _joined(found[False], found[True])

    def _vectors(self, term: Term, factor: float) -> _Vectors | str:
        rows = self._gathered(term.index)
        table = self._table(term)
        if rows is None or table is None:
            return _OTHERWISE
        length = len(rows) // 2 + 1
        if term.of_keys:
            rows = rows.flip(0)  # of [keys, queries]
        fixed = isinstance(self._host.dims[1], int)
        left, right = constant_from(rows[None]), constant_from(rows.flip(0)[None])
        longest = None if max(left, right) <= length // 2 or fixed else length
        if longest is not None and longest < self._host.admitted:
            return f"its positions still change beyond {longest} tokens"
        middle = rows[length - 1 - left : length + right]
        if int(middle.min()) < 0 or int(middle.max()) >= table.shape[2]:
            return _OTHERWISE
        return _Vectors(table[:, :, middle] * factor, left, longest)

    def _table(self, term: Term) -> Tensor | None:
        """fp32 [heads, size, embeddings], the same for all sequences of any length."""
        heads, size = term.heads.heads, term.heads.size
        found = []
        for batch, length in self._sizes:
            value = self._host.for_sizes(term.table, batch, length)
            if value is None or value.dim() < 2 or value.shape[-2] != size:
                return None
            every = value.detach().float().reshape(-1, *value.shape[-2:])
            if len(every) not in (1, heads, batch * heads):
                return None
            found.append(every.expand(heads, -1, -1) if len(every) == 1 else every[:heads])
            if len(every) > heads and not torch.equal(every[heads:], every[:-heads]):
                return None
        alike = all(torch.equal(other, found[0]) for other in found[1:])
        return found[0] if alike else None

    def _gathered(self, index: fx.Node) -> Tensor | None:
        """Which embedding is gathered by distance, int64 [2 length - 1], at the longest length."""
        name = self._same.name(index)
        if name not in self._rows:
            self._rows[name] = self._tried(index)
        return self._rows[name]

    def _tried(self, index: fx.Node) -> Tensor | None:
        found = [self._alike(index, *size) for size in self._sizes]
        known = [rows for rows in found if rows is not None]
        if len(known) < len(found):
            return None
        fixed, batch = self._host.dims[1], self._sizes[0][0]
        if isinstance(fixed, int):
            return known[0]
        # Twice the longest, to see whether all beyond it is alike.
        most = min(2 * self._host.admitted or _LONGEST, _LONGEST)
        longest = at_longest(lambda length: self._row(index, batch, length), most)
        if longest is None or any(len(longest) < len(rows) for rows in known):
            return None
        alike = all(torch.equal(cut(longest, rows), rows) for rows in known)
        return longest if alike else None

    def _alike(self, index: fx.Node, batch: int, length: int) -> Tensor | None:
        """The rows of all heads and sequences, if they are one."""
        value = self._host.for_sizes(index, batch, length)
        if value is None or value.shape[-2:] != (length, length):
            return None
        first = value.reshape(-1, length, length)[0]
        return rows_by_distance(first) if torch.equal(value, first.expand_as(value)) else None

    def _row(self, index: fx.Node, batch: int, length: int) -> Tensor | None:
        """The rows of the first head of the first sequence."""
        value = self._host.for_sizes(index, batch, length)
        if value is None:
            return None
        return rows_by_distance(value[(0,) * (value.dim() - 2)])


def _joined(of_queries: list[_Vectors], of_keys: list[_Vectors]) -> PositionTables:
    every = [*of_queries, *of_keys]
    before = max(v.zero for v in every)
    after = max(v.values.shape[2] - 1 - v.zero for v in every)
    # A whole panel at either end in which nothing changes any more.
    zero, last = -(-before // PANEL) + 1, -(-after // PANEL)
    lengths = [v.longest for v in every if v.longest is not None]
    queries, keys = (_panels(part, zero, zero + last + 1) for part in (of_queries, of_keys))
    return PositionTables(queries, keys, zero, min(lengths, default=None))


def _panels(parts: list[_Vectors], zero: int, count: int) -> NDArray[np.float32] | None:
    """The sum of vectors by distance, fp32 [heads, count, size, 16]."""
    if not parts:
        return None
    distances = torch.arange(count * PANEL) - zero * PANEL
    total = torch.stack(
        [v.values[:, :, (distances + v.zero).clamp(0, v.values.shape[2] - 1)] for v in parts]
    ).sum(0)
    heads, size, _ = total.shape
    panels = total.reshape(heads, size, count, PANEL).permute(0, 2, 1, 3)
    return aligned_copy(panels.contiguous().numpy())
