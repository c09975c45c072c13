"""The mapper: how a matrix product is cut into tiles, and which of the ways is best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsefx.backends.accelerator.engines.base import ceil_div
from sparsefx.backends.accelerator.machine import Machine
from sparsefx.backends.accelerator.workload import MatmulOp
from sparsefx.errors import TargetError

__all__ = ["Mapping", "choose_mapping", "mapping_options"]

_ACCUMULATOR_BYTES = 4


@dataclass(frozen=True)
class Mapping:
    """One way to cut a product.

    Attributes:
        tile_m, tile_n, tile_k: Sizes of a tile.
        bytes: What the tile needs in the core's memory: both operands, twice when double
            buffered, and the accumulators.
        cycles: The model's estimate for the whole product on all cores.
    """

    tile_m: int
    tile_n: int
    tile_k: int
    bytes: float
    cycles: float

    def __str__(self) -> str:
        return (
            f"{self.tile_m} x {self.tile_n} x {self.tile_k}: "
            f"{self.bytes / 1024:.1f} KiB, {self.cycles:,.0f} cycles"
        )


def mapping_options(op: MatmulOp, machine: Machine) -> list[Mapping]:
    """All tile sizes that fit the core's memory, best first."""
    density = _density(op, machine)
    found = [
        mapping
        for tile_k in _halvings(op.k, 64)
        for tile_m in _steps(op.m, machine.engine.column_step)
        for tile_n in _row_tiles(op, machine)
        if (mapping := _price(op, machine, density, (tile_m, tile_n, tile_k))) is not None
    ]
    return sorted(found, key=lambda m: (m.cycles, -m.tile_k, -m.tile_m, -m.tile_n))


def choose_mapping(op: MatmulOp, machine: Machine) -> Mapping:
    """The best option.

    Raises:
        TargetError: When not even the smallest tile fits.
    """
    key = (op.m, op.n, op.k, op.copies, round(_density(op, machine), 2))
    if key not in machine.mappings:
        options = mapping_options(op, machine)
        if not options:
            raise _too_small(op, machine)
        machine.mappings[key] = options[0]
    return machine.mappings[key]


def _too_small(op: MatmulOp, machine: Machine) -> TargetError:
    smallest = (1, min(op.n, machine.engine.row_step), min(op.k, 64))
    needed = sum(_footprint(machine, _density(op, machine), smallest))
    level = machine.architecture.innermost("weights")
    return TargetError(
        f"the smallest tile, {smallest[0]} x {smallest[1]} x {smallest[2]}, needs "
        f"{needed:,.0f} bytes; a core has {machine.per_core(level):,.0f} in {level.name!r}",
        who="accelerator",
        where=op.name,
        hint=f"give {machine.architecture.name!r} a larger {level.name!r}, or smaller rows at once",
    )


def _density(op: MatmulOp, machine: Machine) -> float:
    if op.nonzero is None:
        return 1.0
    return max(int(np.count_nonzero(op.nonzero)) / op.nonzero.size, 1e-3)


def _halvings(size: int, least: int) -> list[int]:
    found = [size]
    while found[-1] // 2 >= least and len(found) < 12:
        found.append(ceil_div(found[-1], 2))
    return found


def _steps(size: int, step: int) -> list[int]:
    """Whole numbers of steps, halved again and again, cut to the size."""
    return sorted({min(size, step * n) for n in _halvings(ceil_div(size, step), 1)}, reverse=True)


def _row_tiles(op: MatmulOp, machine: Machine) -> list[int]:
    step = machine.engine.row_step
    per_core = ceil_div(ceil_div(op.n, step), machine.cores) * step
    return sorted({*_steps(op.n, step), min(op.n, per_core)}, reverse=True)


def _footprint(
    machine: Machine, density: float, tile: tuple[int, int, int]
) -> tuple[float, float, float]:
    tile_m, tile_n, tile_k = tile
    arch = machine.architecture
    copies = [
        2 if arch.innermost(operand).double_buffered else 1
        for operand in ("weights", "activations")
    ]
    stored = min(density * 1.25, 1.0) + 0.05
    return (
        tile_n * tile_k * machine.value_bytes * stored * copies[0],
        tile_m * tile_k * machine.value_bytes * copies[1],
        tile_m * tile_n * _ACCUMULATOR_BYTES,
    )


def _price(
    op: MatmulOp, machine: Machine, density: float, tile: tuple[int, int, int]
) -> Mapping | None:
    weights, active, accumulators = _footprint(machine, density, tile)
    near_w = machine.architecture.innermost("weights")
    near_a = machine.architecture.innermost("activations")
    if near_w is near_a:
        if weights + active + accumulators > machine.per_core(near_w):
            return None
    elif weights > machine.per_core(near_w) or active + accumulators > machine.per_core(near_a):
        return None
    tile_m, tile_n, tile_k = tile
    engine = machine.engine
    effective = density if "weight" in engine.skips else 1.0
    rows = ceil_div(tile_n, engine.row_step) * engine.row_step
    compute = tile_m * rows * tile_k * effective / engine.peak
    compute = machine.compute_cycles(1, effective == 1.0) * (
        compute + engine.overhead(tile_m, tile_n, tile_k)
    )
    moved = (tile_m + tile_n * effective) * tile_k * machine.value_bytes
    # A core sums up the tiles along k itself: only the others are shared out among the cores.
    shared = op.copies * ceil_div(op.m, tile_m) * ceil_div(op.n, tile_n)
    rounds = ceil_div(shared, machine.cores) * ceil_div(op.k, tile_k)
    cycles = rounds * max(compute, moved / machine.feed_rate)
    return Mapping(tile_m, tile_n, tile_k, weights + active + accumulators, cycles)
