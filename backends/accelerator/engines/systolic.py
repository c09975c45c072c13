"""Dense systolic array, weight, output or input stationary."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from sparsefx.backends.accelerator.engines.base import Engine, Gemm, Timing, ceil_div

__all__ = ["Systolic"]


@dataclass(frozen=True)
class Systolic(Engine):
    """An R x C array that skips nothing.

    SCALE-Sim 3.0.0, total cycles without memory stalls, for M x K by K x N:

        OS  ceil(M/R) ceil(N/C) (R + C + K - 2) - 1
        WS  ceil(K/R) ceil(N/C) (2R + C + M - 2) - 1
        IS  ceil(K/R) ceil(M/C) (2R + C + N - 2) - 1

    STONNE's output-stationary mesh: `ceil(M/R) ceil(N/C) (R + C + K + 3)` (`convention="stonne"`).
    """

    kind: ClassVar[str] = "systolic"
    rows: int = 128
    columns: int = 128
    dataflow: Literal["ws", "os", "is"] = "ws"
    convention: Literal["scalesim", "stonne"] = "scalesim"

    @property
    def peak(self) -> int:
        """R x C."""
        return self.rows * self.columns

    @property
    def row_step(self) -> int:
        """Output features side by side in the array."""
        return self.columns if self.dataflow != "is" else 1

    def fold(self, m: int, n: int, k: int) -> tuple[int, int, int]:
        """Split a dense GEMM into folds: `(down, across, streamed)`, streamed in cycles."""
        if self.dataflow == "os":
            return ceil_div(m, self.rows), ceil_div(n, self.columns), k
        if self.dataflow == "ws":
            return ceil_div(k, self.rows), ceil_div(n, self.columns), m
        return ceil_div(k, self.rows), ceil_div(m, self.columns), n

    def cycles(self, m: int, n: int, k: int) -> tuple[int, int]:
        """Closed form: `(cycles, of which fill and drain)` of a dense GEMM."""
        down, across, streamed = self.fold(m, n, k)
        skew = self.rows + self.columns + (3 if self.convention == "stonne" else -2)
        if self.dataflow != "os":
            skew += self.rows
        end = 0 if self.convention == "stonne" else 1
        folds = down * across
        return folds * (skew + streamed) - end, folds * skew - end

    def overhead(self, m: int, n: int, k: int) -> int:
        """Fill and drain of the dense tile."""
        return self.cycles(m, n, k)[1]

    def run(self, gemm: Gemm) -> Timing:
        """Time the dense GEMM; the masks change nothing."""
        cycles, fill = self.cycles(gemm.m, gemm.n, gemm.k)
        blocks = ceil_div(gemm.k, self.rows)
        load = np.full((min(self.columns, gemm.n), blocks), gemm.m, np.int64)
        return Timing(cycles, gemm.dense_macs, fill, load)
