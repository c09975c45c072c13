"""int8 weights in tiles of 16 rows x 64 columns, as AMX loads them.

Tiles lie row of tiles by row of tiles, each 1 KB without gaps; rows are filled with zeros to a
multiple of 32 (two rows of tiles, a strip) and columns to one of 64. Dense tiles hold every weight
(kernel `cpu/kernels/dense_amx`), masked tiles the non-zeros alone (`cpu/kernels/masked_amx`):

    tile row  0 0 5 0 0 -2 ...   ->   mask, bit c set where column c is not zero;  values 5 -2 ...
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "STRIP_ROWS",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "MaskedTiles",
    "pack_amx_tiles",
    "pack_masked_tiles",
]

TILE_ROWS = 16
TILE_COLUMNS = 64
STRIP_ROWS = 2 * TILE_ROWS
"""Rows that a kernel works on at once."""

_VECTOR = 64


@dataclass(frozen=True)
class MaskedTiles:
    """An int8 matrix as bit masks and non-zeros.

    Attributes:
        masks: uint64 [rows of tiles, tiles of a row, 16], one for each row of a tile.
        starts: uint32 [rows of tiles, tiles of a row], first value of each tile.
        weights: int8 [n], the non-zeros in the order of the bits, then 64 zeros.
    """

    masks: NDArray[np.uint64]
    starts: NDArray[np.uint32]
    weights: NDArray[np.int8]

    def tiles(self) -> NDArray[np.int8]:
        """What `pack_amx_tiles` makes of the same matrix."""
        octets = self.masks.astype("<u8").view(np.uint8).reshape(-1, TILE_COLUMNS // 8)
        bits = np.unpackbits(octets, axis=1, bitorder="little").astype(np.bool_)
        found = np.zeros(bits.shape, np.int8)
        found[bits] = self.weights[: int(bits.sum())]
        return found.reshape(*self.masks.shape, TILE_COLUMNS)


def pack_amx_tiles(matrix: NDArray[np.int8]) -> NDArray[np.int8]:
    """Dense int8 [rows of tiles, tiles of a row, 16, 64], an even number of rows of tiles.

    Example:
        >>> pack_amx_tiles(np.ones((33, 65), np.int8)).shape
        (4, 2, 16, 64)
    """
    rows, columns = matrix.shape
    padded = np.pad(matrix, ((0, -rows % STRIP_ROWS), (0, -columns % TILE_COLUMNS)))
    shaped = padded.reshape(-1, TILE_ROWS, padded.shape[1] // TILE_COLUMNS, TILE_COLUMNS)
    return np.ascontiguousarray(shaped.transpose(0, 2, 1, 3))


def pack_masked_tiles(matrix: NDArray[np.int8]) -> MaskedTiles:
    """Pack a matrix.

    Raises:
        ValueError: if it has more than 2**32 non-zeros.

    Example:
        >>> packed = pack_masked_tiles(np.array([[0, 5, 0, -2], [0, 0, 0, 7]], np.int8))
        >>> packed.masks.ravel()[:3].tolist(), packed.weights[:4].tolist()
        ([10, 8, 0], [5, -2, 7, 0])
    """
    tiles = pack_amx_tiles(matrix)
    bits = tiles != 0
    counts = bits.sum((2, 3), dtype=np.int64)
    starts = np.cumsum(counts.reshape(-1)) - counts.reshape(-1)
    if int(counts.sum()) >= 1 << 32:
        raise ValueError(f"uint32 cannot index {int(counts.sum())} non-zeros")
    masks = np.packbits(bits, axis=-1, bitorder="little").view("<u8")[..., 0]
    return MaskedTiles(
        np.ascontiguousarray(masks.astype(np.uint64)),
        starts.astype(np.uint32).reshape(counts.shape),
        np.concatenate([tiles[bits], np.zeros(_VECTOR, np.int8)]),
    )
