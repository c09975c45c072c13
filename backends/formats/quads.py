"""The non-zeros of each row of an int8 matrix, four by four.

Quads hold any four (kernel `cpu/kernels/quads`), blocks four neighbours (`cpu/kernels/blocks`).

row 3:  0 0 5 0 0 0 -2 0 7 0 1 ... 4   ->   index (2 6 8 10) (15 2 2 2)
                                            weights (5 -2 7 1) (4 0 0 0)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blocks", "Quads", "aligned_words", "pack_blocks", "pack_quads"]


@dataclass(frozen=True)
class Quads:
    """An int8 matrix [rows, columns] as quads.

    Attributes:
        row_start: int32[rows + 1], first quad of each row.
        index: uint16[quads, 4], columns.
        weights: int8[quads, 4]; filling has weight 0.
    """

    row_start: NDArray[np.int32]
    index: NDArray[np.uint16]
    weights: NDArray[np.int8]

    def dense(self, columns: int) -> NDArray[np.int8]:
        """The matrix again."""
        rows = len(self.row_start) - 1
        result = np.zeros((rows, columns), np.int32)
        owner = np.repeat(np.arange(rows), np.diff(self.row_start))
        np.add.at(result, (owner[:, None], self.index), self.weights)
        return result.astype(np.int8)


def pack_quads(matrix: NDArray[np.int8]) -> Quads:
    """Pack a matrix.

    Raises:
        ValueError: if it has more than 65536 columns.

    Example:
        >>> packed = pack_quads(np.array([[0, 5, 0, 0, 0], [1, 2, 0, 3, 4]], np.int8))
        >>> packed.row_start.tolist(), packed.index.tolist(), packed.weights.tolist()
        ([0, 1, 2], [[1, 1, 1, 1], [0, 1, 3, 4]], [[5, 0, 0, 0], [1, 2, 3, 4]])
    """
    rows, columns = matrix.shape
    if columns > 1 << 16:
        raise ValueError(f"uint16 cannot index {columns} columns")
    alive = matrix != 0
    counts = np.count_nonzero(alive, axis=1)
    # One dimension of truth values is searched several times faster than two of numbers.
    flat = np.flatnonzero(alive)
    column = (flat - np.repeat(np.arange(rows) * columns, counts)).astype(np.uint16)
    quads = (counts + 3) // 4
    row_start = np.concatenate([[0], np.cumsum(quads)]).astype(np.int32)
    first = np.cumsum(counts) - counts
    # Where each non-zero goes: its rank within its row, behind the quads of the rows before.
    place = np.arange(len(column)) + np.repeat(4 * row_start[:-1] - first, counts)
    index = np.zeros(4 * int(row_start[-1]), np.uint16)
    weights = np.zeros(4 * int(row_start[-1]), np.int8)
    # Filling points at the row's first column, which is in the cache anyway.
    filled = quads > 0
    index[:] = np.repeat(column[first[filled]], 4 * quads[filled])
    index[place] = column
    weights[place] = matrix.reshape(-1)[flat]
    return Quads(row_start, index.reshape(-1, 4), weights.reshape(-1, 4))


@dataclass(frozen=True)
class Blocks:
    """An int8 matrix [rows, columns] as aligned groups of four columns.

    Attributes:
        row_start: int32[rows + 1], first block of each row.
        index: uint16[blocks], column / 4.
        weights: int8[blocks, 4].
    """

    row_start: NDArray[np.int32]
    index: NDArray[np.uint16]
    weights: NDArray[np.int8]


def aligned_words(matrix: NDArray[np.int8]) -> NDArray[np.uint32]:
    """Each aligned group of four columns as one word, [rows, columns / 4 rounded up].

    A word is zero exactly when its four weights are, and one comparison tells.
    """
    padded = np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % 4)))
    return np.ascontiguousarray(padded).view(np.uint32)


def pack_blocks(matrix: NDArray[np.int8]) -> Blocks:
    """Pack a matrix; columns are filled with zeros to a multiple of four.

    Example:
        >>> packed = pack_blocks(np.array([[0, 0, 0, 0, 1, 2], [3, 0, 0, 4, 0, 0]], np.int8))
        >>> packed.row_start.tolist(), packed.index.tolist(), packed.weights.tolist()
        ([0, 1, 2], [1, 0], [[1, 2, 0, 0], [3, 0, 0, 4]])
    """
    rows, columns = matrix.shape
    if columns > 1 << 18:
        raise ValueError(f"uint16 cannot index blocks of {columns} columns")
    words = aligned_words(matrix)
    owner, column = np.nonzero(words)
    counts = np.bincount(owner, minlength=rows)
    row_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    weights = words[owner, column].view(np.int8).reshape(-1, 4)
    return Blocks(row_start, column.astype(np.uint16), weights)
