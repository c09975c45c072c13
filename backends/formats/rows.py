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
        row_start: int32[blocks, rows + 1], first non-zero of each row of each block.
        index: uint16[non-zeros], columns.
        weights: fp32[non-zeros].
    """

    row_start: NDArray[np.int32]
    index: NDArray[np.uint16]
    weights: NDArray[np.float32]


def pack_rows(matrix: NDArray[Any], block: int) -> Rows:
    """Pack a matrix in blocks of `block` columns.

    Example:
        >>> packed = pack_rows(np.array([[0, 5, 0, 7], [1, 0, 0, 0]], np.float32), 2)
        >>> packed.row_start.tolist(), packed.index.tolist(), packed.weights.tolist()
        ([[0, 1, 2], [2, 3, 3]], [1, 0, 3], [5.0, 1.0, 7.0])
    """
    rows, columns = matrix.shape
    if columns > 1 << 16:
        raise ValueError(f"uint16 cannot index {columns} columns")
    starts, indices, weights = [], [], []
    total = 0
    for first in range(0, max(columns, 1), block):
        part = matrix[:, first : first + block]
        owner, column = np.nonzero(part)
        counts = np.bincount(owner, minlength=rows)
        starts.append(total + np.concatenate([[0], np.cumsum(counts)]))
        indices.append((column + first).astype(np.uint16))
        weights.append(part[owner, column].astype(np.float32))
        total += len(owner)
    return Rows(np.stack(starts).astype(np.int32), np.concatenate(indices), np.concatenate(weights))


def pack_tiles(matrix: NDArray[Any], tile_rows: int) -> NDArray[np.float32]:
    """Dense fp32 [tiles][columns][tile_rows], rows filled with zeros to whole tiles."""
    rows, columns = matrix.shape
    tiles = -(-rows // tile_rows)
    padded = np.zeros((tiles * tile_rows, columns), np.float32)
    padded[:rows] = matrix
    return np.ascontiguousarray(padded.reshape(tiles, tile_rows, columns).transpose(0, 2, 1))


def pack_groups(matrix: NDArray[np.int8], tile_rows: int) -> NDArray[np.int8]:
    """Dense int8 [tiles][column groups][tile_rows][4], filled with zeros."""
    rows, columns = matrix.shape
    tiles, groups = -(-rows // tile_rows), -(-columns // 4)
    padded = np.zeros((tiles * tile_rows, groups * 4), np.int8)
    padded[:rows, :columns] = matrix
    shaped = padded.reshape(tiles, tile_rows, groups, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(shaped)
