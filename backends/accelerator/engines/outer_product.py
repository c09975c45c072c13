"""Outer product: condensed columns of both operands, multiplied block by block."""

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

__all__ = ["OuterProduct"]


@dataclass(frozen=True)
class OuterProduct(Engine):
    """Dual-side sparse tensor core (DSTC; Wang et al. 2021, sections 4 and 5).

    For every k, an activation column of `tile` rows and a weight column of `tile` rows are squeezed
    to their non-zeros and multiplied in steps of `height x width`:

        steps = sum over k and tiles of ceil(nnz_act / height) ceil(nnz_weight / width)

    shared by `units`. Squeezing to whole steps, not the density product, is what the paper's
    curve shows: half the activations do not take half the time.
    """

    kind: ClassVar[str] = "outer-product"
    skips: ClassVar[frozenset[Skips]] = BOTH
    units: int = 1
    tile: int = 32
    height: int = 8
    width: int = 16

    @property
    def peak(self) -> int:
        """One step a cycle and unit."""
        return self.units * self.height * self.width

    @property
    def row_step(self) -> int:
        """Weight rows of a tile."""
        return self.tile

    def steps_by_k(
        self,
        mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None,
        rows: int,
        k: int,
        step: int,
    ) -> IntArray:
        """Steps that one operand needs for each k, summed over its tiles, int64 `[k]`."""
        if mask is None:
            whole, rest = divmod(rows, self.tile)
            return np.full(k, whole * ceil_div(self.tile, step) + ceil_div(rest, step), np.int64)
        counts = group_sum(mask.astype(np.int64), self.tile)
        steps: IntArray = (-(-counts // step)).sum(axis=0)
        return steps

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM: the steps of both operands multiply, k by k."""
        active = self.steps_by_k(gemm.activation, gemm.m, gemm.k, self.height)
        weight = self.steps_by_k(gemm.weight, gemm.n, gemm.k, self.width)
        steps = int(active @ weight)
        return Timing(
            ceil_div(steps, self.units),
            gemm.macs(self.skips),
            load=(active * weight).reshape(1, -1),
        )
