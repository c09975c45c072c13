"""The mapper: how a matrix product is cut into tiles, and which of the ways is best."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

from sparsefx.backends.accelerator.engines.base import Gemm, ceil_div
from sparsefx.backends.accelerator.hardware.architecture import Operand, Sram
from sparsefx.backends.accelerator.hardware.machine import Machine, Mapping
from sparsefx.backends.accelerator.workload.operations import MatmulOp
from sparsefx.errors import TargetError

__all__ = ["choose_mapping", "fits", "mapping_options"]

_ACCUMULATOR_BYTES = 4
_NEAR = 1.15
"""How near an estimate must be to the best for the engine to be asked."""
_TRIED = 12
"""How many of these it is asked for."""
_A_BAND = 4
"""How many densities between one and its double are told apart."""
_SAMPLED_ROWS = 256
"""How many rows the engine gets, where a tile has fewer, so that no chance row decides."""
_SAMPLED_TILES = 8
"""In how many tiles it gets them at most."""


def mapping_options(op: MatmulOp, machine: Machine, *, streamed: bool = False) -> list[Mapping]:
    """The tile sizes that fit the core's memory and look best, best first.

    All that fit are estimated from counts alone. Of those that come close to the best some are then
    priced by the engine, on their first rows with their real non-zeros.

    Args:
        op: The product.
        machine: What it runs on.
        streamed: Whether weights come from external memory while the machine runs.
    """
    fitting = [
        mapping
        for tile_k in _depths(op, machine)
        for tile_m in _steps(op.m, machine.engine.column_step)
        for tile_n in _row_tiles(op, machine)
        if (mapping := _estimate(op, machine, (tile_m, tile_n, tile_k))) is not None
    ]
    tried = _shortlist(fitting, machine)
    priced = [_priced(op, machine, mapping, streamed) for mapping in tried]
    # With many cores, small row groups let the operation behind start earlier.
    sign = 1 if machine.cores > 1 else -1
    return sorted(priced, key=lambda m: (m.cycles, -m.tile_k, -m.tile_m, sign * m.tile_n))


def _shortlist(fitting: list[Mapping], machine: Machine) -> list[Mapping]:
    """The largest of those near the best estimate; with many cores also some with few rows."""
    limit = min((mapping.cycles for mapping in fitting), default=0.0) * _NEAR
    near = [mapping for mapping in fitting if mapping.cycles <= limit]
    found = sorted(near, key=lambda m: -m.tile_m * m.tile_n * m.tile_k)[:_TRIED]
    if machine.cores > 1:
        found += sorted(near, key=lambda m: (m.tile_n, -m.tile_m * m.tile_k))[:_TRIED]
    return list(dict.fromkeys(found))


def choose_mapping(op: MatmulOp, machine: Machine, *, streamed: bool = False) -> Mapping:
    """The best option, the same for products of one size and about one density if it fits both.

    Whether tiles fit is judged by the density of the whole weight, not of its densest part.

    Raises:
        TargetError: When not even the smallest tile fits.
    """
    density = round(_A_BAND * math.log2(max(op.density, 1e-3)))
    key = (op.m, op.n, op.k, op.copies, op.has_weights, streamed, density)
    known = machine.mappings.get(key)
    if known is None or not fits(op, machine, (known.tile_m, known.tile_n, known.tile_k)):
        options = mapping_options(op, machine, streamed=streamed)
        if not options:
            raise _too_small(op, machine)
        known = machine.mappings[key] = options[0]
    return known


def _too_small(op: MatmulOp, machine: Machine) -> TargetError:
    rows, groups = _steps(op.m, machine.engine.column_step), _row_tiles(op, machine)
    smallest = rows[-1], groups[-1], _depths(op, machine)[-1]
    needs = _needs(op, machine, smallest)
    level, needed = next((at, size) for at, size in needs if size > machine.per_core(at))
    return TargetError(
        f"the smallest tile, {smallest[0]} x {smallest[1]} x {smallest[2]}, needs "
        f"{needed:,.0f} bytes; a core has {machine.per_core(level):,.0f} in {level.name!r}",
        who="accelerator",
        where=op.name,
        hint=f"give {machine.architecture.name!r} a larger {level.name!r}, or smaller rows at once",
    )


def _halvings(size: int, least: int) -> list[int]:
    found = [size]
    while found[-1] // 2 >= least and len(found) < 12:
        found.append(ceil_div(found[-1], 2))
    return found


def _depths(op: MatmulOp, machine: Machine) -> list[int]:
    """Sizes along k, the largest first: whole steps of the engine, and not below 64."""
    step = machine.engine.k_step
    return [min(op.k, step * n) for n in _halvings(ceil_div(op.k, step), max(64 // step, 1))]


def _steps(size: int, step: int) -> list[int]:
    """Whole numbers of steps, halved again and again, cut to the size."""
    return sorted({min(size, step * n) for n in _halvings(ceil_div(size, step), 1)}, reverse=True)


def _row_tiles(op: MatmulOp, machine: Machine) -> list[int]:
    step = machine.engine.row_step
    per_core = ceil_div(ceil_div(op.n, step), machine.cores) * step
    return sorted({*_steps(op.n, step), min(op.n, per_core)}, reverse=True)


def _copies(machine: Machine, operand: Operand) -> int:
    return 2 if machine.architecture.innermost(operand).double_buffered else 1


def _stored(op: MatmulOp, machine: Machine, tile: tuple[int, int, int]) -> float:
    """Bytes of a tile's weights, by the density of the whole layer."""
    _, tile_n, tile_k = tile
    return tile_n * tile_k * machine.bytes_a_weight(op)


