"""Which format a layer's weights get: modelled cycles per panel of 64 tokens.

The rates are cycles of one core (Zen 4, 512-bit vectors in two halves) for one unit of work:

    quads      8.9 per quad, measured (8 unpacks and 4 dot products share three ports: 8 at best)
    rows       8 per non-zero, measured (4 multiply-adds: 4 at best)
    dense_i8   25 per tile of 6 rows and group of 4 channels: 24 dot products, not measured
    dense_f32  25 per tile of 6 rows and channel: 24 multiply-adds, not measured

plus an assumed cost per row for the epilogue and the mispredicted end of its loop. Nothing is
calibrated on the machine that runs: on another core the order of two close formats may differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.weights import Format

__all__ = ["Choice", "choose_format"]

_ROW = 30.0
_QUAD, _GROUP, _NONZERO, _CHANNEL = 8.9, 25.0, 8.0, 25.0
_TILE_ROWS = 6


@dataclass(frozen=True)
class Choice:
    """The formats that a layer could have.

    Attributes:
        format: The cheapest.
        cycles: Modelled cycles per panel of 64 tokens, for each candidate.
        density: Non-zeros over all weights.
        break_even: Density above which visiting every weight is cheaper, at most 1.
    """

    format: Format
    cycles: dict[Format, float]
    density: float
    break_even: float

    @property
    def reason(self) -> str:
        """Why, in one sentence."""
        other = min((c for f, c in self.cycles.items() if f != self.format), default=0.0)
        gain = other / self.cycles[self.format]
        if not self.format.startswith("dense"):
            return f"{gain:.1f}x cheaper than visiting every weight"
        sparsity, needed = 1 - self.density, 1 - self.break_even
        if sparsity <= needed:
            return f"zeros do not pay: {sparsity:.1%} of the weights are zero, {needed:.1%} needed"
        return "zeros do not pay: its rows have too few non-zeros to fill dot products of four"


def choose_format(matrix: NDArray[Any], isa: Isa) -> Choice:
    """The cheapest format for a weight [rows, columns], int8 or fp32."""
    rows, columns = matrix.shape
    counts = np.count_nonzero(matrix, axis=1)
    fixed = _ROW * rows
    tiles = -(-rows // _TILE_ROWS)
    sparse: Format
    dense: Format
    if matrix.dtype == np.int8 and isa.has_dot:
        sparse, dense = "quads", "dense_i8"
        visited = _QUAD * float(((counts + 3) // 4).sum())
        every = _QUAD * rows * (columns / 4)
        tiled = _GROUP * tiles * -(-columns // 4)
    else:
        sparse, dense = "rows", "dense_f32"
        visited = _NONZERO * float(counts.sum())
        every = _NONZERO * float(rows * columns)
        tiled = _CHANNEL * tiles * columns
    cycles = {sparse: fixed + visited, dense: fixed + tiled}
    density = float(counts.sum()) / max(1, matrix.size)
    break_even = min(1.0, tiled / max(every, 1.0))
    return Choice(min(cycles, key=lambda f: cycles[f]), cycles, density, break_even)
