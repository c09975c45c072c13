"""Outer product: condensed columns of both operands, multiplied block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.accelerator.engines.base import (
    BOTH,
    BoolArray,
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

    For every k, an activation column of `tile_m` rows and a weight column of `tile_n` rows are
    squeezed to their non-zeros and multiplied in steps of `height x width`:

        steps = sum over k and tiles of ceil(nnz_act / height) ceil(nnz_weight / width)

    shared by `units`. Squeezing to whole steps, not the density product, is what the paper's
    curve shows: half the activations do not take half the time. A tile that is not square may lie
    either way; each product takes the faster one.

    With `feed` given, both columns come from a shared memory of that many bytes a cycle, non-zeros
    of `value_bits` and a bit for each place, once for all units of a row or column of their grid:

        feed   = (bytes_act ceil(n / (tile_n g)) + bytes_weight ceil(m / (tile_m g))) / feed
        cycles = max(steps / units, feed)                                  g = sqrt(units)

    which is how Sparseloop describes the machine (Wu et al. 2022, section 7, Fig. 15).
    """

    kind: ClassVar[str] = "outer-product"
    skips: ClassVar[frozenset[Skips]] = BOTH
    units: int = 1
    tile_m: int = 32
    tile_n: int = 32
    height: int = 8
    width: int = 16
    feed: int = 0
    value_bits: int = 8

    @property
    def peak(self) -> int:
        """One step a cycle and unit."""
        return self.units * self.height * self.width

    @property
    def row_step(self) -> int:
        """Weight rows of a tile."""
        return self.tile_n

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM: the steps of both operands multiply, k by k."""
        tiles = dict.fromkeys([(self.tile_m, self.tile_n), (self.tile_n, self.tile_m)])
        return min((self._timed(gemm, *tile) for tile in tiles), key=lambda timing: timing.cycles)

    def _timed(self, gemm: Gemm, tile_m: int, tile_n: int) -> Timing:
        active = steps_by_k(gemm.activation, (gemm.m, gemm.k), tile_m, self.height)
        weight = steps_by_k(gemm.weight, (gemm.n, gemm.k), tile_n, self.width)
        cycles = ceil_div(int(active @ weight), self.units)
        if self.feed:
            side = math.isqrt(self.units)
            read = self._bytes(gemm.activation_by_k, gemm.m) * ceil_div(gemm.n, tile_n * side)
            read += self._bytes(gemm.weight_by_k, gemm.n) * ceil_div(gemm.m, tile_m * side)
            cycles = max(cycles, math.ceil(read / self.feed))
        return Timing(cycles, gemm.macs(self.skips), load=(active * weight).reshape(1, -1))

    def _bytes(self, nonzero_by_k: IntArray, rows: int) -> float:
        """Bytes of one operand as bitmap and non-zeros."""
        return (int(nonzero_by_k.sum()) * self.value_bits + rows * nonzero_by_k.size) / 8


def steps_by_k(mask: BoolArray | None, shape: tuple[int, int], tile: int, step: int) -> IntArray:
    """Steps that one operand `[rows, k]` needs for each k, summed over its tiles, int64 `[k]`.

    >>> steps_by_k(None, (40, 2), 32, 8).tolist()
    [5, 5]
    """
    rows, k = shape
    if mask is None:
        whole, rest = divmod(rows, tile)
        return np.full(k, whole * ceil_div(tile, step) + ceil_div(rest, step), np.int64)
    counts = group_sum(mask.astype(np.int64), tile)
    steps: IntArray = (-(-counts // step)).sum(axis=0)
    return steps
