"""What the attention kernels on codes share: a head, its codes, sums and values as integers.

Query and key are uint8 codes. With q = sq (a - za), k = sk (b - zb) and k' = b - 128 as int8

    score = sq sk (sum of a k' - za sum of k') + what is the same for all keys of a query,

and softmax does not see the last part. Values become int16 with one scale per channel of a head,
weights have 4096 steps. `attention_i8` and `attention_amx` multiply these numbers in two ways that
give the same bits.

A sequence may start and end inside a panel: for q and k the scratch memory holds whole panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels.attention import CHUNK
from sparsefx.backends.cpu.kernels.attention import FIELDS as FLOAT_FIELDS
from sparsefx.backends.cpu.kernels.distances import Distances
from sparsefx.backends.cpu.kernels.place import Place
from sparsefx.backends.cpu.panel import Panel
from sparsefx.backends.cpu.vmath import maximum, polynomial

__all__ = [
    "FIELDS",
    "Head",
    "each_chunk",
    "exp_levels",
    "interleave",
    "open_head",
    "scaled",
    "start_sums",
    "values",
]

FIELDS = (*FLOAT_FIELDS, "q_zero")
"""`scale` is that of the codes' products."""

_LANES = 16
_FLOATS, _INTS = vector(_LANES, "float"), vector(_LANES, "i32")
_LEVELS = 4095.0
_MOST = 524287  # value steps * keys * _LEVELS stay below 2**31
_SIGNS = -0x7F7F7F80  # 0x80808080: flips uint8 to int8 in four bytes at once
_ONES = 0x01010101
_POWER = (1.00000008, 0.69312103, 0.24022107, 0.05592204, 0.00967604)
"""2**x for |x| <= 1/2, lowest coefficient first: fitted at Chebyshev nodes, error 4e-6."""

Sizes = Callable[[Value, Value, Value], dict[str, Value]]


@dataclass(frozen=True)
class Head:
    """One head of one sequence: where it lies, and the parts of the scratch memory.

    Attributes:
        padded: Its length rounded up to whole chunks.
        panels: Panels that it touches.
        tokens: Tokens of these panels.
        parts: Pointers; those of q and k point at the sequence, `whole_*` at the first panel.
        distances: What distances add to scores, if they do.
    """

    place: Place
    panel: Panel
    size: Value
    padded: Value
    panels: Value
    tokens: Value
    parts: dict[str, Value]
    distances: Distances | None = None

    @property
    def f(self) -> Function:
        """The function under construction."""
        return self.place.frame.f


def open_head(place: Place, isa: Isa, sizes: Sizes, *, by_distance: bool = False) -> Head:
    """Divide the scratch memory; every part starts at a cache line.

    Args:
        place: One head of one sequence.
        isa: Instruction set.
        sizes: Bytes of the parts, from the head's size, its padded length and the tokens of all
            panels that it touches; `whole_q`, `whole_k`, `v_scale` and `start` must be there.
        by_distance: Whether distances add to scores.
    """
    frame, f = place.frame, place.frame.f
    width = frame.panel.width
    size = frame.word("head_size")
    padded = (place.length + (CHUNK - 1)) // CHUNK * CHUNK
    number = place.first // width
    shift = place.first - number * width
    panels = (shift + padded + (width - 1)) // width
    tokens = panels * width
    parts, here = {}, f.i64(0)
    for name, amount in sizes(size, padded, tokens).items():
        parts[name] = f.offset(frame.job("scratch"), here)
        here = here + (amount + 63) // 64 * 64
    for name in ("q", "k"):
        parts[name] = f.offset(parts[f"whole_{name}"], shift * 4)
    near = Distances.of(place) if by_distance else None
    return Head(place, Panel(isa, 64), size, padded, panels, tokens, parts, near)


def _row(head: Head, name: str, number: Value, channel: Value) -> Value:
    """The bytes of one channel of q or k in panel `number` of the sequence."""
    f, place = head.f, head.place
    width = place.frame.panel.width
    first = place.first // width
    start = f.offset(place.starts[name], (first + number) * place.rows[name] * width)
    return f.load(vector(width, "i8"), f.offset(start, channel * width), width)


