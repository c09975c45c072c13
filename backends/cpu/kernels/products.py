"""The register tile that attention in fp32 is made of: some rows times some vectors, in fp32."""

from __future__ import annotations

from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.ir import Function, Value, Var, vector

__all__ = ["Tile"]


@dataclass(frozen=True)
class Tile:
    """Sums over the channels of a head that stay in registers.

    Attributes:
        f: The kernel.
        lanes: Values of one vector.
        size: Channels of a head.
    """

    f: Function
    lanes: int
    size: Value

    @property
    def rows(self) -> int:
        """Rows that are computed together."""
        return 8 if self.lanes == 16 else 4

    @property
    def floats(self) -> str:
        """LLVM type of one vector."""
        return vector(self.lanes, "float")

    def sums(
        self, row: Value, row_step: int, vectors: list[Value], vector_step: int
    ) -> list[list[Var]]:
        """sums[n][m] = sum over c of row[c][n] (broadcast) * vectors[m][c].

        Args:
            row: Channel 0 of the rows, which follow each other.
            row_step: Bytes from one channel to the next.
            vectors: Channel 0 of each vector.
            vector_step: Bytes from one channel to the next.
        """
        f, lanes = self.f, self.lanes
        zero = f.const(self.floats, 0)
        sums = [[f.var(zero) for _ in vectors] for _ in range(self.rows)]
        for channel in f.loop(0, self.size):
            values = [f.offset(v, channel * vector_step) for v in vectors]
            loaded = [f.load(self.floats, v) for v in values]
            here = f.offset(row, channel * row_step)
            for n, totals in enumerate(sums):
                weight = f.splat(f.index("float", here, n), lanes)
                for total, value in zip(totals, loaded, strict=True):
                    total.set(f.fma(value, weight, total.get()))
        return sums
