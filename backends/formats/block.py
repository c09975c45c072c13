"""Block: dense blocks of values, a bitmap of the blocks that hold any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.formats.bitstream import BitReader, BitWriter
from sparsefx.backends.formats.encoding import (
    BoolArray,
    FormatSize,
    Int8Array,
    SparseFormat,
)

__all__ = ["Block"]


@dataclass(frozen=True)
class Block(SparseFormat):
    """One bit a block of `height x width`, then the blocks with non-zeros, dense.

    >>> Block(2, 2).measure(np.eye(4, dtype=bool)).bits
    68
    """

    name: ClassVar[str] = "block"
    height: int = 1
    width: int = 16

    def blocks(self, matrix: Int8Array) -> Int8Array:
        """View the matrix, filled up with zeros, as `[down, across, height, width]`."""
        rows, columns = matrix.shape
        down, across = -(-rows // self.height), -(-columns // self.width)
        padded = np.zeros((down * self.height, across * self.width), np.int8)
        padded[:rows, :columns] = matrix
        return padded.reshape(down, self.height, across, self.width).transpose(0, 2, 1, 3)

    def measure(self, mask: BoolArray) -> FormatSize:
        """Count bits: 1 a block, and 8 an element of a used block."""
        blocks = self.blocks(mask.astype(np.int8))
        used = int(blocks.any(axis=(2, 3)).sum())
        nonzero = int(np.count_nonzero(mask))
        stored = used * self.height * self.width
        return FormatSize(
            value_bits=self.value_width * nonzero,
            padding_bits=self.value_width * (stored - nonzero),
            index_bits=blocks.shape[0] * blocks.shape[1],
        )

    def write(self, matrix: Int8Array, out: BitWriter) -> tuple[int, ...]:
        """Write the bitmap of blocks, then the used blocks."""
        blocks = self.blocks(matrix)
        used: BoolArray = np.any(blocks != 0, axis=(2, 3))
        out.put_bits(used)
        out.put(blocks[used], self.value_width)
        return ()

    def read(self, source: BitReader, shape: tuple[int, int], header: tuple[int, ...]) -> Int8Array:
        """Read the bitmap and put the blocks back."""
        rows, columns = shape
        down, across = -(-rows // self.height), -(-columns // self.width)
        used = source.take_bits(down * across).reshape(down, across).astype(bool)
        count = int(used.sum()) * self.height * self.width
        blocks = np.zeros((down, across, self.height, self.width), np.int8)
        values = source.take(count, self.value_width, signed=True).astype(np.int8)
        blocks[used] = values.reshape(-1, self.height, self.width)
        matrix = blocks.transpose(0, 2, 1, 3).reshape(down * self.height, -1)
        return np.ascontiguousarray(matrix[:rows, :columns])
