"""Attention in int8 products, for models whose queries, keys and values are quantized.

Query and key come as the uint8 codes of their quantizers, so that the scores are the exact integers
of the model. With q = sq (a - za), k = sk (b - zb) and k' = b - 128 as int8

    score = sq sk (sum of a k' - za sum of k') + what is the same for all keys of a query,

and softmax does not see the last part. These products take four channels at once (`vpdpbusd`).

Values, which the model does not quantize, and softmax weights become int16, two keys at once
(`vpdpwssd`): weights lie in 0..1 with their maximum at 1 and have 4096 steps, and their sum is
taken after rounding, so that they still add up to 1; values have one scale per channel of a head
and as many steps as int32 sums over all keys allow (32767 up to 15 keys, 4095 for 128, 1023 for
512).
With uint8 weights and int8 values 0.5 to 0.7 % of the classes of a trained sparse int8 model were
others than with fp32 products (`cpu{attention='fp32'}`): a small change of a value moves the
codes of later layers.

    q, k     [channels / 4] [tokens] [4]      score[key][query] += q vector . broadcast of 4 k
    weights  [keys / 2] [queries] [2]         context[c][query] += weights vector . broadcast of 2 v
    v        [channels] [keys]

A sequence may start and end inside a panel: for q and k the scratch memory holds whole panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sparsefx.backends.cpu.frame import open_frame
from sparsefx.backends.cpu.ir import Function, Value, vector
from sparsefx.backends.cpu.isa import Isa
from sparsefx.backends.cpu.kernels import distances
from sparsefx.backends.cpu.kernels.attention import CHUNK, Place
from sparsefx.backends.cpu.kernels.attention import FIELDS as FLOAT_FIELDS
from sparsefx.backends.cpu.kernels.distances import Distances
from sparsefx.backends.cpu.panel import Panel
from sparsefx.backends.cpu.vmath import maximum, polynomial

__all__ = [
    "FIELDS",
    "Head",
    "each_chunk",
    "emit",
    "exp_levels",
    "fields",
    "interleave",
    "open_head",
    "scaled",
    "scratch_bytes",
    "start_sums",
    "symbol",
    "values",
]

FIELDS = (*FLOAT_FIELDS, "q_zero")
"""`scale` is that of the codes' products."""

_LANES = 16
_FLOATS, _INTS = vector(_LANES, "float"), vector(_LANES, "i32")
_BLOCK = 8
_LEVELS = 4095.0
_MOST = 524287  # value steps * keys * _LEVELS stay below 2**31
_SIGNS = -0x7F7F7F80  # 0x80808080: flips uint8 to int8 in four bytes at once
_ONES = 0x01010101
_POWER = (1.00000008, 0.69312103, 0.24022107, 0.05592204, 0.00967604)
"""2**x for |x| <= 1/2, lowest coefficient first: fitted at Chebyshev nodes, error 4e-6."""


Sizes = Callable[[Value, Value, Value], dict[str, Value]]


def fields(*, by_distance: bool) -> tuple[str, ...]:
    """Words of the step."""
    return (*FIELDS, *distances.FIELDS) if by_distance else FIELDS


def symbol(isa: Isa, width: int, *, by_distance: bool = False) -> str:
    """Name of the kernel."""
    return f"attention_i8_{'by_distance_' if by_distance else ''}{isa.name}_w{width}"


