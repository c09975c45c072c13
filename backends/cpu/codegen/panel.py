"""How activations lie in memory, and the vectors that kernels move over them.

Tokens are vector lanes. A *slab* of T tokens is cut into *panels* of W tokens (W = 16, 32 or 64),
each panel holds one row per channel:

    fp32   [T / W] [channels] [W]        4 W bytes a row, tokens in order
    uint8  [T / W] [channels] [W]          W bytes a row, tokens in *pack order*
    bf16   [T / W] [channels] [W]        2 W bytes a row, tokens in the order that pairs undo
    fp16   [T / W] [channels] [W]        2 W bytes a row, tokens in order

Lanes are tokens, therefore a weight is a scalar that is broadcast, a layer norm needs no shuffles,
and zero weights are simply never visited.

Pack order exists only where the instruction set has `vpdpbusd`. There four rows of bytes are
interleaved by two levels of `vpunpck` into vectors of 4 bytes per token, and the result is packed
back to bytes by `vpackssdw`, `vpackuswb`. All of these work inside 128-bit lanes. Byte
`16 l + 4 j + i` of a row holds token `(W/4) j + 4 l + i`: then accumulator `j`, lane `l`,
element `i` are tokens in order, and fp32 rows need no permutation at all.

On Arm, 16 bytes of four rows are interleaved into vectors of four tokens, in order. Where only
signed bytes have a dot product, the rows hold codes less 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsefx.backends.cpu.codegen.arm_dots import arm_dot
from sparsefx.backends.cpu.codegen.ir import Function, Value, lane_count, lane_type, vector
from sparsefx.backends.cpu.machine.isa import Isa
from sparsefx.backends.formats.amx_tiles import TILE_COLUMNS

__all__ = ["WIDTHS", "Panel", "interleaved_rows", "paired_rows", "widest"]

WIDTHS = (64, 32, 16)
"""Panel widths in tokens, widest first."""

_LANE_BYTES = 16
"""Unpacks work within as many bytes."""
_SIGN = -128
_CONVERT = {4: "sse2.cvtps2dq", 8: "avx.cvt.ps2dq.256", 16: "avx512.mask.cvtps2dq.512"}
_PACK = {4: ("sse2", ".128"), 8: ("avx2", ""), 16: ("avx512", ".512")}


def widest(isa: Isa) -> int:
    """The panel width for many tokens.

    64 with `vpdpbusd` (bytes fill a vector), else 32: then 192 channels of a panel fill three
    quarters of a 32 KB cache, and none of its sets twice as much as another. On Arm, 32 tokens of
    bytes take two registers, and their sums eight of 32.
    """
    return 64 if isa.has_pack_order else 32


def interleaved_rows(columns: int, isa: Isa) -> int:
    """Channels of the interleaved layout: filled to whole groups of four, or to whole tiles."""
    whole = TILE_COLUMNS if isa.has_tiles else 4
    return -(-columns // whole) * whole


def paired_rows(columns: int) -> int:
    """Channels of bf16 interleaved by two: filled to whole tiles."""
    whole = TILE_COLUMNS // 2
    return -(-columns // whole) * whole


@dataclass(frozen=True)
class Panel:
    """The vectors of one panel row for one instruction set.

    Args:
        isa: Instruction set.
        width: Tokens per panel.
    """

    isa: Isa
    width: int

    @property
    def lanes(self) -> int:
        """Tokens in one vector of fp32 or int32."""
        return self.width // 4 if self.isa.has_pack_order else min(self.isa.lanes, self.width)

    @property
    def vectors(self) -> int:
        """Vectors in one fp32 row; always four where bytes have a pack order."""
        return self.width // self.lanes

    @property
    def row_bytes(self) -> int:
        """Bytes of one fp32 row."""
        return self.width * 4

    @property
    def floats(self) -> str:
        """LLVM type of one fp32 vector."""
        return vector(self.lanes, "float")

    @property
    def ints(self) -> str:
        """LLVM type of one int32 vector."""
        return vector(self.lanes, "i32")

    def load(
        self, f: Function, pointer: Value, type_: str = "", count: int | None = None
    ) -> list[Value]:
        """The vectors (or the first `count`) of a row of fp32, or of a type of the same size."""
        step = self.lanes * 4
        return [
            f.load(type_ or self.floats, f.offset(pointer, n * step), step)
            for n in range(self.vectors if count is None else count)
        ]

    def store(self, f: Function, pointer: Value, values: Sequence[Value]) -> None:
        """Store the vectors of a 4-byte row."""
        step = self.lanes * 4
        for n, value in enumerate(values):
            f.store(value, f.offset(pointer, n * step), step)

    def store_bytes(self, f: Function, pointer: Value, values: Sequence[Value]) -> None:
        """Store int32 vectors as uint8, saturated to 0..255; pack order needs the whole row."""
        packed = (self._pack if self.isa.has_pack_order else self._narrow)(f, values)
        if self.isa.signed_codes:
            packed = f.operate("xor", packed, f.const(packed.type, _SIGN))
        f.store(packed, pointer, self.lanes * len(values))

    def load_bytes(self, f: Function, pointer: Value, count: int) -> Value:
        """The uint8 codes of `count` tokens."""
        codes = f.load(vector(count, "i8"), pointer, count)
        if self.isa.signed_codes:
            return f.operate("xor", codes, f.const(codes.type, _SIGN))
        return codes

    def wide_bytes(self, f: Function, values: Sequence[Value]) -> Value:
        """int32 vectors of a row as bytes, saturated to 0..255, repeated to fill 64 bytes."""
        packed = self._pack(f, values)
        return f.shuffle(packed, packed, [n % self.width for n in range(64)])

    def round_to_int(self, f: Function, value: Value) -> Value:
        """fp32 to int32, to nearest, ties to even."""
        if not self.isa.is_x86:
            rounded = f.intrinsic(f"llvm.rint.v{self.lanes}f32", value.type, value)
            return f.convert("fptosi", rounded, self.ints)
        name = f"llvm.x86.{_CONVERT[self.lanes]}"
        if self.lanes < 16:
            return f.intrinsic(name, self.ints, value)
        zero, every = f.const(self.ints, 0), f.const("i16", -1)
        return f.intrinsic(name, self.ints, value, zero, every, f.const("i32", 4), immediate=3)

    def quads(self, f: Function, rows: Sequence[Value]) -> list[Value]:
        """Interleave four rows of codes: vector j holds 4 bytes for each of its tokens.

        rows a b c d -> vpunpck{l,h}bw: ab, ab', cd, cd' -> vpunpck{l,h}wd: abcd x 4
        On Arm these are zip1, zip2, of 16 bytes of each row after the other.
        """
        size = lane_count(rows[0].type)
        if self.isa.has_pack_order or size == _LANE_BYTES:
            return self._quads(f, rows)
        sections = [range(n, n + _LANE_BYTES) for n in range(0, size, _LANE_BYTES)]
        cut = [[f.shuffle(row, row, section) for row in rows] for section in sections]
        return [mixed for section in cut for mixed in self._quads(f, section)]

    def _quads(self, f: Function, rows: Sequence[Value]) -> list[Value]:
        low, high = (
            [self._unpack(f, rows[n], rows[n + 1], 1, half) for n in (0, 2)] for half in (0, 1)
        )
        words = vector(lane_count(rows[0].type) // 2, "i16")
        result = []
        for pair in (low, high):
            first, second = (f.convert("bitcast", value, words) for value in pair)
            for half in (0, 1):
                mixed = self._unpack(f, first, second, 2, half)
                result.append(f.convert("bitcast", mixed, self.ints))
        return result

    def dot(self, f: Function, total: Value, activations: Value, weights: Value) -> Value:
        """`total + sum of 4 (code x int8)` per lane: `vpdpbusd`, `sdot` or `usdot`."""
        if not self.isa.has_pack_order:
            return arm_dot(f, self.isa, total, activations, weights)
        bits = self.lanes * 32
        name = f"llvm.x86.avx512.vpdpbusd.{bits}"
        return f.intrinsic(name, self.ints, total, activations, weights)

    def load_short(self, f: Function, pointer: Value) -> list[Value]:
        """The two vectors of a row of 16-bit values."""
        size, type_ = self.width, vector(self.width // 2, "i16")
        return [f.load(type_, f.offset(pointer, n * size), size) for n in range(2)]

    def store_bf16(self, f: Function, pointer: Value, values: Sequence[Value]) -> None:
        """Store an fp32 row as bf16; the middle halves of 16 bytes are exchanged for `pairs`."""
        lanes, short = self.lanes, vector(2 * self.lanes, "bfloat")
        order = [h * lanes + 4 * n + i for n in range(lanes // 4) for h in (0, 1) for i in range(4)]
        for n in range(2):
            small = f.convert("fptrunc", join(f, *values[2 * n : 2 * n + 2]), short)
            f.store(f.shuffle(small, small, order), f.offset(pointer, n * self.width), self.width)

    def store_fp16(self, f: Function, pointer: Value, values: Sequence[Value]) -> None:
        """Store an fp32 row as fp16."""
        short = vector(2 * self.lanes, "half")
        for n in range(2):
            small = f.convert("fptrunc", join(f, *values[2 * n : 2 * n + 2]), short)
            f.store(small, f.offset(pointer, n * self.width), self.width)

    def pairs(self, f: Function, a: Sequence[Value], b: Sequence[Value]) -> list[Value]:
        """Interleave two bf16 rows: vector j holds the two values of each of its tokens."""
        return [
            self._unpack(f, x, y, 2, half) for x, y in zip(a, b, strict=True) for half in (0, 1)
        ]

    def dot_bf16(self, f: Function, total: Value, a: Value, b: Value) -> Value:
        """`total + sum of 2 (bf16 x bf16)` per lane, in fp32: `vdpbf16ps`."""
        short = vector(2 * self.lanes, "bfloat")
        name = f"llvm.x86.avx512bf16.dpbf16ps.{self.lanes * 32}"
        two = [f.convert("bitcast", value, short) for value in (a, b)]
        return f.intrinsic(name, self.floats, total, *two)

    def fma_fp16(self, f: Function, a: Value, b: Value, total: Value) -> Value:
        """`total + a * b` in fp16: `vfmadd` of `ph`. A model rounds twice, to fp32 and to fp16."""
        if not self.isa.is_model:
            return f.fma(a, b, total)
        wide = vector(lane_count(a.type), "float")
        one, two, three = (f.convert("fpext", value, wide) for value in (a, b, total))
        return f.convert("fptrunc", f.fma(one, two, three), a.type)

    def _unpack(self, f: Function, a: Value, b: Value, size: int, half: int) -> Value:
        """`vpunpckl*` (half 0) or `vpunpckh*` (half 1) of elements of `size` bytes."""
        per_lane = _LANE_BYTES // size
        total = lane_count(a.type)
        order: list[int] = []
        for lane in range(total // per_lane):
            start = lane * per_lane + half * per_lane // 2
            for n in range(per_lane // 2):
                order += [start + n, total + start + n]
        return f.shuffle(a, b, order)

    def _pack(self, f: Function, values: Sequence[Value]) -> Value:
        level, suffix = _PACK[self.lanes]
        words, octets = vector(self.lanes * 2, "i16"), vector(self.lanes * 4, "i8")
        signed = f"llvm.x86.{level}.packssdw{suffix}"
        pairs = [f.intrinsic(signed, words, values[n], values[n + 1]) for n in range(0, 4, 2)]
        return f.intrinsic(f"llvm.x86.{level}.packuswb{suffix}", octets, *pairs)

    def _narrow(self, f: Function, values: Sequence[Value]) -> Value:
        octets = vector(self.lanes, "i8")
        zero, top = f.const(self.ints, 0), f.const(self.ints, 255)
        small = [f.convert("trunc", clamp(f, value, zero, top), octets) for value in values]
        while len(small) > 1:
            small = [join(f, small[n], small[n + 1]) for n in range(0, len(small), 2)]
        return small[0]


def clamp(f: Function, value: Value, low: Value, high: Value) -> Value:
    """`value` limited to `low`..`high`, lane by lane."""
    raised = f.select(f.compare(value, ">", low), value, low)
    return f.select(f.compare(raised, "<", high), raised, high)


def join(f: Function, a: Value, b: Value) -> Value:
    """The concatenation of two vectors of one type."""
    lanes = int(a.type[1:].split(" x ")[0])
    assert lane_type(a.type) == lane_type(b.type)
    return f.shuffle(a, b, range(2 * lanes))
