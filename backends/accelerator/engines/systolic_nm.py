"""Systolic array whose weights are compressed along k by an N:M pattern."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsefx.backends.accelerator.engines.base import WEIGHTS, Gemm, Skips, Timing, ceil_div
from sparsefx.backends.accelerator.engines.systolic import Systolic
from sparsefx.backends.formats.n_of_m import group_counts

__all__ = ["SystolicNM", "fullest_group"]


def fullest_group(gemm: Gemm, group: int) -> int:
    """Non-zero weights in the fullest group of `group` neighbours along k."""
    if gemm.weight is None:
        return min(group, gemm.k)
    return int(group_counts(gemm.weight, group).max(initial=0))


@dataclass(frozen=True)
class SystolicNM(Systolic):
    """`Systolic` on `k * n / m` instead of `k`, where n is the fullest group's count.

    SCALE-Sim 3 (layer-wise sparsity): K becomes K * N / M; N:M storage in blocked ELLPACK. With
    `slots` given, only patterns up to `slots`:`group` are accelerated and fuller ones run dense, as
    on hardware that knows 2:4 alone; with 0 every n is.
    """

    kind: ClassVar[str] = "systolic-n-of-m"
    skips: ClassVar[frozenset[Skips]] = WEIGHTS
    group: int = 4
    slots: int = 0

    @property
    def k_step(self) -> int:
        """Columns of a group."""
        return self.group

    @property
    def patterns(self) -> tuple[str, ...]:
        """The fullest pattern that is faster than dense weights."""
        return (f"{self.slots or self.group - 1}:{self.group}",)

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM at the pattern that its weights fit."""
        fullest = fullest_group(gemm, self.group)
        if self.slots:
            fullest = self.slots if fullest <= self.slots else self.group
        if fullest >= self.group:
            return super().run(gemm)
        k = max(ceil_div(gemm.k * fullest, self.group), 1)
        cycles, fill = self.cycles(gemm.m, gemm.n, k)
        return Timing(cycles, gemm.macs(self.skips), fill)
