"""What one matrix product costs on a machine, tile by tile, before anything is scheduled."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

import numpy as np

from sparsefx.backends.accelerator.engines.base import BoolArray, Gemm, IntArray, Timing, ceil_div
from sparsefx.backends.accelerator.hardware.machine import Machine, Mapping
from sparsefx.backends.accelerator.tiling.mapper import choose_mapping
from sparsefx.backends.accelerator.workload.operations import MatmulOp
from sparsefx.backends.formats.encoding import FormatSize

__all__ = ["MatmulPlan", "TileCost", "plan_matmul"]

_STATIONARY_SHARE = 0.875  # of a memory; the rest buffers the operand that streams by


@dataclass(frozen=True)
class TileCost:
    """One row group of the weights times some rows of activations, on one core."""

    cycles: float
    engine_cycles: int
    fill: int
    macs: int
    load: IntArray | None = field(default=None, repr=False, compare=False)


@dataclass
class MatmulPlan:
    """A product cut into row groups, with the exact size and cost of each.

    Attributes:
        op: The product.
        mapping: The tile sizes.
        rows: `(first, end)` of the weight rows of each group.
        sizes: Exact stored size of each group's weights; empty for activations times activations.
        weight_passes: How often the weights come from external memory.
        activation_passes: How often the activations do, when they lie there.
    """

    op: MatmulOp
    mapping: Mapping
    machine: Machine
    rows: tuple[tuple[int, int], ...]
    sizes: tuple[FormatSize, ...]
    weight_passes: int
    activation_passes: int

    def __post_init__(self) -> None:
        skips = "activation" in self.machine.engine.skips
        self.active = self.op.activation if skips else None
        self._cache: dict[tuple[int, int, int], TileCost] = {}

    def group_bytes(self, group: int) -> tuple[float, float]:
        """Stored bytes of a group: `(values, metadata)`."""
        return self.machine.bytes_of(self.sizes[group])

    @property
    def stored_bytes(self) -> tuple[float, float]:
        """Stored bytes of all weights: `(values, metadata)`."""
        pairs = [self.group_bytes(group) for group in range(len(self.sizes))]
        return sum(p[0] for p in pairs), sum(p[1] for p in pairs)

    def cost(self, group: int, first: int, end: int) -> TileCost:
        """Cost of a group of weight rows for the activation rows `first:end`."""
        if self.active is None:
            first, end = 0, end - first
        key = (group, first, end)
        if key not in self._cache:
            self._cache[key] = self._cost(group, first, end)
        return self._cache[key]

    def _cost(self, group: int, first: int, end: int) -> TileCost:
        machine, n = self.machine, self.rows[group][1] - self.rows[group][0]
        column = sum(self.group_bytes(group)) / self.op.k if self.sizes else n * machine.value_bytes
        cycles = 0.0
        total = fill = macs = 0
        loads: list[IntArray] = []
        step = self.mapping.tile_k
        columns = [(k0, min(k0 + step, self.op.k)) for k0 in range(0, self.op.k, step)]
        for ((m0, m1), repeat), (k0, k1) in product(self._row_tiles(first, end), columns):
            m, k = m1 - m0, k1 - k0
            timing = self._timed(group, (m0, m1), (k0, k1))
            compute = machine.compute_cycles(timing.cycles, timing.macs == m * n * k)
            cycles += max(compute, machine.feed_cycles(m, k, column * k)) * repeat
            total += timing.cycles * repeat
            fill += timing.fill * repeat
            macs += timing.macs * repeat
            if timing.load is not None:
                loads.append(timing.load * repeat)
        alike = loads and all(load.shape[0] == loads[0].shape[0] for load in loads)
        heat = np.concatenate(loads, axis=1) if alike else None
        return TileCost(cycles, total, fill, macs, heat)

    def _row_tiles(self, first: int, end: int) -> list[tuple[tuple[int, int], int]]:
        """Tiles of activation rows, and how often each comes: equal ones are named once."""
        tile = self.mapping.tile_m
        if self.active is not None:
            return [((m, min(m + tile, end)), 1) for m in range(first, end, tile)]
        whole, rest = divmod(end - first, tile)
        return [((0, m), count) for m, count in ((tile, whole), (rest, 1)) if m and count]

    def _timed(self, group: int, rows: tuple[int, int], columns: tuple[int, int]) -> Timing:
        place = self.op.name, self.rows[group], rows, columns
        return self.machine.timed(place, lambda: self._tile(group, rows, columns))

    def _tile(self, group: int, rows: tuple[int, int], columns: tuple[int, int]) -> Gemm:
        op = self.op
        (n0, n1), (m0, m1), (k0, k1) = self.rows[group], rows, columns
        weight: BoolArray | None = None if op.nonzero is None else op.nonzero[n0:n1, k0:k1]
        active = None if self.active is None else self.active[m0:m1, k0:k1]
        return Gemm(m1 - m0, n1 - n0, k1 - k0, weight, active)


def plan_matmul(op: MatmulOp, machine: Machine, *, streamed: bool) -> MatmulPlan:
    """Choose a mapping for a product and measure its groups.

    Args:
        op: The product.
        machine: What it runs on.
        streamed: Whether weights come from external memory while the machine runs.

    Raises:
        TargetError: When no tile fits the machine.
    """
    mapping = choose_mapping(op, machine, streamed=streamed)
    rows = tuple((n, min(n + mapping.tile_n, op.n)) for n in range(0, op.n, mapping.tile_n))
    sizes = _measured(op, machine, rows) if op.has_weights else ()
    plan = MatmulPlan(op, mapping, machine, rows, sizes, 1, 1)
    if op.has_weights and streamed:
        plan.weight_passes, plan.activation_passes = _passes(plan)
    return plan


def _measured(
    op: MatmulOp, machine: Machine, rows: tuple[tuple[int, int], ...]
) -> tuple[FormatSize, ...]:
    """Stored sizes of the row groups, in the form that `machine` stores the layer in."""
    whole = tuple(machine.form.value_width * (end - first) * op.k for first, end in rows)
    if op.nonzero is None or machine.stored(op).bits == sum(whole):
        return tuple(FormatSize(bits) for bits in whole)
    if len(rows) == 1:
        return (machine.stored(op),)
    return tuple(machine.form.measure(op.nonzero[first:end]) for first, end in rows)


def _passes(plan: MatmulPlan) -> tuple[int, int]:
    """How often weights and activations stream from outside when both do not fit at once."""
    op, machine = plan.op, plan.machine
    arch = machine.architecture
    room_w = arch.capacity(arch.outermost("weights")) * _STATIONARY_SHARE
    room_a = arch.capacity(arch.outermost("activations")) * _STATIONARY_SHARE
    weights = sum(plan.stored_bytes)
    active = op.m * op.k * machine.value_bytes
    shared = arch.outermost("weights") is arch.outermost("activations")
    if weights <= room_w or (not shared and active <= room_a):
        return 1, 1
    stream_activations = ceil_div(int(weights), max(int(room_w), 1))
    stream_weights = ceil_div(int(active), max(int(room_a), 1))
    if weights * (stream_weights - 1) <= active * (stream_activations - 1):
        return stream_weights, 1
    return 1, stream_activations
