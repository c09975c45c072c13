"""Lock-step array: each element owns a weight row, all wait for the slowest at every k block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import (
    WEIGHTS,
    Engine,
    Gemm,
    IntArray,
    Skips,
    Timing,
    ceil_div,
)
from sparsefx.backends.formats.n_of_m import group_counts

__all__ = ["LockStep", "RowArray", "block_work", "by_group"]


def block_work(gemm: Gemm, block: int, lanes: int) -> IntArray:
    """Cycles that each weight row needs for each k block: `ceil(non-zeros / lanes)`, `[n, b]`."""
    if gemm.weight is None:
        widths = np.full(ceil_div(gemm.k, block), block, np.int64)
        widths[-1] = gemm.k - block * (widths.size - 1)
        counts = np.broadcast_to(widths, (gemm.n, widths.size))
    else:
        counts = group_counts(gemm.weight, block)
    return -(-counts // lanes)


def by_group(work: IntArray, elements: int) -> IntArray:
    """Deal rows to elements in groups: `[groups, elements, blocks]`, filled up with zero work."""
    rows, blocks = work.shape
    groups = ceil_div(rows, elements)
    padded = np.zeros((groups * elements, blocks), np.int64)
    padded[:rows] = work
    return padded.reshape(groups, elements, blocks)


@dataclass(frozen=True)
class RowArray(Engine):
    """`elements` weight rows side by side with `lanes` MACs each; zero weights take no time."""

    skips: ClassVar[frozenset[Skips]] = WEIGHTS
    elements: int = 32
    lanes: int = 16

    @property
    def peak(self) -> int:
        """Elements times lanes."""
        return self.elements * self.lanes

    @property
    def row_step(self) -> int:
        """One row an element."""
        return self.elements


@dataclass(frozen=True)
class LockStep(RowArray):
    """`elements` rows side by side, `lanes` MACs each; a barrier every `block` columns.

    With e[p, b] = ceil(non-zeros of row p in block b / lanes) and f the finishing times,

        f[p, b] = max(f[p, b - 1], max over q of f[q, b - 1 - look_ahead]) + e[p, b]

    so `look_ahead` 0 costs the sum of the blocks' maxima and a large one the heaviest row's sum.
    Activations are broadcast; one more barrier ends each row group and each activation row.
    """

    kind: ClassVar[str] = "lock-step"
    block: int = 64
    look_ahead: int = 0

    @property
    def k_step(self) -> int:
        """Columns between two barriers."""
        return self.block

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM from the real non-zeros of every row and block."""
        groups = by_group(block_work(gemm, self.block, self.lanes), self.elements)
        passes = int(self.finish(groups).sum())
        return Timing(passes * gemm.m, gemm.macs(self.skips), load=groups.sum(axis=0) * gemm.m)

    def finish(self, groups: IntArray) -> IntArray:
        """Cycles of each row group for one activation row, int64 `[groups]`."""
        if self.look_ahead == 0:
            barriers: IntArray = groups.max(axis=1).sum(axis=1)
            return barriers
        blocks = groups.shape[2]
        done = np.zeros(groups.shape[:2], np.int64)
        slowest = np.zeros((groups.shape[0], blocks), np.int64)
        for b in range(blocks):
            if b > self.look_ahead:
                np.maximum(done, slowest[:, b - 1 - self.look_ahead, None], out=done)
            done += groups[:, :, b]
            slowest[:, b] = done.max(axis=1)
        return slowest[:, -1]
