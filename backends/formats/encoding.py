"""What every sparse weight format of the accelerator back end can do: size, encode, decode."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from sparsefx.backends.formats.bitstream import BitReader, BitWriter

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Int8Array = npt.NDArray[np.int8]

__all__ = [
    "BoolArray",
    "Encoded",
    "FormatSize",
    "Int8Array",
    "IntArray",
    "SparseFormat",
    "width_of",
]


@dataclass(frozen=True)
class FormatSize:
    """Exact size of one encoded matrix, in bits.

    Attributes:
        value_bits: Bits that hold non-zero values.
        padding_bits: Value bits that hold zeros which the format forces in.
        index_bits: Bits that say where the values belong (bitmap, offsets, run lengths).
        pointer_bits: Bits that say where rows, columns or banks start, or how long they are.
    """

    value_bits: int
    padding_bits: int = 0
    index_bits: int = 0
    pointer_bits: int = 0

    @property
    def metadata_bits(self) -> int:
        """Everything that is not a non-zero value."""
        return self.padding_bits + self.index_bits + self.pointer_bits

    @property
    def bits(self) -> int:
        """Total size in bits."""
        return self.value_bits + self.metadata_bits

    @property
    def bytes(self) -> int:
        """Total size in whole bytes."""
        return (self.bits + 7) // 8

    def __add__(self, other: FormatSize) -> FormatSize:
        return FormatSize(
            self.value_bits + other.value_bits,
            self.padding_bits + other.padding_bits,
            self.index_bits + other.index_bits,
            self.pointer_bits + other.pointer_bits,
        )


@dataclass(frozen=True)
class Encoded:
    """A matrix as the bit stream that the machine would read.

    Attributes:
        stream: The packed bits, most significant bit first; its length is `size.bytes`.
        shape: `(rows, columns)` of the matrix.
        size: The exact bit counts, by use.
        header: Small numbers that the machine's descriptor carries and the stream does not
            repeat, such as the count of values in a bank.
    """

    stream: npt.NDArray[np.uint8]
    shape: tuple[int, int]
    size: FormatSize
    header: tuple[int, ...] = ()


class SparseFormat(ABC):
    """One way to store an int8 matrix `[rows, columns]` with many zeros.

    `measure(mask)` counts bits from the non-zeros alone, without the values; `encode` writes the
    stream and `decode` reads it back. The three agree: `encode(w).size == measure(w != 0)`, and
    `decode(encode(w))` equals `w`.
    """

    name: ClassVar[str]
    value_width: ClassVar[int] = 8

    @abstractmethod
    def measure(self, mask: BoolArray) -> FormatSize:
        """Count the bits of a matrix with these non-zeros (`[rows, columns]`, bool)."""

    def fits(self, mask: BoolArray) -> bool:
        """Whether the format can store these non-zeros at all."""
        return True

    def compresses(self, mask: BoolArray) -> bool:
        """Whether the format stores these non-zeros, in less than the whole matrix takes."""
        return self.fits(mask) and self.measure(mask).bits < self.value_width * mask.size

    @abstractmethod
    def write(self, matrix: Int8Array, out: BitWriter) -> tuple[int, ...]:
        """Append the encoded `matrix` to `out`; returns the header numbers."""

    @abstractmethod
    def read(self, source: BitReader, shape: tuple[int, int], header: tuple[int, ...]) -> Int8Array:
        """Rebuild the matrix from the stream."""

    def encode(self, matrix: Int8Array) -> Encoded:
        """Encode an int8 matrix `[rows, columns]`.

        Raises:
            ValueError: If the matrix is not a two-dimensional int8 array.
        """
        if matrix.dtype != np.int8 or matrix.ndim != 2:
            raise ValueError(
                f"{self.name}: expected an int8 matrix [rows, columns], "
                f"found {matrix.dtype} with shape {list(matrix.shape)}"
            )
        out = BitWriter()
        header = self.write(matrix, out)
        rows, columns = matrix.shape
        return Encoded(out.packed(), (rows, columns), self.measure(matrix != 0), header)

    def decode(self, encoded: Encoded) -> Int8Array:
        """Rebuild the matrix, int8 `[rows, columns]`, from its stream alone."""
        return self.read(BitReader(encoded.stream), encoded.shape, encoded.header)


def width_of(count: int) -> int:
    """Bits that number `count` different things; 0 when there is only one.

    >>> [width_of(n) for n in (1, 2, 4, 5, 768)]
    [0, 1, 2, 3, 10]
    """
    return max(count - 1, 0).bit_length()
