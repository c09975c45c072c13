"""N:M: in every group of M neighbours along a row at most N values, each with its offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sparsefx.backends.formats.bitstream import BitReader, BitWriter
from sparsefx.backends.formats.encoding import (
    BoolArray,
    FormatSize,
    Int8Array,
    IntArray,
    SparseFormat,
    width_of,
)

__all__ = ["NOfM", "group_counts", "grouped"]


def grouped(mask: npt.NDArray[np.generic], group: int) -> npt.NDArray[np.generic]:
    """View `[rows, columns]` as `[rows, ceil(columns / group), group]`, filled up with zeros."""
    rows, columns = mask.shape
    count = -(-columns // group)
    if count * group == columns:
        return mask.reshape(rows, count, group)
    padded = np.zeros((rows, count * group), mask.dtype)
    padded[:, :columns] = mask
    return padded.reshape(rows, count, group)


def group_counts(mask: BoolArray, group: int) -> IntArray:
    """Count the non-zeros of every `group` neighbours along a row, int64 `[rows, groups]`.

    >>> group_counts(np.array([[True, True, False, True, True]]), 4).tolist()
    [[3, 1]]
    """
    rows, columns = mask.shape
    if group % 8 or columns % group:
        counts: IntArray = np.count_nonzero(grouped(mask, group), axis=2)
        return counts
    packed = np.packbits(mask, axis=1)
    wide = packed.view(np.uint64) if group % 64 == 0 else packed
    ones = np.bitwise_count(wide).astype(np.int64).reshape(rows, columns // group, -1)
    total: IntArray = ones.sum(axis=2) if ones.shape[2] > 1 else ones[:, :, 0]
    return total


@dataclass(frozen=True)
class NOfM(SparseFormat):
    """`n` slots for each group of `m`: 8 bits of value and log2(m) of offset a slot.

    >>> NOfM(2, 4).measure(np.tile([True, False, True, False], (2, 1))).bits
    40
    """

    name: ClassVar[str] = "n-of-m"
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise ValueError(f"n-of-m: 0 < n <= m is needed, found {self.n}:{self.m}")

    def fullest(self, mask: BoolArray) -> int:
        """The count of values in the fullest group."""
        return int(group_counts(mask, self.m).max(initial=0))

    def fits(self, mask: BoolArray) -> bool:
        """Whether no group holds more than `n` values."""
        return self.fullest(mask) <= self.n

    def slots(self, mask: BoolArray) -> int:
        """How many slots a group gets: `n`.

        Raises:
            ValueError: If some group holds more values.
        """
        most = self.fullest(mask)
        if most > self.n:
            raise ValueError(
                f"{self.name}: a group of {self.m} holds {most} values, {self.n} are allowed; "
                "prune to the pattern first or choose another format"
            )
        return self.n

    def measure(self, mask: BoolArray) -> FormatSize:
        """Count bits: all slots, used or not."""
        slots = self.slots(mask)
        rows, groups = mask.shape[0], -(-mask.shape[1] // self.m)
        nonzero = int(np.count_nonzero(mask))
        total = rows * groups * slots
        return FormatSize(
            value_bits=self.value_width * nonzero,
            padding_bits=self.value_width * (total - nonzero),
            index_bits=width_of(self.m) * total,
        )

    def write(self, matrix: Int8Array, out: BitWriter) -> tuple[int, ...]:
        """Write all offsets, then all values; unused slots point at a zero of their group."""
        slots = self.slots(matrix != 0)
        groups = grouped(matrix, self.m)
        offsets: IntArray = np.argsort(groups == 0, axis=2, kind="stable")[:, :, :slots]
        out.put(offsets, width_of(self.m))
        out.put(np.take_along_axis(groups, offsets, axis=2).astype(np.int8), self.value_width)
        return (slots,)

    def read(self, source: BitReader, shape: tuple[int, int], header: tuple[int, ...]) -> Int8Array:
        """Scatter the values of each group to their offsets."""
        rows, columns = shape
        (slots,) = header
        groups = -(-columns // self.m)
        count = rows * groups * slots
        offsets = source.take(count, width_of(self.m)).reshape(rows, groups, slots)
        values = source.take(count, self.value_width, signed=True).astype(np.int8)
        matrix = np.zeros((rows, groups, self.m), np.int8)
        np.put_along_axis(matrix, offsets, values.reshape(rows, groups, slots), axis=2)
        return np.ascontiguousarray(matrix.reshape(rows, -1)[:, :columns])