def scratch_bytes(longest: int, head_size: int) -> int:
    """Scratch memory of a part for sequences of up to `longest` tokens."""
    tokens = -(-longest // CHUNK) * CHUNK + 128  # whole panels of up to 64
    return (10 * head_size + 200) * tokens + 4 * head_size + 1024


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


def emit(isa: Isa, width: int, *, by_distance: bool = False) -> Function:
    """The kernel for one instruction set with `vpdpbusd` and 512-bit vectors."""
    name = symbol(isa, width, by_distance=by_distance)
    frame = open_frame(name, Panel(isa, width), fields(by_distance=by_distance))
    for place in Place.each(frame, items={"q": 1, "k": 1}):
        head = open_head(place, isa, by_distance=by_distance)
        interleave(head, "q")
        interleave(head, "k")
        start_sums(head)
        values(head, partial(_keep, head))
        each_chunk(head, partial(_chunk, head))
    return frame.f


def _sizes(size: Value, padded: Value, tokens: Value) -> dict[str, Value]:
    """Bytes of the parts of the scratch memory."""
    return {
        "whole_q": size * tokens,
        "whole_k": size * tokens,
        "v": size * padded * 2,
        "v_scale": size * 4,
        "start": padded * 4,
        "scores": padded * 128,
        "weights": padded * 64,
    }


def open_head(place: Place, isa: Isa, sizes: Sizes = _sizes, *, by_distance: bool = False) -> Head:
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


def _keep(head: Head, channel: Value, token: Value, whole: Value) -> None:
    f = head.f
    small = f.convert("trunc", whole, vector(_LANES, "i16"))
    target = f.offset(head.parts["v"], (channel * head.padded + token) * 2)
    f.store(small, target, 2 * CHUNK)


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


def _chunk(head: Head, query: Value, vectors: int) -> None:
    """Attention of 16 or 32 queries from number `query` of the sequence."""
    f = head.f
    _scores(head, query, vectors)
    filling = f.const(_FLOATS, -1e30)
    for key in f.loop(head.place.length, (head.place.length + 1) // 2 * 2):
        for n in range(vectors):
            f.store(filling, _score(head, key, vectors, n), 64)
    sums = _softmax(head, vectors)
    _context(head, query, sums)


def _score(head: Head, key: Value, vectors: int, number: int) -> Value:
    return head.f.offset(head.parts["scores"], key * (64 * vectors) + 64 * number)


def _scores(head: Head, query: Value, vectors: int) -> None:
    """Scores of all keys as fp32, already scaled."""
    f, panel = head.f, head.panel
    factor = f.splat(head.place.frame.number("scale"), _LANES)
    line = head.tokens * 4
    for key in f.loop(0, head.padded, _BLOCK):
        starts = f.offset(head.parts["start"], key * 4)
        sums = []
        for n in range(_BLOCK):
            seed = f.splat(f.index("i32", starts, n), _LANES)
            sums.append([f.var(seed) for _ in range(vectors)])
        for group in f.loop(0, head.size // 4):
            queries = f.offset(head.parts["q"], group * line + query * 4)
            values = [f.load(_INTS, f.offset(queries, 64 * n), 64) for n in range(vectors)]
            keys = f.offset(head.parts["k"], group * line + key * 4)
            for n, row in enumerate(sums):
                weight = f.splat(f.index("i32", keys, n), _LANES)
                for total, value in zip(row, values, strict=True):
                    total.set(panel.dot(f, total.get(), value, weight))
        for n, row in enumerate(sums):
            for m, total in enumerate(row):
                score = scaled(head, total.get(), factor, (query, m * CHUNK), (key, n))
                f.store(score, _score(head, key + n, vectors, m), 64)


def scaled(
    head: Head, total: Value, factor: Value, query: tuple[Value, int], key: tuple[Value, int]
) -> Value:
    """The score of an integer sum for 16 queries, with what distances and hidden keys add.

    Args:
        head: The head.
        total: int32 sums.
        factor: What a product of two codes is worth.
        query: Number of the first query, as a sum.
        key: Number of the key, as a sum.
    """
    f = head.f
    value = f.convert("sitofp", total, _FLOATS)
    if head.distances is None:
        return value * factor
    number = key[0] + key[1]
    bias = head.distances.bias(query[0] + query[1], number, _LANES)
    return f.fma(value, factor, bias) + head.distances.of_key(number, _LANES)


def _softmax(head: Head, vectors: int) -> list[Value]:
    """Scores to int16 weights, two keys together; gives the sums of the rounded weights."""
    f = head.f
    tops = [f.var(f.const(_FLOATS, -3e38)) for _ in range(vectors)]
    for key in f.loop(0, head.place.length):
        for n, top in enumerate(tops):
            top.set(maximum(f, f.load(_FLOATS, _score(head, key, vectors, n), 64), top.get()))
    sums = [f.var(f.const(_INTS, 0)) for _ in range(vectors)]
    for group in f.loop(0, (head.place.length + 1) // 2):
        for n in range(vectors):
            two = []
            for m in range(2):
                score = f.load(_FLOATS, _score(head, group * 2 + m, vectors, n), 64)
                two.append(exp_levels(head, score - tops[n].get()))
                sums[n].set(sums[n].get() + two[-1])
            target = f.offset(head.parts["weights"], group * (64 * vectors) + 64 * n)
            f.store(two[0] | (two[1] << 16), target, 64)
    return [f.convert("sitofp", s.get(), _FLOATS) for s in sums]


def exp_levels(head: Head, x: Value) -> Value:
    """round(4095 e**x) for x <= 0; the polynomial's error of 4e-6 is a sixtieth of a step."""
    f, panel = head.f, head.panel
    scaled = maximum(f, x * math.log2(math.e), f.const(x.type, -20.0))
    whole = panel.round_to_int(f, scaled)
    rest = scaled - f.convert("sitofp", whole, _FLOATS)
    power = polynomial(f, rest, [_LEVELS * c for c in _POWER])
    exact = f.convert("bitcast", f.convert("bitcast", power, _INTS) + (whole << 23), _FLOATS)
    return panel.round_to_int(f, exact)


def _context(head: Head, query: Value, sums: list[Value]) -> None:
    """context[channel][query] = weights . v, back to fp32."""
    f = head.f
    one = f.const(_FLOATS, 1.0)
    factors = [one / s for s in sums]
    place = head.place
    targets = [place.at("output", place.first + query + n * CHUNK) for n in range(len(sums))]
    whole = head.size // _BLOCK * _BLOCK
    for channel in f.loop(0, whole, _BLOCK):
        _channels(head, targets, factors, channel, _BLOCK)
    for channel in f.loop(whole, head.size):
        _channels(head, targets, factors, channel, 1)


def _channels(
    head: Head, targets: list[Value], factors: list[Value], channel: Value, count: int
) -> None:
    f, panel = head.f, head.panel
    vectors = len(targets)
    sums = [[f.var(f.const(_INTS, 0)) for _ in range(vectors)] for _ in range(count)]
    rows = [f.offset(head.parts["v"], (channel + n) * head.padded * 2) for n in range(count)]
    for group in f.loop(0, (head.place.length + 1) // 2):
        line = f.offset(head.parts["weights"], group * (64 * vectors))
        weights = [f.load(_INTS, f.offset(line, 64 * n), 64) for n in range(vectors)]
        for row, totals in zip(rows, sums, strict=True):
            two = f.splat(f.load("i32", f.offset(row, group * 4)), _LANES)
            for total, weight in zip(totals, weights, strict=True):
                total.set(panel.dot_words(f, total.get(), weight, two))
    step = head.place.frame.panel.row_bytes
    for n, totals in enumerate(sums):
        scale = f.splat(f.load("float", f.offset(head.parts["v_scale"], (channel + n) * 4)), _LANES)
        for target, total, factor in zip(targets, totals, factors, strict=True):
            value = f.convert("sitofp", total.get(), _FLOATS) * (scale * factor)
            f.store(value, f.offset(target, (channel + n) * step), 64)
