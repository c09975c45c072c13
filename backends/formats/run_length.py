"""Run length: each value carries the count of zeros before it; long runs cost padding zeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sparsefx.backends.formats.bitstream import BitReader, BitWriter
from sparsefx.backends.formats.encoding import (
    BoolArray,
    FormatSize,
    Int8Array,
    IntArray,
    SparseFormat,
    width_of,
)

__all__ = ["RunLength", "padded_counts"]


def padded_counts(mask: BoolArray, run_bits: int) -> tuple[IntArray, IntArray]:
    """Count the entries of each line when a run of zeros is told in `run_bits` bits.

    A run of `z` zeros before a value costs `z >> run_bits` padding entries, each of which stands
    for `2**run_bits - 1` zeros and one zero value. Zeros after a line's last value cost nothing.

    Args:
        mask: `[length, lines]`, bool: the lines lie side by side.
        run_bits: Bits of a run's length.

    Returns:
        `(values, padding)`, int64 `[lines]` each.
    """
    length, lines = mask.shape
    kind = np.min_scalar_type(length)  # no count exceeds it
    values, padding, run, extra = np.zeros((4, lines), kind)
    for present, absent in zip(mask, ~mask, strict=True):
        np.right_shift(run, run_bits, out=extra)
        extra *= present
        padding += extra
        values += present
        run += 1
        run *= absent
    return values.astype(np.int64), padding.astype(np.int64)


@dataclass(frozen=True)
class RunLength(SparseFormat):
    """Column by column: a count, then `(run, value)` pairs (EIE, Han et al. 2016, section 3.2).

    `interleave` machines each hold every `interleave`-th row, so that a column is that many lines,
    each with its own runs, as in EIE's 64 PEs. A run longer than `2**run_bits - 1` is broken by a
    padding entry whose value is zero.

    >>> RunLength().measure(np.eye(4, dtype=bool)).bits
    60
    """

    name: ClassVar[str] = "run-length"
    run_bits: int = 4
    interleave: int = 1

    @property
    def limit(self) -> int:
        """The longest run of zeros that one entry expresses."""
        return (1 << self.run_bits) - 1

    def side_by_side(self, mask: BoolArray) -> BoolArray:
        """Lay out `[rows, columns]` as `[rows / interleave, interleave * columns]`."""
        rows, columns = mask.shape
        missing = -rows % self.interleave
        padded = np.pad(mask, ((0, missing), (0, 0))) if missing else mask
        return padded.reshape(-1, self.interleave * columns)

    def lines(self, matrix: Int8Array) -> tuple[Int8Array, int]:
        """Lay out `[rows, columns]` as `[columns * interleave, rows / interleave]` lines."""
        rows, columns = matrix.shape
        depth = -(-rows // self.interleave)
        padded = np.zeros((depth * self.interleave, columns), np.int8)
        padded[:rows] = matrix
        lines = padded.reshape(depth, self.interleave, columns).transpose(2, 1, 0)
        return np.ascontiguousarray(lines).reshape(-1, depth), depth

    def measure(self, mask: BoolArray) -> FormatSize:
        """Count bits: 8 + `run_bits` an entry, padding entries apart, and a count a line."""
        side_by_side = self.side_by_side(mask)
        values, padding = padded_counts(side_by_side, self.run_bits)
        nonzero, extra = int(values.sum()), int(padding.sum())
        depth, lines = side_by_side.shape
        return FormatSize(
            value_bits=self.value_width * nonzero,
            padding_bits=self.value_width * extra,
            index_bits=self.run_bits * (nonzero + extra),
            pointer_bits=lines * width_of(depth + 1),
        )

    def write(self, matrix: Int8Array, out: BitWriter) -> tuple[int, ...]:
        """Write all counts, then all runs, then all values."""
        lines, depth = self.lines(matrix)
        line, position = np.nonzero(lines)
        previous = np.empty_like(position)
        previous[1:] = position[:-1]
        first = np.ones(line.size, bool)
        first[1:] = line[1:] != line[:-1]
        previous[first] = -1
        gap = position - previous - 1
        extra = gap // (self.limit + 1)
        ends = np.cumsum(extra + 1) - 1
        total = int(ends[-1]) + 1 if ends.size else 0
        runs = np.full(total, self.limit, np.int64)
        values = np.zeros(total, np.int64)
        runs[ends] = gap - extra * (self.limit + 1)
        values[ends] = lines[line, position]
        counts = np.bincount(line, weights=extra + 1, minlength=lines.shape[0]).astype(np.int64)
        out.put(counts, width_of(depth + 1))
        out.put(runs, self.run_bits)
        out.put(values, self.value_width)
        return ()

    def read(self, source: BitReader, shape: tuple[int, int], header: tuple[int, ...]) -> Int8Array:
        """Read counts, runs and values; a position is the running sum of `run + 1` in its line."""
        rows, columns = shape
        depth = -(-rows // self.interleave)
        counts = source.take(columns * self.interleave, width_of(depth + 1))
        total = int(counts.sum())
        steps = source.take(total, self.run_bits) + 1
        values = source.take(total, self.value_width, signed=True)
        line = np.repeat(np.arange(counts.size), counts)
        running = np.cumsum(steps)
        starts = np.concatenate(([0], np.cumsum(counts)))[:-1]
        before = np.concatenate(([0], running))[starts]
        position = running - np.repeat(before, counts) - 1
        lines = np.zeros((counts.size, depth), np.int8)
        lines[line, position] = values
        matrix = lines.reshape(columns, self.interleave, depth).transpose(2, 1, 0)
        return np.ascontiguousarray(matrix.reshape(-1, columns)[:rows])
