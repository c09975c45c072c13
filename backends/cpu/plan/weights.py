"""A linear's weights in the format its kernel reads, as the words of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparsefx.backends.cpu.codegen.memory import aligned_copy
from sparsefx.backends.cpu.kernels.rowloop import SPAN
from sparsefx.backends.cpu.kernels.rows import BLOCK, CHUNK_ROWS
from sparsefx.backends.cpu.kernels.tiles import TILE_ROWS
from sparsefx.backends.formats.amx_tiles import STRIP_ROWS, pack_amx_tiles, pack_masked_tiles
from sparsefx.backends.formats.quads import pack_blocks, pack_quads
from sparsefx.backends.formats.rows import pack_groups, pack_rows, pack_tiles

__all__ = ["DOTS", "FORMATS", "SHORT", "TILED", "Format", "Packed", "pack", "splits", "to_bf16"]

Format = Literal[
    "quads",
    "rows",
    "dense_i8",
    "dense_f32",
    "blocks",
    "dense_amx",
    "masked_amx",
    "rows_bf16",
    "dense_bf16",
    "rows_fp16",
    "dense_amx_bf16",
]
FORMATS: tuple[Format, ...] = get_args(Format)
DOTS: frozenset[Format] = frozenset(("quads", "blocks", "dense_i8"))
"""Formats whose kernels use dot products of four bytes."""
SHORT: frozenset[Format] = frozenset(("rows_bf16", "dense_bf16", "rows_fp16", "dense_amx_bf16"))
"""Formats of fp32 weights whose kernels multiply floats of 16 bits."""
_SPAN_UNITS = 12
"""Units of a row in a span, at least: with 5 a Zen 4 core took 1.05 to 1.28 times as long as in one
span, with 19 0.81 to 1.01."""
TILED: frozenset[Format] = frozenset(("dense_amx", "masked_amx"))
"""int8 formats whose kernels work on the tiles of AMX."""


@dataclass(frozen=True)
class Packed:
    """Weights of one layer.

    Attributes:
        format: Which kernel reads them.
        words: Step words that the format adds. Among them `work`, the cost of each unit that
            threads divide, and `unit`, what a unit is counted in (see `splits`).
    """

    format: Format
    words: dict[str, NDArray[Any] | int]

    @property
    def stored_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(w.nbytes for w in self.words.values() if isinstance(w, np.ndarray))


def pack(
    matrix: NDArray[Any], format: Format, zero_point: int = 0, *, signed_codes: bool = False
) -> Packed:
    """Pack a weight [rows, columns].

    Args:
        matrix: int8 (integer arithmetic) or fp32.
        format: rows and dense_f32 take both types, those of `SHORT` fp32, all others int8.
        zero_point: Zero point of the uint8 activations; it enters the start of the sums.
        signed_codes: Whether dot products read activations that are int8, less 128.
    """
    integer = matrix.dtype == np.int8
    rows, columns = matrix.shape
    words: dict[str, NDArray[Any] | int] = {"columns": columns}
    unit = 1
    if format in ("quads", "blocks"):
        words |= _units(matrix, format)
        work = (4 if format == "quads" else 2) * np.diff(words["row_start"]).sum(axis=0) + 4
    elif format in ("rows", "rows_bf16", "rows_fp16"):
        compressed = pack_rows(matrix, BLOCK, CHUNK_ROWS)
        words |= {
            "order": compressed.order,
            "row_start": compressed.row_start,
            "index": compressed.index,
            "weights": _shortened(compressed.weights, format),
            "blocks": len(compressed.row_start),
        }
        chunks = np.arange(0, rows, CHUNK_ROWS)
        work = np.add.reduceat(np.count_nonzero(matrix, axis=1) + 8, chunks)
        unit = CHUNK_ROWS
    elif format == "masked_amx":
        masked = pack_masked_tiles(matrix)
        words |= {"masks": aligned_copy(masked.masks), "starts": masked.starts}
        words |= {"weights": masked.weights}
        work = np.full(-(-rows // STRIP_ROWS), columns)
    elif format == "dense_amx":
        words["weights"] = aligned_copy(pack_amx_tiles(matrix))
        work = np.full(-(-rows // STRIP_ROWS), columns)
    elif format == "dense_i8":
        words["weights"] = pack_groups(matrix, TILE_ROWS, 4)
        work = np.full(-(-rows // TILE_ROWS), columns)
    elif format == "dense_amx_bf16":
        words["weights"] = aligned_copy(pack_amx_tiles(to_bf16(matrix).view(np.int8)))
        words["columns"] = 2 * columns
        work = np.full(-(-rows // STRIP_ROWS), columns)
    elif format == "dense_bf16":
        words["weights"] = pack_groups(to_bf16(matrix), TILE_ROWS, 2)
        work = np.full(-(-rows // TILE_ROWS), columns)
    else:
        words["weights"] = pack_tiles(matrix, TILE_ROWS)
        work = np.full(-(-rows // TILE_ROWS), columns)
    if integer:
        words["initial"] = _initial(matrix, zero_point - 128 * (signed_codes and format in DOTS))
    return Packed(format, words | {"work": work.astype(np.int64), "unit": unit})


def _units(matrix: NDArray[np.int8], format: Format) -> dict[str, NDArray[Any] | int]:
    """Quads, or blocks of four columns, of one span of columns after the other."""
    rows, columns = matrix.shape
    pack, width = (pack_quads, 1) if format == "quads" else (pack_blocks, 4)
    spans = np.count_nonzero(matrix) // (4 * _SPAN_UNITS * max(1, rows))
    spans = max(1, min(-(-columns // SPAN), spans))
    size = -(-columns // (4 * spans)) * 4
    firsts = range(0, columns, size)
    parts = [pack(matrix[:, first : first + size]) for first in firsts]
    before = np.cumsum([0, *(part.row_start[-1] for part in parts)])
    starts = [part.row_start + n for part, n in zip(parts, before, strict=False)]
    index = [part.index + n // width for part, n in zip(parts, firsts, strict=True)]
    return {
        "spans": len(parts),
        "row_start": np.stack(starts).astype(np.int32),
        "index": np.concatenate(index).astype(np.uint16),
        "weights": np.concatenate([part.weights for part in parts]),
    }


def _initial(matrix: NDArray[np.int8], zero_point: int) -> NDArray[np.int32]:
    """Where the sums of each row start, filled to whole tiles of rows."""
    rows = len(matrix)
    padded = np.zeros(-(-rows // TILE_ROWS) * TILE_ROWS, np.int32)
    padded[:rows] = -zero_point * matrix.sum(1, dtype=np.int32)
    return padded


def _shortened(weights: NDArray[np.float32], format: Format) -> NDArray[Any]:
    """Weights as the kernel of a format reads them."""
    if format == "rows_bf16":
        return to_bf16(weights)
    return weights.astype(np.float16) if format == "rows_fp16" else weights


def to_bf16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Finite fp32 as the bits of bf16, to nearest, ties to even.

    Example:
        >>> [hex(bits) for bits in to_bf16(np.array([1.0, -2.0, 1.00390625, 1.01171875]))]
        ['0x3f80', '0xc000', '0x3f80', '0x3f82']
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def splits(work: NDArray[np.int64], unit: int, rows: int, parts: int) -> NDArray[np.int64]:
    """Where the parts of a step begin and end, by equal work.

    Args:
        work: Cost of each unit.
        unit: Rows of a unit that the kernel counts in rows; 1 if it counts units.
        rows: Rows of the weight.
        parts: In how many parts.

    Returns:
        [0, end] for a thread alone, then the `parts + 1` borders.
    """
    done = np.concatenate([[0], np.cumsum(work)])
    borders = np.searchsorted(done, done[-1] * np.arange(parts + 1) / parts, side="left")
    borders[0], borders[-1] = 0, len(work)
    found = np.concatenate([[0, len(work)], borders]) * unit
    return np.asarray(np.minimum(found, rows) if unit > 1 else found, np.int64)
