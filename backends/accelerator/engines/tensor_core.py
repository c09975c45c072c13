"""Tensor core: a block of MACs behind a shared memory of limited width, with N:M patterns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from sparsefx.backends.accelerator.engines.base import Engine, Gemm, Skips, Timing, ceil_div
from sparsefx.backends.accelerator.engines.systolic_nm import fullest_group

__all__ = ["TensorCore", "offset_width"]


def offset_width(group: int, *, run_length: bool = False) -> int:
    """Metadata bits of one slot, stored in a power of two of bits.

    An offset counts to `group`, a run length to the longest run of zeros, `group - 2`.

    >>> [offset_width(4), offset_width(6), offset_width(6, run_length=True)]
    [2, 4, 2]
    """
    span = group - 2 if run_length else group
    needed = max(math.ceil(math.log2(max(span, 2))), 1)
    return 1 << math.ceil(math.log2(needed))


@dataclass(frozen=True)
class TensorCore(Engine):
    """`macs` multipliers a cycle, fed from a shared memory of `feed` bytes a cycle.

    The machine of Sparseloop's case study (Wu et al. 2022, section 7, Fig. 15), in which a weight
    tile of `tile_n` rows and an activation tile of `tile_m` rows are read per step:

        compute = m n k' / macs,   k' = slots of k, filled up to whole steps of `step` slots
        feed    = (k m v ceil(n / tile_n) + k' n (v + metadata) ceil(m / tile_m)) / feed
        cycles  = max(compute, feed)

    with v bytes a value. Only the weights get shorter: the activations are read whole, because
    any of them may be selected, and that is why 2:8 does not run four times faster.

    A `group` of 0 means a dense machine. `slots` of 2 with `groups` up to 8 is the flexible
    2:4 / 2:6 / 2:8 core. `dual` compresses the activations in the shared memory too. `feed` 0 means
    that the feed never limits.
    """

    kind: ClassVar[str] = "tensor-core"
    macs: int = 1024
    feed: int = 0
    slots: int = 0
    groups: tuple[int, ...] = ()
    tile_n: int = 64
    tile_m: int = 128
    step: int = 32
    value_bits: int = 8
    run_length: bool = False
    dual: bool = False

    @property
    def skips(self) -> frozenset[Skips]:  # type: ignore[override]
        """Zeros of the weights, when the machine knows a pattern."""
        return frozenset({"weight"}) if self.groups else frozenset()

    @property
    def peak(self) -> int:
        """The multipliers."""
        return self.macs

    @property
    def row_step(self) -> int:
        """Weight rows of a tile."""
        return self.tile_n

    @property
    def column_step(self) -> int:
        """Activation rows of a tile."""
        return self.tile_m

    @property
    def k_step(self) -> int:
        """Columns that are whole groups, whatever the pattern."""
        return math.lcm(*self.groups)

    @property
    def patterns(self) -> tuple[str, ...]:
        """Each of `groups` with `slots` non-zeros."""
        return tuple(f"{self.slots}:{group}" for group in self.groups)

    def fitting(self, gemm: Gemm) -> tuple[int, ...]:
        """The groups in which at most `slots` weights are non-zero; 0, dense, always fits."""
        if gemm.weight is None:
            return (0,)
        return (0, *(g for g in self.groups if fullest_group(gemm, g) <= self.slots))

    def run(self, gemm: Gemm) -> Timing:
        """Time the GEMM at the fastest pattern that its weights fit; dense, nothing is skipped."""
        cycles, group = min((self.cycles(gemm, group), -group) for group in self.fitting(gemm))
        return Timing(cycles, gemm.macs(self.skips) if group else gemm.dense_macs)

    def reads(self, gemm: Gemm, weight_bytes: float, value_bytes: float) -> tuple[float, float]:
        """Activations once for each weight tile, weights once for each activation tile."""
        active = gemm.m * gemm.k * value_bytes * ceil_div(gemm.n, self.tile_n)
        return active, weight_bytes * ceil_div(gemm.m, self.tile_m)

    def cycles(self, gemm: Gemm, group: int) -> int:
        """Cycles with weights stored as `slots` of `group` (0: dense)."""
        ratio = group / self.slots if group else 1.0
        steps = ceil_div(gemm.k, round(self.step * ratio))
        k_slots = steps * self.step if group else gemm.k
        k_read = steps * round(self.step * ratio) if group else gemm.k
        compute = ceil_div(gemm.m * gemm.n * k_slots, self.macs)
        if not self.feed:
            return compute
        value = self.value_bits / 8
        meta = offset_width(group, run_length=self.run_length) / 8 if group else 0.0
        read = k_read * gemm.m * value * ceil_div(gemm.n, self.tile_n)
        if self.dual:
            density = float(gemm.activation_by_k.sum()) / (gemm.m * gemm.k)
            read = min(read, read * density * (1 + 2 / self.value_bits))
        weights = k_slots * gemm.n * (value + meta) * ceil_div(gemm.m, self.tile_m)
        return max(compute, math.ceil((read + weights) / self.feed))
