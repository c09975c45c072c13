"""Which format a layer's weights get: modelled nanoseconds per panel of 64 tokens.

Units of work times the rates of the machine (`rates`). Where two formats come close, both are timed
on the weights themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.tiles import TILE_ROWS
from sparsefx.backends.cpu.rates import BUILT_IN, Rates
from sparsefx.backends.cpu.weights import Format
from sparsefx.backends.formats.quads import aligned_words

__all__ = ["Choice", "choose_format", "tuned"]


_CLOSE = 1.3
"""Formats whose modelled costs differ by less than this factor are timed."""

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
    def reason(self) -> str:
        """Why, in one sentence."""
        chosen = self.costs[self.format]
        dense = next(c for f, c in self.costs.items() if f.startswith("dense"))
        gain = min(c for f, c in self.costs.items() if f != self.format) / chosen
        if not self.format.startswith("dense"):
            return f"{dense / chosen:.1f}x cheaper than visiting every weight"
        sparsity, needed = 1 - self.density, 1 - self.break_even
        if sparsity <= needed:
            return f"zeros do not pay: {sparsity:.1%} of the weights are zero, {needed:.1%} needed"
        if self.timed:
            return f"zeros do not pay: visiting every weight is {gain:.2f}x faster on these weights"
        return "zeros do not pay: its rows have too few non-zeros to fill dot products of four"


def choose_format(matrix: NDArray[Any], isa: Isa, rates: Rates = BUILT_IN) -> Choice:
    """The format that the model says is cheapest for a weight [rows, columns], int8 or fp32."""
    rows, columns = matrix.shape
    counts = np.count_nonzero(matrix, axis=1)
    fixed = rates.row * rows
    tiles = -(-rows // TILE_ROWS)
    sparse: Format
    dense: Format
    others: dict[Format, float] = {}
    if matrix.dtype == np.int8 and isa.has_dot:
        sparse, dense = "quads", "dense_i8"
        aligned = int(np.count_nonzero(aligned_words(matrix)))
        others = {"blocks": fixed + rates.block * aligned}
        visited = rates.quad * float(((counts + 3) // 4).sum())
        every = rates.quad * rows * (columns / 4)
        tiled = rates.group * tiles * -(-columns // 4)
    else:
        sparse, dense = "rows", "dense_f32"
        visited = rates.nonzero * float(counts.sum())
        every = rates.nonzero * float(rows * columns)
        tiled = rates.channel * tiles * columns
    costs = {sparse: fixed + visited, **others, dense: fixed + tiled}
    density = float(counts.sum()) / max(1, matrix.size)
    break_even = min(1.0, tiled / max(every, 1e-9))
    return Choice(min(costs, key=lambda f: costs[f]), costs, density, break_even)


def tuned(choice: Choice, matrix: NDArray[Any], isa: Isa, timer: Timer) -> Choice:
    """The choice after timing those formats on the weights that the model finds close."""
    least = min(choice.costs.values())
    close = tuple(f for f, cost in choice.costs.items() if cost <= _CLOSE * least)
    if len(close) < 2:
        return choice
    costs = choice.costs | timer(matrix, close, isa)
    best = min(close, key=lambda f: costs[f])
    return replace(choice, format=best, costs=costs, timed=True)
