"""Bank-balanced array: every bank of every row takes equally long, so nothing ever waits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import Gemm, Timing, ceil_div
from sparsefx.backends.accelerator.engines.lock_step import RowArray, block_work, by_group

__all__ = ["BankBalanced"]


@dataclass(frozen=True)
class BankBalanced(RowArray):
    """`elements` weight rows side by side, and as many slots in a bank for every row.

    A weight is read with its index once and meets `lanes` activation rows at a time, so that slots
    need not come in multiples of the lanes:

        cycles = ceil(m / lanes) ceil(n / elements) sum over banks of slots(bank)

    where slots(bank) is the count of the fullest row of the layer in that bank, and at least
    `bank / max_ratio`. A matrix pruned without regard to banks pays here for the fullest row of
    each: prune with `balance-banks`.
    """

    kind: ClassVar[str] = "bank-balanced"
    bank: int = 64
    max_ratio: int = 32

    @property
    def k_step(self) -> int:
        """Columns of a bank."""
        return self.bank

    @property
    def column_step(self) -> int:
        """Activation rows that share a weight."""
        return self.lanes

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM at the slots that its fullest rows need."""
        counts = block_work(gemm, self.bank, 1)
        fullest = counts.max(axis=0)
        least = min(ceil_div(self.bank, self.max_ratio), gemm.k)
        slots = int(np.where(fullest > 0, np.maximum(fullest, least), 0).sum())
        shared = ceil_div(gemm.m, self.lanes)
        groups = by_group(counts, self.elements)
        return Timing(
            shared * ceil_div(gemm.n, self.elements) * slots,
            gemm.macs(self.skips),
            load=groups.sum(axis=0) * shared,
        )
