"""Bitmap: one bit an element, then the non-zero values in row order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.formats.bitstream import BitReader, BitWriter
from sparsefx.backends.formats.encoding import BoolArray, FormatSize, Int8Array, SparseFormat

__all__ = ["Bitmap"]


@dataclass(frozen=True)
class Bitmap(SparseFormat):
    """`rows * columns` bits of map and 8 bits a non-zero (SIGMA, DSTC).

    >>> Bitmap().measure(np.eye(4, dtype=bool)).bits
    48
    """

    name: ClassVar[str] = "bitmap"

    def measure(self, mask: BoolArray) -> FormatSize:
        """Count bits: 1 an element and 8 a non-zero."""
        return FormatSize(self.value_width * int(np.count_nonzero(mask)), index_bits=mask.size)

    def write(self, matrix: Int8Array, out: BitWriter) -> tuple[int, ...]:
        """Write the map, then the values."""
        mask = matrix != 0
        out.put_bits(mask)
        out.put(matrix[mask], self.value_width)
        return ()

    def read(self, source: BitReader, shape: tuple[int, int], header: tuple[int, ...]) -> Int8Array:
        """Read the map, then as many values as it has ones."""
        mask = source.take_bits(shape[0] * shape[1]).reshape(shape).astype(bool)
        matrix = np.zeros(shape, np.int8)
        matrix[mask] = source.take(int(mask.sum()), self.value_width, signed=True)
        return matrix
