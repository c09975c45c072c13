"""SIGMA: stationary rows packed side by side into a flexible reduction tree."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import (
    WEIGHTS,
    Engine,
    Gemm,
    Skips,
    Timing,
    ceil_div,
)

__all__ = ["Sigma", "leaving_adder", "pack_rows"]


def pack_rows(counts: list[int], capacity: int) -> list[list[int]]:
    """Pack whole rows, in order, into folds of `capacity` multipliers; a longer row is cut.

    Rows without non-zeros take no place. A cut row's later pieces give one multiplier to the
    partial sum that comes back.

    >>> pack_rows([3, 0, 4, 9], 8)
    [[3, 4], [8], [1]]
    """
    folds: list[list[int]] = []
    current: list[int] = []
    for count in (c for c in counts if c):
        if current and sum(current) + count > capacity:
            folds.append(current)
            current = []
        left = count
        while left > capacity:
            folds.append([capacity])
            left -= capacity - 1 if left != count else capacity
        if left:
            current.append(left)
    if current:
        folds.append(current)
    return folds


def leaving_adder(first: int, last: int) -> tuple[int, int, int]:
    """Where and when the sum of leaves `first..last` is complete in an augmented reduction tree.

    Neighbours that do not share a parent may add sideways: the side with fewer leaves sends
    (Kwon et al. 2018, MAERI, section 4), and the other waits a cycle for it. Returns `(levels
    climbed, adder in that level, cycles waited)`.

    >>> leaving_adder(0, 63), leaving_adder(30, 61)
    ((6, 0, 0), (4, 2, 3))
    """
    low, high, level = first, last, 0
    waited_left = waited_right = 0
    while level == 0 or low != high:
        level += 1
        left, right = low // 2, high // 2
        new_left, new_right = left, right
        left_sends = left % 2 == 1 and high - 2 * left - 1 > 2 * left + 2 - low
        right_sends = right % 2 == 0 and 2 * right - low >= high - 2 * right + 1
        if right > left and right_sends:
            new_right = right - 1
            waited_right += 1
        if right > left and left_sends and not (right_sends and right == left + 1):
            new_left = left + 1
            waited_left += 1
        low, high = new_left, new_right
    return level, low, max(waited_left, waited_right)


@dataclass(frozen=True)
class Sigma(Engine):
    """SIGMA as STONNE runs it (Qin et al. 2020; Munoz-Martinez et al. 2021), weights stationary.

    Whole weight rows are packed into `multipliers` until the next does not fit (a fold); the m
    activation vectors then stream through, one a cycle unless `bandwidth` is narrower:

        cycles = sum over folds of (2 + m max(ceil(values / bandwidth), sharing) + 3 + climb)

    2 cycles configure and load the fold, 3 are the stages around the tree, `climb` the adders
    climbed and the waits for sums from the side. Two sums that leave at the two halves of one
    double adder share an output line: `sharing` is then 2.
    """

    kind: ClassVar[str] = "sigma"
    skips: ClassVar[frozenset[Skips]] = WEIGHTS
    multipliers: int = 128
    bandwidth: int = 128

    @property
    def peak(self) -> int:
        """The multipliers."""
        return self.multipliers

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM fold by fold."""
        if gemm.weight is None:
            counts = [gemm.k] * gemm.n
        else:
            counts = np.count_nonzero(gemm.weight, axis=1).tolist()
        total = fill = 0
        folds = pack_rows(counts, self.multipliers)
        for fold in folds:
            pace, latency = self.fold(fold)
            total += pace * gemm.m + latency
            fill += latency
        load = np.array([[sum(fold) for fold in folds]], np.int64) * gemm.m if folds else None
        return Timing(total, gemm.macs(self.skips), fill, load)

    def fold(self, fold: list[int]) -> tuple[int, int]:
        """Cycles for each streamed vector, and the latency around them, of one fold."""
        start, leaving = 0, []
        for count in fold:
            leaving.append(leaving_adder(start, start + count - 1))
            start += count
        lines = Counter((level, (adder + 1) // 2) for level, adder, _ in leaving)
        pace = max(ceil_div(start, self.bandwidth), max(lines.values()))
        return pace, 5 + max(level + waited for level, _, waited in leaving)
