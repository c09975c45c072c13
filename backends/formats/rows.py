"""Compressed rows in blocks of columns, and dense row tiles (kernels `rows`, `dense_*`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rows", "pack_groups", "pack_rows", "pack_tiles"]


@dataclass(frozen=True)
class Rows:
    """A matrix [rows, columns] as compressed rows, one set per block of columns.

    Attributes:
        order: int32[blocks, rows], rows in the order in which they are stored.
        row_start: int32[blocks, rows + 1], first pair of non-zeros of each row in that order.
        index: uint16[n], columns; each row has an even number, filling has weight 0.
        weights: fp32[n].
    """

    order: NDArray[np.int32]
    row_start: NDArray[np.int32]
    index: NDArray[np.uint16]
    weights: NDArray[np.float32]

    def dense(self, columns: int) -> NDArray[np.float32]:
        """The matrix again."""
        result = np.zeros((self.order.shape[1], columns), np.float32)
        for order, start in zip(self.order, self.row_start, strict=True):
            owner = np.repeat(order, 2 * np.diff(start))
            part = slice(2 * start[0], 2 * start[-1])
            np.add.at(result, (owner, self.index[part]), self.weights[part])
        return result


def pack_rows(matrix: NDArray[Any], block: int, chunk: int) -> Rows:
    """Pack a matrix in blocks of columns; rows are sorted by length within chunks of rows.

    Example:
        >>> packed = pack_rows(np.array([[0, 5, 6, 7], [1, 0, 0, 0]], np.float32), 4, 2)
        >>> packed.order.tolist(), packed.row_start.tolist(), packed.index.tolist()
        ([[1, 0]], [[0, 1, 3]], [0, 0, 1, 2, 3, 3])
        >>> packed.weights.tolist()
        [1.0, 0.0, 5.0, 6.0, 7.0, 0.0]
    """
    rows, columns = matrix.shape
    if columns > 1 << 16:
        raise ValueError(f"uint16 cannot index {columns} columns")
    orders, starts, indices, weights = [], [], [], []
    total = 0
    for first in range(0, max(columns, 1), block):
        part = matrix[:, first : first + block]
        counts = np.count_nonzero(part, axis=1)
        order = np.lexsort((counts, np.arange(rows) // chunk))
        part, counts = part[order], counts[order]
        owner, column = np.nonzero(part)
        pairs = (counts + 1) // 2
        start = np.concatenate([[0], np.cumsum(pairs)])
        before = np.concatenate([[0], np.cumsum(counts)])[:-1]
        place = 2 * start[owner] + np.arange(len(owner)) - before[owner]
        # Filling points at the row's last column, which is in the cache anyway.
        index = np.zeros(2 * int(start[-1]), np.uint16)
        filled = counts > 0
        last = column[(before + counts - 1)[filled]]
        index[:] = np.repeat(last + first, 2 * pairs[filled])
        index[place] = column + first
        weight = np.zeros(len(index), np.float32)
        weight[place] = part[owner, column]
        orders.append(order)
        starts.append(total + start)
        indices.append(index)
        weights.append(weight)
        total += int(start[-1])
    return Rows(
        np.stack(orders).astype(np.int32),
        np.stack(starts).astype(np.int32),
        np.concatenate(indices),
        np.concatenate(weights),
    )


def pack_tiles(matrix: NDArray[Any], tile_rows: int) -> NDArray[np.float32]:
    """Dense fp32 [tiles][columns][tile_rows], rows filled with zeros to whole tiles."""
    rows, columns = matrix.shape
    tiles = -(-rows // tile_rows)
    padded = np.zeros((tiles * tile_rows, columns), np.float32)
    padded[:rows] = matrix
    return np.ascontiguousarray(padded.reshape(tiles, tile_rows, columns).transpose(0, 2, 1))


def pack_groups(matrix: NDArray[Any], tile_rows: int, group: int) -> NDArray[Any]:
    """Dense [tiles][column groups][tile_rows][group], filled with zeros."""
    rows, columns = matrix.shape
    tiles, groups = -(-rows // tile_rows), -(-columns // group)
    padded = np.zeros((tiles * tile_rows, groups * group), matrix.dtype)
    padded[:rows, :columns] = matrix
    shaped = padded.reshape(tiles, tile_rows, groups, group).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(shaped)
