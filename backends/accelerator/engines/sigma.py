"""SIGMA: stationary rows packed side by side into a flexible reduction tree."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np

from sparsefx.backends.accelerator.engines.base import (
    WEIGHTS,
    Engine,
    Gemm,
    Skips,
    Timing,
    ceil_div,
)

__all__ = ["Sigma", "largest_first", "last_write", "leaving_adder", "output_lines", "pack_rows"]

Order = Literal["largest-first", "as-given"]


def pack_rows(counts: list[int], capacity: int) -> list[list[int]]:
    """Pack whole rows, in order, into folds of `capacity` multipliers; a longer row is cut.

    Rows without non-zeros take no place. A cut row has its folds for itself, and its later pieces
    give one multiplier to the partial sum that comes back.

    >>> pack_rows([3, 0, 4, 9, 2], 8)
    [[3, 4], [8], [2], [2]]
    """
    folds: list[list[int]] = []
    current: list[int] = []
    for count in (c for c in counts if c):
        if sum(current) + count > capacity and current:
            folds.append(current)
            current = []
        if count <= capacity:
            current.append(count)
            continue
        whole, rest = divmod(count - capacity, max(capacity - 1, 1))
        folds += [[capacity]] * (1 + whole)
        folds += [[rest + 1]] if rest else []
    return [*folds, current] if current else folds


def largest_first(counts: list[int], capacity: int) -> list[int]:
    """Order rows so that folds fill up: always the longest that still fits, too long ones first.

    >>> largest_first([3, 5, 2, 9, 4], 8)
    [9, 5, 3, 4, 2]
    """
    ordered = [count for count in counts if count > capacity]
    left = sorted(count for count in counts if 0 < count <= capacity)
    room = capacity
    while left:
        fits = bisect_right(left, room)
        if not fits:
            room = capacity
            continue
        ordered.append(left.pop(fits - 1))
        room -= ordered[-1]
    return ordered


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


def output_lines(fold: tuple[int, ...], multipliers: int, lines: int) -> dict[int, list[int]]:
    """The latencies of the sums on each output line: levels climbed and cycles waited.

    The adders of a double adder (neighbours without a common parent) share a line. Lines are dealt
    out in turn: double adders from the root down, then the first and last adders of the levels.
    """
    depth = (multipliers - 1).bit_length()
    doubles = sum(2 ** (level - 1) - 1 for level in range(2, depth))
    found: dict[int, list[int]] = defaultdict(list)
    first = 0
    for count in fold:
        climbed, adder, waited = leaving_adder(first, first + count - 1)
        first += count
        level = depth - climbed  # the root's is 0
        if 0 < adder < 2**level - 1:
            line = sum(2 ** (above - 1) - 1 for above in range(2, level)) + (adder - 1) // 2
        else:
            line = 2 * doubles + (2 * level - (adder == 0) if level else 0)
        found[line % lines].append(climbed + waited)
    return found


def last_write(spans: list[tuple[int, int]]) -> int:
    """When the last sum is written, of lines that each deliver one a cycle in `first..end`.

    The memory takes half of the sums that wait, rounded up, in each cycle.

    >>> last_write([(0, 8)]), last_write([(0, 8), (0, 8)]), last_write([(0, 2), (0, 8)])
    (7, 8, 8)
    """
    changes: dict[int, int] = defaultdict(int)
    for first, end in spans:
        changes[first] += 1
        changes[end] -= 1
    times = sorted(changes)
    waiting = delivering = 0
    for now, then in pairwise(times):
        delivering += changes[now]
        for _ in range(min(then - now, 10)):  # steady after a few
            waiting = waiting // 2 + delivering
    return times[-1] - 1 + max(waiting.bit_length() - 1, 0)


@lru_cache(maxsize=2**16)
def fold_cycles(fold: tuple[int, ...], m: int, multipliers: int, bandwidth: int) -> tuple[int, int]:
    """Cycles of one fold for `m` streamed vectors: `(all, of which fill and drain)`."""
    ports = min(bandwidth, multipliers)
    pace = min(ceil_div(multipliers, ports), sum(fold))
    spans = []
    for latencies in output_lines(fold, multipliers, ports).values():
        first = pace + min(latencies)
        spans.append((first, first + m * max(pace, len(latencies))))
    slowest = max(end - first for first, end in spans)
    cycles = 4 + last_write(spans)
    return cycles, cycles - slowest


@dataclass(frozen=True)
class Sigma(Engine):
    """SIGMA as STONNE runs it (Qin et al. 2020; Munoz-Martinez et al. 2021), weights stationary.

    Whole weight rows are packed into `multipliers` until the next does not fit (a fold), then the m
    activation vectors stream through. Cycles of a fold, to the cycle where each multiplier has its
    own port:

    - 5 to configure, to load the weights, to multiply, and to get to memory and back;
    - for each vector one cycle, or as many as values enter by one of the `bandwidth` ports, or as
      many as sums leave by one of the `bandwidth` output lines;
    - the levels that the sums climb in the tree, and their waits for sums from the side;
    - the write queue, from which memory takes half of what waits in each cycle.

    `order` is the rows': `largest-first` is STONNE's ordering at compile time, with which its
    published cycles were counted.
    """

    kind: ClassVar[str] = "sigma"
    skips: ClassVar[frozenset[Skips]] = WEIGHTS
    multipliers: int = 128
    bandwidth: int = 128
    order: Order = "largest-first"

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
        if self.order == "largest-first":
            counts = largest_first(counts, self.multipliers)
        folds = [tuple(fold) for fold in pack_rows(counts, self.multipliers)]
        timed = [fold_cycles(fold, gemm.m, self.multipliers, self.bandwidth) for fold in folds]
        load = np.array([[sum(fold) for fold in folds]], np.int64) * gemm.m if folds else None
        total = sum(cycles for cycles, _ in timed)
        return Timing(total, gemm.macs(self.skips), sum(fill for _, fill in timed), load)
