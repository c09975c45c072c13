"""Bank-balanced array: every bank of every row takes equally long, so nothing ever waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import Engine, Gemm, Skips, Timing, ceil_div
from sparsefx.backends.accelerator.engines.lock_step import block_work

__all__ = ["BankBalanced"]


@dataclass(frozen=True)
class BankBalanced(Engine):
    """`elements` rows, `lanes` MACs each; the fullest bank of a layer sets the pace of all.

        cycles = m ceil(n / elements) ceil(slots banks / lanes)

    where `slots` is the fullest bank's count, at least `bank / max_ratio`. A matrix pruned without
    regard to banks pays here for its fullest one: prune with `balance-banks`.
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
        """Time the GEMM at the fullest bank's count."""
        counts = block_work(gemm, self.bank, 1)
        fullest = int(counts.max(initial=0))
        slots = max(fullest, ceil_div(self.bank, self.max_ratio)) if fullest else 0
        if gemm.k < self.bank:
            slots = min(slots, gemm.k)
        width = min(slots * counts.shape[1], gemm.k)
        cycles = gemm.m * ceil_div(gemm.n, self.elements) * ceil_div(width, self.lanes)
        folded = np.zeros((self.elements, counts.shape[1]), np.int64)
        np.add.at(folded, np.arange(gemm.n) % self.elements, counts)
        return Timing(cycles, gemm.macs(self.skips), load=folded * gemm.m)
