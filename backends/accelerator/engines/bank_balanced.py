"""Bank-balanced array: every bank of every row takes equally long, so nothing ever waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import Engine, Gemm, Skips, Timing, ceil_div
from sparsefx.backends.accelerator.engines.lock_step import block_work, by_group

__all__ = ["BankBalanced"]


@dataclass(frozen=True)
class BankBalanced(Engine):
    """`elements` rows, `lanes` MACs each, and as many slots in a bank for every row.

        cycles = m ceil(n / elements) ceil(sum over banks of slots(bank) / lanes)

    where slots(bank) is the count of the fullest row of the layer in that bank, and at least
    `bank / max_ratio`. A matrix pruned without regard to banks pays here for the fullest row of
    each: prune with `balance-banks`.
    """

    kind: ClassVar[str] = "bank-balanced"
    skips: ClassVar[frozenset[Skips]] = frozenset({"weight"})
    elements: int = 32
    lanes: int = 16
    bank: int = 64
    max_ratio: int = 32

    @property
    def peak(self) -> int:
        """Elements times lanes."""
        return self.elements * self.lanes

    @property
    def row_step(self) -> int:
        """One row an element."""
        return self.elements

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM at the slots that its fullest rows need."""
        counts = block_work(gemm, self.bank, 1)
        fullest = counts.max(axis=0)
        least = min(ceil_div(self.bank, self.max_ratio), gemm.k)
        slots = int(np.where(fullest > 0, np.maximum(fullest, least), 0).sum())
        cycles = gemm.m * ceil_div(gemm.n, self.elements) * ceil_div(slots, self.lanes)
        groups = by_group(counts, self.elements)
        return Timing(cycles, gemm.macs(self.skips), load=groups.sum(axis=0) * gemm.m)
