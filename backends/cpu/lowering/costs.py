"""Which format a layer's weights get: modelled nanoseconds per panel of 64 tokens.

Units of work times the rates of the machine (`rates`). Where two formats come close, both are timed
on the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.kernels.tiles import TILE_ROWS
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.cpu.measure.rates import BUILT_IN, Rates
from sparsefx.backends.cpu.plan.weights import Format
from sparsefx.backends.formats.amx_tiles import STRIP_ROWS, TILE_COLUMNS
from sparsefx.backends.formats.amx_tiles import TILE_ROWS as AMX_ROWS
from sparsefx.backends.formats.quads import aligned_words

__all__ = ["Choice", "choose_format", "dense_cost", "tuned"]


_CLOSE = 1.3
"""Formats whose modelled costs differ by less than this factor are timed."""

_MASKED_DENSITY = 7 / 8
"""Above it a bit for each weight and a byte for each non-zero are more than a byte per weight."""

Timer = Callable[[NDArray[Any], Sequence[Format], Isa], dict[Format, float]]


@dataclass(frozen=True)
class Choice:
    """The formats that a layer could have.

    Attributes:
        format: The cheapest.
        costs: Nanoseconds of one core per panel of 64 tokens, for each candidate.
        density: Non-zeros over all weights.
        break_even: Density above which visiting every weight is cheaper by the model, at most 1.
        timed: Whether the costs were measured on the weights themselves.
    """

    format: Format
    costs: dict[Format, float]
    density: float
    break_even: float
    timed: bool = False

    @property
    def dense(self) -> float:
        """Cost of the cheapest format that visits every weight."""
        return dense_cost(self.costs)

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        chosen = self.costs[self.format]
        dense = self.dense
        gain = min(c for f, c in self.costs.items() if f != self.format) / chosen
        if self.format == "masked_amx":
            return f"{dense / chosen:.1f}x cheaper than reading every weight; all are multiplied"
        if not self.format.startswith("dense"):
            return f"{dense / chosen:.1f}x cheaper than visiting every weight"
        sparsity, needed = 1 - self.density, 1 - self.break_even
        if sparsity <= needed:
            return f"zeros do not pay: {sparsity:.1%} of the weights are zero, {needed:.1%} needed"
        if self.timed:
            return f"zeros do not pay: visiting every weight is {gain:.2f}x faster on these weights"
        return "zeros do not pay: its rows have too few non-zeros to fill dot products of four"


def dense_cost(costs: Mapping[Format, float]) -> float:
    """The least cost of a format that visits every weight."""
    return min(cost for format, cost in costs.items() if format.startswith("dense"))


def choose_format(matrix: NDArray[Any], isa: Isa, rates: Rates = BUILT_IN) -> Choice:
    """The format that the model says is cheapest for a weight [rows, columns], int8 or fp32."""
    rows, columns = matrix.shape
    counts = np.count_nonzero(matrix, axis=1)
    tiles = -(-rows // TILE_ROWS)
    work: dict[Format, float]
    if matrix.dtype == np.int8 and isa.has_dot:
        aligned = int(np.count_nonzero(aligned_words(matrix)))
        work = {
            "quads": rates.quad * float(((counts + 3) // 4).sum()),
            "blocks": rates.block * aligned,
            "dense_i8": rates.group * tiles * -(-columns // 4),
        }
        if isa.has_tiles:
            amx = _whole_tiles(rows, columns)
            work["dense_amx"] = rates.tile * amx
            if counts.sum() < _MASKED_DENSITY * matrix.size:
                work["masked_amx"] = rates.masked_tile * amx
        every = rates.quad * rows * (columns / 4)
    else:
        work, nonzero = _float_work(matrix, isa, rates)
        every = nonzero * float(rows * columns)
    costs = {format: rates.row * rows + cost for format, cost in work.items()}
    density = float(counts.sum()) / max(1, matrix.size)
    break_even = min(1.0, dense_cost(work) / max(every, 1e-9))
    return Choice(min(costs, key=lambda f: costs[f]), costs, density, break_even)


def _float_work(matrix: NDArray[Any], isa: Isa, rates: Rates) -> tuple[dict[Format, float], float]:
    """Cost of every format of floats without its rows, and the least cost of a non-zero."""
    (rows, columns), count = matrix.shape, float(np.count_nonzero(matrix))
    tiles = -(-rows // TILE_ROWS)
    short = isa.short if matrix.dtype != np.int8 else ""
    work: dict[Format, float] = {"rows": rates.nonzero * count}
    nonzero = rates.nonzero
    if short:
        work["rows_bf16" if short == "bf16" else "rows_fp16"] = rates.short_nonzero * count
        nonzero = min(nonzero, rates.short_nonzero)
    work["dense_f32"] = rates.channel * tiles * columns
    if short == "bf16":
        work["dense_bf16"] = rates.short_channel * tiles * columns
    if short == "bf16" and isa.has_tiles:
        work["dense_amx_bf16"] = rates.short_tile * _whole_tiles(rows, 2 * columns)
    return work, nonzero


def _whole_tiles(rows: int, columns: int) -> int:
    """Tiles of AMX that hold a weight: whole strips, whole rows of tiles."""
    strips = -(-rows // STRIP_ROWS)
    return strips * (STRIP_ROWS // AMX_ROWS) * -(-columns // TILE_COLUMNS)


def tuned(choice: Choice, matrix: NDArray[Any], isa: Isa, timer: Timer) -> Choice:
    """The choice after timing those formats on the weights that the model finds close."""
    least = min(choice.costs.values())
    close = tuple(f for f, cost in choice.costs.items() if cost <= _CLOSE * least)
    if len(close) < 2:
        return choice
    costs = choice.costs | timer(matrix, close, isa)
    best = min(close, key=lambda f: costs[f])
    return replace(choice, format=best, costs=costs, timed=True)
