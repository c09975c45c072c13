"""Channel product: every non-zero activation of a channel meets every non-zero weight of it."""

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
)

__all__ = ["ChannelProduct", "interleaved_counts"]


def interleaved_counts(
    mask: np.ndarray[tuple[int, int], np.dtype[np.bool_]] | None, rows: int, k: int, parts: int
) -> IntArray:
    """Non-zeros per k of every `parts`-th row, int64 `[parts, k]`."""
    depth = ceil_div(rows, parts)
    padded = np.zeros((depth * parts, k), bool)
    padded[:rows] = True if mask is None else mask
    counts: IntArray = np.count_nonzero(padded.reshape(depth, parts, k), axis=0)
    return counts


@dataclass(frozen=True)
class ChannelProduct(Engine):
    """A grid of PEs, each with both operands in CSC, after Eyeriss v2 (Chen et al. 2019).

        cycles = max over PEs of sum over k of ceil(nnz_act(k) nnz_weight(k) / simd)

    Weight rows are dealt to the grid's rows and activation rows to its columns, in turn. A single
    PE with `simd` 1 gives the published ground truth to the cycle.
    """

    kind: ClassVar[str] = "channel-product"
    skips: ClassVar[frozenset[Skips]] = BOTH
    rows: int = 1
    columns: int = 1
    simd: int = 1

    @property
    def peak(self) -> int:
        """PEs times the width of one."""
        return self.rows * self.columns * self.simd

    @property
    def row_step(self) -> int:
        """Weight rows side by side."""
        return self.rows

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM from the non-zeros of each channel."""
        weight = interleaved_counts(gemm.weight, gemm.n, gemm.k, self.rows)
        active = interleaved_counts(gemm.activation, gemm.m, gemm.k, self.columns)
        if self.simd == 1:
            load = weight @ active.T
        else:
            load = np.stack([(-(-(weight * a) // self.simd)).sum(axis=1) for a in active], axis=1)
        return Timing(int(load.max(initial=0)), gemm.macs(self.skips), load=load.reshape(-1, 1))
