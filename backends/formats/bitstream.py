"""Bit streams of fixed-width fields, written and read whole arrays at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["BitReader", "BitWriter"]


class BitWriter:
    """Collects fields, most significant bit first.

    >>> out = BitWriter()
    >>> out.put(np.array([1, 2, 3]), 4)
    >>> out.bits, out.packed().tolist()
    (12, [18, 48])
    """

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.uint8]] = []
        self.bits = 0

    def put(self, fields: npt.NDArray[np.integer], width: int) -> None:
        """Append each of `fields` with `width` bits (two's complement for negative numbers)."""
        if width == 0 or fields.size == 0:
            return
        if width == 8:
            self.put_bits(np.unpackbits(fields.reshape(-1).astype(np.int64).astype(np.uint8)))
            return
        flat = fields.reshape(-1).astype(np.int64) & ((1 << width) - 1)
        shifts = np.arange(width - 1, -1, -1, dtype=np.int64)
        self.put_bits(((flat[:, None] >> shifts) & 1).astype(np.uint8))

    def put_bits(self, bits: npt.NDArray[np.uint8] | npt.NDArray[np.bool_]) -> None:
        """Append single bits, given as 0/1 or bool in any shape."""
        flat = bits.reshape(-1).astype(np.uint8)
        self._parts.append(flat)
        self.bits += flat.size

    def packed(self) -> npt.NDArray[np.uint8]:
        """All bits so far, eight to a byte, the last byte filled up with zeros."""
        if not self._parts:
            return np.zeros(0, np.uint8)
        return np.packbits(np.concatenate(self._parts))


class BitReader:
    """Reads back what a `BitWriter` wrote.

    >>> out = BitWriter()
    >>> out.put(np.array([-5, 7]), 8)
    >>> BitReader(out.packed()).take(2, 8, signed=True).tolist()
    [-5, 7]
    """

    def __init__(self, stream: npt.NDArray[np.uint8]) -> None:
        self._bits = np.unpackbits(stream)
        self._at = 0

    def take(self, count: int, width: int, *, signed: bool = False) -> npt.NDArray[np.int64]:
        """Read `count` fields of `width` bits.

        Raises:
            ValueError: If the stream ends before.
        """
        if width == 0 or count == 0:
            return np.zeros(count, np.int64)
        bits = self.take_bits(count * width).reshape(count, width)
        if width == 8:
            whole = np.packbits(bits)
            return whole.view(np.int8).astype(np.int64) if signed else whole.astype(np.int64)
        weights = 1 << np.arange(width - 1, -1, -1, dtype=np.int64)
        if signed:
            weights[0] = -weights[0]
        return bits.astype(np.int64) @ weights

    def take_bits(self, count: int) -> npt.NDArray[np.uint8]:
        """Read `count` single bits as 0/1.

        Raises:
            ValueError: If the stream ends before.
        """
        end = self._at + count
        if end > self._bits.size:
            raise ValueError(f"the stream ends at bit {self._bits.size}, {end} were asked for")
        bits = self._bits[self._at : end]
        self._at = end
        return bits
