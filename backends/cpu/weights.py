"""A linear's weights in the format its kernel reads, as the words of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.kernels import dense_f32, dense_i8
from sparsefx.backends.cpu.kernels.rows import BLOCK, CHUNK_ROWS
from sparsefx.backends.formats.quads import pack_quads
from sparsefx.backends.formats.rows import pack_groups, pack_rows, pack_tiles

__all__ = ["FORMATS", "Format", "Packed", "pack"]

Format = Literal["quads", "rows", "dense_i8", "dense_f32"]
FORMATS: tuple[Format, ...] = ("quads", "rows", "dense_i8", "dense_f32")


@dataclass(frozen=True)
class Packed:
    """Weights of one layer.

    Attributes:
        format: Which kernel reads them.
        words: Step words that the format adds (arrays).
        work: Cost of each unit that threads divide (row, chunk or tile), for the split.
    """

    format: Format
    words: dict[str, NDArray[Any] | int]
    work: NDArray[np.int64]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(w.nbytes for w in self.words.values() if isinstance(w, np.ndarray))


def pack(matrix: NDArray[Any], format: Format, threads: int, zero_point: int = 0) -> Packed:
    """Pack a weight [rows, columns].

    Args:
        matrix: int8 (integer arithmetic) or fp32.
        format: quads and dense_i8 take int8 only.
        threads: For how many threads to split the rows.
        zero_point: Zero point of the uint8 activations; it enters the start of the sums.
    """
    integer = matrix.dtype == np.int8
    rows, columns = matrix.shape
    words: dict[str, NDArray[Any] | int] = {"columns": columns}
    unit = 1
    if format == "quads":
        packed = pack_quads(matrix)
        words |= {"row_start": packed.row_start, "index": packed.index, "weights": packed.weights}
        work = 4 * np.diff(packed.row_start) + 4
    elif format == "rows":
        compressed = pack_rows(matrix, BLOCK, CHUNK_ROWS)
        words |= {
            "order": compressed.order,
            "row_start": compressed.row_start,
            "index": compressed.index,
            "weights": compressed.weights,
            "blocks": len(compressed.row_start),
        }
        chunks = np.arange(0, rows, CHUNK_ROWS)
        work = np.add.reduceat(np.count_nonzero(matrix, axis=1) + 8, chunks)
        unit = CHUNK_ROWS
    elif format == "dense_i8":
        words["weights"] = pack_groups(matrix, dense_i8.TILE_ROWS)
        work = np.full(-(-rows // dense_i8.TILE_ROWS), columns)
    else:
        words["weights"] = pack_tiles(matrix, dense_f32.TILE_ROWS)
        work = np.full(-(-rows // dense_f32.TILE_ROWS), columns)
    if integer:
        padded = np.zeros(-(-rows // dense_i8.TILE_ROWS) * dense_i8.TILE_ROWS, np.int32)
        padded[:rows] = -zero_point * matrix.astype(np.int32).sum(1)
        words["initial"] = padded
    words["splits"] = np.minimum(_splits(work, threads) * unit, rows if unit > 1 else len(work))
    return Packed(format, words, work.astype(np.int64))


def _splits(work: NDArray[np.int64], threads: int) -> NDArray[np.int64]:
    """[0, units] for one thread, then the borders for `threads` with equal work."""
    done = np.concatenate([[0], np.cumsum(work)])
    wanted = done[-1] * np.arange(threads + 1) / threads
    borders = np.searchsorted(done, wanted, side="left")
    borders[0], borders[-1] = 0, len(work)
    return np.concatenate([[0, len(work)], borders]).astype(np.int64)