def _footprint(
    op: MatmulOp, machine: Machine, tile: tuple[int, int, int]
) -> tuple[float, float, float]:
    """Bytes that the weights, the activations and the sums of a tile take."""
    tile_m, tile_n, tile_k = tile
    return (
        _stored(op, machine, tile) * _copies(machine, "weights"),
        tile_m * tile_k * machine.value_bytes * _copies(machine, "activations"),
        tile_m * tile_n * _ACCUMULATOR_BYTES,
    )


def _needs(op: MatmulOp, machine: Machine, tile: tuple[int, int, int]) -> list[tuple[Sram, float]]:
    """The memories that hold a tile, with the bytes that each holds of it."""
    weights, active, accumulators = _footprint(op, machine, tile)
    near_w = machine.architecture.innermost("weights")
    near_a = machine.architecture.innermost("activations")
    if near_w is near_a:
        return [(near_w, weights + active + accumulators)]
    return [(near_w, weights), (near_a, active + accumulators)]


def fits(op: MatmulOp, machine: Machine, tile: tuple[int, int, int]) -> bool:
    """Whether the memory of a core holds a tile, `(tile_m, tile_n, tile_k)`."""
    return all(size <= machine.per_core(level) for level, size in _needs(op, machine, tile))


def _estimate(op: MatmulOp, machine: Machine, tile: tuple[int, int, int]) -> Mapping | None:
    """Estimate a mapping from its sizes and density; None where its tiles do not fit."""
    if not fits(op, machine, tile):
        return None
    tile_m, tile_n, tile_k = tile
    engine = machine.engine
    effective = op.density if "weight" in engine.skips else 1.0
    rows = ceil_div(tile_n, engine.row_step) * engine.row_step
    compute = tile_m * rows * tile_k * effective / engine.peak
    compute = machine.compute_cycles(1, effective == 1.0) * (
        compute + engine.overhead(tile_m, tile_n, tile_k)
    )
    feed = machine.feed_cycles(tile_m, tile_k, _stored(op, machine, tile))
    cycles = _rounds(op, machine, tile) * max(compute, feed)
    return Mapping(tile_m, tile_n, tile_k, sum(_footprint(op, machine, tile)), cycles)


def _rounds(op: MatmulOp, machine: Machine, tile: tuple[int, int, int]) -> int:
    """Tiles that one core computes, one after the other.

    It sums up those along k itself. Row groups are shared out, and so are the copies of a product,
    each of them whole, or else its rows of activations.
    """
    tile_m, tile_n, tile_k = tile
    groups, along_m = ceil_div(op.n, tile_n), ceil_div(op.m, tile_m)
    shared, own = (op.copies, along_m) if op.copies > 1 else (along_m, 1)
    return ceil_div(groups * shared, machine.cores) * own * ceil_div(op.k, tile_k)


def _priced(op: MatmulOp, machine: Machine, mapping: Mapping, streamed: bool) -> Mapping:
    """The mapping with the engine's own cycles, and with the transfers that they must cover."""
    tile_m, tile_n, tile_k = tile = mapping.tile_m, mapping.tile_n, mapping.tile_k
    compute = _sampled(op, machine, tile)
    stored = _stored(op, machine, tile)
    feed = machine.feed_cycles(tile_m, tile_k, stored)
    cycles = _rounds(op, machine, tile) * max(compute, feed)
    if streamed and op.has_weights and machine.architecture.outermost("weights").double_buffered:
        # The first row group is waited for, the others are loaded while one is computed.
        group = machine.dram_cycles(stored * ceil_div(op.k, tile_k))
        cycles = group + max(cycles, (ceil_div(op.n, tile_n) - 1) * group)
    return replace(mapping, cycles=cycles)


def _sampled(op: MatmulOp, machine: Machine, tile: tuple[int, int, int]) -> float:
    """Cycles of a tile by the engine: the mean of tiles from all over the rows.

    Each is run alone. Some arrays take as long for few rows as for many, so that a part of a larger
    run says nothing of a tile.
    """
    tile_m, tile_n, tile_k = tile
    whole = op.n // tile_n
    count = 1 if op.nonzero is None else min(whole, _SAMPLED_TILES, _SAMPLED_ROWS // tile_n or 1)
    total = 0.0
    for first in (index * whole // count * tile_n for index in range(count)):
        part = partial(_tile, op, first, tile)
        timing = machine.timed((op.name, "sample", first, *tile), part)
        total += machine.compute_cycles(timing.cycles, timing.macs == tile_m * tile_n * tile_k)
    return total / count


def _tile(op: MatmulOp, first: int, tile: tuple[int, int, int]) -> Gemm:
    tile_m, tile_n, tile_k = tile
    weight = None if op.nonzero is None else op.nonzero[first : first + tile_n, :tile_k]
    return Gemm(tile_m, tile_n, tile_k, weight)
