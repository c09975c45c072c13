"""CSR or CSC with relative indices: each value carries the distance to the one before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from sparsefx.backends.formats.bitstream import BitReader, BitWriter
from sparsefx.backends.formats.encoding import (
    BoolArray,
    FormatSize,
    Int8Array,
    SparseFormat,
    width_of,
)

__all__ = ["RelativeIndex"]


@dataclass(frozen=True)
class RelativeIndex(SparseFormat):
    """Rows (`order="row"`, CSR) or columns (CSC): a pointer a line, then distances and values.

    A line starts with its absolute position; distances are wide enough for any position. For narrow
    indices with padding use `run-length`.

    >>> RelativeIndex().measure(np.eye(4, dtype=bool)).bits
    55
    """

    name: ClassVar[str] = "relative-index"
    order: Literal["row", "column"] = "row"

    def measure(self, mask: BoolArray) -> FormatSize:
        """Count bits: 8 + log2(length) a value and a pointer a line."""
        lines, length = mask.shape if self.order == "row" else mask.shape[::-1]
        nonzero = int(np.count_nonzero(mask))
        return FormatSize(
            value_bits=self.value_width * nonzero,
            index_bits=width_of(length) * nonzero,
            pointer_bits=(lines + 1) * width_of(nonzero + 1),
        )

    def write(self, matrix: Int8Array, out: BitWriter) -> tuple[int, ...]:
        """Write pointers, distances and values; the count of values goes to the header."""
        lines = matrix if self.order == "row" else matrix.T
        line, position = np.nonzero(lines)
        counts = np.bincount(line, minlength=lines.shape[0])
        pointers = np.concatenate(([0], np.cumsum(counts)))
        distance = np.diff(position, prepend=0)
        starts = pointers[:-1][counts > 0]
        distance[starts] = position[starts]
        out.put(pointers, width_of(line.size + 1))
        out.put(distance, width_of(lines.shape[1]))
        out.put(lines[line, position], self.value_width)
        return (line.size,)

    def read(self, source: BitReader, shape: tuple[int, int], header: tuple[int, ...]) -> Int8Array:
        """Read pointers, distances and values."""
        lines, length = shape if self.order == "row" else shape[::-1]
        (nonzero,) = header
        pointers = source.take(lines + 1, width_of(nonzero + 1))
        distance = source.take(nonzero, width_of(length))
        values = source.take(nonzero, self.value_width, signed=True)
        counts = np.diff(pointers)
        running = np.cumsum(distance)
        before = np.concatenate(([0], running))[pointers[:-1]]
        position = running - np.repeat(before, counts)
        matrix = np.zeros((lines, length), np.int8)
        matrix[np.repeat(np.arange(lines), counts), position] = values
        return matrix if self.order == "row" else np.ascontiguousarray(matrix.T)
