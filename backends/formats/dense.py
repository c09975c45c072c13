"""Dense: every element stored, no metadata."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.formats.bitstream import BitReader, BitWriter
from sparsefx.backends.formats.encoding import BoolArray, FormatSize, Int8Array, SparseFormat

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(SparseFormat):
    """8 bits an element.

    >>> Dense().measure(np.eye(4, dtype=bool)).bits
    128
    """

    name: ClassVar[str] = "dense"

    def measure(self, mask: BoolArray) -> FormatSize:
        """Count bits: 8 an element; the zeros among them are padding."""
        nonzero = int(np.count_nonzero(mask))
        return FormatSize(
            self.value_width * nonzero, padding_bits=self.value_width * (mask.size - nonzero)
        )

    def write(self, matrix: Int8Array, out: BitWriter) -> tuple[int, ...]:
        """Write all values in row order."""
        out.put(matrix, self.value_width)
        return ()

    def read(self, source: BitReader, shape: tuple[int, int], header: tuple[int, ...]) -> Int8Array:
        """Read all values."""
        values = source.take(shape[0] * shape[1], self.value_width, signed=True)
        return values.astype(np.int8).reshape(shape)