def interleave(head: Head, name: str) -> None:
    """Codes of q, or of k as int8, with four channels together; tokens in order."""
    f, panel = head.f, head.place.frame.panel
    signs = f.const(panel.ints, _SIGNS)
    for group in f.loop(0, head.size // 4):
        line = f.offset(head.parts[f"whole_{name}"], group * head.tokens * 4)
        for number in f.loop(0, head.panels):
            rows = [_row(head, name, number, group * 4 + n) for n in range(4)]
            target = f.offset(line, number * (panel.width * 4))
            for n, mixed in enumerate(panel.quads(f, rows)):
                value = f.operate("xor", mixed, signs) if name == "k" else mixed
                f.store(value, f.offset(target, n * panel.width), panel.width)


def start_sums(head: Head) -> None:
    """What the sum of each key starts with: -zero point of q * sum of its int8 codes."""
    f = head.f
    zero = f.splat(f.convert("trunc", head.place.frame.word("q_zero"), "i32"), _LANES)
    ones = f.const(_INTS, _ONES)
    for token in f.loop(0, head.padded, CHUNK):
        total = f.var(f.const(_INTS, 0))
        for group in f.loop(0, head.size // 4):
            codes = f.offset(head.parts["k"], (group * head.tokens + token) * 4)
            four = f.load(_INTS, codes, 64)
            total.set(head.panel.dot(f, total.get(), ones, four))
        start = f.const(_INTS, 0) - total.get() * zero
        f.store(start, f.offset(head.parts["start"], token * 4), 64)


def _absolute(f: Function, value: Value) -> Value:
    return f.intrinsic(f"llvm.fabs.v{_LANES}f32", value.type, value)


def values(head: Head, keep: Callable[[Value, Value, Value], None]) -> None:
    """V of this head as integers of 16 bits with one scale per channel; 0 beyond the end.

    Args:
        head: The head.
        keep: Stores 16 int32: channel, number of the first key, values.
    """
    f, place = head.f, head.place
    step = place.frame.panel.row_bytes
    number = f.constant_vector("i32", range(_LANES))
    share = f.i64(_MOST) // place.length
    steps = f.select(f.compare(share, "<", 32767), share, f.i64(32767))
    levels = f.convert("uitofp", steps, "float")
    for channel in f.loop(0, head.size):
        top = f.var(f.const(_FLOATS, 0))
        for token in f.loop(0, head.padded, CHUNK):
            value = _real(head, channel * step, token, number)
            top.set(maximum(f, _absolute(f, value), top.get()))
        largest = f.intrinsic(f"llvm.vector.reduce.fmax.v{_LANES}f32", "float", top.get())
        bounded = maximum(f, largest, f.const("float", 1e-20))
        f.store(bounded / levels, f.offset(head.parts["v_scale"], channel * 4))
        factor = f.splat(levels / bounded, _LANES)
        for token in f.loop(0, head.padded, CHUNK):
            value = _real(head, channel * step, token, number)
            keep(channel, token, head.panel.round_to_int(f, value * factor))


def _real(head: Head, row: Value, token: Value, number: Value) -> Value:
    """16 values of v from `token` on, 0 beyond the sequence."""
    f, place = head.f, head.place
    value = f.load(_FLOATS, f.offset(place.at("v", place.first + token), row), 64)
    left = f.splat(f.convert("trunc", place.length - token, "i32"), _LANES)
    return f.select(f.compare(number, "<", left), value, f.const(_FLOATS, 0))


def each_chunk(head: Head, chunk: Callable[[Value, int], None]) -> None:
    """Go through the queries 32 at a time, then 16: number of the first, vectors."""
    f = head.f
    chunks = head.padded // CHUNK
    pairs = chunks // 2
    for pair in f.loop(0, pairs):
        chunk(pair * (2 * CHUNK), 2)
    for number in f.loop(pairs * 2, chunks):
        chunk(number * CHUNK, 1)


def scaled(
    head: Head, total: Value, factor: Value, query: tuple[Value, int], key: tuple[Value, int]
) -> Value:
    """The score of an integer sum for 16 queries, with what distances and hidden keys add.

    Args:
        head: The head.
        total: int32 sums.
        factor: What a product of two codes is worth.
        query: Number of the first query, in two summands: a kernel without distances adds none.
        key: Number of the key, likewise.
    """
    f = head.f
    value = f.convert("sitofp", total, _FLOATS)
    if head.distances is None:
        return value * factor
    number = key[0] + key[1]
    bias = head.distances.bias(query[0] + query[1], number, _LANES)
    return f.fma(value, factor, bias) + head.distances.of_key(number, _LANES)


def exp_levels(head: Head, x: Value) -> Value:
    """round(4095 e**x) for x <= 0; the polynomial's error of 4e-6 is a sixtieth of a step."""
    f, panel = head.f, head.panel
    scaled = maximum(f, x * math.log2(math.e), f.const(x.type, -20.0))
    whole = panel.round_to_int(f, scaled)
    rest = scaled - f.convert("sitofp", whole, _FLOATS)
    power = polynomial(f, rest, [_LEVELS * c for c in _POWER])
    exact = f.convert("bitcast", f.convert("bitcast", power, _INTS) + (whole << 23), _FLOATS)
    return panel.round_to_int(f, exact)
