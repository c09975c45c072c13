"""CSC with queues: non-zero activations broadcast to elements that each own interleaved rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import (
    BOTH,
    Engine,
    Gemm,
    IntArray,
    Skips,
    Timing,
    ceil_div,
    group_sum,
)
from sparsefx.backends.formats.run_length import RunLength, padded_counts

__all__ = ["CscFifo"]

_MOST_BLOCKS = 64


@dataclass(frozen=True)
class CscFifo(Engine):
    """EIE (Han et al. 2016): one entry a cycle and element, padding zeros included.

    Activation t is broadcast at b[t], is taken from an element's queue at s[p, t] and done at
    f[p, t] = s[p, t] + e[p, t], where e counts the entries of that column in that element, with a
    padding zero for each run beyond `2**run_bits - 1`; a column without entries still takes the
    cycle in which its two pointers are read:

        b[t] = max(b[t - 1] + 1, max over p of s[p, t - depth])
        s[p, t] = max(b[t], f[p, t - 1])

    so the broadcast waits until every element's queue of `depth` has room.
    """

    kind: ClassVar[str] = "csc-fifo"
    skips: ClassVar[frozenset[Skips]] = BOTH
    elements: int = 64
    depth: int = 8
    run_bits: int = 4

    @property
    def peak(self) -> int:
        """One multiplication an element."""
        return self.elements

    @property
    def row_step(self) -> int:
        """Rows are interleaved over the elements."""
        return self.elements

    def entries(self, gemm: Gemm) -> IntArray:
        """Entries of each column in each element, padding included, int64 `[k, elements]`."""
        mask = np.ones((gemm.n, gemm.k), bool) if gemm.weight is None else gemm.weight
        form = RunLength(self.run_bits, self.elements)
        values, padding = padded_counts(form.side_by_side(mask), self.run_bits)
        return (values + padding).reshape(self.elements, gemm.k).T

    def run(self, gemm: Gemm) -> Timing:
        """Time every activation row through the queues."""
        entries = self.entries(gemm)
        if gemm.activation is None:
            order = np.arange(gemm.k)[None, :]
            present = np.ones((1, gemm.k), bool)
            repeat = gemm.m
        else:
            counts = np.count_nonzero(gemm.activation, axis=1)
            longest = int(counts.max(initial=0))
            order = np.argsort(~gemm.activation, axis=1, kind="stable")[:, :longest]
            present = np.arange(longest)[None, :] < counts[:, None]
            repeat = 1
        rows = self.queue(entries, order, present)
        load = entries.T if gemm.activation is None else entries.T * gemm.activation_by_k
        heat = load * (gemm.m if gemm.activation is None else 1)
        heat = group_sum(heat, ceil_div(gemm.k, _MOST_BLOCKS), axis=1)
        return Timing(int(rows.sum()) * repeat, gemm.macs(self.skips), load=heat)

    def queue(
        self,
        entries: IntArray,
        order: IntArray,
        present: np.ndarray[tuple[int, int], np.dtype[np.bool_]],
    ) -> IntArray:
        """Cycles of each activation row, int64 `[rows]`; `order[r, t]` is the t-th column.

        The equations hold for `depth` steps at once, since a broadcast waits for none nearer:
        with E the entries summed up to t, `f[p, t] = E[p, t] + max over u of (b[u] - E[p, u - 1])`.
        """
        rows, steps = order.shape
        busy = np.maximum(entries, 1)
        done = np.zeros((rows, self.elements), np.int64)
        sent = np.full(rows, -1, np.int64)
        taken = np.full((rows, self.depth), -1, np.int64)
        for t in range(0, steps, self.depth):
            here = present[:, t : t + self.depth]
            count = np.cumsum(here, axis=1)
            room = np.where(here, taken[:, : here.shape[1]] - count, sent[:, None])
            waits = np.maximum.accumulate(room, axis=1)
            broadcast = np.maximum(waits, sent[:, None]) + count
            work = busy[order[:, t : t + self.depth]] * here[:, :, None]
            total = np.cumsum(work, axis=1)
            late = np.where(here, broadcast, -1)[:, :, None] - (total - work)
            np.maximum.accumulate(late, axis=1, out=late)
            finish = total + np.maximum(late, done[:, None])
            taken = (finish - work).max(axis=2)
            done, sent = finish[:, -1], broadcast[:, -1]
        longest: IntArray = np.maximum(done.max(axis=1, initial=0), sent + 1)
        return longest
