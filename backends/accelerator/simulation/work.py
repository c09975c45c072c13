"""What each operation moves, and what the cores do for it, added up while it is scheduled."""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.accelerator.engines.base import IntArray
from sparsefx.backends.accelerator.tiling.plan import TileCost

__all__ = ["Traffic", "Work"]


@dataclass
class Traffic:
    """Bytes that an operation moves between the machine and its external memory."""

    weights: float = 0.0
    metadata: float = 0.0
    activations_in: float = 0.0
    activations_out: float = 0.0

    @property
    def total(self) -> float:
        """All bytes."""
        return self.weights + self.metadata + self.activations_in + self.activations_out


@dataclass
class Work:
    """What the cores did for one product, added up: cycles, multiplications and the heat map."""

    macs: int = 0
    engine_cycles: float = 0.0
    fill: float = 0.0
    heat: IntArray | None = None

    def add(self, cost: TileCost, copies: int) -> None:
        """Add one task's work; heat maps of other shapes (a ragged last tile) are left out."""
        self.macs += cost.macs * copies
        self.engine_cycles += cost.engine_cycles * copies
        self.fill += cost.fill * copies
        if cost.load is None:
            return
        if self.heat is None:
            self.heat = cost.load * copies
        elif self.heat.shape == cost.load.shape:
            self.heat += cost.load * copies
